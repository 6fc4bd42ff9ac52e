/* Flush, and the end that all changing requests share. */
#include "block/engine.h"

void engine_start_write(struct node *node, struct engine_change *change)
{
    change->ticket = gate_enter(&node->ctx->gate);
    change->changes = gate_enter(&node->ctx->changes);
    observers_before(&node->observers, &change->seen, &change->what);
}

int engine_finish_write(struct node *node, struct engine_change *change, int err,
                        bool commit)
{
    observers_after(&change->seen, &change->what, err);
    gate_leave(&node->ctx->changes, change->changes);
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

int block_flush(struct node *node)
{
    int err = node->active ? mcache_commit(node->mc, MC_COMMIT) : 0;

    if (!err)
        observers_flushed(&node->observers);
    return err;
}

bool block_make_room(struct node *node)
{
    const struct driver *driver = node->driver;

    if (!driver->has_unlinked || !driver->has_unlinked(node) ||
        mcache_commit(node->mc, MC_COMMIT) != 0)
        return false;
    gate_wait(&node->ctx->gate);
    return true;
}
