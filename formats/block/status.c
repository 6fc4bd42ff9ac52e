/* SPDX-License-Identifier: BSD-3-Clause */
/* Block status over the whole chain. */
#include <errno.h>

#include "base/checked.h"
#include "block/chain_lookup.h"
#include "block/engine.h"
#include "block/shared_layer.h"

/* The largest number of queries of the file's extents for one answer. */
#define MAX_LOOKS 64

/* An extent of data may still be a hole in the file (preallocated, punched, or raw).  *hole: is
 * it?  Shortens *len to the part that is all data or all hole, in whole clusters for formats
 * that have them. */
static int look_into_file(struct node *layer, const struct extent *ext, uint64_t *len,
                          bool *hole)
{
    uint64_t at = 0, cluster = layer->subcluster_size, host = ext->host_offset;

    for (unsigned looks = 0; at < *len && looks < MAX_LOOKS; looks++) {
        bool data;
        uint64_t run;
        int err = storage_extent(ext->file, host + at, *len - at, &data, &run);
        if (err)
            return err;
        /* A hole counts when it covers the rest of the cluster, or of the range. */
        uint64_t first_end = MIN(*len, align_up(host + at + 1, cluster) - host);
        if (!data && at + run >= first_end) {
            *hole = at == 0;
            if (at == 0)
                at = run == *len ? run : align_down(host + run, cluster) - host;
            *len = at;
            return 0;
        }
        at = MIN(*len, align_up(host + at + run, cluster) - host);
    }
    *len = at;
    *hole = false;
    return 0;
}

/* Fills in *out from the layer's extent, which isn't BACKING. */
static int describe_extent(struct node *layer, const struct extent *ext,
                           struct block_status *out)
{
    out->length = ext->length;
    out->layer = layer;
    out->present = ext->allocated;
    out->zero = ext->kind == EXTENT_ZERO;
    out->data = extent_is_data(ext->kind);
    out->compressed = ext->kind == EXTENT_COMPRESSED;
    /* Compressed and encrypted data can't be read from its place, so none is told. */
    if (ext->kind == EXTENT_DATA || ext->kind == EXTENT_ZERO) {
        out->file = ext->file;
        out->host_offset = ext->host_offset;
    }
    if (ext->kind != EXTENT_DATA || !layer->host_zeroes_show)
        return 0;

    bool hole = false;
    int err = look_into_file(layer, ext, &out->length, &hole);
    out->zero = hole;
    /* A raw file's hole holds no data; an allocated cluster keeps its place. */
    if (hole && layer->cluster_size == 1)
        out->data = false;
    return err;
}

/* The chain's own node that corresponds to `opened`, with `depth` layers above it. */
static struct node *layer_in_chain(struct node *top, struct node *opened, unsigned depth)
{
    struct node *layer = top;

    for (unsigned i = 0; layer && i < depth; i++)
        layer = layer->backing;
    /* Otherwise the chain has just been changed, and the answer is that of before the change. */
    return layer && node_opened(layer) == node_opened(opened) ? layer : opened;
}

int engine_status(struct node *node, uint64_t off, uint64_t len, struct block_status *out)
{
    struct node *layer;
    struct extent ext;
    unsigned depth;

    int err = chain_look_up(node, off, len, &ext, &layer, &depth);
    if (err)
        return err;
    *out = (struct block_status){.depth = depth};
    return describe_extent(layer_in_chain(node, layer, depth), &ext, out);
}

/* Only for raw: the clusters of other formats lie elsewhere in the file than the marks refer
 * to. */
static int take_marks(struct block_status *out)
{
    struct storage_marks marks;

    if (!out->file || out->layer->cluster_size != 1)
        return 0;
    int err = storage_marks(out->file, out->host_offset, out->length, &marks);
    if (err)
        return err == -ENOTSUP ? 0 : err;
    out->length = marks.run;
    out->data = marks.data;
    out->zero = marks.zero;
    out->present = marks.data || marks.zero;
    if (!out->present)
        out->file = NULL;
    return 0;
}

int block_status_shown(struct node *node, uint64_t off, uint64_t len,
                       struct block_status *out)
{
    int err = node_check_range(node, off, len);
    if (err)
        return err;
    gate_ticket ticket = gate_enter(&node->ctx->gate);
    err = engine_status(node, off, len, out);
    if (!err)
        err = take_marks(out);
    gate_leave(&node->ctx->gate, ticket);
    return err;
}

int block_status(struct node *node, uint64_t off, uint64_t len, struct block_status *out)
{
    int err = node_check_range(node, off, len);
    if (err)
        return err;
    gate_ticket ticket = gate_enter(&node->ctx->gate);
    err = engine_status(node, off, len, out);
    gate_leave(&node->ctx->gate, ticket);
    return err;
}
