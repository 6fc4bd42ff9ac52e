/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory for pages.  The memory of an evicted page is kept as a spare for the next page.  If it
 * were freed, it would go back to the heap (malloc arena) of the thread that loaded the page;
 * other threads don't allocate from there, and each heap would keep the most it ever needed.
 * With random reads over more tables than the pool holds, that took three to six times the
 * pool's size. */
#include <sanitizer/asan_interface.h> /* empty in builds without it */
#include <stdlib.h>

#include "mcache/internal.h"

/* Nearly all pages have this size; only those become spares. */
#define SPARE_BYTES 4096u
/* The limit of spares is a quarter of the pool, or this if it is more.  They pile up when a thread
 * is preempted inside the gate while other threads go on loading and evicting. */
#define SPARES_MIN (8u << 20)
/* A cache line.  The alignment is done here, because posix_memalign allocates more and trims it:
 * a freed block would then be too small for the next page. */
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
