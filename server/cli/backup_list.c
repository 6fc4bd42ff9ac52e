/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists and verifies a folder's points. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "backup_folder.h"
#include "base/cleanup.h"
#include "image.h"
#include "size.h"

#define BUFFER_BYTES (1u << 20)

int backup_point_look(const struct backup_folder *folder, const struct backup_point *point,
                      struct backup_point_info *info)
{
    const struct chain_options options = {
        .format = "qcow2", .read_only = true, .no_backing = true};
    CLEANUP_FREE char *path = backup_folder_file(folder, point->name, ".qcow2");
    struct image image;

    *info = (struct backup_point_info){0};
    if (!path)
        return cli_error("out of memory");
    int code = image_open(&image, path, &options, IMAGE_NEVER_RAW);
    if (code != CLI_OK)
        return code;
    info->size = image.node->size;
    (void)!node_allocated(image.node, &info->bytes);
    const char *below = image.node->backing_name;
    if (below && !(info->below = strdup(below)))
        code = cli_error("out of memory");
    int closed = image_close(&image);
    return code == CLI_OK ? closed : code;
}

/* ---- list ---- */

/* "20260131T120000Z" in ISO 8601's extended form. */
static void format_time(const struct backup_point *point, char text[32])
{
    const char *t = strchr(point->name, '-') + 1;

    snprintf(text, 32, "%.4s-%.2s-%.2sT%.2s:%.2s:%.2sZ", t, t + 4, t + 6, t + 9, t + 11,
             t + 13);
}

static void print_point(const struct backup_point *point,
                        const struct backup_point_info *info, const char *when)
{
    char size[32], bytes[32];

    size_format(info->size, size, sizeof size);
    size_format(info->bytes, bytes, sizeof bytes);
    printf("%-24s %s  %-11s %10s %10s\n", point->name, when,
           info->below ? "incremental" : "full", size, bytes);
}

static int list_point(const struct backup_folder *folder, const struct backup_point *point,
                      json_t *list)
{
    struct backup_point_info info;
    char when[32];

    int code = backup_point_look(folder, point, &info);
    if (code != CLI_OK)
        return code;
    format_time(point, when);
    if (list)
        json_array_append_new(
            list, json_pack("{s:s,s:I,s:s,s:s,s:I,s:I}", "name", point->name, "number",
                            (json_int_t)point->number, "time", when, "type",
                            info.below ? "incremental" : "full", "virtual-size",
                            (json_int_t)info.size, "actual-size", (json_int_t)info.bytes));
    else
        print_point(point, &info, when);
    free(info.below);
    return CLI_OK;
}

int backup_list(const struct backup_folder *folder, bool json)
{
    json_t *list = json ? json_array() : NULL;
    int code = CLI_OK;

    if (!json)
        printf("%-24s %-20s  %-11s %10s %10s\n", "POINT", "TIME", "TYPE", "DISK", "FILE");
    for (size_t i = 0; code == CLI_OK && i < folder->n_points; i++)
        if (!folder->points[i].folding)
            code = list_point(folder, &folder->points[i], list);
    if (json && code == CLI_OK) {
        json_dumpf(list, stdout, JSON_INDENT(4));
        putchar('\n');
    }
    json_decref(list);
    return code;
}

/* ---- verify ---- */

static void say_finding(void *opaque, const char *text)
{
    fprintf(stderr, "%s: %s\n", (const char *)opaque, text);
}

static int check_file(const char *path)
{
    const struct storage_open how = {.read_only = true};
    struct check_options options = {.message = say_finding,
                                    .opaque = (void *)(uintptr_t)path};
    CLEANUP_STORAGE struct storage *file = NULL;
    struct check_result result = {0};
    struct diag diag = {0};

    if (storage_open_file(path, &how, &file, &diag) ||
        driver_find("qcow2")->check(file, &options, &result, &diag))
        return cli_diag(&diag);
    if (result.corruptions || result.check_errors)
        return cli_error("%s: %" PRIu64 " errors were found", path,
                         result.corruptions + result.check_errors);
    return CLI_OK;
}

/* Checks that the point is a full backup or an overlay of the point before it. */
static int check_link(const struct backup_folder *folder, size_t i,
                      const struct backup_point_info *info)
{
    CLEANUP_FREE char *wanted = NULL;

    if (!info->below)
        return CLI_OK;
    if (i > 0 && asprintf(&wanted, "%s.qcow2", folder->points[i - 1].name) < 0) {
        wanted = NULL;
        return cli_error("out of memory");
    }
    if (wanted && strcmp(wanted, info->below) == 0)
        return CLI_OK;
    return cli_error("%s/%s.qcow2: is an overlay of '%s', which isn't the point before it",
                     folder->path, folder->points[i].name, info->below);
}

/* Reads all data that the point has itself. */
static int read_layer(struct node *node)
{
    CLEANUP_FREE void *buffer = malloc(BUFFER_BYTES);
    int err = buffer ? 0 : -ENOMEM;
    uint64_t off = 0;

    while (!err && off < node->size) {
        struct block_status st;
        err = block_status(node, off, MIN(node->size - off, BUFFER_BYTES), &st);
        if (!err && st.data)
            err = block_read(node, buffer, off, st.length);
        off += err ? 0 : st.length;
    }
    return err ? cli_error("%s: at %" PRIu64 ": %s", node->filename, off, strerror(-err))
               : CLI_OK;
}

static int read_point(const char *path)
{
    const struct chain_options options = {
        .format = "qcow2", .read_only = true, .no_backing = true};
    struct image image;

    int code = image_open(&image, path, &options, IMAGE_NEVER_RAW);
    if (code != CLI_OK)
        return code;
    code = read_layer(image.node);
    int closed = image_close(&image);
    return code == CLI_OK ? closed : code;
}

static int verify_point(const struct backup_folder *folder, size_t i)
{
    CLEANUP_FREE char *path = backup_folder_file(folder, folder->points[i].name, ".qcow2");
    struct backup_point_info info;

    if (!path)
        return cli_error("out of memory");
    int code = check_file(path);
    if (code == CLI_OK)
        code = backup_point_look(folder, &folder->points[i], &info);
    if (code != CLI_OK)
        return code;
    code = check_link(folder, i, &info);
    free(info.below);
    return code == CLI_OK ? read_point(path) : code;
}

int backup_verify(const struct backup_folder *folder, bool quiet)
{
    int result = CLI_OK;

    for (size_t i = 0; i < folder->n_points; i++) {
        int code = verify_point(folder, i);
        if (code != CLI_OK)
            result = code;
        if (!quiet)
            printf("%s: %s\n", folder->points[i].name, code == CLI_OK ? "ok" : "BAD");
    }
    return result;
}
