/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, activating and closing a qcow2 image, and its driver table. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "codec/codec.h"
#include "qcow2/check/check.h"
#include "qcow2/internal.h"
#include "qcow2/qcow2.h"

static bool probe(const uint8_t *head, size_t n)
{
    return n >= 4 && load_be32(head) == QCOW2_MAGIC;
}

static void on_frozen(void *owner)
{
    struct qcow2 *q = owner;

    alloc_frozen(&q->alloc);
    dirty_mark_frozen(&q->mark);
}

static void on_durable(void *owner)
{
    struct qcow2 *q = owner;

    dirty_mark_durable(&q->mark);
    alloc_durable(&q->alloc);
}

static const struct mcache_hooks hooks = {
    .settle = qcow2_settle_snapshot, .frozen = on_frozen, .durable = on_durable};

static int write_dirty_bit(struct node *node, bool on)
{
    struct qcow2 *q = qcow2_of(node);
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.incompatible =
        on ? h.incompatible | INCOMPAT_DIRTY : h.incompatible & ~INCOMPAT_DIRTY;
    int err = qcow2_header_write_features(node->file, &h);
    if (!err)
        q->header.incompatible = h.incompatible;
    return err;
}

void qcow2_free_state(void *state)
{
    struct qcow2 *q = state;

    dirty_mark_destroy(&q->mark);
    alloc_close(&q->alloc);
    mapping_destroy(&q->live);
    lock_destroy(&q->header_lock);
    free(q->orphans.runs);
    qcow2_free_snapshots(q);
    qcow2_bitmaps_destroy(q);
    qcow2_header_free(&q->header);
    free(q);
}

static void describe_node(struct qcow2 *q)
{
    struct node *node = q->node;

    node->size = q->header.size;
    node->cluster_size = (uint32_t)cluster_size(q);
    node->subcluster_size = 1u << q->geo.subcluster_bits;
    node->codec = codec_find(
        q->header.compression_type == COMPRESSION_ZSTD ? CODEC_ZSTD : CODEC_DEFLATE);
    node->encryption = q->header.crypt_method == CRYPT_LUKS  ? "LUKS"
                       : q->header.crypt_method == CRYPT_AES ? "AES"
                                                             : NULL;
    if (node->encryption)
        node->host_zeroes_show = false;
    node->data_alone = q->geo.external && (q->header.autoclear & AUTOCLEAR_DATA_RAW);
    node->may_be_lazy = q->header.version >= 3;
    node->backing_name = TAKE(&q->header.backing_name);
    node->backing_format = TAKE(&q->header.backing_format);
}

static struct qcow2 *new_state(struct node *node, const struct qcow2_header *header)
{
    struct qcow2 *q = calloc(1, sizeof *q);

    if (!q)
        return NULL;
    q->node = node;
    q->header = *header;
    q->geo = qcow2_header_geometry(header);
    q->data_kind = header->crypt_method ? EXTENT_ENCRYPTED : EXTENT_DATA;
    lock_init(&q->header_lock, RANK_HEADER);
    qcow2_bitmaps_init(q);
    mapping_init(&q->live, q, node->filename);
    dirty_mark_init(&q->mark, node, write_dirty_bit, false, false);
    return q;
}

static void met_corruption(void *owner)
{
    qcow2_mark_corrupt(owner);
}

static int move_refcount_table(void *owner, uint64_t offset, uint32_t clusters)
{
    struct qcow2 *q = owner;
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.refcount_table_offset = offset;
    h.refcount_table_clusters = clusters;
    int err = qcow2_point_header(q, &h, qcow2_header_write_refcount_table);
    if (err)
        return err;
    /* Only these two fields: other threads read the rest without a lock. */
    q->header.refcount_table_offset = offset;
    q->header.refcount_table_clusters = clusters;
    return 0;
}

static int open_alloc(struct qcow2 *q, struct diag *diag)
{
    const struct alloc_image image = {
        .node = q->node,
        .cluster_bits = q->geo.cluster_bits,
        .refcount_order = q->geo.refcount_order,
        .refcount_table_offset = q->header.refcount_table_offset,
        .refcount_table_clusters = q->header.refcount_table_clusters,
        .owner = q,
        .met_corruption = met_corruption,
        .move_refcount_table = move_refcount_table,
    };

    return alloc_open(&q->alloc, &image, diag);
}

static int open_tables(struct qcow2 *q, struct diag *diag)
{
    struct node *node = q->node;

    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, &hooks, q);
    if (!node->mc)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    int err = alloc_open_refcounts(&q->alloc, diag);
    if (err)
        return err;
    err = mapping_read_l1(&q->live, q->header.l1_table_offset, q->header.l1_size);
    return err ? diag_errno(diag, -err, "%s: reading the L1 table", node->filename) : 0;
}

