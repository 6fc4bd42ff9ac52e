/* SPDX-License-Identifier: BSD-3-Clause */
/* The read engine: a loop over extents, down the chain where a layer has nothing. */
#include <string.h>

#include "block/chain_lookup.h"
#include "block/coded.h"
#include "block/engine.h"

/* Reads the first run of the range; *done is its length. */
static int read_run(struct node *node, void *buf, uint64_t off, uint64_t len,
                    uint64_t *done)
{
    struct node *layer;
    struct extent ext;
    unsigned depth;

    int err = chain_look_up(node, off, len, &ext, &layer, &depth);
    if (err)
        return err;
    *done = ext.length;
    if (LIKELY(ext.kind == EXTENT_DATA))
        return storage_read(ext.file, buf, ext.host_offset, ext.length);
    if (ext.kind != EXTENT_ZERO)
        return coded_read(layer, &ext, buf, off, ext.length);
    memset(buf, 0, ext.length);
    return 0;
}

int engine_read(struct node *node, void *buf, uint64_t off, uint64_t len)
{
    while (len > 0) {
        uint64_t done;
        int err = read_run(node, buf, off, len, &done);
        if (err)
            return err;
        buf = (char *)buf + done;
        off += done;
        len -= done;
    }
    return 0;
}

int block_read(struct node *node, void *buf, uint64_t off, uint64_t len)
{
    int err = node_check_range(node, off, len);
    if (err)
        return err;
    gate_ticket ticket = gate_enter(&node->ctx->gate);
    err = engine_read(node, buf, off, len);
    gate_leave(&node->ctx->gate, ticket);
    return err;
}

/* Loads the tables for one run of the range and asks the host for its data. */
static int cache_run(struct node *node, uint64_t off, uint64_t len, uint64_t *done)
{
    struct block_status st;

    int err = block_status(node, off, len, &st);
    if (err)
        return err;
    if (st.file && !st.zero)
        storage_prefetch(st.file, st.host_offset, st.length);
    *done = st.length;
    return 0;
}

int block_cache(struct node *node, uint64_t off, uint64_t len)
{
    int err = node_check_range(node, off, len);

    while (!err && len > 0) {
        uint64_t done = 0;
        err = cache_run(node, off, len, &done);
        off += done;
        len -= done;
    }
    return err;
}
