/* SPDX-License-Identifier: BSD-3-Clause */
/* Folds the oldest point into the next one.
 *
 * The clusters that the next point has are copied into the oldest file, which is then
 * renamed to the next point's name, over that file.  So no other file's backing file name
 * changes.  Until the rename the next point reads as before: only clusters that it has
 * itself are overwritten below it.  The oldest point itself is destroyed by the first copied
 * byte; a marker file says so, and that folding must be continued. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup_folder.h"
#include "base/cleanup.h"
#include "image.h"
#include "jobs/copy_range.h"

#define BUFFER_BYTES (1u << 20)

static int open_alone(struct image *image, const char *path, bool read_only)
{
    const struct chain_options options = {
        .format = "qcow2", .read_only = read_only, .no_backing = true};
    struct diag diag = {0};

    int code = image_open(image, path, &options, IMAGE_NEVER_RAW);
    if (code != CLI_OK || read_only || node_activate(image->node, &diag) == 0)
        return code;
    image_close(image);
    return cli_diag(&diag);
}

static int copy_run(const struct copy_how *how, void *buffer, uint64_t off, uint64_t len)
{
    struct copy_result result;

    copy_range(how, buffer, BUFFER_BYTES, off, len, &result);
    if (!result.err)
        return CLI_OK;
    return cli_error("%s: %s at %llu: %s",
                     result.write_side ? how->target->filename : how->source->filename,
                     result.write_side ? "writing" : "reading",
                     (unsigned long long)result.failed_at, strerror(-result.err));
}

/* Copies all clusters that the upper image has itself. */
static int copy_layer(struct node *upper, struct node *lower)
{
    const struct copy_how how = {.source = upper, .target = lower, .unmap = true};
    CLEANUP_FREE void *buffer = malloc(BUFFER_BYTES);
    int code = buffer ? CLI_OK : cli_error("out of memory");

    for (uint64_t off = 0; code == CLI_OK && off < upper->size;) {
        struct block_status st;
        int err = block_status(upper, off, upper->size - off, &st);
        if (err)
            return cli_error("%s: at %llu: %s", upper->filename, (unsigned long long)off,
                             strerror(-err));
        if (st.present)
            code = copy_run(&how, buffer, off, st.length);
        off += st.length;
    }
    return code;
}

static int mark_folding(const struct backup_folder *folder, const char *marker)
{
    CLEANUP_CLOSE int fd =
        openat(folder->fd, marker, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);

    if (fd < 0 || fsync(fd) != 0)
        return cli_error("%s/%s: %s", folder->path, marker, strerror(errno));
    return backup_folder_sync(folder);
}

/* Called while nobody else has the oldest point's file open, so that a point which is being
 * restored isn't changed.  Creates the marker before the first byte is copied. */
static int mark_and_copy(const struct backup_folder *folder, const char *marker,
                         struct node *upper, struct node *lower)
{
    if (upper->size != lower->size)
        return cli_error("%s: its size isn't that of %s", upper->filename, lower->filename);
    int code = mark_folding(folder, marker);
    return code == CLI_OK ? copy_layer(upper, lower) : code;
}

static int copy_file_into(const struct backup_folder *folder, const char *marker,
                          const char *upper_path, const char *lower_path)
{
    struct image upper, lower;

    int code = open_alone(&upper, upper_path, true);
    if (code != CLI_OK)
        return code;
    code = open_alone(&lower, lower_path, false);
    if (code == CLI_OK) {
        code = mark_and_copy(folder, marker, upper.node, lower.node);
        int closed = image_close(&lower);
        code = code == CLI_OK ? closed : code;
    }
    int closed = image_close(&upper);
    return code == CLI_OK ? closed : code;
}

static int fold_pair(const struct backup_folder *folder, const struct backup_point *oldest,
                     const struct backup_point *next)
{
    CLEANUP_FREE char *marker = NULL, *from = NULL, *to = NULL;
    CLEANUP_FREE char *lower = backup_folder_file(folder, oldest->name, ".qcow2");
    CLEANUP_FREE char *upper = backup_folder_file(folder, next->name, ".qcow2");

    if (!lower || !upper || asprintf(&marker, "%s.folding", oldest->name) < 0 ||
        asprintf(&from, "%s.qcow2", oldest->name) < 0 ||
        asprintf(&to, "%s.qcow2", next->name) < 0)
        return cli_error("out of memory");
    int code = copy_file_into(folder, marker, upper, lower);
    if (code == CLI_OK)
        code = backup_folder_rename(folder, from, to);
    if (code == CLI_OK && unlinkat(folder->fd, marker, 0) != 0)
        code = cli_error("%s/%s: %s", folder->path, marker, strerror(errno));
    return code == CLI_OK ? backup_folder_sync(folder) : code;
}

/* If the next point is a full backup, no file needs the oldest one. */
static int drop_oldest(const struct backup_folder *folder,
                       const struct backup_point *oldest)
{
    char file[POINT_NAME_MAX + 16];

    snprintf(file, sizeof file, "%s.qcow2", oldest->name);
    if (unlinkat(folder->fd, file, 0) != 0)
        return cli_error("%s/%s: %s", folder->path, file, strerror(errno));
    snprintf(file, sizeof file, "%s.folding", oldest->name);
    unlinkat(folder->fd, file, 0);
    return backup_folder_sync(folder);
}

static int fold_oldest(struct backup_folder *folder, bool quiet)
{
    const struct backup_point *oldest = &folder->points[0], *next = &folder->points[1];
    struct backup_point_info info;

    int code = backup_point_look(folder, next, &info);
    if (code != CLI_OK)
        return code;
    CLEANUP_FREE char *below = info.below;
    if (!quiet)
        printf("%s: %s\n", oldest->name, below ? "folded into the next" : "removed");
    code = below ? fold_pair(folder, oldest, next) : drop_oldest(folder, oldest);
    return code == CLI_OK ? backup_folder_list(folder) : code;
}

int backup_fold(struct backup_folder *folder, size_t keep, bool quiet)
{
    int code = CLI_OK;

    while (code == CLI_OK && folder->n_points > keep && folder->n_points > 1)
        code = fold_oldest(folder, quiet);
    return code;
}

int backup_fold_rest(struct backup_folder *folder, bool quiet)
{
    if (folder->n_points > 1 && folder->points[0].folding)
        return fold_oldest(folder, quiet);
    return CLI_OK;
}
