/* SPDX-License-Identifier: BSD-3-Clause */
/* Gives the live mapping L2 tables of its own: new ones, and copies of those that it shares with
 * snapshots. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* To be called outside META, before store_l1. */
static int load_l1_for_store(struct qcow2_mapping *m, uint32_t l1_index)
{
    return mcmap_get_for_store(m->l1_map, l1_index / mcmap_words_per_page(m->l1_map), NULL);
}

/* META: stores the L1 entry of a table.  settled: the entry may become durable at any time; else
 * it needs a barrier before it. */
static void store_l1(struct qcow2_mapping *m, uint32_t l1_index, uint64_t entry,
                     bool settled)
{
    uint32_t per_page = mcmap_words_per_page(m->l1_map);
    struct mc_page *page = mcmap_peek_for_store(m->l1_map, l1_index / per_page);

    alloc_note_metadata(&m->q->alloc, entry & L1_OFFSET, 1);
    mcmap_store(page, l1_index % per_page, entry, MC_LINK);
    if (!settled || dirty_mark_needs_barrier(&m->q->mark))
        mcache_strict(m->q->node->mc);
}

static int new_table(struct qcow2_mapping *m, uint32_t l1_index)
{
    uint64_t host, n;
    bool fresh;

    int err = alloc_clusters(&m->q->alloc, 1, &host, &n, &fresh);
    if (err)
        return err;
    if (!fresh)
        err = storage_zero(m->q->node->file, host, geometry_cluster(&m->geo), 0);
    LOCK_GUARD(mcache_meta(m->q->node->mc));
    if (err) {
        alloc_unlink(&m->q->alloc, host, 1);
        return err;
    }
    bool settled = fresh && alloc_settled(&m->q->alloc, host + geometry_cluster(&m->geo));
    store_l1(m, l1_index, host | L1_COPIED, settled);
    return 0;
}

/* Reads a shared table.  None of its entries may have the copied flag ("the only reference"):
 * a write in place through the copy would change the snapshot, too. */
static int read_shared(struct qcow2_mapping *m, uint64_t offset, uint8_t *table)
{
    int err = storage_read(m->q->node->file, table, offset, geometry_cluster(&m->geo));

    for (uint64_t i = 0; !err && i < geometry_cluster(&m->geo) / 8;
         i += 1u << m->geo.word_bits) {
        uint64_t entry = load_be64(table + i * 8);
        if (entry & L2_COPIED) {
            log_error("%s: L2 table at %" PRIu64 " is shared, but its entry %" PRIu64
                      " (0x%" PRIx64 ") has the copied flag",
                      m->q->node->filename, offset, i, entry);
            qcow2_mark_corrupt(m->q);
            err = -EIO;
        }
    }
    return err;
}

/* Writes a copy of the table at `old` to a new cluster.  Cached pages of the table remain valid:
 * nobody stores to a shared table, and the copy has the same content. */
static int copy_table(struct qcow2_mapping *m, uint32_t l1_index, uint64_t old)
{
    CLEANUP_FREE void *table = NULL;
    uint64_t host, n;
    bool fresh;

    if (posix_memalign(&table, 4096, geometry_cluster(&m->geo)) != 0)
        return -ENOMEM;
    int err = read_shared(m, old, table);
    if (!err)
        err = alloc_clusters(&m->q->alloc, 1, &host, &n, &fresh);
    if (err)
        return err;
    err = storage_write(m->q->node->file, table, host, geometry_cluster(&m->geo), 0);
    LOCK_GUARD(mcache_meta(m->q->node->mc));
    if (err) {
        alloc_unlink(&m->q->alloc, host, 1);
        return err;
    }
    store_l1(m, l1_index, host | L1_COPIED, false);
    alloc_unlink(&m->q->alloc, old, 1);
    return 0;
}

/* Handles an L1 entry without the copied flag.  If the table's refcount is 1 the table isn't
 * shared any more, and only the flag is set; else the table is copied. */
static int own_shared_table(struct qcow2_mapping *m, uint32_t l1_index, uint64_t entry)
{
    uint64_t offset = entry & L1_OFFSET;

    int err = mapping_check_l1(m, l1_index, entry);
    if (!err)
        err = refcount_lock_page(&m->q->alloc.refs, offset >> m->geo.cluster_bits);
    if (err)
        return err == -ENOENT ? -EIO : err;
    uint64_t count = refcount_get(&m->q->alloc.refs, offset >> m->geo.cluster_bits);
    if (count == 1)
        store_l1(m, l1_index, offset | L1_COPIED, true);
    lock_release(mcache_meta(m->q->node->mc));
    return count == 1 ? 0 : copy_table(m, l1_index, offset);
}

int mapping_own_table(struct qcow2_mapping *m, uint32_t l1_index)
{
    uint64_t entry = atomic_load_explicit(&m->l1[l1_index], memory_order_acquire);

    if (LIKELY((entry & L1_COPIED) && (entry & L1_OFFSET)))
        return mapping_check_l1(m, l1_index, entry);

    LOCK_GUARD(&m->table_lock[l1_index % TABLE_STRIPES]);
    int err = load_l1_for_store(m, l1_index);
    if (err)
        return err;
    entry = atomic_load_explicit(&m->l1[l1_index], memory_order_acquire);
    if ((entry & L1_OFFSET) == 0)
        return new_table(m, l1_index);
    return (entry & L1_COPIED) ? 0 : own_shared_table(m, l1_index, entry);
}

int mapping_drop_table(struct qcow2_mapping *m, uint32_t l1_index)
{
    uint32_t per_page = mcmap_words_per_page(m->l1_map);

    int err = load_l1_for_store(m, l1_index);
    if (err)
        return err;
    LOCK_GUARD(mcache_meta(m->q->node->mc));
    struct mc_page *page = mcmap_peek_for_store(m->l1_map, l1_index / per_page);
    uint64_t entry = atomic_load(&m->l1[l1_index]);
    if (dirty_mark_needs_barrier(&m->q->mark))
        mcache_strict(m->q->node->mc);
    mcmap_store(page, l1_index % per_page, 0, MC_LINK);
    alloc_unlink(&m->q->alloc, entry & L1_OFFSET, 1);
    return 0;
}

int mapping_lock_l2_page(struct qcow2_mapping *m, uint64_t guest, struct mc_page **page)
{
    struct lock *meta = mcache_meta(m->q->node->mc);

    while (!(*page = mcmap_peek_for_store(m->l2_map, geometry_l2_page(&m->geo, guest)))) {
        LOCK_GAP(meta);
        int err = mcmap_get_for_store(m->l2_map, geometry_l2_page(&m->geo, guest), NULL);
        if (err)
            return err;
    }
    return 0;
}

void mapping_store(struct qcow2_mapping *m, struct mc_page *page, uint64_t guest,
                   uint64_t entry, uint64_t bitmap)
{
    uint32_t word = geometry_l2_word(&m->geo, guest);

    if (m->geo.word_bits)
        mcmap_store_pair(page, word, (struct mc_pair){entry, bitmap}, MC_LINK);
    else
        mcmap_store(page, word, entry, MC_LINK);
}
