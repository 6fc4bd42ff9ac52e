/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies data from lower layers into a layer while users write to it: a range for a job
 * (stream), or what a user reads (copy on read).
 *
 * With the guest range of the clusters locked, only the parts that the layer doesn't have are
 * written.  So data that a user has written is kept, and a user's write that comes now waits.
 * The contents of the disk don't change, so observers aren't told. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/no_space.h"
#include "base/zero_bytes.h"
#include "block/engine.h"

/* The requester of a copy. */
struct taker {
    bool reader;
    const struct node *base; /* a job: the layer that stays below; NULL: none */
    uint64_t copied;         /* bytes of data that were written */
};

enum need { NOTHING, ZEROES, DATA };

static bool lies_in_chain(const struct node *layer, const struct node *top)
{
    while (top && top != layer)
        top = top->backing;
    return top;
}

/* What has to be written so that the run reads as now when only `base` is below the node.  May
 * shorten the run to where the answer changes. */
static enum need need_of_run(const struct node *node, const struct node *base, uint64_t off,
                             struct block_status *st)
{
    if (st->layer == node && st->present)
        return NOTHING;
    if (st->layer != node && lies_in_chain(st->layer, base))
        return NOTHING;
    if (!st->zero)
        return DATA;
    /* Without these zeroes something of `base` would show. */
    if (!base || off >= base->size)
        return NOTHING;
    st->length = MIN(st->length, base->size - off);
    return ZEROES;
}

/* The first run of the range, and what it needs.  For a reader, who reads the bytes anyway, the
 * layers below aren't asked for their status, which may be a round trip to a server. */
static int next_run(struct node *node, const struct taker *taker, uint64_t off,
                    uint64_t len, uint64_t *run, enum need *need)
{
    if (taker->reader) {
        struct extent ext;
        int err = node->driver->map(node, off, len, &ext);
        *run = ext.length;
        *need = ext.kind == EXTENT_BACKING ? DATA : NOTHING;
        return err;
    }
    struct block_status st;
    int err = engine_status(node, off, len, &st);
    if (err)
        return err;
    *need = need_of_run(node, taker->base, off, &st);
    *run = st.length;
    return 0;
}

static int copy_up(struct node *node, struct taker *taker, void *buffer, uint64_t off,
                   uint64_t len)
{
    int err = engine_read(node, buffer, off, len);

    if (err)
        return err;
    if (taker->reader && bytes_are_zero(buffer, len) &&
        node->driver->zero_is_fast(node, off, len))
        return engine_zero_locked(node, off, len);
    taker->copied += len;
    return engine_write_locked(node, buffer, off, len);
}

/* At most ENGINE_CHUNK bytes, whose clusters the caller has locked. */
static int populate_locked(struct node *node, struct taker *taker, void *buffer,
                           uint64_t off, uint64_t end)
{
    int err = 0;

    while (!err && off < end) {
        enum need need;
        uint64_t run;
        err = next_run(node, taker, off, end - off, &run, &need);
        if (err)
            return err;
        if (need == DATA)
            err = copy_up(node, taker, buffer, off, run);
        else if (need == ZEROES)
            err = engine_zero_locked(node, off, run);
        off += run;
    }
    return err;
}

static int populate_piece(struct node *node, struct taker *taker, void *buffer,
                          uint64_t off, uint64_t end)
{
    gate_ticket ticket = gate_enter_to_change(&node->ctx->gate);
    int err = -EROFS;

    if (node->active) { /* it may have been frozen meanwhile */
        RANGE_LOCK_GUARD(&node->ranges, align_down(off, node->cluster_size),
                         align_up(end, node->cluster_size));
        err = populate_locked(node, taker, buffer, off, end);
    }
    gate_leave(&node->ctx->gate, ticket);
    node_wrote(node);
    mcache_relieve(node->mc);
    return err;
}

static int populate(struct node *node, struct taker *taker, uint64_t off, uint64_t end)
{
    CLEANUP_FREE void *buffer = NULL;
    int err = 0;

    if (posix_memalign(&buffer, 4096, ENGINE_CHUNK))
        return -ENOMEM;
    while (!err && off < end) {
        uint64_t stop = MIN(end, align_down(off, ENGINE_CHUNK) + ENGINE_CHUNK);
        err = populate_piece(node, taker, buffer, off, stop);
        if (means_no_space(err) && engine_make_room(node, 0))
            err = populate_piece(node, taker, buffer, off, stop);
        off = stop;
    }
    return err;
}

int block_populate(struct node *node, uint64_t off, uint64_t len, const struct node *base,
                   uint64_t *copied)
{
    struct taker taker = {.base = base};

    *copied = 0;
    int err = engine_admit_change(node, off, len);
    if (err || len == 0)
        return err;
    err = populate(node, &taker, off, off + len);
    *copied = taker.copied;
    return err;
}

/* Does the layer show lower layers somewhere in the range?  True also after an error. */
static bool shows_below(struct node *node, uint64_t off, uint64_t len)
{
    gate_ticket ticket = gate_enter(&node->ctx->gate);
    struct extent ext = {.kind = EXTENT_ZERO};
    int err = 0;

    for (uint64_t end = off + len; !err && off < end && ext.kind != EXTENT_BACKING;
         off += ext.length)
        err = node->driver->map(node, off, end - off, &ext);
    gate_leave(&node->ctx->gate, ticket);
    return err || ext.kind == EXTENT_BACKING;
}

/* Copies the range before it is read.  The read doesn't depend on it, so a failure is only
 * logged, once. */
static void keep(struct node *node, uint64_t off, uint64_t len)
{
    struct taker taker = {.reader = true};
    uint64_t end = MIN(align_up(off + len, node->subcluster_size), node->size);

    if (!atomic_load_explicit(&node->backing, memory_order_relaxed) ||
        engine_admit_change(node, off, len) || len == 0 || !shows_below(node, off, len))
        return;
    int err = populate(node, &taker, align_down(off, node->subcluster_size), end);
    if (err && !atomic_exchange(&node->told_not_kept, true))
        log_warning("%s: copy-on-read: %" PRIu64 " bytes at %" PRIu64 " aren't kept: %s",
                    node->filename, len, off, strerror(-err));
}

int block_read_and_keep(struct node *node, void *buf, uint64_t off, uint64_t len)
{
    keep(node, off, len);
    return block_read(node, buf, off, len);
}

int block_cache_and_keep(struct node *node, uint64_t off, uint64_t len)
{
    keep(node, off, len);
    return block_cache(node, off, len);
}