static int qcow2_open(struct node *node, struct diag *diag)
{
    bool describe = node->options.describe;
    struct qcow2_header header;
    int err = describe ? qcow2_header_read_for_info(node->file, &header, diag)
                       : qcow2_header_read(node->file, &header, diag);
    if (err)
        return err;

    struct qcow2 *q = new_state(node, &header);
    if (!q) {
        qcow2_header_free(&header);
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    }
    err = open_alloc(q, diag);
    if (!err && !describe)
        err = open_tables(q, diag);
    if (!err)
        err = qcow2_read_snapshots(q, diag);
    if (err) {
        qcow2_free_state(q);
        return err;
    }
    node->state = q;
    qcow2_read_bitmaps(q);
    describe_node(q);
    return 0;
}

/* To be called before an image is written to: repairs one with the dirty bit, refuses one with
 * the corrupt bit. */
static int require_clean(struct node *node, struct diag *diag)
{
    int err = node_refresh(node, qcow2_free_state, diag);
    const struct qcow2_header *h = &qcow2_of(node)->header;

    if (err)
        return err;
    if (h->incompatible & INCOMPAT_CORRUPT)
        return diag_set(
            diag, EROFS,
            "%s: incompatible_features: the corrupt bit is set: the image can only "
            "be read until it is repaired (qimg check -r all)",
            node->filename);
    if (!(h->incompatible & INCOMPAT_DIRTY))
        return 0;
    if (atomic_load(&node->viewers))
        return diag_set(diag, EBUSY,
                        "%s: a client reads a snapshot of it: it can't be repaired, and so "
                        "not be written to, before that ends",
                        node->filename);
    if (node->options.repair_off)
        return diag_set(
            diag, EROFS,
            "%s: incompatible_features: the dirty bit is set: refcounts must be "
            "repaired (repair=auto, or qimg check -r all) before the image can be "
            "written",
            node->filename);
    err = check_before_writing(node, diag);
    return err ? err : node_reopen(node, qcow2_free_state, diag);
}

/* The autoclear bits of features that this program keeps up to date: the raw data file, if there
 * is one, and bitmaps, if they could be loaded. */
static uint64_t kept_up(const struct qcow2 *q)
{
    return (q->geo.external ? AUTOCLEAR_DATA_RAW : 0) |
           (qcow2_has_bitmaps(q) ? AUTOCLEAR_BITMAPS : 0);
}

/* Clears all autoclear bits except `keep`, durably.  A writer must do so for all features that it
 * doesn't keep up to date (qcow2.rst, "autoclear_features"). */
static int clear_autoclear(struct qcow2 *q, uint64_t keep)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    if (h.version < 3 || (h.autoclear & ~keep) == 0)
        return 0;
    h.autoclear &= keep;
    int err = qcow2_header_write_features(q->node->file, &h);
    if (!err)
        err = storage_flush(q->node->file);
    if (!err)
        q->header.autoclear = h.autoclear; /* else the next change tries again */
    return err;
}

/* As long as the disk isn't changed its bitmaps are right.  So only the first change clears
 * autoclear bits and marks the bitmaps as in use. */
int qcow2_first_change(struct node *node)
{
    struct qcow2 *q = qcow2_of(node);
    LOCK_GUARD(&q->bitmaps.in_use);

    int err = clear_autoclear(q, kept_up(q));
    if (err)
        log_error("%s: clearing autoclear_features failed (errno %d)", node->filename,
                  -err);
    if (err || q->bitmaps.n == 0)
        return err;
    err = qcow2_mark_bitmaps_in_use(q);
    if (err)
        log_error("%s: marking its bitmaps as in use failed (errno %d)", node->filename,
                  -err);
    return err;
}

/* The wish was for the disk: the image that it is moved to, or that a job writes below it, needn't
 * be able to. */
static void choose_refcounts(struct qcow2 *q)
{
    int wish = q->node->options.lazy_refcounts;

    q->lazy = (wish > 0 && q->node->may_be_lazy) ||
              (wish == 0 && (q->header.compatible & COMPAT_LAZY_REFCOUNTS));
    q->mark.enabled = q->lazy;
    mcache_set_postpone(q->node->mc, q->lazy);
}

