/* SPDX-License-Identifier: BSD-3-Clause */
/* Compressed writes (`compress=on`).  The request's thread compresses whole clusters, before it
 * takes any lock; they are stored in as few bytes as they need, several in one host cluster.
 * Parts of clusters, and clusters that wouldn't become smaller, are written as usual. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/engine.h"
#include "codec/codec.h"

/* Buffers: for a compressed cluster, and for one that is cut by the end of the disk. */
struct packing {
    unsigned char *stored, *whole;
};

static int store_packed(struct node *node, const void *stored, uint32_t bytes, uint64_t off)
{
    struct reservation res;

    RANGE_LOCK_GUARD(&node->ranges, off, off + node->cluster_size);
    int err = node->driver->reserve_compressed(node, off, bytes, &res);
    if (err)
        return err;
    /* Invariant (8) of mcache.h. */
    err = storage_write(res.file, stored, res.host_offset, bytes, 0);
    if (err) {
        node->driver->release(node, &res);
        return err;
    }
    return node->driver->link(node, &res, false);
}

/* Writes one cluster, of which the first `len` bytes belong to the disk.  -ENOTSUP: it has to
 * be written uncompressed. */
static int write_cluster(struct node *node, struct packing *p, const void *buf,
                         uint64_t off, uint64_t len)
{
    if (len < node->cluster_size) {
        memcpy(p->whole, buf, len);
        memset(p->whole + len, 0, node->cluster_size - len);
        buf = p->whole;
    }
    size_t bytes = codec_compress(node->codec, p->stored, node->cluster_size - 1, buf,
                                  node->cluster_size);
    return bytes ? store_packed(node, p->stored, (uint32_t)bytes, off) : -ENOTSUP;
}

/* The length of the whole cluster (or the last one of the disk) that begins at `off` and lies
 * in the range; 0: there is none. */
static uint64_t whole_cluster(const struct node *node, uint64_t off, uint64_t len)
{
    uint64_t wanted = MIN(node->cluster_size, node->size - off);

    return is_aligned(off, node->cluster_size) && len >= wanted ? wanted : 0;
}

static int write_packing(struct node *node, struct packing *p, const void *buf,
                         uint64_t off, uint64_t len, bool fua, bool *needs_commit)
{
    for (uint64_t n; len > 0; off += n, len -= n, buf = (const char *)buf + n) {
        uint64_t whole = whole_cluster(node, off, len);
        bool part_needs_commit = true;

        n = whole ? whole : MIN(len, align_up(off + 1, node->cluster_size) - off);
        int err = whole ? write_cluster(node, p, buf, off, whole) : -ENOTSUP;
        if (err == -ENOTSUP)
            err = engine_write(node, buf, off, n, fua, &part_needs_commit);
        if (err)
            return err;
        *needs_commit |= part_needs_commit;
    }
    return 0;
}

int engine_write_compressed(struct node *node, const void *buf, uint64_t off, uint64_t len,
                            bool fua, bool *needs_commit)
{
    CLEANUP_FREE unsigned char *stored = malloc(node->cluster_size);
    CLEANUP_FREE unsigned char *whole = malloc(node->cluster_size);
    struct packing p = {.stored = stored, .whole = whole};

    *needs_commit = false;
    if (!stored || !whole)
        return -ENOMEM;
    return write_packing(node, &p, buf, off, len, fua, needs_commit);
}
