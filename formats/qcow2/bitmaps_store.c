/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing a new bitmap directory, in three steps: a plan of its entries; bits, tables and directory
 * are written to new clusters; the header is switched to the new directory.  After that the
 * clusters are freed that only the old directory used; after a failure, the new ones. */
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

/* An entry of the new directory. */
struct planned {
    struct qcow2_bitmap entry; /* name and extra are copies */
    struct dirty_bitmap *bitmap;
    bool new_table;    /* it gets a new table and new clusters for its bits */
    uint32_t old_slot; /* !new_table: the entry of the old directory whose table it keeps */
};

struct plan {
    struct qcow2 *q;
    struct planned *item;
    uint32_t n, room;
    uint64_t offset, bytes; /* of the directory */
    bool failed;
};

/* ---- clusters ---- */

int qcow2_take_bitmap_clusters(struct qcow2 *q, uint64_t n, uint64_t *host)
{
    uint64_t got;
    bool fresh;
    gate_ticket ticket = gate_enter(&q->node->ctx->gate);

    int err = n == 1 ? alloc_clusters(&q->alloc, 1, host, &got, &fresh)
                     : alloc_table(&q->alloc, n, host);
    gate_leave(&q->node->ctx->gate, ticket);
    if (err)
        return err;
    LOCK_GUARD(mcache_meta(q->node->mc));
    alloc_note_metadata(&q->alloc, *host, n);
    return 0;
}

void qcow2_let_go_of_bitmap_clusters(struct qcow2 *q, uint64_t host, uint64_t bytes)
{
    LOCK_GUARD(mcache_meta(q->node->mc));
    alloc_unlink(&q->alloc, host, div_round_up(bytes, cluster_size(q)));
}

static void let_go_of_table(struct qcow2 *q, const struct qcow2_bitmap *entry)
{
    for (uint32_t i = 0; entry->table && i < entry->table_size; i++)
        if (entry->table[i] & BT_OFFSET)
            qcow2_let_go_of_bitmap_clusters(q, entry->table[i] & BT_OFFSET,
                                            cluster_size(q));
    if (entry->table_offset)
        qcow2_let_go_of_bitmap_clusters(q, entry->table_offset, entry->table_size * 8ull);
}

/* ---- the plan ---- */

static void collect_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    struct plan *plan = opaque;
    bool gone =
        dirty_bitmap_inconsistent(bitmap) && dirty_bitmap_slot(bitmap) == BITMAP_NO_SLOT;

    if (!dirty_bitmap_persistent(bitmap) || gone)
        return;
    if (plan->n == plan->room) {
        uint32_t room = MAX(16, plan->room * 2);
        struct planned *item = realloc(plan->item, room * sizeof *item);
        if (!item) {
            plan->failed = true;
            return;
        }
        plan->item = item;
        plan->room = room;
    }
    plan->item[plan->n++] = (struct planned){.bitmap = bitmap};
}

const struct qcow2_bitmap *qcow2_stored_bitmap(const struct qcow2 *q,
                                               const struct dirty_bitmap *bitmap)
{
    uint32_t slot = dirty_bitmap_slot(bitmap);

    return slot < q->bitmaps.n ? &q->bitmaps.entry[slot] : NULL;
}

static int copy_names(struct planned *item, const struct qcow2_bitmap *old)
{
    item->entry.name = strdup(dirty_bitmap_name(item->bitmap));
    if (!item->entry.name)
        return -ENOMEM;
    if (!old || old->extra_bytes == 0)
        return 0;
    item->entry.extra = malloc(old->extra_bytes);
    if (!item->entry.extra)
        return -ENOMEM;
    memcpy(item->entry.extra, old->extra, old->extra_bytes);
    item->entry.extra_bytes = old->extra_bytes;
    return 0;
}

static int keep_table(struct planned *item, const struct qcow2_bitmap *old)
{
    struct qcow2_bitmap *entry = &item->entry;

    item->old_slot = dirty_bitmap_slot(item->bitmap);
    entry->table_offset = old->table_offset;
    entry->table_size = old->table_size;
    entry->table = malloc(old->table_size * 8ull);
    if (!entry->table)
        return -ENOMEM;
    memcpy(entry->table, old->table, old->table_size * 8ull);
    return 0;
}

static int new_table(struct plan *plan, struct planned *item)
{
    struct qcow2_bitmap *entry = &item->entry;

    item->new_table = true;
    entry->table_size = (uint32_t)qcow2_bitmap_table_size(
        plan->q, dirty_bitmap_size(item->bitmap), entry->granularity);
    entry->table_size = MAX(1, entry->table_size);
    entry->table = calloc(entry->table_size, 8);
    return entry->table ? 0 : -ENOMEM;
}

