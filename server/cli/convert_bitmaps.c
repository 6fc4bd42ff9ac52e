/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies bitmaps from one image into another.  Everything that can be checked is checked
 * before the disk is copied.  The bitmaps are added after the copy, so that they don't
 * record it. */
#include "convert_bitmaps.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "bitmaps_store.h"
#include "block/dirty_bitmap.h"
#include "block/image_info.h"
#include "cli.h"

#define SECTOR 512

/* ---- a list of a node's bitmaps, since none can be added while iterating ---- */

struct bitmap_array {
    struct dirty_bitmap **at; /* NULL: only count */
    size_t n;
};

static void take_one(struct dirty_bitmap *bitmap, void *opaque)
{
    struct bitmap_array *array = opaque;

    if (array->at)
        array->at[array->n] = bitmap;
    array->n++;
}

static void free_array(struct bitmap_array *array)
{
    free(array->at);
}

#define CLEANUP_ARRAY CLEANUP(free_array)

static int list_bitmaps(struct node *node, struct bitmap_array *array)
{
    struct bitmap_array counted = {0};

    node_bitmap_each(node, take_one, &counted);
    array->at = calloc(counted.n + 1, sizeof(struct dirty_bitmap *));
    if (!array->at)
        return cli_error("out of memory");
    node_bitmap_each(node, take_one, array);
    return CLI_OK;
}

/* ---- the source ---- */

static bool can_have_bitmaps(const struct image_info *info)
{
    return info->kind == IMAGE_INFO_QCOW2 && info->qcow2.version >= 3;
}

static int check_consistent(const struct bitmap_array *bitmaps, bool skip)
{
    /* In reverse, since the list begins with the bitmap loaded last. */
    for (size_t i = bitmaps->n; i > 0; i--) {
        if (!dirty_bitmap_inconsistent(bitmaps->at[i - 1]))
            continue;
        const char *name = dirty_bitmap_name(bitmaps->at[i - 1]);
        if (!skip)
            return cli_error("Cannot copy inconsistent bitmap '%s'\n"
                             "Try --skip-broken-bitmaps, or use 'qimg bitmap --remove' to "
                             "delete it",
                             name);
        log_warning("Skipping inconsistent bitmap '%s'", name);
    }
    return CLI_OK;
}

int convert_bitmaps_load(struct node *source, bool skip)
{
    CLEANUP_IMAGE_INFO struct image_info info = {0};
    struct bitmap_array bitmaps CLEANUP_ARRAY = {0};

    node_bitmaps_load(source);
    if (image_info_read(source, IMAGE_INFO_RECORDED, &info))
        return cli_error("out of memory");
    if (!can_have_bitmaps(&info))
        return cli_error("Source lacks bitmap support");
    if (list_bitmaps(source, &bitmaps) != CLI_OK)
        return CLI_FAILED;
    if (!skip && (info.qcow2.bitmaps_lost || bitmaps.n != info.qcow2.n_bitmaps))
        return cli_error("%s: its bitmaps can't be loaded, and so not be copied; try "
                         "--skip-broken-bitmaps",
                         source->filename);
    return check_consistent(&bitmaps, skip);
}

/* ---- the target ---- */

static int check_fits(const struct dirty_bitmap *from, struct node *target)
{
    const char *name = dirty_bitmap_name(from);
    uint64_t size = dirty_bitmap_size(from);

    if (node_bitmap_find(target, name))
        return cli_error("Failed to create bitmap %s: Bitmap already exists: %s", name,
                         name);
    if (align_up(size, SECTOR) != align_up(target->size, SECTOR))
        return cli_error("Failed to populate bitmap %s: Bitmaps are of different sizes "
                         "(destination size is %" PRIu64 ", source size is %" PRIu64
                         ") and can't be merged",
                         name, target->size, size);
    return CLI_OK;
}

int convert_bitmaps_check_target(struct node *source, struct node *target)
{
    CLEANUP_IMAGE_INFO struct image_info info = {0};
    struct bitmap_array bitmaps CLEANUP_ARRAY = {0};
    int code = list_bitmaps(source, &bitmaps);

    if (code == CLI_OK && image_info_read(target, IMAGE_INFO_RECORDED, &info))
        return cli_error("out of memory");
    if (code == CLI_OK && !can_have_bitmaps(&info))
        return cli_error("Format driver '%s' does not support bitmaps",
                         target->driver->name);
    for (size_t i = 0; i < bitmaps.n && code == CLI_OK; i++)
        if (!dirty_bitmap_inconsistent(bitmaps.at[i]))
            code = check_fits(bitmaps.at[i], target);
    return code;
}

/* ---- copying ---- */

static int fill_bitmap(struct node *target, struct dirty_bitmap *to,
                       struct dirty_bitmap *from, struct diag *diag)
{
    int err = dirty_bitmap_share(from, diag);

    if (err)
        return err;
    err = node_bitmap_begin_change(target, to, diag);
    if (!err) {
        dirty_bitmap_merge(to, from);
        node_bitmap_end_change(target, to);
    }
    dirty_bitmap_unshare(from);
    return err;
}

static int copy_one(struct dirty_bitmap *from, struct node *target)
{
    const struct bitmap_params params = {
        .name = dirty_bitmap_name(from),
        .granularity = dirty_bitmap_granularity(from),
        .persistent = true,
        .disabled = !dirty_bitmap_enabled(from),
    };
    struct dirty_bitmap *copy;
    struct diag diag = {0}, ignored = {0};

    if (node_bitmap_create(target, &params, &copy, &diag))
        return cli_error("Failed to create bitmap %s: %s", params.name, diag.text);
    if (fill_bitmap(target, copy, from, &diag) == 0)
        return CLI_OK;
    (void)!node_bitmap_remove(target, params.name, &ignored);
    return cli_error("Failed to populate bitmap %s: %s", params.name, diag.text);
}

int convert_bitmaps(struct node *source, struct node *target, const char *filename)
{
    struct bitmap_array bitmaps CLEANUP_ARRAY = {0};
    int code = list_bitmaps(source, &bitmaps);

    for (size_t i = 0; i < bitmaps.n && code == CLI_OK; i++)
        if (!dirty_bitmap_inconsistent(bitmaps.at[i]))
            code = copy_one(bitmaps.at[i], target);
    return code == CLI_OK ? bitmaps_store(target, filename) : code;
}
