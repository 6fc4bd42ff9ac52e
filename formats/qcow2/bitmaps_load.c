/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading stored bitmaps: first their tables, which are checked, then the bits.  If they violate
 * the format or contradict the rest of the image, the bitmaps are lost, but the image is still
 * served. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* ---- tables ---- */

static bool entry_is_wrong(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset = entry & BT_OFFSET;

    return (entry & BT_RESERVED) || (offset && (entry & BT_ALL_ONES)) ||
           !is_aligned(offset, cluster_size(q)) ||
           (offset && !alloc_inside_file_now(&q->alloc, offset, cluster_size(q)));
}

static int refuse_table(const struct qcow2 *q, const struct qcow2_bitmap *bitmap,
                        const char *what, uint64_t value, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: bitmap '%.200s': %s 0x%" PRIx64 " can't be",
                    q->node->filename, bitmap->name, what, value);
}

static int read_table(struct qcow2 *q, struct qcow2_bitmap *bitmap, struct diag *diag)
{
    uint64_t bytes = bitmap->table_size * 8ull;

    if (!is_aligned(bitmap->table_offset, cluster_size(q)) || bitmap->table_offset == 0 ||
        !alloc_inside_file_now(&q->alloc, bitmap->table_offset, bytes))
        return refuse_table(q, bitmap, "its table at offset", bitmap->table_offset, diag);
    bitmap->table = malloc(bytes);
    if (!bitmap->table)
        return diag_errno(diag, ENOMEM, "%s: bitmap '%.200s'", q->node->filename,
                          bitmap->name);
    int err = storage_read(q->node->file, bitmap->table, bitmap->table_offset, bytes);
    if (err)
        return diag_errno(diag, -err, "%s: bitmap '%.200s': reading its table",
                          q->node->filename, bitmap->name);
    for (uint32_t i = 0; i < bitmap->table_size; i++) {
        bitmap->table[i] = load_be64(&bitmap->table[i]);
        if (entry_is_wrong(q, bitmap->table[i]))
            return refuse_table(q, bitmap, "its table's entry", bitmap->table[i], diag);
    }
    return 0;
}

static int read_tables(struct qcow2 *q, struct diag *diag)
{
    for (uint32_t i = 0; i < q->bitmaps.n; i++) {
        int err = read_table(q, &q->bitmaps.entry[i], diag);
        if (err)
            return err;
    }
    return 0;
}

/* ---- bits ---- */

/* Can the stored bits be trusted?  This program knows no extra data. */
static bool is_usable(const struct qcow2_bitmap *bitmap)
{
    return !(bitmap->flags & BITMAP_IN_USE) &&
           (bitmap->extra_bytes == 0 || (bitmap->flags & BITMAP_EXTRA_OK));
}

static int read_bits(struct qcow2 *q, const struct qcow2_bitmap *from,
                     struct dirty_bitmap *to)
{
    uint64_t size = cluster_size(q);
    CLEANUP_FREE uint8_t *buf = malloc(size);

    if (!buf)
        return -ENOMEM;
    for (uint64_t i = 0; i < from->table_size; i++) {
        uint64_t entry = from->table[i];
        if (entry & BT_ALL_ONES)
            dirty_bitmap_import_ones(to, i * size, size);
        if (!(entry & BT_OFFSET))
            continue;
        int err = storage_read(q->node->file, buf, entry & BT_OFFSET, size);
        if (err)
            return err;
        dirty_bitmap_import(to, i * size, buf, size);
    }
    return 0;
}

static struct dirty_bitmap *new_usable(struct qcow2 *q, const struct qcow2_bitmap *from)
{
    struct dirty_bitmap *bitmap =
        dirty_bitmap_new(from->name, q->node->size, from->granularity);

    int err = bitmap ? read_bits(q, from, bitmap) : -ENOMEM;
    if (!err) {
        dirty_bitmap_enable(bitmap, from->flags & BITMAP_AUTO);
        dirty_bitmap_set_persistent(bitmap);
        dirty_bitmap_set_unsaved(bitmap, false);
        return bitmap;
    }
    dirty_bitmap_free(bitmap);
    log_error("%s: bitmap '%.200s': can't be read (errno %d): it counts as inconsistent",
              q->node->filename, from->name, -err);
    return NULL;
}

/* Loads one bitmap.  anew: the image was reopened, and the node may have the bitmap already.  NULL
 * if it has, or when memory is short. */
static struct dirty_bitmap *load_one(struct qcow2 *q, uint32_t slot, bool anew)
{
    const struct qcow2_bitmap *from = &q->bitmaps.entry[slot];
    struct dirty_bitmap *bitmap = anew ? node_bitmap_find(q->node, from->name) : NULL;

    if (bitmap) {
        dirty_bitmap_set_slot(bitmap, slot);
        return NULL;
    }
    if (is_usable(from))
        bitmap = new_usable(q, from);
    if (!bitmap)
        bitmap =
            dirty_bitmap_new_inconsistent(from->name, q->node->size, from->granularity);
    if (bitmap)
        dirty_bitmap_set_slot(bitmap, slot);
    return bitmap;
}

