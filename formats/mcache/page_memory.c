/* SPDX-License-Identifier: BSD-3-Clause */
/* Where pages lie.  What was evicted serves the next page as it is: given back to the allocator it
 * would lie in the heap of the thread that loaded it, which others don't take from, and each of the
 * heaps would keep what it once needed at the most.  Under random reads over more tables than the
 * pool holds, that was three to six times the pool. */
#include <sanitizer/asan_interface.h> /* nothing without that */
#include <stdlib.h>

#include "mcache/internal.h"

/* Nearly all pages have that size; others are no spares. */
#define SPARE_BYTES 4096u
/* Spares are a quarter of the pool at the most, or so much: what threads that don't get the processor
 * inside the gate keep from being used, while others go on. */
#define SPARES_MIN (8u << 20)
/* A cache line.  An allocator that aligns takes more than it needs and cuts it down: what is freed
 * is too small for the next one. */
#define WORDS_ALIGN 64u

static struct mc_page *take_spare(struct mc_pool *pool)
{
    LOCK_GUARD(&pool->lock);

    if (list_empty(&pool->spares))
        return NULL;
    struct mc_page *page = CONTAINER_OF(pool->spares.next, struct mc_page, pool_link);
    list_remove(&page->pool_link);
    pool->n_spares--;
    return page;
}

struct mc_page *mc_page_new(struct mc_pool *pool, uint32_t page_bytes)
{
    struct mc_page *page = page_bytes == SPARE_BYTES ? take_spare(pool) : NULL;

    if (!page)
        page = malloc(sizeof *page + WORDS_ALIGN + page_bytes);
    if (!page)
        return NULL;
    size_t gap = -(uintptr_t)(page + 1) & (WORDS_ALIGN - 1);
    *page = (struct mc_page){
        .words = (_Atomic uint64_t *)(void *)((char *)(page + 1) + gap),
        .dirty = MC_CLEAN,
        .bytes = page_bytes,
    };
    ASAN_UNPOISON_MEMORY_REGION(page->words, page_bytes);
    list_init(&page->dirty_link);
    list_init(&page->pool_link);
    return page;
}

void mc_page_free(struct mc_page *page)
{
    free(page);
}

void mc_page_recycle(struct mc_pool *pool, struct mc_page *page)
{
    size_t most = MAX(pool->limit / 4, SPARES_MIN) / SPARE_BYTES;

    lock_assert_held(&pool->lock);
    if (page->bytes != SPARE_BYTES || pool->n_spares >= most) {
        mc_page_free(page);
        return;
    }
    ASAN_POISON_MEMORY_REGION(page->words, SPARE_BYTES);
    list_append(&pool->spares, &page->pool_link);
    pool->n_spares++;
}

void mc_pool_free_spares(struct mc_pool *pool)
{
    LIST_FOR_EACH_SAFE (pos, &pool->spares) {
        list_remove(pos);
        mc_page_free(CONTAINER_OF(pos, struct mc_page, pool_link));
    }
    pool->n_spares = 0;
}
