/* SPDX-License-Identifier: BSD-3-Clause */
/* Storing bitmaps when there is no space for a new directory, new tables and new bits.
 *
 * A bitmap whose entry has the in-use flag isn't trusted by anybody, so its bits and its table can
 * be overwritten in place; then the flag is cleared.  A part of the bits that had no cluster, as
 * all its bits were clear, gets one if there is space.  Else the table says that all bits of the
 * part are set: a backup then copies too much, but misses nothing.
 *
 * A table points to new clusters only after their refcounts are durable, and no cluster is freed.
 * So after a crash the bitmap is still marked as in use, and the image is as clean as before. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/no_space.h"
#include "qcow2/internal.h"

/* A bitmap whose entry is in use. */
struct placed {
    struct dirty_bitmap *bitmap;
    uint32_t slot;
    uint64_t *table; /* the new table, n entries */
    uint32_t n;
    uint64_t missing; /* entries that count all bits as set, for want of space */
};

struct places {
    struct qcow2 *q;
    struct placed *item; /* room for as many as the directory has */
    uint32_t n;
};

static struct qcow2_bitmap *entry_of(const struct places *p, const struct placed *item)
{
    return &p->q->bitmaps.entry[item->slot];
}

/* ---- choosing the bitmaps ---- */

static uint64_t table_clusters(const struct qcow2 *q, uint64_t entries)
{
    return div_round_up(entries * 8, cluster_size(q));
}

static void collect(struct dirty_bitmap *bitmap, void *opaque)
{
    struct places *p = opaque;
    const struct qcow2_bitmap *entry = qcow2_stored_bitmap(p->q, bitmap);

    if (!dirty_bitmap_persistent(bitmap) || dirty_bitmap_inconsistent(bitmap) || !entry ||
        !(entry->flags & BITMAP_IN_USE) || !entry->table)
        return;
    uint64_t n =
        qcow2_bitmap_table_size(p->q, dirty_bitmap_size(bitmap), entry->granularity);
    if (n < entry->table_size) /* the disk became smaller, which needs a smaller table */
        return;
    if (table_clusters(p->q, n) == table_clusters(p->q, entry->table_size))
        p->item[p->n++] = (struct placed){
            .bitmap = bitmap, .slot = dirty_bitmap_slot(bitmap), .n = (uint32_t)n};
}

/* ---- bits ---- */

/* Writes bits to a new cluster and sets the table entry *word to it; when there is no space, *word
 * says that all bits are set. */
static int write_new(struct places *p, const uint8_t *bits, uint64_t *word)
{
    struct qcow2 *q = p->q;
    uint64_t host;

    int err = qcow2_take_bitmap_clusters(q, 1, &host);
    if (!err) {
        err = storage_write(q->node->file, bits, host, cluster_size(q), 0);
        if (err)
            qcow2_let_go_of_bitmap_clusters(q, host, cluster_size(q));
    }
    if (err && !means_no_space(err))
        return err;
    *word = err ? BT_ALL_ONES : host;
    return 0;
}

static int write_part(struct places *p, struct placed *item, uint64_t i, uint8_t *buf)
{
    struct qcow2 *q = p->q;
    uint64_t size = cluster_size(q), *word = &item->table[i];
    bool any = dirty_bitmap_any(item->bitmap, i * size, size) &&
               dirty_bitmap_export(item->bitmap, i * size, buf, size);

    if (*word & BT_OFFSET) {
        if (!any)
            memset(buf, 0, size);
        return storage_write(q->node->file, buf, *word & BT_OFFSET, size, 0);
    }
    *word = 0;
    int err = any ? write_new(p, buf, word) : 0;
    item->missing += *word == BT_ALL_ONES;
    return err;
}

static int write_bits(struct places *p, struct placed *item)
{
    const struct qcow2_bitmap *entry = entry_of(p, item);
    CLEANUP_FREE uint8_t *buf = malloc(cluster_size(p->q));
    int err = 0;

    item->table = calloc(item->n, 8);
    if (!item->table || !buf)
        return -ENOMEM;
    memcpy(item->table, entry->table, entry->table_size * 8ull);
    dirty_bitmap_set_unsaved(item->bitmap, false);
    for (uint64_t i = 0; !err && i < item->n; i++)
        err = write_part(p, item, i, buf);
    return err;
}

/* Frees the new clusters, to which no table points yet. */
static void let_go_of_new(struct places *p)
{
    for (uint32_t k = 0; k < p->n; k++) {
        const struct placed *item = &p->item[k];
        const struct qcow2_bitmap *entry = entry_of(p, item);
        for (uint32_t i = 0; item->table && i < item->n; i++)
            if ((item->table[i] & BT_OFFSET) &&
                (i >= entry->table_size || item->table[i] != entry->table[i]))
                qcow2_let_go_of_bitmap_clusters(p->q, item->table[i], cluster_size(p->q));
    }
}

/* ---- tables ---- */

