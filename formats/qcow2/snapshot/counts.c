/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes the new refcounts, block by block. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/snapshot/change.h"

/* *out: the new refcount of a cluster, 0 when nothing will refer to it.  -ERANGE and a message if
 * it doesn't fit. */
static int new_count(struct shift *s, uint64_t cluster, uint64_t old, uint64_t *out)
{
    const struct qcow2 *q = s->q;
    uint64_t up = counts_get(&s->up, cluster), down = counts_get(&s->down, cluster);
    uint64_t max = refcount_max(q->geo.refcount_order),
             host = cluster << q->geo.cluster_bits;

    if (LIKELY(old > 0 && down <= old && up <= max - (old - down))) {
        *out = old - down + up;
        return 0;
    }
    if (old == 0 || down > old)
        return diag_set(s->diag, EIO,
                        "%s: refcount of the cluster at %" PRIu64 ": %" PRIu64
                        " is less than what refers to it: the image must be checked "
                        "(qimg check)",
                        q->node->filename, host, old);
    return diag_set(s->diag, ERANGE,
                    "%s: refcount of the cluster at %" PRIu64 ": %" PRIu64 ", with %" PRIu64
                    " more, is over %" PRIu64 ", the most that refcount_bits=%u can count",
                    q->node->filename, host, old - down, up, max,
                    1u << q->geo.refcount_order);
}

static bool changes(const struct shift *s, uint64_t cluster)
{
    return s->up.bytes[cluster] | s->down.bytes[cluster];
}

/* Handles all clusters of block b whose refcounts change.  gone NULL: only sets `single` and
 * `none`; else stores the new refcounts in the block. */
static int walk_block(struct shift *s, uint64_t b, uint8_t *raw, struct run_list *gone)
{
    struct alloc *a = &s->q->alloc;
    uint32_t order = a->refs.order;
    uint64_t first = b << a->refs.block_bits;
    uint64_t end = MIN(s->n_clusters, first + (1ull << a->refs.block_bits));

    for (uint64_t c = first; c < end; c++) {
        uint64_t count = 0;
        if (!changes(s, c))
            continue;
        int err = new_count(s, c, refcount_unpack(order, raw, c - first), &count);
        if (err)
            return err;
        if (gone)
            refcount_pack(order, raw, c - first, MAX(count, 1));
        else if (count <= 1)
            bit_set(count ? s->single : s->none, c);
        if (gone && count == 0)
            run_list_add(a, gone, (struct run){.first = c, .n = 1});
    }
    return 0;
}

static int read_block(struct shift *s, uint64_t b, uint8_t *raw)
{
    struct qcow2 *q = s->q;
    uint64_t offset = refcount_block_offset(&q->alloc.refs, b);

    if (!offset)
        return diag_set(s->diag, EIO,
                        "%s: refcount table entry %" PRIu64
                        ": no refcount block, though it counts clusters in use: the image "
                        "must be checked (qimg check)",
                        q->node->filename, b);
    int err = refcount_read_block(&q->alloc.refs, b, raw);
    return err ? diag_errno(s->diag, -err, "%s: reading the refcount block at %" PRIu64,
                            q->node->filename, offset)
               : 0;
}

int shift_judge(struct shift *s)
{
    CLEANUP_FREE uint8_t *raw = malloc(cluster_size(s->q));

    if (!raw)
        return diag_errno(s->diag, ENOMEM, "%s", s->q->node->filename);
    for (uint64_t b = 0; b < MAX_RT_BYTES / 8; b++) {
        if (!bit_test(s->blocks, b))
            continue;
        int err = read_block(s, b, raw);
        if (!err)
            err = walk_block(s, b, raw, NULL);
        if (err)
            return err;
    }
    return 0;
}

int shift_block(struct shift *s, uint64_t b, uint8_t *raw, struct run_list *gone)
{
    int err = read_block(s, b, raw);

    return err ? err : walk_block(s, b, raw, gone);
}

bool shift_flag(const struct shift *s, uint64_t host, bool present)
{
    uint64_t c = host >> s->q->geo.cluster_bits;

    return c < s->n_clusters && changes(s, c) ? bit_test(s->single, c) : present;
}

bool shift_frees(const struct shift *s, uint64_t host, uint64_t bytes)
{
    uint32_t bits = s->q->geo.cluster_bits;
    uint64_t first = host >> bits;
    uint64_t end = MIN(s->n_clusters, div_round_up(host + bytes, 1ull << bits));

    return bytes && first < end && bits_any(s->none, first, end - first);
}
