/* SPDX-License-Identifier: BSD-3-Clause */
/* A temporary store for a frozen point. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/frozen_point.h"
#include "block/node.h"
#include "storage/protocol.h"

/* The folder of the disk's file: its filesystem is as fast as the disk.  A block device's
 * folder (/dev) isn't suitable. */
static char *folder_of(const struct node *source)
{
    const char *other = getenv("TMPDIR"), *slash = strrchr(source->filename, '/');

    if (node_protocol(source) != &storage_protocol_file || source->file->fixed_size)
        return strdup(other && *other ? other : "/var/tmp");
    if (!slash)
        return strdup(".");
    return strndup(source->filename,
                   slash == source->filename ? 1 : (size_t)(slash - source->filename));
}

int frozen_store_open(struct node *source, struct node **out, struct diag *diag)
{
    /* The file is nameless and gone when this process ends, so it is never synced. */
    const struct node_options options = {
        .cache = cache_mode_find("volatile"), .lock_off = true, .keep_marks = true};
    CLEANUP_FREE char *folder = folder_of(source);
    struct storage *st;

    if (!folder)
        return diag_errno(diag, ENOMEM, "%s", source->filename);
    int err = storage_open_temporary(folder, source->size, &st, diag);
    if (err)
        return err;
    st->no_flush = true;
    err = node_open(source->ctx, driver_find("raw"), st, st->name, &options, out, diag);
    if (err)
        return err;
    err = node_activate(*out, diag);
    if (err)
        node_close(*out);
    return err;
}