/* Are the stored bits those of the bitmap? */
static bool is_as_stored(const struct planned *item, const struct qcow2_bitmap *old)
{
    return old &&
           (dirty_bitmap_inconsistent(item->bitmap) || !dirty_bitmap_unsaved(item->bitmap));
}

static int plan_item(struct plan *plan, struct planned *item, bool quiet)
{
    const struct qcow2_bitmap *old = qcow2_stored_bitmap(plan->q, item->bitmap);
    struct qcow2_bitmap *entry = &item->entry;

    *entry = (struct qcow2_bitmap){.granularity =
                                       (uint32_t)dirty_bitmap_granularity(item->bitmap),
                                   .flags = old ? old->flags : BITMAP_IN_USE};
    if (quiet && !dirty_bitmap_inconsistent(item->bitmap))
        entry->flags &= ~BITMAP_IN_USE;
    else if (dirty_bitmap_inconsistent(item->bitmap) && old && !old->extra_bytes)
        entry->flags |= BITMAP_IN_USE;
    if (!dirty_bitmap_inconsistent(item->bitmap) && (quiet || !old))
        entry->flags = dirty_bitmap_enabled(item->bitmap) ? entry->flags | BITMAP_AUTO
                                                          : entry->flags & ~BITMAP_AUTO;
    int err = copy_names(item, old);
    if (err)
        return err;
    return old && (!quiet || is_as_stored(item, old)) ? keep_table(item, old)
                                                      : new_table(plan, item);
}

static int make_plan(struct plan *plan, bool quiet)
{
    node_bitmap_each(plan->q->node, collect_bitmap, plan);
    if (plan->failed)
        return -ENOMEM;
    LOCK_GUARD(&plan->q->header_lock); /* flags change when bitmaps are marked as in use */
    for (uint32_t i = 0; i < plan->n; i++) {
        int err = plan_item(plan, &plan->item[i], quiet);
        if (err)
            return err;
    }
    return 0;
}

static void free_plan(struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n; i++) {
        free(plan->item[i].entry.name);
        free(plan->item[i].entry.table);
        free(plan->item[i].entry.extra);
    }
    free(plan->item);
}

/* After a failure: frees the new clusters, to which nothing points, and marks the bitmaps as not
 * saved. */
static void undo_plan(struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n; i++) {
        if (!plan->item[i].new_table)
            continue;
        let_go_of_table(plan->q, &plan->item[i].entry);
        dirty_bitmap_set_unsaved(plan->item[i].bitmap, true);
    }
    if (plan->offset)
        qcow2_let_go_of_bitmap_clusters(plan->q, plan->offset, plan->bytes);
}

/* ---- writing ---- */

/* Writes the bits of one bitmap; parts with no bit set get no cluster. */
static int write_bits(struct qcow2 *q, struct planned *item)
{
    uint64_t size = cluster_size(q), host;
    CLEANUP_FREE uint8_t *buf = malloc(size);

    if (!buf)
        return -ENOMEM;
    dirty_bitmap_set_unsaved(item->bitmap, false);
    for (uint64_t i = 0; i < item->entry.table_size; i++) {
        if (!dirty_bitmap_any(item->bitmap, i * size, size) ||
            !dirty_bitmap_export(item->bitmap, i * size, buf, size))
            continue;
        int err = qcow2_take_bitmap_clusters(q, 1, &host);
        if (err)
            return err;
        item->entry.table[i] = host;
        err = storage_write(q->node->file, buf, host, size, 0);
        if (err)
            return err;
    }
    return 0;
}

/* Writes whole clusters, padded with zeroes, so that no old data of the guest stays in them. */
static int write_whole_clusters(struct qcow2 *q, const void *data, uint64_t bytes,
                                uint64_t *host)
{
    uint64_t n = div_round_up(bytes, cluster_size(q)), whole = n << q->geo.cluster_bits;
    CLEANUP_FREE uint8_t *raw = calloc(1, whole);

    if (!raw)
        return -ENOMEM;
    memcpy(raw, data, bytes);
    int err = qcow2_take_bitmap_clusters(q, n, host);
    return err ? err : storage_write(q->node->file, raw, *host, whole, 0);
}

static int write_table(struct qcow2 *q, struct qcow2_bitmap *entry)
{
    CLEANUP_FREE uint8_t *raw = malloc(entry->table_size * 8ull);

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < entry->table_size; i++)
        store_be64(raw + i * 8ull, entry->table[i]);
    return write_whole_clusters(q, raw, entry->table_size * 8ull, &entry->table_offset);
}

