/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory of a chain's pages: a clock over all of them, and the pages that were evicted
 * while a request could still be reading them. */
#include <stdlib.h>

#include "mcache/internal.h"

struct mc_pool *mc_pool_new(size_t limit_bytes, struct gate *gate)
{
    struct mc_pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return NULL;
    pool->gate = gate;
    pool->limit = limit_bytes;
    lock_init(&pool->lock, RANK_POOL);
    list_init(&pool->clock);
    list_init(&pool->retired);
    return pool;
}

/* Under the pool lock: frees evicted pages that nobody can see any more. */
static void free_retired(struct mc_pool *pool)
{
    LIST_FOR_EACH_SAFE (pos, &pool->retired) {
        struct mc_page *page = CONTAINER_OF(pos, struct mc_page, pool_link);
        if (!gate_passed(pool->gate, page->retired))
            return; /* the rest is younger */
        list_remove(pos);
        free(page);
    }
}

void mc_pool_free(struct mc_pool *pool)
{
    if (!pool)
        return;
    LIST_FOR_EACH_SAFE (pos, &pool->retired)
        free(CONTAINER_OF(pos, struct mc_page, pool_link));
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
            victim->retired = gate_stamp(pool->gate);
            list_append(&pool->retired, &victim->pool_link);
            pool->n_pages--;
        } else {
            list_append(&pool->clock, &victim->pool_link);
        }
    }
    free_retired(pool);
}

void mc_pool_forget(struct mc_pool *pool, struct mc_page *page)
{
    lock_assert_held(&pool->lock);
    list_remove(&page->pool_link);
    pool->n_pages--;
    atomic_fetch_sub(&pool->used, page_cost(page));
}
