/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg restore`: makes a disk image from a point of a folder of backups. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backup_folder.h"
#include "base/cleanup.h"
#include "block/cache_mode.h"
#include "convert.h"
#include "storage/nbd_uri.h"

enum { OPT_FORCE = CLI_OWN_OPTIONS };

static const struct cli_option options[] = {
    {'O', NULL, "FMT", "the image's format; by default as its name ends, else qcow2"},
    {OPT_FORCE, "force", NULL, "write over an image, a device or an export that is there"},
    {'p', NULL, NULL, "show progress"},
    {'q', NULL, NULL, "print nothing but errors"},
    {0},
};

struct restore_args {
    const char *format;
    bool force, progress, quiet;
};

static int take_option(void *opaque, int option)
{
    struct restore_args *args = opaque;

    switch (option) {
    case 'O':
        args->format = optarg;
        break;
    case OPT_FORCE:
        args->force = true;
        break;
    case 'p':
        args->progress = true;
        break;
    default:
        args->quiet = true;
        break;
    }
    return CLI_OK;
}

/* By the usual endings of image names. */
static const char *format_by_name(const char *target)
{
    static const char *const ends[][2] = {
        {".raw", "raw"}, {".img", "raw"}, {".qed", "qed"}, {".qcow2", "qcow2"}};
    const char *dot = strrchr(target, '.');

    for (size_t i = 0; dot && i < ARRAY_LEN(ends); i++)
        if (strcmp(dot, ends[i][0]) == 0)
            return ends[i][1];
    return "qcow2";
}

/* An existing image may be in use as a disk; whether an export or a device is, can't be
 * known. */
static int check_target(const struct restore_args *args, const char *target)
{
    struct stat sb;

    if (args->force)
        return CLI_OK;
    if (nbd_uri_is_one(target))
        return cli_error("%s: is an NBD export; --force writes over it", target);
    if (stat(cli_local_name(target), &sb) != 0)
        return CLI_OK;
    if (S_ISBLK(sb.st_mode))
        return cli_error("%s: is a block device; --force writes over it", target);
    if (!S_ISREG(sb.st_mode) || sb.st_size == 0)
        return CLI_OK;
    return cli_error("%s: is there already; --force writes over it", target);
}

/* A point of a folder, for backup_folder_confirm. */
struct found_point {
    const struct backup_folder *folder;
    const struct backup_point *point;
};

static int confirm_point(void *opaque)
{
    const struct found_point *found = opaque;

    return backup_folder_confirm(found->folder, found->point);
}

static int restore_point(const struct restore_args *args, char *source,
                         struct found_point *found, const char *target)
{
    const char *format = args->format ? args->format : format_by_name(target);
    struct convert_args convert_args = {
        .source = {.format = "qcow2"},
        .sources = &source,
        .n_sources = 1,
        .target = target,
        .driver = driver_find(format),
        .sparse = 4096,
        .cache = cache_mode_find("writeback"),
        .progress = args->progress,
        .quiet = args->quiet,
        .opened = confirm_point,
        .opaque = found,
    };

    if (!convert_args.driver)
        return create_format_unknown("Unknown file format", format);
    int code = convert(&convert_args);
    options_free(&convert_args.list);
    cli_free_image(&convert_args.source);
    return code;
}

static int restore_from(const struct backup_folder *folder, const struct restore_args *args,
                        const char *word, const char *target)
{
    const struct backup_point *point = backup_folder_find(folder, word);

    if (!point)
        return cli_error("%s: there is no point '%s'; 'qimg backup --list %s' lists them",
                         folder->path, word, folder->path);
    int code = check_target(args, target);
    if (code != CLI_OK)
        return code;
    CLEANUP_FREE char *source = backup_folder_file(folder, point->name, ".qcow2");
    struct found_point found = {folder, point};
    return source ? restore_point(args, source, &found, target)
                  : cli_error("out of memory");
}

static int run_restore_command(const struct cli_command *self, int argc, char **argv)
{
    struct restore_args args = {0};
    struct backup_folder folder;

    int code = cli_take_options(self, argc, argv, take_option, &args);
    if (code != CLI_GO_ON)
        return code;
    int n = argc - optind;
    if (n != 2 && n != 3)
        return cli_usage_error("Expecting: qimg restore DIR [POINT] TARGET");
    code = backup_folder_open(&folder, argv[optind], false);
    if (code != CLI_OK)
        return code;
    code =
        restore_from(&folder, &args, n == 3 ? argv[optind + 1] : "latest", argv[argc - 1]);
    backup_folder_close(&folder);
    return code;
}

const struct cli_command restore_command = {
    .name = "restore",
    .operands = "DIR [POINT] TARGET",
    .summary = "Make an image of a point of a folder of backups.",
    .options = options,
    .run = run_restore_command,
};
