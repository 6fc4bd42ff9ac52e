/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and closing an image, and the driver table. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/image_info.h"
#include "qed/image.h"
#include "qed/qed.h"

static bool probe(const uint8_t *head, size_t n)
{
    return n >= 4 && load_le32(head) == QED_MAGIC;
}

/* ---- hooks of the metadata cache ---- */

static void group_frozen(void *owner)
{
    struct qed_image *img = owner;

    if (!img->active)
        return;
    dirty_mark_frozen(&img->mark);
    tail_frozen(&img->space.tail);
}

static void group_durable(void *owner)
{
    struct qed_image *img = owner;

    if (!img->active)
        return;
    dirty_mark_durable(&img->mark);
    tail_durable(&img->space.tail, img->node);
}

static const struct mcache_hooks hooks = {.frozen = group_frozen, .durable = group_durable};

/* ---- open ---- */

/* Frees the state; node->mc and the node's strings belong to the node. */
static void free_image(void *state)
{
    struct qed_image *img = state;

    qed_trims_free(img);
    qed_tables_free(img);
    qed_space_destroy(&img->space);
    for (unsigned i = 0; i < QED_TABLE_LOCKS; i++)
        lock_destroy(&img->table_locks[i]);
    lock_destroy(&img->header_lock);
    free(img);
}

static struct qed_image *new_image(struct node *node, const struct qed_header *header,
                                   uint64_t file_size)
{
    struct qed_image *img = calloc(1, sizeof *img);

    if (!img)
        return NULL;
    img->node = node;
    img->header = *header;
    img->has_backing = header->features & QED_F_BACKING_FILE;
    qed_geometry_init(&img->geo, header);
    lock_init(&img->header_lock, RANK_HEADER);
    for (unsigned i = 0; i < QED_TABLE_LOCKS; i++)
        lock_init(&img->table_locks[i], RANK_TABLE);
    qed_space_init(&img->space, node, align_up(file_size, img->geo.cluster_size));
    qed_trims_init(img);
    return img;
}

static int open_tables(struct qed_image *img, struct diag *diag)
{
    struct node *node = img->node;

    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, &hooks, img);
    if (!node->mc)
        return diag_errno(diag, ENOMEM, "%s: metadata cache", node->filename);
    int err = qed_tables_load(img, img->header.image_size, diag);
    if (err < 0) {
        mcache_free(node->mc);
        node->mc = NULL;
    }
    return err;
}

static int open_image(struct node *node, struct diag *diag)
{
    struct qed_header header;
    uint64_t file_size;
    CLEANUP_FREE char *backing = NULL;
    CLEANUP_FREE char *format = NULL;

    int err = qed_header_read(node->file, node->filename, &header, diag);
    if (err < 0)
        return err;
    err = qed_header_read_backing(node->file, node->filename, &header, &backing, diag);
    if (err < 0)
        return err;
    if ((err = storage_size(node->file, &file_size)) < 0)
        return diag_errno(diag, -err, "%s: size of the file", node->filename);
    if (backing && header.features & QED_F_BACKING_FORMAT_NO_PROBE) {
        format = strdup("raw");
        if (!format)
            return diag_errno(diag, ENOMEM, "%s: backing format", node->filename);
    }

    struct qed_image *img = new_image(node, &header, file_size);
    if (!img)
        return diag_errno(diag, ENOMEM, "%s: image state", node->filename);
    if ((err = open_tables(img, diag)) < 0) {
        free_image(img);
        return err;
    }
    node->state = img;
    if (node->file->fixed_size) {
        node->can_write = false;
        node->cannot =
            "a QED image on a block device: the format grows by extending its file";
    }
    node->size = header.image_size;
    node->cluster_size = header.cluster_size;
    node->backing_name = TAKE(&backing);
    node->backing_format = TAKE(&format);
    return 0;
}

/* ---- activation ---- */

/* Writes the NEED_CHECK bit; doesn't flush. */
static int write_need_check(struct node *node, bool on)
{
    struct qed_image *img = node->state;
    LOCK_GUARD(&img->header_lock);
    uint64_t features = img->header.features & ~(uint64_t)QED_F_NEED_CHECK;

    if (on)
        features |= QED_F_NEED_CHECK;
    int err = qed_header_write_features(node->file, features);
    if (err == 0)
        img->header.features = features;
    return err;
}

/* For the dirty mark, which keeps allocations waiting while it is cleared.  Cuts off unused
 * clusters first, so that an image without the mark has no leaked clusters at its end. */
static int write_mark(struct node *node, bool on)
{
    struct qed_image *img = node->state;
    int err = on ? 0 : qed_space_trim(&img->space);

    return err < 0 ? err : write_need_check(node, on);
}

