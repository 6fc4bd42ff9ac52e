/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies by the kernel and announced writes.  Both apply only to clusters that can be written
 * in place, as all of a raw image can. */
#include "base/checked.h"
#include "block/engine.h"

static int copy_in_place(struct node *node, uint64_t off, struct storage *from,
                         uint64_t from_off, uint64_t len)
{
    while (len > 0) {
        struct extent ext;
        int err = node->driver->map(node, off, len, &ext);
        if (err)
            return err;
        if (!ext.writable || ext.kind != EXTENT_DATA)
            return -ENOTSUP;
        err = storage_copy(ext.file, ext.host_offset, from, from_off, ext.length);
        if (err)
            return err;
        off += ext.length;
        from_off += ext.length;
        len -= ext.length;
    }
    return 0;
}

int block_copy(struct node *node, uint64_t off, struct storage *from, uint64_t from_off,
               uint64_t len)
{
    struct engine_change change = {.seen.list = NULL};

    int err = engine_admit_change(node, off, len);
    if (err || len == 0)
        return err;
    if (node->options.cache->write_through || node->options.compress)
        return -ENOTSUP;
    change.ticket = gate_enter_to_change(&node->ctx->gate);
    err = node_begin_change(node);
    /* Observers need the bytes of a write. */
    if (!err && atomic_load_explicit(&node->observers.list, memory_order_acquire))
        err = -ENOTSUP;
    if (!err)
        err = copy_in_place(node, off, from, from_off, len);
    return engine_finish_write(node, &change, err, false);
}

bool block_expect(struct node *node, uint64_t off, uint64_t len)
{
    struct engine_change change = {.seen.list = NULL};
    struct extent ext = {0};
    bool ready = false;

    if (engine_admit_change(node, off, len) || len == 0)
        return false;
    change.ticket = gate_enter_to_change(&node->ctx->gate);
    int err = node_begin_change(node);
    if (!err)
        err = node->driver->map(node, off, len, &ext);
    if (!err && ext.writable && ext.kind == EXTENT_DATA && ext.length == len)
        ready = storage_expect(ext.file, ext.host_offset, len);
    return engine_finish_write(node, &change, err, false) == 0 && ready;
}
