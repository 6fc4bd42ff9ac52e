/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the cache of decoded clusters: a cluster is decoded once, memory is limited, and clusters
 * are forgotten before their place in the file is reused. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include <criterion/criterion.h>

#include "block/cluster_cache.h"

#define BYTES 4096u

static const struct cluster_key place_0 = {.owner = "image", .place = 0, .bytes = BYTES};

struct filling {
    int value, err;
    _Atomic unsigned calls;
    bool slow;
};

static int fill(void *opaque, void *bytes)
{
    struct filling *f = opaque;

    atomic_fetch_add(&f->calls, 1);
    if (f->slow)
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    memset(bytes, f->value, BYTES);
    return f->err;
}

static struct cluster_key at(uint64_t place)
{
    struct cluster_key key = place_0;

    key.place = place;
    return key;
}

/* Returns the first byte of the cluster; `f` fills the cluster if it isn't cached. */
static int get(struct cluster_cache *cache, struct cluster_key key, struct filling *f)
{
    struct cached_cluster *c;
    int err = cluster_cache_get(cache, &key, fill, f, &c);

    if (err)
        return err;
    int value = *(const unsigned char *)cached_cluster_bytes(c);
    cluster_cache_put(cache, c);
    return value;
}

Test(block_cluster_cache, is_filled_once)
{
    struct cluster_cache *cache = cluster_cache_new(16 * BYTES);
    struct filling f = {.value = 7};

    cr_expect_null(cluster_cache_peek(cache, &place_0));
    for (int i = 0; i < 3; i++)
        cr_expect_eq(get(cache, place_0, &f), 7);
    cr_expect_eq(f.calls, 1);
    struct cluster_key other = {.owner = "another", .place = 0, .bytes = BYTES};
    f.value = 8;
    cr_expect_eq(get(cache, other, &f), 8, "the same place of another image");
    cluster_cache_free(cache);
}

Test(block_cluster_cache, a_failure_is_not_kept)
{
    struct cluster_cache *cache = cluster_cache_new(16 * BYTES);
    struct filling f = {.value = 7, .err = -EIO};

    cr_expect_eq(get(cache, place_0, &f), -EIO);
    f.err = 0;
    cr_expect_eq(get(cache, place_0, &f), 7);
    cr_expect_eq(f.calls, 2);
    cluster_cache_free(cache);
}

/* Forgetting a host cluster forgets every entry that begins anywhere in it.  A user that still
 * holds such an entry keeps it, but later look-ups don't find it. */
Test(block_cluster_cache, forgets_a_cluster_of_the_file)
{
    struct cluster_cache *cache = cluster_cache_new(16 * BYTES);
    struct filling f = {.value = 1};
    struct cluster_key inside = at(2 * BYTES + 700), next = at(3 * BYTES);
    struct cluster_key cluster = at(2 * BYTES);
    struct cached_cluster *pinned;

    cr_expect_eq(get(cache, inside, &f), 1);
    cr_expect_eq(get(cache, next, &f), 1);
    cr_assert_eq(cluster_cache_get(cache, &cluster, fill, &f, &pinned), 0);
    cluster_cache_forget(cache, &cluster);
    f.value = 2;
    cr_expect_eq(get(cache, inside, &f), 2);
    cr_expect_eq(get(cache, cluster, &f), 2);
    cr_expect_eq(get(cache, next, &f), 1, "a neighbour");
    cr_expect_eq(*(const unsigned char *)cached_cluster_bytes(pinned), 1);
    cluster_cache_put(cache, pinned);
    cluster_cache_forget_owner(cache, place_0.owner);
    cr_expect_eq(get(cache, next, &f), 2);
    cluster_cache_free(cache);
}

Test(block_cluster_cache, keeps_what_was_used_last)
{
    struct cluster_cache *cache = cluster_cache_new(4 * (BYTES + 256));
    struct filling f = {.value = 1};

    for (uint64_t i = 0; i < 4; i++)
        cr_expect_eq(get(cache, at(i * BYTES), &f), 1);
    cr_expect_eq(get(cache, at(0), &f), 1);
    f.value = 2;
    cr_expect_eq(get(cache, at(4 * BYTES), &f), 2);
    cr_expect_eq(get(cache, at(0), &f), 1, "used again");
    cr_expect_eq(get(cache, at(BYTES), &f), 2, "the oldest had to go");
    cluster_cache_free(cache);
}

struct reader {
    struct cluster_cache *cache;
    struct filling *f;
    int value;
};

static void *read_one(void *opaque)
{
    struct reader *r = opaque;

    r->value = get(r->cache, place_0, r->f);
    return NULL;
}

Test(block_cluster_cache, readers_of_one_cluster_wait_for_the_first)
{
    struct filling f = {.value = 9, .slow = true};
    struct reader readers[8];
    pthread_t threads[8];
    struct cluster_cache *cache = cluster_cache_new(16 * BYTES);

    for (unsigned i = 0; i < 8; i++) {
        readers[i] = (struct reader){.cache = cache, .f = &f};
        cr_assert_eq(pthread_create(&threads[i], NULL, read_one, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        cr_expect_eq(readers[i].value, 9);
    }
    cr_expect_eq(f.calls, 1);
    cluster_cache_free(cache);
}