/* Repairs an image that wasn't closed cleanly. */
static int require_clean(struct node *node, struct diag *diag)
{
    int err = node_refresh(node, free_image, diag);
    const struct qed_image *img = node->state;

    if (err)
        return err;
    if (!(img->header.features & QED_F_NEED_CHECK))
        return 0;
    if (node->options.repair_off)
        return diag_set(diag, EROFS,
                        "%s: features: NEED_CHECK is set: the image must be repaired "
                        "(repair=auto, or qimg check -r all) before it can be written",
                        node->filename);
    err = check_before_writing(node, diag);
    return err < 0 ? err : node_reopen(node, free_image, diag);
}

/* This program maintains no autoclear feature, so all their bits are cleared. */
static int clear_autoclear(struct qed_image *img, struct diag *diag)
{
    struct node *node = img->node;

    if (img->header.autoclear_features == 0)
        return 0;
    LOCK_GUARD(&img->header_lock);
    int err = qed_header_write_autoclear(node->file, 0);
    if (err == 0)
        err = storage_flush(node->file);
    if (err < 0)
        return diag_errno(diag, -err, "%s: clearing autoclear_features 0x%" PRIx64,
                          node->filename, img->header.autoclear_features);
    img->header.autoclear_features = 0;
    return 0;
}

/* Clusters are appended, so the file has to end at a cluster boundary. */
static int round_file_up(struct qed_image *img, struct diag *diag)
{
    struct node *node = img->node;
    uint64_t size;

    int err = storage_size(node->file, &size);
    if (err < 0)
        return diag_errno(diag, -err, "%s: size of the file", node->filename);
    uint64_t end = align_up(size, img->geo.cluster_size);
    if (end != size && (err = storage_truncate(node->file, end)) < 0)
        return diag_errno(diag, -err, "%s: extending the file to %" PRIu64 " bytes",
                          node->filename, end);
    qed_space_activate(&img->space, img->geo.cluster_size, end);
    return 0;
}

static int activate_image(struct node *node, struct diag *diag)
{
    int err;

    if ((err = require_clean(node, diag)) < 0)
        return err;
    struct qed_image *img = node->state; /* the repair may have replaced it */
    if ((err = clear_autoclear(img, diag)) < 0 || (err = round_file_up(img, diag)) < 0)
        return err;
    dirty_mark_init(&img->mark, node, write_mark, !img->has_backing, false);
    img->active = true;
    return 0;
}

/* ---- close ---- */

static int close_cleanly(struct qed_image *img)
{
    int err = qed_trims_finish(img);

    /* Clusters that couldn't be put back leak; the mark stays set to say so. */
    if (err < 0) {
        (void)!mcache_commit(img->node->mc, MC_COMMIT_EVERYTHING);
        qed_trims_resume(img);
        return err;
    }
    /* Clusters behind the last used one were never linked, so they may be cut off before the
     * tables are written. */
    int trimmed = qed_space_trim(&img->space);
    err = dirty_mark_finish(&img->mark);

    return err < 0 ? err : trimmed;
}

static int settle_image(struct node *node)
{
    struct qed_image *img = node->state;
    int err = img->active ? close_cleanly(img) : 0;

    if (!err && img->active)
        dirty_mark_destroy(&img->mark);
    img->active &= err != 0;
    return err;
}

static int close_image(struct node *node)
{
    struct qed_image *img = node->state;
    int err = settle_image(node);

    qed_trims_pause(img);
    if (img->active)
        dirty_mark_destroy(&img->mark);
    node->state = NULL;
    free_image(img);
    return err;
}

static int qed_clear_mark(struct node *node)
{
    struct qed_image *img = node->state;

    /* While flushes do nothing, the cleared bit could reach the disk before the tables. */
    if (!img->active || node->options.cache->no_flush)
        return 0;
    int err = qed_trims_finish(img);
    qed_trims_resume(img);
    return err < 0 ? err : dirty_mark_clear(&img->mark, true);
}

static int fill_info(struct node *node, struct image_info *info)
{
    struct qed_image *img = node->state;
    LOCK_GUARD(&img->header_lock);

    info->dirty = img->header.features & QED_F_NEED_CHECK;
    return 0;
}

const struct driver qed_driver = {
    .name = "qed",
    .features =
        DRIVER_CLUSTERS | DRIVER_BACKING | DRIVER_GROWS | DRIVER_CHECKS | DRIVER_MARKS,
    .create_options = qed_create_options,
    .probe = probe,
    .open = open_image,
    .activate = activate_image,
    .close = close_image,
    .settle = settle_image,
    .map = qed_map,
    .reserve = qed_reserve,
    .link = qed_link,
    .release = qed_release,
    .zero = qed_zero,
    .zero_is_fast = qed_zero_is_fast,
    .set_backing = qed_set_backing,
    .grow = qed_grow,
    .clear_mark = qed_clear_mark,
    .info = fill_info,
    .check = qed_check,
    .check_create = qed_check_create,
    .create = qed_create,
};
