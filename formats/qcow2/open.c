/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, activating and closing a qcow2 image, and its driver table. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
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

static const struct mcache_hooks hooks = {.frozen = on_frozen, .durable = on_durable};

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

int qcow2_set_l1(struct qcow2 *q, _Atomic uint64_t *l1, uint32_t l1_size, uint64_t offset)
{
    struct mcache *mc = q->node->mc;
    struct mcmap *map = mcmap_new_resident(mc, l1, l1_size, MC_BE64, qcow2_locate_l1, q);
    uint64_t pages_per_table = 1ull << (q->l2_bits - q->page_bits);
    struct mcmap *pages =
        mcmap_new(mc, l1_size * pages_per_table, (uint32_t)(8u << q->page_bits), MC_BE64,
                  qcow2_locate_l2, q);

    if (!map || !pages) {
        mcmap_free(map);
        mcmap_free(pages);
        return -ENOMEM;
    }
    mcmap_free(q->l1_map);
    mcmap_free(q->l2_map);
    free((void *)q->l1);
    q->l1_map = map;
    q->l2_map = pages;
    q->l1 = l1;
    q->l1_size = l1_size;
    atomic_store(&q->l1_offset, offset);
    return 0;
}

static int read_l1(struct qcow2 *q, struct diag *diag)
{
    uint64_t bytes = (uint64_t)q->header.l1_size * 8;
    CLEANUP_FREE uint8_t *raw = malloc(bytes + 1);
    CLEANUP_FREE _Atomic uint64_t *l1 = calloc(q->header.l1_size + 1u, sizeof *l1);

    int err = raw && l1 ? storage_read(q->node->file, raw, q->header.l1_table_offset, bytes)
                        : -ENOMEM;
    for (uint32_t i = 0; !err && i < q->header.l1_size; i++)
        atomic_init(&l1[i], load_be64(raw + (size_t)i * 8));
    if (!err)
        err = qcow2_set_l1(q, l1, q->header.l1_size, q->header.l1_table_offset);
    if (err)
        return diag_errno(diag, -err, "%s: reading the L1 table", q->node->filename);
    l1 = NULL;
    return 0;
}

static void free_state(void *state)
{
    struct qcow2 *q = state;

    dirty_mark_destroy(&q->mark);
    alloc_close(&q->alloc);
    mcmap_free(q->l1_map);
    mcmap_free(q->l2_map);
    refcounts_close(&q->refs);
    free((void *)q->l1);
    for (unsigned i = 0; i < TABLE_STRIPES; i++)
        lock_destroy(&q->table_lock[i]);
    lock_destroy(&q->header_lock);
    qcow2_free_snapshots(q);
    qcow2_free_bitmaps(q);
    meta_set_free(&q->metadata);
    qcow2_header_free(&q->header);
    free(q);
}

static void describe_node(struct qcow2 *q)
{
    struct node *node = q->node;

    node->size = q->header.size;
    node->cluster_size = (uint32_t)cluster_size(q);
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
    q->cluster_bits = header->cluster_bits;
    q->l2_bits = header->cluster_bits - 3;
    q->page_bits = MIN(q->l2_bits, 9);
    lock_init(&q->header_lock, RANK_HEADER);
    for (unsigned i = 0; i < TABLE_STRIPES; i++)
        lock_init(&q->table_lock[i], RANK_TABLE);
    dirty_mark_init(&q->mark, node, write_dirty_bit, false, false);
    return q;
}

static int open_tables(struct qcow2 *q, struct diag *diag)
{
    struct node *node = q->node;

    node->mc = mcache_new(node->ctx->pool, node->file, &hooks, q);
    if (!node->mc)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    int err = refcounts_open(&q->refs, q, diag);
    return err ? err : read_l1(q, diag);
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
    err = alloc_open(&q->alloc, q, diag);
    if (!err && !describe)
        err = open_tables(q, diag);
    if (!err)
        err = qcow2_read_snapshots(q, diag);
    if (err) {
        free_state(q);
        return err;
    }
    qcow2_read_bitmaps(q);
    node->state = q;
    describe_node(q);
    return 0;
}

/* Before anything is changed: an image with the dirty bit is repaired, one with the corrupt
 * bit is refused. */
