/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing the refcount width.
 *
 * New refcount blocks and a new refcount table are written at the end of the file; they count the old
 * ones as free.  When they are durable, one sector of the header is written, which points to
 * them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check_counts.h"
#include "qcow2/internal.h"

#define FIELD(name) offsetof(struct qcow2_disk_header, name)

/* The old refcounts, read one block at a time. */
struct old_counts {
    struct storage *st;
    const struct qcow2_header *h;
    uint64_t cluster, per_block;
    uint8_t *table, *block;
    uint64_t n_blocks; /* entries of the table */
    uint64_t loaded;   /* the index of the block in `block`; UINT64_MAX: none */
    uint8_t *is_own;   /* bitmap: clusters with the old refcount table and blocks */
};

/* The new refcount structures. */
struct new_counts {
    uint32_t order;
    uint64_t per_block;
    /* In clusters: where they begin, how many the blocks and the table take, where they end. */
    uint64_t start, blocks, table, end;
};

static uint64_t old_block_offset(const struct old_counts *o, uint64_t block)
{
    return block < o->n_blocks ? load_be64(o->table + block * 8) & RT_OFFSET : 0;
}

static int old_count(struct old_counts *o, uint64_t cluster, uint64_t *count)
{
    uint64_t block = cluster / o->per_block, offset = old_block_offset(o, block);

    *count = 0;
    if (!offset)
        return 0;
    if (o->loaded != block) {
        int err = storage_read(o->st, o->block, offset, o->cluster);
        if (err)
            return err;
        o->loaded = block;
    }
    *count = refcount_unpack(o->h->refcount_order, o->block, cluster % o->per_block);
    return 0;
}

static int refuse_entry(const struct old_counts *o, uint64_t index, struct diag *diag)
{
    return diag_set(diag, EINVAL,
                    "%s: refcount table entry %" PRIu64 " (0x%" PRIx64
                    ") can't be right: the image must be checked (qimg check)",
                    o->st->name, index, load_be64(o->table + index * 8));
}

/* Notes which of the file's n clusters hold the old table and blocks.  A table that points outside
 * the file, or twice at the same cluster, is refused, because its refcounts can't be trusted. */
static int note_own(struct old_counts *o, uint64_t n, struct diag *diag)
{
    uint64_t table = o->h->refcount_table_offset / o->cluster;

    for (uint64_t i = table; i < MIN(n, table + o->h->refcount_table_clusters); i++)
        bit_set(o->is_own, i);
    for (uint64_t i = 0; i < o->n_blocks; i++) {
        uint64_t entry = load_be64(o->table + i * 8), block = entry / o->cluster;
        if (entry == 0)
            continue;
        if (entry % o->cluster || block >= n || bit_test(o->is_own, block))
            return refuse_entry(o, i, diag);
        bit_set(o->is_own, block);
    }
    return 0;
}

static int refuse_count(const struct old_counts *o, const struct new_counts *n,
                        uint64_t cluster, uint64_t count, struct diag *diag)
{
    return diag_set(diag, EINVAL,
                    "%s: Cannot decrease refcount entry width to %u bits: Cluster at "
                    "offset 0x%" PRIx64 " has a refcount of %" PRIu64,
                    o->st->name, 1u << n->order, cluster * o->cluster, count);
}

static int new_count(struct old_counts *o, const struct new_counts *n, uint64_t cluster,
                     uint64_t *count, struct diag *diag)
{
    uint64_t max = refcount_max(n->order);

    *count = cluster >= n->start && cluster < n->end;
    if (cluster >= n->start)
        return 0;
    int err = old_count(o, cluster, count);
    if (err)
        return diag_errno(diag, -err, "%s: reading refcounts", o->st->name);
    if (*count && bit_test(o->is_own, cluster))
        *count = 0;
    return *count > max ? refuse_count(o, n, cluster, *count, diag) : 0;
}

/* Fills in new block number `index`; `raw` is a cluster.  NULL: only checks that all values fit. */
static int fill_block(struct old_counts *o, const struct new_counts *n, uint64_t index,
                      uint8_t *raw, struct diag *diag)
{
    uint64_t first = index * n->per_block, last = MIN(n->end, first + n->per_block);

    for (uint64_t i = first; i < last; i++) {
        uint64_t count;
        int err = new_count(o, n, i, &count, diag);
        if (err)
            return err;
        if (raw)
            refcount_pack(n->order, raw, i - first, count);
    }
    return 0;
}

static int write_blocks(struct old_counts *o, const struct new_counts *n, uint8_t *raw,
                        struct diag *diag)
{
    for (uint64_t i = 0; i < n->blocks; i++) {
        memset(raw, 0, o->cluster);
        int err = fill_block(o, n, i, raw, diag);
        if (err)
            return err;
        err = storage_write(o->st, raw, (n->start + i) * o->cluster, o->cluster, 0);
        if (err)
            return diag_errno(diag, -err, "%s: writing refcounts", o->st->name);
    }
    return 0;
}