static int write_table(struct qcow2 *q, const struct qcow2_bitmap *entry)
{
    uint64_t bytes = entry->table_size * 8ull;
    CLEANUP_FREE uint8_t *raw = malloc(bytes);

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < entry->table_size; i++)
        store_be64(raw + i * 8ull, entry->table[i]);
    return storage_write(q->node->file, raw, entry->table_offset, bytes, 0);
}

/* Replaces the tables in memory.  From now on the new clusters are theirs, even if the flags can't
 * be cleared. */
static void use_tables(struct places *p)
{
    LOCK_GUARD(&p->q->bitmaps.in_use);
    LOCK_GUARD(&p->q->header_lock);

    for (uint32_t k = 0; k < p->n; k++) {
        struct qcow2_bitmap *entry = entry_of(p, &p->item[k]);
        free(entry->table);
        entry->table = p->item[k].table;
        entry->table_size = p->item[k].n;
        p->item[k].table = NULL;
    }
}

/* ---- flags ---- */

static uint32_t new_flags(const struct places *p, const struct placed *item)
{
    uint32_t flags = entry_of(p, item)->flags & ~(BITMAP_IN_USE | BITMAP_AUTO);

    return flags | (dirty_bitmap_enabled(item->bitmap) ? BITMAP_AUTO : 0);
}

/* table_size and flags are adjacent and lie in eight aligned bytes, so that a crash leaves the old
 * or the new values of both. */
static int write_fields(struct places *p, const struct placed *item)
{
    const struct qcow2_bitmap *entry = entry_of(p, item);
    uint64_t place = p->q->header.bitmaps.directory_offset + entry->at +
                     offsetof(struct qcow2_disk_bitmap, table_size);
    uint8_t raw[8];

    store_be32(raw, entry->table_size);
    store_be32(raw + 4, new_flags(p, item));
    return storage_write(p->q->node->file, raw, place, sizeof raw, 0);
}

/* Under in_use: clears the in-use flags, first in memory.  If writing them fails, it is unknown
 * what the file has; the next change then finds the flags clear in memory and writes them again. */
static int clear_flags(struct places *p)
{
    int err = 0;

    {
        LOCK_GUARD(&p->q->header_lock);
        for (uint32_t k = 0; k < p->n; k++)
            entry_of(p, &p->item[k])->flags = new_flags(p, &p->item[k]);
    }
    for (uint32_t k = 0; !err && k < p->n; k++)
        err = write_fields(p, &p->item[k]);
    return err ? err : node_barrier(p->q->node);
}

/* ---- the whole ---- */

static void tell(const struct places *p)
{
    for (uint32_t k = 0; k < p->n; k++) {
        const struct placed *item = &p->item[k];
        if (item->missing == 0)
            continue;
        dirty_bitmap_set_unsaved(item->bitmap, true);
        log_warning("%s: bitmap '%.200s': there is no space for its bits: %" PRIu64
                    " clusters of them count as set",
                    p->q->node->filename, dirty_bitmap_name(item->bitmap), item->missing);
    }
}

static int store_all(struct places *p, uint64_t epoch)
{
    struct qcow2 *q = p->q;
    int err = 0;

    for (uint32_t k = 0; !err && k < p->n; k++)
        err = write_bits(p, &p->item[k]);
    if (!err)
        err = qcow2_make_bitmaps_durable(q);
    if (err) {
        let_go_of_new(p);
        return err;
    }
    use_tables(p);
    for (uint32_t k = 0; !err && k < p->n; k++)
        err = write_table(q, entry_of(p, &p->item[k]));
    if (!err)
        err = node_barrier(q->node);
    if (err)
        return err;
    LOCK_GUARD(&q->bitmaps.in_use);
    return qcow2_bitmaps_are_quiet(q, epoch) ? clear_flags(p) : -EAGAIN;
}

/* Frees the clusters of an earlier attempt for use by this one. */
static void free_what_was_let_go(struct qcow2 *q)
{
    if (mcache_commit(q->node->mc, MC_COMMIT) == 0)
        while (alloc_reclaim(&q->alloc) > 0)
            ;
}

int qcow2_store_bitmaps_in_place(struct qcow2 *q, uint64_t epoch)
{
    CLEANUP_FREE struct placed *items = calloc(q->bitmaps.n + 1, sizeof *items);
    struct places p = {.q = q, .item = items};

    if (!items)
        return -ENOMEM;
    {
        LOCK_GUARD(&q->header_lock);
        node_bitmap_each(q->node, collect, &p);
    }
    if (p.n == 0)
        return -ENOSPC;
    free_what_was_let_go(q);
    int err = store_all(&p, epoch);
    for (uint32_t k = 0; k < p.n; k++) {
        if (err)
            dirty_bitmap_set_unsaved(p.item[k].bitmap, true);
        free(p.item[k].table);
    }
    if (!err)
        tell(&p);
    return err;
}