static int qcow2_activate(struct node *node, struct diag *diag)
{
    int err = require_clean(node, diag);
    struct qcow2 *q = qcow2_of(node); /* after the repair, which replaces it */

    if (err)
        return err;
    choose_refcounts(q);
    err = qcow2_collect_metadata(q, diag);
    if (err)
        return err;
    err = alloc_activate(&q->alloc, diag);
    if (err)
        return err;
    err = clear_autoclear(q, AUTOCLEAR_BITMAPS | kept_up(q));
    if (err)
        return diag_errno(diag, -err, "%s: clearing autoclear_features", node->filename);
    qcow2_load_bitmaps(node);
    qcow2_claim_bitmaps(q);
    return 0;
}

/* Makes everything durable, clears the dirty mark, and shortens the file as far as possible. */
static int end_cleanly(struct qcow2 *q)
{
    qcow2_tidy_at_end(q);
    qcow2_store_bitmaps_at_end(q);
    int err = alloc_settle(&q->alloc);
    if (!err)
        err = dirty_mark_finish(&q->mark);
    if (!err)
        err = alloc_trim_file(&q->alloc);
    return err;
}

static int qcow2_settle(struct node *node)
{
    struct qcow2 *q = qcow2_of(node);

    timer_cancel(node->ctx->housekeeper, &q->mark.timer);
    return qcow2_failed(q, end_cleanly(q));
}

static int qcow2_close(struct node *node)
{
    struct qcow2 *q = qcow2_of(node);
    int err = 0;

    timer_cancel(node->ctx->housekeeper, &q->mark.timer);
    timer_cancel(node->ctx->housekeeper, &q->bitmaps.timer);
    if (node->active)
        err = qcow2_settle(node);
    qcow2_free_state(q);
    return err;
}

static int qcow2_clear_mark(struct node *node)
{
    /* With cache=volatile the cleared bit could reach the disk before the refcounts do. */
    return node->options.cache->no_flush ? 0
                                         : dirty_mark_clear(&qcow2_of(node)->mark, true);
}

static int qcow2_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    return mapping_map(&qcow2_of(node)->live, off, len, out);
}

static bool qcow2_data_file(const struct node *node, const char **name)
{
    const struct qcow2 *q = qcow2_of(node);

    *name = q->header.data_file;
    return q->geo.external;
}

static bool has_unlinked(struct node *node)
{
    return alloc_has_unlinked(&qcow2_of(node)->alloc);
}

const struct driver qcow2_driver = {
    .name = "qcow2",
    .features = DRIVER_CLUSTERS | DRIVER_BACKING | DRIVER_GROWS | DRIVER_SHRINKS |
                DRIVER_CHECKS | DRIVER_MARKS | DRIVER_SNAPSHOTS | DRIVER_BITMAPS,
    .create_options = qcow2_create_options,
    .probe = probe,
    .open = qcow2_open,
    .activate = qcow2_activate,
    .first_change = qcow2_first_change,
    .close = qcow2_close,
    .settle = qcow2_settle,
    .map = qcow2_map,
    .reserve = qcow2_reserve,
    .reserve_compressed = qcow2_reserve_compressed,
    .unlock = qcow2_unlock,
    .data_file = qcow2_data_file,
    .link = qcow2_link,
    .release = qcow2_release,
    .zero = qcow2_zero,
    .zero_is_fast = qcow2_zero_is_fast,
    .has_unlinked = has_unlinked,
    .set_backing = qcow2_set_backing,
    .grow = qcow2_grow,
    .shrink = qcow2_shrink,
    .make_empty = qcow2_make_empty,
    .measure = qcow2_measure,
    .amend_options = qcow2_amend_options,
    .amend_disk = qcow2_amend_disk,
    .amend = qcow2_amend,
    .clear_mark = qcow2_clear_mark,
    .snapshots = qcow2_snapshots,
    .open_snapshot = qcow2_open_snapshot,
    .close_snapshot = qcow2_close_snapshot,
    .begin_snapshot = qcow2_begin_snapshot,
    .prepare_snapshot = qcow2_prepare_snapshot,
    .commit_snapshot = qcow2_commit_snapshot,
    .abort_snapshot = qcow2_abort_snapshot,
    .finish_snapshot = qcow2_finish_snapshot,
    .load_bitmaps = qcow2_load_bitmaps,
    .check_bitmap = qcow2_check_bitmap,
    .begin_bitmap_change = qcow2_begin_bitmap_change,
    .end_bitmap_change = qcow2_end_bitmap_change,
    .keep_bitmaps = qcow2_keep_bitmaps,
    .info = qcow2_info,
    .check = qcow2_check,
    .check_create = qcow2_check_create,
    .create = qcow2_create,
};