static int write_table(struct old_counts *o, const struct new_counts *n, struct diag *diag)
{
    CLEANUP_FREE uint8_t *table = calloc(n->table, o->cluster);
    int err = table ? 0 : -ENOMEM;

    for (uint64_t i = 0; !err && i < n->blocks; i++)
        store_be64(table + i * 8, (n->start + i) * o->cluster);
    if (!err)
        err = storage_write(o->st, table, (n->start + n->blocks) * o->cluster,
                            n->table * o->cluster, 0);
    if (!err)
        err = storage_flush(o->st);
    return err ? diag_errno(diag, -err, "%s: writing the refcount table", o->st->name) : 0;
}

static int switch_counts(struct old_counts *o, const struct new_counts *n,
                         struct qcow2_header *h, struct diag *diag)
{
    uint8_t raw[QCOW2_V3_MIN_HEADER_BYTES];

    h->refcount_table_offset = (n->start + n->blocks) * o->cluster;
    h->refcount_table_clusters = (uint32_t)n->table;
    h->refcount_order = n->order;
    int err = storage_read(o->st, raw, 0, sizeof raw);
    store_be64(raw + FIELD(refcount_table_offset), h->refcount_table_offset);
    store_be32(raw + FIELD(refcount_table_clusters), h->refcount_table_clusters);
    store_be32(raw + FIELD(refcount_order), h->refcount_order);
    if (!err)
        err = storage_write(o->st, raw, 0, sizeof raw, 0);
    if (!err)
        err = storage_flush(o->st);
    return err ? diag_errno(diag, -err, "%s: writing the header", o->st->name) : 0;
}

/* Gives the space of the old structures back to the filesystem. */
static void punch_old(struct old_counts *o, uint64_t table, uint64_t clusters)
{
    for (uint64_t i = 0; i < o->n_blocks; i++)
        if (old_block_offset(o, i))
            storage_discard(o->st, old_block_offset(o, i), o->cluster);
    storage_discard(o->st, table, clusters * o->cluster);
}

static int plan_new(const struct old_counts *o, struct new_counts *n, struct diag *diag)
{
    uint64_t bytes, before;

    int err = storage_size(o->st, &bytes);
    if (err)
        return diag_errno(diag, -err, "%s: its size", o->st->name);
    n->start = div_round_up(bytes, o->cluster);
    n->per_block = o->cluster * 8 >> n->order;
    do {
        before = n->blocks + n->table;
        n->blocks = div_round_up(n->start + before, n->per_block);
        n->table = div_round_up(n->blocks * 8, o->cluster);
    } while (n->blocks + n->table != before);
    n->end = n->start + before;
    if (o->st->fixed_size || n->table * o->cluster > MAX_RT_BYTES)
        return diag_set(diag, EFBIG, "%s: there is no room for other refcounts",
                        o->st->name);
    return 0;
}

static int write_all(struct old_counts *o, struct new_counts *n, struct qcow2_header *h,
                     struct diag *diag)
{
    uint64_t old_table = h->refcount_table_offset,
             old_clusters = h->refcount_table_clusters;
    CLEANUP_FREE uint8_t *raw = malloc(o->cluster);

    if (!raw)
        return diag_errno(diag, ENOMEM, "%s", o->st->name);
    for (uint64_t i = 0; i < n->blocks; i++) {
        int err = fill_block(o, n, i, NULL, diag);
        if (err)
            return err;
    }
    int err = write_blocks(o, n, raw, diag);
    if (!err)
        err = write_table(o, n, diag);
    if (!err)
        err = switch_counts(o, n, h, diag);
    if (!err)
        punch_old(o, old_table, old_clusters);
    return err;
}

int qcow2_amend_refcounts(struct storage *st, struct qcow2_header *h, uint32_t order,
                          struct diag *diag)
{
    uint64_t cluster = 1ull << h->cluster_bits;
    uint64_t table_bytes = h->refcount_table_clusters * cluster;
    CLEANUP_FREE uint8_t *table = malloc(table_bytes), *block = malloc(cluster);
    struct old_counts o = {.st = st,
                           .h = h,
                           .cluster = cluster,
                           .per_block = cluster * 8 >> h->refcount_order,
                           .table = table,
                           .block = block,
                           .n_blocks = table_bytes / 8,
                           .loaded = UINT64_MAX};
    struct new_counts n = {.order = order};

    int err = table && block
                  ? storage_read(st, table, h->refcount_table_offset, table_bytes)
                  : -ENOMEM;
    if (err)
        return diag_errno(diag, -err, "%s: reading the refcount table", st->name);
    while (o.n_blocks > 0 && old_block_offset(&o, o.n_blocks - 1) == 0)
        o.n_blocks--;
    err = plan_new(&o, &n, diag);
    if (err)
        return err;
    CLEANUP_FREE uint8_t *is_own = calloc(n.start / 8 + 1, 1);
    o.is_own = is_own;
    err = is_own ? note_own(&o, n.start, diag) : diag_errno(diag, ENOMEM, "%s", st->name);
    return err ? err : write_all(&o, &n, h, diag);
}
