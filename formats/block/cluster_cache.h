/* SPDX-License-Identifier: BSD-3-Clause */
/* A cache of decompressed clusters, with a limit in bytes for all images that share it.  The
 * first request for a cluster fills it; others that want the same cluster wait for that.
 *
 * A cluster is identified by its image and its host offset.  What lies at a host offset changes
 * only after the place was freed and allocated again.  So the allocator, before it frees a
 * place, removes it from this cache: after all requests have left the gate that could have
 * found the place in the old mapping.
 *
 * Threads: any; not under ranked locks, except those that may be held across I/O.  Layer:
 * block. */
#ifndef BLOCK_CLUSTER_CACHE_H
#define BLOCK_CLUSTER_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct cluster_cache;

struct cluster_cache *cluster_cache_new(size_t limit_bytes);
void cluster_cache_free(struct cluster_cache *cache); /* NULL is allowed */

/* Fills `bytes` with the cluster's contents.  Returns 0 or -errno. */
typedef int cluster_fill(void *opaque, void *bytes);

struct cluster_key {
    const void *owner; /* the image */
    uint64_t place;    /* offset in its file, bytes */
    uint32_t bytes;    /* size of a cluster; the same for all of an image */
};

struct cached_cluster;

/* *out: the cluster, which is filled first if it isn't in the cache; to be released with
 * cluster_cache_put.  Returns 0, the error of `fill` (also when another thread called it), or
 * -ENOMEM. */
int cluster_cache_get(struct cluster_cache *cache, const struct cluster_key *key,
                      cluster_fill *fill, void *opaque,
                      struct cached_cluster **out) MUST_USE;

/* As cluster_cache_get, if the cluster is in the cache; otherwise NULL. */
struct cached_cluster *cluster_cache_peek(struct cluster_cache *cache,
                                          const struct cluster_key *key);

const void *cached_cluster_bytes(const struct cached_cluster *c);
void cluster_cache_put(struct cluster_cache *cache, struct cached_cluster *c);

/* Removes all clusters that begin in [key->place, key->place + key->bytes); place is a multiple
 * of bytes. */
void cluster_cache_forget(struct cluster_cache *cache, const struct cluster_key *key);

/* Removes all clusters of the owner. */
void cluster_cache_forget_owner(struct cluster_cache *cache, const void *owner);

#endif