/* Loads all bitmaps.  Those that couldn't be loaded get the in-use flag when the disk changes. */
static int load_all(struct qcow2 *q)
{
    CLEANUP_FREE struct dirty_bitmap **loaded = calloc(q->bitmaps.n + 1, sizeof(void *));
    bool anew = node_has_bitmaps(q->node);
    uint32_t n = 0;

    if (!loaded)
        return -ENOMEM;
    for (uint32_t i = 0; i < q->bitmaps.n; i++)
        if ((loaded[n] = load_one(q, i, anew)))
            n++;
    int err = node_bitmaps_adopt(q->node, loaded, n);
    for (uint32_t i = 0; err && i < n; i++)
        dirty_bitmap_free(loaded[i]);
    return err;
}

void qcow2_load_bitmaps(struct node *node)
{
    struct qcow2 *q = qcow2_of(node);
    struct diag diag = {0};

    if (q->bitmaps.loaded)
        return;
    q->bitmaps.loaded = true;
    if (!qcow2_has_bitmaps(q))
        return;
    if (read_tables(q, &diag)) {
        qcow2_lose_bitmaps(q, diag.text);
        return;
    }
    int err = load_all(q);
    if (err)
        log_error("%s: its bitmaps can't be loaded (errno %d)", node->filename, -err);
}

/* ---- claiming their clusters before the image is written to ---- */

/* Checks that nothing else uses the cluster, by its refcount and the set of metadata, and adds it
 * to that set. */
static int claim_cluster(struct qcow2 *q, uint64_t cluster, struct diag *diag)
{
    struct lock *meta = mcache_meta(q->node->mc);

    int err = refcount_lock_page(&q->alloc.refs, cluster);
    if (err)
        return diag_errno(diag, -err, "%s: refcounts of its bitmaps", q->node->filename);
    uint64_t count = refcount_get(&q->alloc.refs, cluster);
    err = count == 1 ? meta_set_add(&q->alloc.metadata, cluster) : -EEXIST;
    lock_release(meta);
    return err ? diag_set(diag, -err,
                          "%s: bitmaps: their cluster at %" PRIu64
                          " has a refcount of %" PRIu64 ", or holds other metadata",
                          q->node->filename, cluster << q->geo.cluster_bits, count)
               : 0;
}

struct claims {
    struct qcow2 *q;
    uint64_t *cluster; /* those that were claimed so far */
    size_t n, room;
};

static int claim_range(struct claims *c, uint64_t offset, uint64_t bytes, struct diag *diag)
{
    unsigned bits = c->q->geo.cluster_bits;

    for (uint64_t at = offset >> bits; at << bits < offset + bytes; at++) {
        if (c->n == c->room) {
            size_t room = MAX(64, c->room * 2);
            uint64_t *larger = realloc(c->cluster, room * sizeof *larger);
            if (!larger)
                return diag_errno(diag, ENOMEM, "%s", c->q->node->filename);
            c->cluster = larger;
            c->room = room;
        }
        int err = claim_cluster(c->q, at, diag);
        if (err)
            return err;
        c->cluster[c->n++] = at;
    }
    return 0;
}

static int claim_bitmap(struct claims *c, const struct qcow2_bitmap *bitmap,
                        struct diag *diag)
{
    int err = claim_range(c, bitmap->table_offset, bitmap->table_size * 8ull, diag);

    for (uint32_t i = 0; !err && i < bitmap->table_size; i++)
        if (bitmap->table[i] & BT_OFFSET)
            err = claim_range(c, bitmap->table[i] & BT_OFFSET, 1, diag);
    return err;
}

static int claim_all(struct claims *c, struct diag *diag)
{
    const struct qcow2_bitmaps_ext *ext = &c->q->header.bitmaps;
    int err = claim_range(c, ext->directory_offset, ext->directory_bytes, diag);

    for (uint32_t i = 0; !err && i < c->q->bitmaps.n; i++)
        err = claim_bitmap(c, &c->q->bitmaps.entry[i], diag);
    return err;
}

static void spoil(struct dirty_bitmap *bitmap, void *opaque)
{
    (void)opaque;
    if (!dirty_bitmap_persistent(bitmap))
        return;
    dirty_bitmap_spoil(bitmap);
    dirty_bitmap_set_slot(bitmap, BITMAP_NO_SLOT);
}

void qcow2_claim_bitmaps(struct qcow2 *q)
{
    struct claims claims = {.q = q};
    struct diag diag = {0};

    if (q->bitmaps.claimed || !qcow2_has_bitmaps(q))
        return;
    q->bitmaps.claimed = true;
    gate_ticket ticket = gate_enter(&q->node->ctx->gate);
    int err = claim_all(&claims, &diag);
    gate_leave(&q->node->ctx->gate, ticket);
    for (size_t i = 0; err && i < claims.n; i++)
        meta_set_remove(&q->alloc.metadata, claims.cluster[i]);
    free(claims.cluster);
    if (!err)
        return;
    node_bitmap_each(q->node, spoil, NULL); /* clients may be using them already */
    qcow2_lose_bitmaps(q, diag.text);
}
