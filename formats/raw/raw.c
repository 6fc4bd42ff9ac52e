/* SPDX-License-Identifier: BSD-3-Clause */
/* The raw format: guest offsets are host offsets, and there is no metadata. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "block/measure.h"
#include "block/node.h"
#include "raw/raw.h"

#define SECTOR 512

static int raw_open(struct node *node, struct diag *diag)
{
    int rc = storage_size(node->file, &node->size);
    if (rc < 0)
        return diag_errno(diag, -rc, "%s: cannot get its size", node->filename);
    node->cluster_size = 1;
    /* There is no metadata; the cache is for commits, so that concurrent flushes share one
     * sync. */
    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, NULL, NULL);
    if (!node->mc)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    return 0;
}

static int raw_activate(struct node *node, struct diag *diag)
{
    (void)node;
    (void)diag;
    return 0;
}

static int raw_close(struct node *node)
{
    return node->active ? block_settle(node) : 0;
}

/* Everything is data, as reads don't need to know holes; block_status asks the storage for
 * them. */
static int raw_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    *out = (struct extent){
        .kind = EXTENT_DATA,
        .writable = true,
        .allocated = true,
        .length = len,
        .file = node->file,
        .host_offset = off,
    };
    return 0;
}

static int raw_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                    uint64_t *done)
{
    int rc = how == ZERO_DISCARD ? storage_discard(node->file, off, len)
                                 : storage_zero(node->file, off, len,
                                                how == ZERO_UNMAP ? STORAGE_MAY_UNMAP : 0);
    *done = rc < 0 ? 0 : len;
    return rc;
}

static bool raw_zero_is_fast(struct node *node, uint64_t off, uint64_t len)
{
    (void)off;
    (void)len;
    return node->file->ops->zero != NULL;
}

static int raw_grow(struct node *node, uint64_t size, struct diag *diag)
{
    if (size < node->size)
        return diag_set(diag, EINVAL, "%s: %" PRIu64 " bytes are less than its %" PRIu64,
                        node->filename, size, node->size);
    int rc = storage_truncate(node->file, size);
    if (rc == 0)
        rc = node_barrier(node);
    if (rc < 0)
        return diag_errno(diag, -rc, "%s: growing to %" PRIu64 " bytes", node->filename,
                          size);
    node->size = size;
    return 0;
}

static int raw_shrink(struct node *node, uint64_t size, struct diag *diag)
{
    int rc = node->file->fixed_size ? -EINVAL : storage_truncate(node->file, size);

    if (rc == 0)
        rc = node_barrier(node);
    if (rc < 0)
        return diag_errno(diag, -rc, "%s: shrinking to %" PRIu64 " bytes", node->filename,
                          size);
    node->size = size;
    return 0;
}

/* The file is as long as the disk, whatever its content. */
static int raw_measure(const struct create_request *req, struct node *source,
                       struct image_measure *out, struct diag *diag)
{
    (void)source;
    (void)diag;
    out->required = out->allocated = align_up(req->size, SECTOR);
    return 0;
}

/* No probe: any bytes are a valid raw image. */
const struct driver raw_driver = {
    .name = "raw",
    .features = DRIVER_GROWS | DRIVER_SHRINKS,
    .create_options = raw_create_options,
    .open = raw_open,
    .activate = raw_activate,
    .close = raw_close,
    .settle = block_settle,
    .map = raw_map,
    .zero = raw_zero,
    .zero_is_fast = raw_zero_is_fast,
    .grow = raw_grow,
    .shrink = raw_shrink,
    .measure = raw_measure,
    .check_create = raw_check_create,
    .create = raw_create,
};
