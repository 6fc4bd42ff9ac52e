/* SPDX-License-Identifier: BSD-3-Clause */
/* A hash table under one lock, and a list by last use.  The lock is held for a few instructions
 * only: a pinned cluster isn't freed, even when it is removed from the table, so it is filled
 * and copied without the lock. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "base/lock.h"
#include "block/cluster_cache.h"

#define BUCKETS 1024u

enum state { FILLING, READY, FAILED };

struct cached_cluster {
    struct cluster_key key;
    struct list bucket; /* by itself: not in the table */
    struct list used;   /* in cache->used */
    unsigned pins;
    enum state state;
    int err; /* FAILED */
    _Alignas(64) unsigned char bytes[];
};

struct cluster_cache {
    size_t limit;
    _Atomic size_t n_bytes; /* changed under lock */
    struct lock lock;
    pthread_cond_t filled;
    struct list used; /* clusters in the table, least recently used first */
    struct list bucket[BUCKETS];
};

struct cluster_cache *cluster_cache_new(size_t limit_bytes)
{
    struct cluster_cache *cache = calloc(1, sizeof *cache);

    if (!cache)
        return NULL;
    cache->limit = limit_bytes;
    lock_init(&cache->lock, RANK_LEAF);
    pthread_cond_init(&cache->filled, NULL);
    list_init(&cache->used);
    for (unsigned i = 0; i < BUCKETS; i++)
        list_init(&cache->bucket[i]);
    return cache;
}

static size_t cost_of(const struct cached_cluster *c)
{
    return sizeof *c + c->key.bytes;
}

/* Lock: removes it from the table. */
static void unlist(struct cluster_cache *cache, struct cached_cluster *c)
{
    list_remove(&c->bucket);
    list_remove(&c->used);
    atomic_fetch_sub(&cache->n_bytes, cost_of(c));
}

/* Lock: removes it from the table and frees it, at once or when its last user releases it. */
static void take_out(struct cluster_cache *cache, struct cached_cluster *c)
{
    unlist(cache, c);
    if (c->pins == 0)
        free(c);
}

void cluster_cache_free(struct cluster_cache *cache)
{
    if (!cache)
        return;
    LIST_FOR_EACH_SAFE (pos, &cache->used)
        take_out(cache, CONTAINER_OF(pos, struct cached_cluster, used));
    pthread_cond_destroy(&cache->filled);
    lock_destroy(&cache->lock);
    free(cache);
}

/* All places within one host cluster share a bucket, so that cluster_cache_forget finds them in
 * one. */
static struct list *bucket_of(struct cluster_cache *cache, const struct cluster_key *key)
{
    uint64_t hash = (uint64_t)(uintptr_t)key->owner ^ key->place / key->bytes;

    return &cache->bucket[(hash * 0x9e3779b97f4a7c15u) >> 54];
}
_Static_assert(BUCKETS == 1u << (64 - 54), "what the shift leaves");

/* Lock: pins the cluster and returns it; NULL: it isn't there. */
static struct cached_cluster *pin_present(struct cluster_cache *cache,
                                          const struct cluster_key *key)
{
    LIST_FOR_EACH (pos, bucket_of(cache, key)) {
        struct cached_cluster *c = CONTAINER_OF(pos, struct cached_cluster, bucket);
        if (c->key.owner != key->owner || c->key.place != key->place)
            continue;
        assert(c->key.bytes == key->bytes);
        c->pins++;
        list_remove(&c->used);
        list_append(&cache->used, &c->used);
        return c;
    }
    return NULL;
}

/* Lock: if the cache is full, returns the memory of the least recently used cluster that isn't
 * pinned, if its size fits; otherwise NULL.  Reusing it avoids free and malloc for each
 * cluster: as malloc has a heap for each thread, all heaps together would grow to a multiple of
 * the limit. */
static void *recycle_oldest(struct cluster_cache *cache, const struct cluster_key *key)
{
    if (atomic_load(&cache->n_bytes) + sizeof(struct cached_cluster) + key->bytes <=
        cache->limit)
        return NULL;
    LIST_FOR_EACH (pos, &cache->used) {
        struct cached_cluster *c = CONTAINER_OF(pos, struct cached_cluster, used);
        if (c->pins > 0)
            continue;
        if (c->key.bytes != key->bytes)
            return NULL;
        unlist(cache, c);
        return c;
    }
    return NULL;
}

