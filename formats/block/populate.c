/* SPDX-License-Identifier: BSD-3-Clause */
/* Taking over what lies below: a layer gets clusters of its own for what shows through it,
 * while users write to it.
 *
 * With the guest range of the clusters locked, only what the layer has nothing of is written:
 * what a user has written since is there, and one who comes now waits.  The contents don't
 * change, so no observer is told. */
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/engine.h"

enum need { NOTHING, ZEROES, DATA };

static bool lies_in_chain(const struct node *layer, const struct node *top)
{
    while (top && top != layer)
        top = top->backing;
    return top;
}

/* What has to be written so that a run reads as it does, with only `base` below.  May cut it
 * to where that changes. */
static enum need need_of_run(const struct node *node, const struct node *base, uint64_t off,
                             struct block_status *st)
{
    if (st->layer == node && st->present)
        return NOTHING;
    if (st->layer != node && lies_in_chain(st->layer, base))
        return NOTHING;
    if (!st->zero)
        return DATA;
    /* Something below the zeroes would show. */
    if (!base || off >= base->size)
        return NOTHING;
    st->length = MIN(st->length, base->size - off);
    return ZEROES;
}

static int copy_up(struct node *node, void *buffer, uint64_t off, uint64_t len)
{
    int err = engine_read(node, buffer, off, len);

    return err ? err : engine_write_locked(node, buffer, off, len);
}

/* At most ENGINE_CHUNK bytes, whose clusters are locked. */
static int populate_locked(struct node *node, void *buffer, uint64_t off, uint64_t end,
                           const struct node *base, uint64_t *copied)
{
    int err = 0;

    while (!err && off < end) {
        struct block_status st;
        err = engine_status(node, off, end - off, &st);
        if (err)
            return err;
        enum need need = need_of_run(node, base, off, &st);
        if (need == DATA) {
            err = copy_up(node, buffer, off, st.length);
            *copied += st.length;
        } else if (need == ZEROES) {
            err = engine_zero_locked(node, off, st.length);
        }
        off += st.length;
    }
    return err;
}

static int populate_piece(struct node *node, void *buffer, uint64_t off, uint64_t end,
                          const struct node *base, uint64_t *copied)
{
    gate_ticket ticket = gate_enter_to_change(&node->ctx->gate);
    int err;

    {
        RANGE_LOCK_GUARD(&node->ranges, align_down(off, node->cluster_size),
                         align_up(end, node->cluster_size));
        err = populate_locked(node, buffer, off, end, base, copied);
    }
    gate_leave(&node->ctx->gate, ticket);
    node_wrote(node);
    mcache_relieve(node->mc);
    return err;
}

int block_populate(struct node *node, uint64_t off, uint64_t len, const struct node *base,
                   uint64_t *copied)
{
    CLEANUP_FREE void *buffer = NULL;
    uint64_t end = off + len;

    *copied = 0;
    int err = engine_admit_change(node, off, len);
    if (err || len == 0)
        return err;
    if (posix_memalign(&buffer, 4096, ENGINE_CHUNK))
        return -ENOMEM;
    while (!err && off < end) {
        uint64_t stop = MIN(end, align_down(off, ENGINE_CHUNK) + ENGINE_CHUNK);
        err = populate_piece(node, buffer, off, stop, base, copied);
        if (err == -ENOSPC && engine_make_room(node, 0))
            err = populate_piece(node, buffer, off, stop, base, copied);
        off = stop;
    }
    return err;
}
