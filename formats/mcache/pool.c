/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory of all pages: a clock over them, whichever image they belong to, and for each
 * image the pages that were evicted while a request could still be reading them.  Images of
 * different chains have different gates: a request that is stuck on one keeps no page of
 * another. */
#include <assert.h>
#include <stdlib.h>

#include "mcache/internal.h"

struct mc_pool *mc_pool_new(size_t limit_bytes)
{
    struct mc_pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return NULL;
    pool->limit = limit_bytes;
    lock_init(&pool->lock, RANK_POOL);
    list_init(&pool->clock);
    list_init(&pool->retiring);
    list_init(&pool->spares);
    return pool;
}

/* Under the pool lock. */
static void retire_page(struct mc_pool *pool, struct mc_page *page)
{
    struct mcache *mc = page->map->mc;

    page->retired = gate_stamp(mc->gate);
    if (list_empty(&mc->retired))
        list_append(&pool->retiring, &mc->retiring);
    list_append(&mc->retired, &page->pool_link);
    mc->n_retired++;
    pool->n_pages--;
}

/* A gate with many members takes long to ask: once for so many pages. */
#define MEMBERS_PER_PAGE 16

/* Under the pool lock: frees evicted pages of an image that nobody can see any more. */
static void free_retired(struct mcache *mc)
{
    if (mc->n_retired * MEMBERS_PER_PAGE < atomic_load(&mc->gate->n_members))
        return;
    LIST_FOR_EACH_SAFE (pos, &mc->retired) {
        struct mc_page *page = CONTAINER_OF(pos, struct mc_page, pool_link);
        if (!gate_passed(mc->gate, page->retired))
            return; /* the rest is younger */
        list_remove(pos);
        mc->n_retired--;
        mc_page_recycle(mc->pool, page);
    }
    list_remove(&mc->retiring);
}

/* Under the pool lock: the same when nobody is left. */
static void free_all_retired(struct mcache *mc)
{
    LIST_FOR_EACH_SAFE (pos, &mc->retired) {
        list_remove(pos);
        mc_page_free(CONTAINER_OF(pos, struct mc_page, pool_link));
    }
    mc->n_retired = 0;
    list_remove(&mc->retiring);
}

void mc_pool_leave(struct mcache *mc)
{
    LOCK_GUARD(&mc->pool->lock);
    free_all_retired(mc);
    mc_pool_free_spares(mc->pool); /* others take theirs anew */
}

void mcache_set_gate(struct mcache *mc, struct gate *gate)
{
    LOCK_GUARD(&mc->pool->lock);
    free_all_retired(mc);
    mc->gate = gate;
}

void mc_pool_free(struct mc_pool *pool)
{
    if (!pool)
        return;
    mc_pool_free_spares(pool);
    lock_destroy(&pool->lock);
    free(pool);
}

static size_t page_cost(const struct mc_page *page)
{
    return sizeof *page + page->map->page_bytes;
}

/* Under the pool lock: takes the page out of the directory, unless it must stay. */
static bool try_evict(struct mc_pool *pool, struct mc_page *page)
{
    if (atomic_exchange_explicit(&page->referenced, false, memory_order_relaxed))
        return false;
    LOCK_GUARD(&page->map->mc->meta);
    if (page->dirty != MC_CLEAN || page->frozen)
        return false;
    mcmap_detach(page);
    atomic_fetch_sub(&pool->used, page_cost(page));
    return true;
}

void mc_pool_drop(struct mc_pool *pool, struct mc_page *page)
{
    lock_assert_held(&pool->lock);
    {
        LOCK_GUARD(&page->map->mc->meta);
        assert(!page->frozen);
        mcmap_clean(page);
        mcmap_detach(page);
    }
    atomic_fetch_sub(&pool->used, page_cost(page));
    list_remove(&page->pool_link);
    retire_page(pool, page);
}

void mc_pool_insert(struct mc_pool *pool, struct mc_page *page)
{
    LOCK_GUARD(&pool->lock);
    list_append(&pool->clock, &page->pool_link);
    pool->n_pages++;
    atomic_fetch_add(&pool->used, page_cost(page));

    /* Twice around at most: then all that is left is dirty, and a commit will come. */
    for (size_t looks = 2 * pool->n_pages;
         looks > 0 && atomic_load(&pool->used) > pool->limit; looks--) {
        struct mc_page *victim = CONTAINER_OF(pool->clock.next, struct mc_page, pool_link);
        list_remove(&victim->pool_link);
        if (victim != page && try_evict(pool, victim)) {
            retire_page(pool, victim);
        } else {
            list_append(&pool->clock, &victim->pool_link);
        }
    }
    LIST_FOR_EACH_SAFE (pos, &pool->retiring)
        free_retired(CONTAINER_OF(pos, struct mcache, retiring));
}

void mc_pool_forget(struct mc_pool *pool, struct mc_page *page)
{
    lock_assert_held(&pool->lock);
    list_remove(&page->pool_link);
    pool->n_pages--;
    atomic_fetch_sub(&pool->used, page_cost(page));
}

size_t mc_pool_used(const struct mc_pool *pool)
{
    return atomic_load(&pool->used);
}

/* ---- dirty pages ---- */

void mc_pool_count_dirty(struct mcache *mc, size_t bytes)
{
    if (atomic_fetch_add(&mc->dirty_bytes, bytes) == 0)
        atomic_fetch_add(&mc->pool->n_dirty_images, 1);
    atomic_fetch_add(&mc->pool->dirty_bytes, bytes);
}

void mc_pool_count_clean(struct mcache *mc, size_t bytes)
{
    if (atomic_fetch_sub(&mc->dirty_bytes, bytes) == bytes)
        atomic_fetch_sub(&mc->pool->n_dirty_images, 1);
    atomic_fetch_sub(&mc->pool->dirty_bytes, bytes);
}

/* A quarter of the pool for each image, as long as all together leave half of it to clean
 * pages; then an equal part of the quarter.  So idle images' dirty pages keep nobody else
 * from having some. */
bool mc_pool_is_too_dirty(const struct mc_pool *pool, size_t own)
{
    if (own >= pool->limit / 4)
        return true;
    if (LIKELY(atomic_load_explicit(&pool->dirty_bytes, memory_order_relaxed) <
               pool->limit / 2))
        return false;
    size_t n = atomic_load_explicit(&pool->n_dirty_images, memory_order_relaxed);
    return own > pool->limit / 4 / MAX(n, 1);
}