static int write_contents(struct plan *plan, bool quiet)
{
    for (uint32_t i = 0; i < plan->n; i++) {
        struct planned *item = &plan->item[i];
        if (!item->new_table)
            continue;
        int err = quiet ? write_bits(plan->q, item) : 0;
        if (!err)
            err = write_table(plan->q, &item->entry);
        if (err)
            return err;
    }
    return 0;
}

static uint64_t entry_bytes(const struct qcow2_bitmap *entry)
{
    return align_up(sizeof(struct qcow2_disk_bitmap) + (uint64_t)entry->extra_bytes +
                        strlen(entry->name),
                    8);
}

static void fill_entry(uint8_t *raw, const struct qcow2_bitmap *entry)
{
#define FIELD(name) (raw + offsetof(struct qcow2_disk_bitmap, name))
    size_t name_bytes = strlen(entry->name);

    store_be64(FIELD(table_offset), entry->table_offset);
    store_be32(FIELD(table_size), entry->table_size);
    store_be32(FIELD(flags), entry->flags);
    *FIELD(type) = BITMAP_TYPE_DIRTY;
    *FIELD(granularity_bits) = (uint8_t)__builtin_ctz(entry->granularity);
    store_be16(FIELD(name_bytes), (uint16_t)name_bytes);
    store_be32(FIELD(extra_bytes), entry->extra_bytes);
#undef FIELD
    raw += sizeof(struct qcow2_disk_bitmap);
    if (entry->extra_bytes)
        memcpy(raw, entry->extra, entry->extra_bytes);
    memcpy(raw + entry->extra_bytes, entry->name, name_bytes);
}

static int write_directory(struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n; i++) {
        plan->item[i].entry.at = (uint32_t)plan->bytes;
        plan->bytes += entry_bytes(&plan->item[i].entry);
    }
    CLEANUP_FREE uint8_t *raw = calloc(1, plan->bytes + 1);
    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < plan->n; i++)
        fill_entry(raw + plan->item[i].entry.at, &plan->item[i].entry);
    return plan->n ? write_whole_clusters(plan->q, raw, plan->bytes, &plan->offset) : 0;
}

int qcow2_make_bitmaps_durable(struct qcow2 *q)
{
    mcache_note_write(q->node->mc);
    int err = mcache_commit(q->node->mc, MC_COMMIT_EVERYTHING);
    return err ? err : storage_sync_if_void(q->node->file);
}

/* ---- the switch ---- */

/* Frees what only the old directory used, not the tables that the new one keeps. */
static void let_go_of_old(const struct plan *plan, struct qcow2_bitmap *entry, uint32_t n,
                          uint64_t offset, uint64_t bytes)
{
    for (uint32_t i = 0; i < plan->n; i++)
        if (!plan->item[i].new_table)
            entry[plan->item[i].old_slot].table_offset = 0;
    for (uint32_t i = 0; i < n; i++)
        if (entry[i].table_offset)
            let_go_of_table(plan->q, &entry[i]);
    if (n)
        qcow2_let_go_of_bitmap_clusters(plan->q, offset, bytes);
}

static struct qcow2_bitmap *take_entries(struct plan *plan)
{
    struct qcow2_bitmap *entry = calloc(plan->n + 1, sizeof *entry);

    for (uint32_t i = 0; entry && i < plan->n; i++)
        entry[i] = plan->item[i].entry;
    return entry;
}

/* Under in_use: the header points to the new directory, whose entries replace those in memory. */
static int switch_directory(struct plan *plan)
{
    struct qcow2 *q = plan->q;
    struct qcow2_bitmaps_ext old_ext = q->header.bitmaps;
    struct qcow2_bitmap *old = q->bitmaps.entry, *entry = take_entries(plan);
    uint32_t old_n = q->bitmaps.n;

    if (!entry)
        return -ENOMEM;
    {
        LOCK_GUARD(&q->header_lock);
        int err = qcow2_point_to_bitmaps(q, plan->n, plan->offset, plan->bytes);
        if (err) {
            free(entry);
            return err;
        }
        q->bitmaps.entry = entry;
        q->bitmaps.n = plan->n;
        q->bitmaps.lost = false;
        for (uint32_t i = 0; i < plan->n; i++)
            dirty_bitmap_set_slot(plan->item[i].bitmap, i);
    }
    let_go_of_old(plan, old, old_n, old_ext.directory_offset, old_ext.directory_bytes);
    qcow2_free_bitmap_entries(old, old_n);
    for (uint32_t i = 0; i < plan->n; i++)
        plan->item[i].entry = (struct qcow2_bitmap){0}; /* q->bitmaps owns it now */
    mcache_note_write(q->node->mc);
    return 0;
}

