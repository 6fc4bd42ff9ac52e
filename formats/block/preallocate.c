/* SPDX-License-Identifier: BSD-3-Clause */
/* Preallocation: each cluster of a range gets a host cluster, while the disk reads as before.
 *
 * A cluster that reads as zeroes gets one by the steps of a write (write.c), without data.  A
 * cluster that shows the backing file can only get one where extended L2 entries say that its
 * subclusters aren't used. */
#include <errno.h>

#include "base/checked.h"
#include "block/engine.h"

/* Does the reservation cover more than the range?  It does if the range begins in a cluster that
 * is shared with a snapshot: the cluster's other data has to be copied as well. */
static bool reaches_further(const struct node *node, const struct reservation *res,
                            uint64_t off, uint64_t len)
{
    return res->guest_offset < off ||
           res->guest_offset + res->length > off + align_up(len, node->subcluster_size);
}

/* Allocates clusters for the beginning of a range that reads as zeroes.  Where zero bytes in the
 * file aren't zeroes for the guest (encryption), they become allocated zero clusters. */
static int preallocate_run(struct node *node, uint64_t off, uint64_t len, uint64_t *done)
{
    struct reservation res;

    int err = node->driver->reserve(node, off, align_up(len, node->subcluster_size), &res);
    if (err)
        return err;
    if (reaches_further(node, &res, off, len)) {
        node->driver->release(node, &res);
        *done = MIN(len, align_down(off, node->cluster_size) + node->cluster_size - off);
        return engine_write_zeroes(node, off, *done, false);
    }
    *done = MIN(len, res.guest_offset + res.length - off);
    /* An external data file is as long as the disk, and keeps the holes that it has. */
    if (!res.fresh && node->host_zeroes_show)
        err = node->data_file
                  ? storage_zero(res.file, res.host_offset, *done, STORAGE_MAY_UNMAP)
                  : storage_zero(res.file, res.host_offset, res.length, 0);
    if (err) {
        node->driver->release(node, &res);
        return err;
    }
    res.as_zero = !node->host_zeroes_show;
    return node->driver->link(node, &res, true);
}

/* The same for a range that shows the backing file, and has to go on showing it: only extended
 * L2 entries can be allocated without being used. */
static int preallocate_places(struct node *node, uint64_t off, uint64_t len, uint64_t *done)
{
    struct reservation res;

    if (node->subcluster_size == node->cluster_size)
        return -ENOTSUP;
    int err = node->driver->reserve(node, off, align_up(len, node->subcluster_size), &res);
    if (err)
        return err;
    *done = MIN(len, res.guest_offset + res.length - off);
    res.place_only = true;
    return node->driver->link(node, &res, false);
}

/* Does the range show the backing file?  Also if that isn't opened yet. */
static bool shows_below(const struct node *node, const struct extent *ext)
{
    return ext->kind == EXTENT_BACKING ||
           (ext->kind == EXTENT_ZERO && !ext->allocated && node_holes_may_show(node));
}

int block_preallocate(struct node *node, uint64_t off, uint64_t len)
{
    int err = node_check_range(node, off, len);
    uint64_t head = off % node->subcluster_size;

    for (off -= head, len += len ? head : 0; !err && len > 0;) {
        struct extent ext;
        err = node->driver->map(node, off, len, &ext);
        if (err)
            return err;
        uint64_t done = ext.length;
        if (shows_below(node, &ext))
            err = preallocate_places(node, off, ext.length, &done);
        else if (ext.kind == EXTENT_ZERO && !ext.file)
            err = preallocate_run(node, off, ext.length, &done);
        mcache_relieve(node->mc);
        off += done;
        len -= done;
    }
    return err;
}