static int require_clean(struct node *node, struct diag *diag)
{
    const struct qcow2_header *h = &qcow2_of(node)->header;

    if (h->incompatible & INCOMPAT_CORRUPT)
        return diag_set(
            diag, EROFS,
            "%s: incompatible_features: the corrupt bit is set: the image can only "
            "be read until it is repaired (qimg check -r all)",
            node->filename);
    if (!(h->incompatible & INCOMPAT_DIRTY))
        return 0;
    if (node->options.repair_off)
        return diag_set(
            diag, EROFS,
            "%s: incompatible_features: the dirty bit is set: refcounts must be "
            "repaired (repair=auto, or qimg check -r all) before the image can be "
            "written",
            node->filename);
    int err = check_before_writing(node, diag);
    return err ? err : node_reopen(node, free_state, diag);
}

/* What a writer that doesn't maintain a feature must clear: all bits but those of `keep`.
 */
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
        q->header.autoclear = h.autoclear; /* not before: who failed tries again */
    return err;
}

/* Bitmaps of a disk that wasn't changed go on being right, so that their bit isn't cleared
 * sooner. */
int qcow2_first_change(struct node *node)
{
    int err = clear_autoclear(qcow2_of(node), 0);

    if (err)
        log_error("%s: clearing autoclear_features failed (errno %d)", node->filename,
                  -err);
    return err;
}

static int choose_refcounts(struct qcow2 *q, struct diag *diag)
{
    int wish = q->node->options.lazy_refcounts;

    if (wish > 0 && q->header.version < 3)
        return diag_set(
            diag, EINVAL,
            "%s: lazy refcounts need version 3 (compat=1.1), the image is version 2",
            q->node->filename);
    q->lazy = wish > 0 || (wish == 0 && (q->header.compatible & COMPAT_LAZY_REFCOUNTS));
    q->mark.enabled = q->lazy;
    mcache_set_postpone(q->node->mc, q->lazy);
    return 0;
}

static int qcow2_activate(struct node *node, struct diag *diag)
{
    int err = require_clean(node, diag);
    struct qcow2 *q = qcow2_of(node); /* which the repair replaces */

    if (!err)
        err = choose_refcounts(q, diag);
    if (!err)
        err = qcow2_collect_metadata(q, diag);
    if (!err)
        err = alloc_activate(&q->alloc, diag);
    if (err)
        return err;
    err = clear_autoclear(q, AUTOCLEAR_BITMAPS);
    if (err)
        return diag_errno(diag, -err, "%s: clearing autoclear_features", node->filename);
    qcow2_warn_of_bitmaps(q);
    return 0;
}

/* Everything durable, the mark cleared, the file no longer than it must be. */
static int end_cleanly(struct qcow2 *q)
{
    int err = alloc_settle(&q->alloc);

    if (!err)
        err = dirty_mark_finish(&q->mark);
    if (!err)
        err = alloc_trim_file(&q->alloc);
    return err;
}

static int qcow2_close(struct node *node)
{
    struct qcow2 *q = qcow2_of(node);
    int err = 0;

    timer_cancel(node->ctx->housekeeper, &q->mark.timer);
    if (node->active)
        err = qcow2_failed(q, end_cleanly(q));
    free_state(q);
    return err;
}

static int qcow2_settle(struct node *node)
{
    /* When flushes are void the cleared bit could reach the disk before the refcounts. */
    return node->options.cache->no_flush ? 0
                                         : dirty_mark_settle(&qcow2_of(node)->mark, true);
}

static bool has_unlinked(struct node *node)
{
    return alloc_has_unlinked(&qcow2_of(node)->alloc);
}

const struct driver qcow2_driver = {
    .name = "qcow2",
    .create_options = qcow2_create_options,
    .probe = probe,
    .open = qcow2_open,
    .activate = qcow2_activate,
    .first_change = qcow2_first_change,
    .close = qcow2_close,
    .map = qcow2_map,
    .reserve = qcow2_reserve,
    .link = qcow2_link,
    .release = qcow2_release,
    .zero = qcow2_zero,
    .zero_is_fast = qcow2_zero_is_fast,
    .has_unlinked = has_unlinked,
    .set_backing = qcow2_set_backing,
    .grow = qcow2_grow,
    .settle = qcow2_settle,
    .info = qcow2_info,
    .check = qcow2_check,
    .create = qcow2_create,
};
