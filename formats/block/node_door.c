/* SPDX-License-Identifier: BSD-3-Clause */
/* What jobs and servers ask of a node besides requests: each is one call to the driver, the
 * cache or the storage, of which they know nothing. */
#include <errno.h>

#include "block/node.h"

int node_grow(struct node *node, uint64_t size, struct diag *diag)
{
    if (!node->driver->grow)
        return diag_set(diag, ENOTSUP, "%s: %s images can't grow", node->filename,
                        node->driver->name);
    int err = node->driver->grow(node, size, diag);
    return err ? err : node_bitmaps_resize(node, size, diag);
}

int node_set_backing(struct node *node, const char *name, const char *format,
                     struct diag *diag)
{
    if (!node->driver->set_backing)
        return diag_set(diag, ENOTSUP, "%s: %s images have no backing file", node->filename,
                        node->driver->name);
    return node->driver->set_backing(node, name, format, diag);
}

int node_lock(struct node *node, enum storage_lock_level level, struct diag *diag)
{
    return node->options.lock_off ? 0 : storage_lock(node->file, level, diag);
}

uint64_t node_flush_failures(struct node *node)
{
    return mcache_failures(node->mc);
}

void node_set_forgiving(struct node *node, bool on)
{
    mcache_set_forgiving(node->mc, on);
}

uint64_t node_lost_writes(const struct node *node)
{
    return storage_lost_writes(node->file);
}

bool node_persist(struct node *node, unsigned patience_ms)
{
    return storage_persist(node->file, patience_ms);
}

void node_abort(struct node *node)
{
    storage_abort(node->file);
}

uint32_t node_preferred(const struct node *node)
{
    uint32_t wish = storage_preferred(node->file);

    return wish ? wish : node->cluster_size;
}

int node_prove(struct node *node, bool by_reading, unsigned timeout_ms)
{
    int err = storage_prove(node->file, by_reading, timeout_ms);

    mcache_note_write(node->mc); /* or the next flush would have nothing to do */
    return err;
}