/* Lock: removes least recently used clusters that aren't pinned until the limit is kept. */
static void evict_oldest(struct cluster_cache *cache)
{
    LIST_FOR_EACH_SAFE (pos, &cache->used) {
        struct cached_cluster *c = CONTAINER_OF(pos, struct cached_cluster, used);
        if (atomic_load(&cache->n_bytes) <= cache->limit)
            return;
        if (c->pins == 0)
            take_out(cache, c);
    }
}

/* Adds an entry for the cluster, which the caller fills (*added), or returns the one that
 * another thread has added meanwhile, pinned in both cases.  NULL: memory is short. */
static struct cached_cluster *pin_or_add(struct cluster_cache *cache,
                                         const struct cluster_key *key, bool *added)
{
    void *memory = NULL;

    *added = false;
    {
        LOCK_GUARD(&cache->lock);
        struct cached_cluster *c = pin_present(cache, key);
        if (c)
            return c;
        memory = recycle_oldest(cache, key);
    }
    if (!memory &&
        posix_memalign(&memory, 64, sizeof(struct cached_cluster) + key->bytes) != 0)
        return NULL;
    CLEANUP_FREE struct cached_cluster *mine = memory;
    LOCK_GUARD(&cache->lock);
    struct cached_cluster *c = pin_present(cache, key);
    if (c)
        return c;
    c = TAKE(&mine);
    *c = (struct cached_cluster){.key = *key, .pins = 1, .state = FILLING};
    list_append(bucket_of(cache, key), &c->bucket);
    list_append(&cache->used, &c->used);
    atomic_fetch_add(&cache->n_bytes, cost_of(c));
    evict_oldest(cache);
    *added = true;
    return c;
}

static void end_filling(struct cluster_cache *cache, struct cached_cluster *c, int err)
{
    LOCK_GUARD(&cache->lock);
    c->err = err;
    c->state = err ? FAILED : READY;
    /* The next request tries again. */
    if (err && !list_empty(&c->bucket))
        take_out(cache, c);
    pthread_cond_broadcast(&cache->filled);
}

static int wait_until_filled(struct cluster_cache *cache, struct cached_cluster *c)
{
    LOCK_GUARD(&cache->lock);
    while (c->state == FILLING)
        lock_wait(&cache->lock, &cache->filled);
    return c->err;
}

int cluster_cache_get(struct cluster_cache *cache, const struct cluster_key *key,
                      cluster_fill *fill, void *opaque, struct cached_cluster **out)
{
    bool added;
    struct cached_cluster *c = pin_or_add(cache, key, &added);

    if (!c)
        return -ENOMEM;
    int err;
    if (added) {
        err = fill(opaque, c->bytes);
        end_filling(cache, c, err);
    } else {
        err = wait_until_filled(cache, c);
    }
    if (err) {
        cluster_cache_put(cache, c);
        return err;
    }
    *out = c;
    return 0;
}

struct cached_cluster *cluster_cache_peek(struct cluster_cache *cache,
                                          const struct cluster_key *key)
{
    if (atomic_load_explicit(&cache->n_bytes, memory_order_relaxed) == 0)
        return NULL;
    LOCK_GUARD(&cache->lock);
    struct cached_cluster *c = pin_present(cache, key);
    if (!c || c->state == READY)
        return c;
    c->pins--; /* the thread that fills it has it pinned */
    return NULL;
}

const void *cached_cluster_bytes(const struct cached_cluster *c)
{
    return c->bytes;
}

void cluster_cache_put(struct cluster_cache *cache, struct cached_cluster *c)
{
    LOCK_GUARD(&cache->lock);
    c->pins--;
    if (c->pins == 0 && list_empty(&c->bucket))
        free(c);
}

void cluster_cache_forget(struct cluster_cache *cache, const struct cluster_key *key)
{
    /* Without the lock this is safe: no request adds a cluster whose place is about to be
     * freed. */
    if (atomic_load_explicit(&cache->n_bytes, memory_order_relaxed) == 0)
        return;
    LOCK_GUARD(&cache->lock);
    LIST_FOR_EACH_SAFE (pos, bucket_of(cache, key)) {
        struct cached_cluster *c = CONTAINER_OF(pos, struct cached_cluster, bucket);
        if (c->key.owner == key->owner && c->key.place - key->place < key->bytes)
            take_out(cache, c);
    }
}

void cluster_cache_forget_owner(struct cluster_cache *cache, const void *owner)
{
    LOCK_GUARD(&cache->lock);
    LIST_FOR_EACH_SAFE (pos, &cache->used) {
        struct cached_cluster *c = CONTAINER_OF(pos, struct cached_cluster, used);
        if (c->key.owner == owner)
            take_out(cache, c);
    }
}
