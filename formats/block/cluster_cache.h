/* SPDX-License-Identifier: BSD-3-Clause */
/* Clusters that were stored compressed, decompressed: a bounded number of bytes, for all
 * images that share it.  Who misses fills; others that want the same cluster wait for that.
 *
 * A cluster is known by its image and its place in the file.  What a place holds changes only
 * when it was freed and taken anew: whoever frees it forgets it here first, when everybody
 * has left who could have looked it up by its old meaning.
 *
 * Threads: any, outside ranked locks but those that may span I/O.  Layer: block. */
#ifndef BLOCK_CLUSTER_CACHE_H
#define BLOCK_CLUSTER_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct cluster_cache;

struct cluster_cache *cluster_cache_new(size_t limit_bytes);
void cluster_cache_free(struct cluster_cache *cache); /* NULL is allowed */

/* Fills `bytes` with the cluster's contents; 0 or -errno. */
typedef int cluster_fill(void *opaque, void *bytes);

struct cluster_key {
    const void *owner; /* the image */
    uint64_t place;    /* in its file, bytes */
    uint32_t bytes;    /* of a cluster; one image has one value */
};

struct cached_cluster;

/* The cluster, filled when it isn't there; to be given back with cluster_cache_put.  0, what
 * `fill` returned to this or another thread, or -ENOMEM. */
int cluster_cache_get(struct cluster_cache *cache, const struct cluster_key *key,
                      cluster_fill *fill, void *opaque,
                      struct cached_cluster **out) MUST_USE;

/* The same if it is there; else NULL. */
struct cached_cluster *cluster_cache_peek(struct cluster_cache *cache,
                                          const struct cluster_key *key);

const void *cached_cluster_bytes(const struct cached_cluster *c);
void cluster_cache_put(struct cluster_cache *cache, struct cached_cluster *c);

/* What begins in `key->bytes` from place on, a multiple of them, isn't found any more. */
void cluster_cache_forget(struct cluster_cache *cache, const struct cluster_key *key);

/* Nor is anything of the owner. */
void cluster_cache_forget_owner(struct cluster_cache *cache, const void *owner);

#endif
