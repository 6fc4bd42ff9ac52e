/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes new refcount structures at the end of the file: the blocks, then the table.  They count
 * themselves, and the old ones as free.  They are durable before the header points to them; until
 * then the old ones remain unchanged. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"
#include "qcow2/alloc/refcount.h"

struct plan {
    uint64_t start;      /* first cluster of the area */
    uint64_t n_blocks;   /* they come first */
    uint64_t n_clusters; /* of the table, which comes next */
    uint64_t n_entries;  /* of the table that are in use */
};

static uint64_t area_end(const struct plan *plan)
{
    return plan->start + plan->n_blocks + plan->n_clusters;
}

static uint64_t new_count(const struct check *c, const struct plan *plan, uint64_t cluster)
{
    if (cluster >= plan->start && cluster < area_end(plan))
        return 1;
    return cluster <= c->in.n_clusters ? counts_get(&c->pass.refs, cluster) : 0;
}

/* Does the block cover any cluster that is in use? */
static bool block_needed(const struct check *c, const struct plan *plan, uint64_t index)
{
    uint32_t bits = qcheck_block_bits(c);
    uint64_t first = index << bits, end = first + (1ull << bits);

    if (ranges_overlap(first, end - first, plan->start, area_end(plan) - plan->start))
        return true;
    for (uint64_t i = first; i < MIN(end, c->in.n_clusters + 1); i++)
        if (c->pass.refs.bytes[i])
            return true;
    return false;
}

/* Finds the size of the area by iteration, as it has to cover itself, too. */
static int make_plan(struct check *c, struct plan *plan)
{
    uint32_t bits = qcheck_block_bits(c);

    for (;;) {
        uint64_t n_entries = ((MAX(area_end(plan), c->in.n_clusters + 1) - 1) >> bits) + 1;
        uint64_t n_blocks = 0, last = 0;
        if (n_entries * 8 > MAX_RT_BYTES)
            return diag_set(c->in.diag, EFBIG,
                            "%s: a refcount table for it would take over %u bytes",
                            c->in.st->name, MAX_RT_BYTES);
        for (uint64_t i = 0; i < n_entries; i++)
            if (block_needed(c, plan, i)) {
                n_blocks++;
                last = i;
            }
        uint64_t n_clusters = div_round_up((last + 1) * 8, c->in.cluster_size);
        if (n_blocks <= plan->n_blocks && n_clusters <= plan->n_clusters) {
            plan->n_entries = last + 1;
            return 0;
        }
        plan->n_blocks = MAX(plan->n_blocks, n_blocks);
        plan->n_clusters = MAX(plan->n_clusters, n_clusters);
    }
}

static int write_block(struct check *c, const struct plan *plan, uint64_t index,
                       uint64_t cluster, uint8_t *block)
{
    uint32_t bits = qcheck_block_bits(c);
    uint64_t first = index << bits, end = MAX(area_end(plan), c->in.n_clusters + 1);

    memset(block, 0, c->in.cluster_size);
    for (uint64_t i = first; i < MIN(end, first + (1ull << bits)); i++) {
        uint64_t count = new_count(c, plan, i);
        if (count)
            refcount_pack(c->in.h.refcount_order, block, i - first, count);
    }
    return qrepair_write(c, block, cluster << c->in.h.cluster_bits, c->in.cluster_size,
                         "refcount block");
}

/* Writes the area.  If fewer blocks are needed than were planned, the last ones stay unused. */
static int write_area(struct check *c, const struct plan *plan)
{
    uint64_t bytes = plan->n_clusters << c->in.h.cluster_bits, next = plan->start;
    CLEANUP_FREE uint8_t *table = calloc(1, bytes);
    CLEANUP_FREE uint8_t *block = malloc(c->in.cluster_size);
    int err = 0;

    if (!table || !block)
        return diag_errno(c->in.diag, ENOMEM, "%s: new refcount structures",
                          c->in.st->name);
    for (uint64_t i = 0; !err && i < plan->n_entries; i++) {
        if (!block_needed(c, plan, i))
            continue;
        store_be64(table + i * 8, next << c->in.h.cluster_bits);
        err = write_block(c, plan, i, next++, block);
    }
    if (!err)
        err =
            qrepair_write(c, table, (plan->start + plan->n_blocks) << c->in.h.cluster_bits,
                          bytes, "refcount table");
    return err;
}

static int switch_header(struct check *c, const struct plan *plan)
{
    c->in.h.refcount_table_offset = (plan->start + plan->n_blocks) << c->in.h.cluster_bits;
    c->in.h.refcount_table_clusters = (uint32_t)plan->n_clusters;
    int err = qcow2_header_write_refcount_table(c->in.st, &c->in.h);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: writing refcount_table_offset",
                          c->in.st->name);
    return qrepair_flush(c);
}

int qrepair_rebuild(struct check *c, uint64_t used)
{
    struct plan plan = {.n_blocks = 1, .n_clusters = 1};
    uint64_t offset;

    plan.start = qrepair_end(c, used);
    int err = make_plan(c, &plan);
    if (err)
        return err;
    err = qrepair_room(c, plan.n_blocks + plan.n_clusters, used, &offset);
    if (err)
        return err;
    err = write_area(c, &plan);
    if (err)
        return err;
    err = qrepair_flush(c);
    if (err)
        return err;
    err = switch_header(c, &plan);
    return err ? err : qrepair_resized(c);
}
