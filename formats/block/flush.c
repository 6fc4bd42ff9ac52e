/* SPDX-License-Identifier: BSD-3-Clause */
/* Flush, and the last step that all changing requests share. */
#include "block/engine.h"

int engine_finish_write(struct node *node, struct engine_change *change, int err,
                        bool commit)
{
    observers_after(&change->seen, &change->what, err);
    gate_leave(&node->ctx->gate, change->ticket);
    /* Also after a failure: some of it may have been written. */
    node_wrote(node);
    if (err)
        return err;
    if (commit)
        return mcache_commit(node->mc, MC_COMMIT);
    mcache_relieve(node->mc);
    return 0;
}

int block_end_void(struct node *node)
{
    const struct node_options *options = &node->options;
    const bool syncs = !options->keep_marks && !options->no_final_sync;
    int (*const end)(struct storage * st) = syncs ? storage_sync_if_void : storage_settle;

    int err = node->data_file ? end(node->data_file) : 0;
    return err ? err : end(node->file);
}

int block_settle(struct node *node)
{
    int err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);

    return err ? err : block_end_void(node);
}

int block_flush(struct node *node)
{
    int err = node->active ? mcache_commit(node->mc, MC_COMMIT) : 0;

    if (!err)
        observers_flushed(&node->observers);
    return err;
}

/* Milliseconds.  A request in flight may be waiting for a server that doesn't answer, or for
 * the caller of engine_make_room itself; neither may delay the caller for long. */
#define ROOM_WAIT_MS 2000

bool engine_make_room(struct node *node, unsigned flags)
{
    const struct driver *driver = node->driver;

    if ((flags & BLOCK_INSIDE) || !driver->has_unlinked || !driver->has_unlinked(node) ||
        mcache_commit(node->mc, MC_COMMIT) != 0)
        return false;
    return gate_wait_for(&node->ctx->gate, ROOM_WAIT_MS);
}