/* After a failure the old directory is still in use, and the new clusters are freed; unless the
 * node refuses writes, because then the header may point to either. */
static int end_plan(struct plan *plan, int err)
{
    if (err && !mcache_health(plan->q->node->mc))
        undo_plan(plan);
    free_plan(plan);
    return err;
}

struct search {
    const struct qcow2 *q;
    uint32_t stored; /* bitmaps that have an entry */
    bool found;
};

static void look_for_unstored(struct dirty_bitmap *bitmap, void *opaque)
{
    struct search *search = opaque;

    const struct qcow2_bitmap *entry = qcow2_stored_bitmap(search->q, bitmap);
    if (!dirty_bitmap_persistent(bitmap))
        return;
    search->stored += entry != NULL;
    if (dirty_bitmap_inconsistent(bitmap))
        return;
    bool enabled = entry && (entry->flags & BITMAP_AUTO);
    search->found |= !entry || (entry->flags & BITMAP_IN_USE) ||
                     dirty_bitmap_unsaved(bitmap) ||
                     enabled != dirty_bitmap_enabled(bitmap);
}

/* Does the directory differ from the bitmaps in memory? */
static bool is_anything_unstored(struct qcow2 *q)
{
    struct search search = {.q = q};
    LOCK_GUARD(&q->header_lock);

    node_bitmap_each(q->node, look_for_unstored, &search);
    return search.found || search.stored != q->bitmaps.n; /* the latter: one was removed */
}

static int write_plan(struct plan *plan, bool quiet)
{
    int err = make_plan(plan, quiet);
    if (!err)
        err = write_contents(plan, quiet);
    if (!err)
        err = write_directory(plan);
    return err ? err : qcow2_make_bitmaps_durable(plan->q);
}

int qcow2_store_bitmaps(struct qcow2 *q, uint64_t epoch)
{
    struct plan plan = {.q = q};
    LOCK_GUARD(&q->node->bitmaps.keep);

    int err = mcache_health(q->node->mc);
    if (!err && q->bitmaps.paused)
        err = -EAGAIN;
    if (err || !is_anything_unstored(q))
        return err;
    err = write_plan(&plan, true);
    if (!err) {
        LOCK_GUARD(&q->bitmaps.in_use);
        err = qcow2_bitmaps_are_quiet(q, epoch) ? switch_directory(&plan) : -EAGAIN;
    }
    err = end_plan(&plan, err);
    return means_no_space(err) ? qcow2_store_bitmaps_in_place(q, epoch) : err;
}

int qcow2_keep_bitmaps(struct node *node, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);
    struct plan plan = {.q = q};
    LOCK_GUARD(&node->bitmaps.keep);
    LOCK_GUARD(&q->bitmaps.in_use);

    if (q->bitmaps.paused) { /* only happens when a transaction is undone */
        qcow2_watch_bitmaps(q);
        return 0;
    }
    int err = mcache_health(node->mc);
    if (!err)
        err = write_plan(&plan, false);
    if (!err)
        err = switch_directory(&plan);
    if (!err) {
        qcow2_watch_bitmaps(q);
        node_wrote(node);
    }
    err = end_plan(&plan, err);
    return err ? diag_errno(diag, -err, "%s: writing the bitmap directory", node->filename)
               : 0;
}

void qcow2_pause_bitmaps(struct qcow2 *q)
{
    LOCK_GUARD(&q->node->bitmaps.keep);
    q->bitmaps.paused++;
}

void qcow2_resume_bitmaps(struct qcow2 *q)
{
    LOCK_GUARD(&q->node->bitmaps.keep);
    q->bitmaps.paused--;
}

void qcow2_store_bitmaps_at_end(struct qcow2 *q)
{
    if (q->node->options.keep_marks || mcache_health(q->node->mc))
        return;
    timer_cancel(q->node->ctx->housekeeper, &q->bitmaps.timer);
    atomic_store(&q->node->changed,
                 false); /* no request is left that could change anything */
    int err = qcow2_store_bitmaps(q, q->bitmaps.epoch);
    if (err)
        log_error(
            "%s: its bitmaps can't be stored (errno %d): they stay in use and can't be "
            "used any more",
            q->node->filename, -err);
}
