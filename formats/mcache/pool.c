/* SPDX-License-Identifier: BSD-3-Clause */
/* The pool: bounds the memory of all pages, and evicts by a clock (second chance) over the pages
 * of all images.  An evicted page is *retired*: it waits in a list of its image until all
 * requests that could still read it have left that image's gate.  Images of different chains
 * have different gates, so a request that hangs on one image keeps no pages of another. */
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

/* Asking a gate takes time for each of its members.  So it is asked once there is a retired page
 * for each 16 members. */
#define MEMBERS_PER_PAGE 16

/* Under the pool lock: frees the retired pages of an image that no request can read any more. */
static void free_retired(struct mcache *mc)
{
    if (mc->n_retired * MEMBERS_PER_PAGE < atomic_load(&mc->gate->n_members))
        return;
    LIST_FOR_EACH_SAFE (pos, &mc->retired) {
        struct mc_page *page = CONTAINER_OF(pos, struct mc_page, pool_link);
        if (!gate_passed(mc->gate, page->retired))
            return; /* the others were retired later */
        list_remove(pos);
        mc->n_retired--;
        mc_page_recycle(mc->pool, page);
    }
    list_remove(&mc->retiring);
}

/* Under the pool lock: frees all of them; no request is inside the gate. */
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
    mc_pool_free_spares(mc->pool); /* the memory of an image that is closed goes back */
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

/* Under the pool lock: takes the page out of its map's directory; false if it was used since the
 * clock last came by, or is dirty. */
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

    /* Goes around twice at most: pages that are left then are dirty, and the next commit
     * cleans them. */
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

/* One image may fill a quarter of the pool with dirty pages while the dirty pages of all images
 * take less than half of it.  Beyond that, each gets an equal part of that quarter, so that the
 * dirty pages of idle images don't keep other images from having any. */
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
