/* SPDX-License-Identifier: BSD-3-Clause */
/* Grows the virtual size.  QED images can't shrink: the format has no way to free the clusters
 * beyond the new end. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "qed/image.h"

static int check_size(const struct qed_image *img, uint64_t size, struct diag *diag)
{
    const struct node *node = img->node;
    uint64_t max = qed_max_image_size(img->header.cluster_size, img->header.table_size);

    if (size > max)
        return diag_set(diag, EFBIG,
                        "%s: image_size %" PRIu64 ": more than the %" PRIu64
                        " bytes that its tables can map",
                        node->filename, size, max);
    if (size < node->size)
        return diag_set(diag, ENOTSUP,
                        "%s: image_size %" PRIu64
                        ": a QED image can't be shrunk (it has %" PRIu64 " bytes)",
                        node->filename, size, node->size);
    if (img->has_backing && !node->backing)
        return diag_set(diag, EINVAL,
                        "%s: can't grow without its backing file, which may have data past "
                        "the present end",
                        node->filename);
    return 0;
}

/* The added part must read as zeroes, even if the backing file is longer than the image was. */
static int hide_backing(struct node *node, uint64_t old_size)
{
    if (!node->backing || node->backing->size <= old_size)
        return 0;
    uint64_t end = MIN(node->size, node->backing->size);
    int err = block_zero(node, old_size, end - old_size, 0);
    return err < 0 ? err : mcache_commit(node->mc, MC_COMMIT_EVERYTHING);
}

static int write_size(struct qed_image *img, uint64_t size)
{
    LOCK_GUARD(&img->header_lock);

    int err = qed_header_write_image_size(img->node->file, size);
    if (err == 0)
        err = node_barrier(img->node);
    if (err == 0)
        img->header.image_size = size;
    return err;
}

/* The zeroes over the backing file are durable before the new size is. */
static int publish_size(struct qed_image *img, uint64_t old_size, uint64_t size)
{
    int err = hide_backing(img->node, old_size);

    return err < 0 ? err : write_size(img, size);
}

static int grow_to(struct node *node, uint64_t size, struct diag *diag)
{
    struct qed_image *img = node->state;
    uint64_t old_size = node->size;

    if (add_overflows(size, QED_SECTOR_SIZE - 1, &size))
        size = UINT64_MAX;
    size = align_down(size, QED_SECTOR_SIZE);
    int err = check_size(img, size, diag);
    if (err < 0)
        return err;

    /* The maps are replaced by larger ones, so no page may be dirty. */
    if ((err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING)) < 0)
        return diag_errno(diag, -err, "%s: writing its tables", node->filename);
    if ((err = qed_tables_load(img, size, diag)) < 0)
        return err;
    node->size = size;
    if ((err = publish_size(img, old_size, size)) < 0) {
        /* The larger maps can stay. */
        node->size = old_size;
        return diag_errno(diag, -err, "%s: growing to %" PRIu64 " bytes", node->filename,
                          size);
    }
    return 0;
}

int qed_grow(struct node *node, uint64_t size, struct diag *diag)
{
    struct qed_image *img = node->state;

    qed_trims_pause(img);
    int err = grow_to(node, size, diag);
    qed_trims_resume(img);
    return err;
}
