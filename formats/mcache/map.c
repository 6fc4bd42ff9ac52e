/* SPDX-License-Identifier: BSD-3-Clause */
/* Maps: from a page index to a page, lock-free on a hit, loaded once on a miss. */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "mcache/internal.h"

#define RESIDENT_PAGE_BYTES 4096
#define MEMO_PAGE_BYTES     4096

/* A second-level array takes memory for all of its slots even if only one page is cached, which
 * is what images with scattered data have.  So arrays are small, unless `top`, which is
 * allocated at once, would become too long. */
#define MIN_DIR_BITS 6
#define MANY_DIRS    (64u << 10)

static struct mcmap *map_alloc(struct mcache *mc, enum mc_order order, mcmap_locate *locate,
                               void *owner)
{
    struct mcmap *map = calloc(1, sizeof *map);

    if (!map)
        return NULL;
    map->mc = mc;
    map->order = order;
    map->locate = locate;
    map->owner = owner;
    LOCK_GUARD(&mc->pool->lock);
    list_append(&mc->maps, &map->link);
    return map;
}

struct mcmap *mcmap_new(struct mcache *mc, uint64_t n_pages, uint32_t page_bytes,
                        enum mc_order order, mcmap_locate *locate, void *owner)
{
    assert(page_bytes >= 512 && page_bytes <= 4096 && page_bytes % 8 == 0);
    struct mcmap *map = map_alloc(mc, order, locate, owner);

    if (!map)
        return NULL;
    map->n_pages = n_pages;
    map->page_bytes = page_bytes;
    map->dir_bits = MIN_DIR_BITS;
    while (n_pages >> map->dir_bits >= MANY_DIRS)
        map->dir_bits++;
    map->n_dirs = (n_pages >> map->dir_bits) + 1;
    map->top = calloc(map->n_dirs, sizeof *map->top);
    if (!map->top) {
        mcmap_free(map);
        return NULL;
    }
    return map;
}

struct mcmap *mcmap_new_memo(struct mcache *mc, uint64_t n_pages)
{
    return mcmap_new(mc, n_pages, MEMO_PAGE_BYTES, MC_LE64, NULL, NULL);
}

struct mcmap *mcmap_new_resident(struct mcache *mc, _Atomic uint64_t *words,
                                 uint64_t n_words, enum mc_order order,
                                 mcmap_locate *locate, void *owner)
{
    struct mcmap *map = map_alloc(mc, order, locate, owner);

    if (!map)
        return NULL;
    map->resident = true;
    map->n_words = n_words;
    map->page_bytes = RESIDENT_PAGE_BYTES;
    uint32_t per_page = mcmap_words_per_page(map);
    map->n_pages = (n_words + per_page - 1) / per_page;
    map->pages = calloc(map->n_pages + 1, sizeof *map->pages);
    if (!map->pages) {
        mcmap_free(map);
        return NULL;
    }
    for (uint64_t i = 0; i < map->n_pages; i++) {
        struct mc_page *page = &map->pages[i];
        page->words = words + i * per_page;
        page->map = map;
        page->index = i;
        page->resident = true;
        page->dirty = MC_CLEAN;
        list_init(&page->dirty_link);
        list_init(&page->pool_link);
    }
    return map;
}

void mcmap_clean(struct mc_page *page)
{
    struct mcache *mc = page->map->mc;

    if (page->dirty == MC_CLEAN)
        return;
    list_remove(&page->dirty_link);
    mc->n_dirty--;
    if (page->dirty == MC_LINK)
        atomic_fetch_sub(&mc->n_links, 1);
    mc_pool_count_clean(mc, page->map->page_bytes);
    page->dirty = MC_CLEAN;
}

/* Frees a page for another reason than eviction. */
static void drop_page(struct mcmap *map, struct mc_page *page)
{
    mcmap_clean(page);
    if (!page->resident) {
        mc_pool_forget(map->mc->pool, page);
        mc_page_free(page);
    }
}

static uint64_t dir_slots(const struct mcmap *map)
{
    return UINT64_C(1) << map->dir_bits;
}

void mcmap_free(struct mcmap *map)
{
    if (!map)
        return;
    /* Other images of the pool may evict pages at any time; the lock keeps them from ours. */
    lock_acquire(&map->mc->pool->lock);
    for (uint64_t i = 0; map->pages && i < map->n_pages; i++)
        drop_page(map, &map->pages[i]);
    for (uint64_t i = 0; map->top && i < map->n_dirs; i++) {
        struct mc_slot *dir = atomic_load(&map->top[i]);
        for (uint64_t s = 0; dir && s < dir_slots(map); s++) {
            struct mc_page *page = atomic_load(&dir[s].page);
            if (page)
                drop_page(map, page);
        }
        free(dir);
    }
    list_remove(&map->link);
    lock_release(&map->mc->pool->lock);
    free(map->pages);
    free(map->top);
    free(map);
}

uint32_t mcmap_words_per_page(const struct mcmap *map)
{
    return map->page_bytes / 8;
}

size_t mc_page_words(const struct mc_page *page)
{
    const struct mcmap *map = page->map;
    uint64_t per_page = mcmap_words_per_page(map);

    if (!map->resident)
        return per_page;
    return (size_t)MIN(per_page, map->n_words - page->index * per_page);
}

/* The slot of a page, or NULL while its second-level array doesn't exist. */
static _Atomic(struct mc_page *) *find_slot(struct mcmap *map, uint64_t index)
{
    assert(index < map->n_pages);
    struct mc_slot *dir =
        atomic_load_explicit(&map->top[index >> map->dir_bits], memory_order_acquire);
    return dir ? &dir[index & (dir_slots(map) - 1)].page : NULL;
}

static _Atomic(struct mc_page *) *make_slot(struct mcmap *map, uint64_t index)
{
    _Atomic(struct mc_page *) *slot = find_slot(map, index);
    if (slot)
        return slot;

    struct mc_slot *fresh = calloc(dir_slots(map), sizeof *fresh), *present = NULL;
    if (!fresh)
        return NULL;
    if (!atomic_compare_exchange_strong(&map->top[index >> map->dir_bits], &present, fresh))
        free(fresh);
    return find_slot(map, index);
}

static struct mc_page *find_page(struct mcmap *map, uint64_t index)
{
    if (map->resident)
        return index < map->n_pages ? &map->pages[index] : NULL;
    _Atomic(struct mc_page *) *slot = find_slot(map, index);
    return slot ? atomic_load_explicit(slot, memory_order_acquire) : NULL;
}

void mcmap_detach(struct mc_page *page)
{
    atomic_store_explicit(find_slot(page->map, page->index), NULL, memory_order_release);
}

static bool is_memo(const struct mcmap *map)
{
    return !map->locate;
}

static void free_page(struct mc_page **page)
{
    mc_page_free(*page);
}

/* Finds out whether the page is even.  No other thread sees the page yet.  Not for memos, whose
 * words are stored without META.  A page that repeats one word doesn't count as even: it is
 * most likely empty and will be stored to soon. */
static void note_even_words(struct mc_page *page)
{
    uint32_t n = (uint32_t)mc_page_words(page), i = 1;
    uint64_t word = mc_load(page, 0), step = mc_load(page, 1) - word;

    if (step == 0)
        return;
    page->first = word;
    page->step = step;
    while (i < n && mc_load(page, i) == (word += step))
        i++;
    atomic_init(&page->even, i == n);
}

static int read_page(struct mcmap *map, uint64_t index, struct mc_page **out)
{
    uint64_t host = is_memo(map) ? 0 : map->locate(map->owner, index);
    if (host == 0 && !is_memo(map))
        return -ENOENT;

    CLEANUP(free_page) struct mc_page *page = mc_page_new(map->mc->pool, map->page_bytes);
    if (!page)
        return -ENOMEM;
    page->map = map;
    page->index = index;
    uint64_t *raw = (uint64_t *)page->words;
    int err = 0;
    if (is_memo(map))
        memset(raw, 0, map->page_bytes);
    else
        err = storage_read(map->mc->st, raw, host, map->page_bytes);
    if (err)
        return err;
    for (uint32_t i = 0; i < map->page_bytes / 8; i++)
        atomic_init(&page->words[i],
                    map->order == MC_BE64 ? be64toh(raw[i]) : le64toh(raw[i]));
    if (!is_memo(map))
        note_even_words(page);
    *out = TAKE(&page);
    return 0;
}

static bool is_loading(struct mc_load_stripe *stripe, struct mcmap *map, uint64_t index)
{
    LIST_FOR_EACH (pos, &stripe->loading) {
        struct mc_loading *l = CONTAINER_OF(pos, struct mc_loading, link);
        if (l->map == map && l->index == index)
            return true;
    }
    return false;
}

/* Under the stripe's lock. */
static void begin_loading(struct mc_load_stripe *stripe, struct mc_loading *mine)
{
    mine->round = stripe->round;
    list_append(&stripe->loading, &mine->link);
}

static void end_loading(struct mc_load_stripe *stripe, struct mc_loading *mine)
{
    LOCK_GUARD(&stripe->lock);
    list_remove(&mine->link);
    pthread_cond_broadcast(&stripe->done);
}

/* Handles a miss.  The first thread loads the page; others that want it wait and look again.
 * The load counts as running until the page is in the pool. */
static int load_page_once(struct mcmap *map, uint64_t index, struct mc_page **out)
{
    _Atomic(struct mc_page *) *slot = make_slot(map, index);
    if (!slot)
        return -ENOMEM;

    struct mc_load_stripe *stripe = &map->mc->load[index % LOAD_STRIPES];
    struct mc_loading mine = {.map = map, .index = index};
    {
        LOCK_GUARD(&stripe->lock);
        while (!(*out = atomic_load_explicit(slot, memory_order_acquire)) &&
               is_loading(stripe, map, index))
            lock_wait(&stripe->lock, &stripe->done);
        if (*out)
            return 0;
        begin_loading(stripe, &mine);
    }

    struct mc_page *page = NULL;
    int err = read_page(map, index, &page);
    if (!err) {
        {
            LOCK_GUARD(&stripe->lock);
            atomic_store_explicit(slot, page, memory_order_release);
            pthread_cond_broadcast(&stripe->done);
        }
        mc_pool_insert(map->mc->pool, page);
        if (!is_memo(map))
            atomic_fetch_add_explicit(&map->mc->loads, 1, memory_order_relaxed);
        *out = page;
    }
    end_loading(stripe, &mine);
    return err;
}

/* ---- forgetting ---- */

/* Under the stripe's lock: does a load of this map still run that began before `round`? */
static bool is_loading_older(const struct mc_load_stripe *stripe, const struct mcmap *map,
                             uint64_t round)
{
    LIST_FOR_EACH (pos, &stripe->loading) {
        const struct mc_loading *l = CONTAINER_OF(pos, struct mc_loading, link);
        if (l->map == map && l->round < round)
            return true;
    }
    return false;
}

/* Waits for all loads that may have asked for a page's old place already. */
static void wait_for_loads(struct mcmap *map)
{
    for (unsigned i = 0; i < LOAD_STRIPES; i++) {
        struct mc_load_stripe *stripe = &map->mc->load[i];
        LOCK_GUARD(&stripe->lock);
        uint64_t round = ++stripe->round;
        while (is_loading_older(stripe, map, round))
            lock_wait(&stripe->lock, &stripe->done);
    }
}

void mcmap_forget(struct mcmap *map)
{
    assert(!map->resident);
    wait_for_loads(map);
    LOCK_GUARD(&map->mc->pool->lock);
    for (uint64_t i = 0; i < map->n_dirs; i++) {
        struct mc_slot *dir = atomic_load(&map->top[i]);
        for (uint64_t s = 0; dir && s < dir_slots(map); s++) {
            struct mc_page *page = atomic_load(&dir[s].page);
            if (page && !list_empty(&page->pool_link))
                mc_pool_drop(map->mc->pool, page);
        }
    }
}

int mcmap_get(struct mcmap *map, uint64_t index, struct mc_page **out)
{
    struct mc_page *page = find_page(map, index);

    if (UNLIKELY(!page)) {
        if (map->resident)
            return -ENOENT;
        return load_page_once(map, index, out);
    }
    if (!atomic_load_explicit(&page->referenced, memory_order_relaxed))
        atomic_store_explicit(&page->referenced, true, memory_order_relaxed);
    *out = page;
    return 0;
}

/* No filesystem has smaller blocks than this.  So a part of a page of this size that isn't all
 * zeroes doesn't lie in a hole. */
#define BLOCK_WORDS (1024 / 8)

static bool is_zero_block(const struct mc_page *page, size_t first)
{
    size_t end = MIN(first + BLOCK_WORDS, mc_page_words(page));

    for (size_t i = first; i < end; i++)
        if (atomic_load_explicit(&page->words[i], memory_order_relaxed) != 0)
            return false;
    return true;
}

/* Has the storage allocate blocks for a range that reads as zeroes. */
static int take_place(struct storage *st, uint64_t host, uint64_t len)
{
    static const uint64_t zeroes[RESIDENT_PAGE_BYTES / 8];

    /* A block device can't preallocate, but a thin one allocates for what is written. */
    int err = st->fixed_size ? -ENOTSUP : storage_preallocate(st, host, len);
    return err == -ENOTSUP ? storage_write(st, zeroes, host, len, 0) : err;
}

/* Has blocks allocated for all parts of a page that read as zeroes.  The page is as it was read
 * from the disk: nobody has stored to it yet. */
static int take_places(struct mcmap *map, struct mc_page *page)
{
    size_t n = mc_page_words(page), first = 0;
    uint64_t host = map->locate(map->owner, map->resident ? 0 : page->index);
    if (host == 0)
        return -ENOENT;
    if (map->resident)
        host += page->index * map->page_bytes;

    while (first < n) {
        size_t end = first;
        while (end < n && is_zero_block(page, end))
            end = MIN(end + BLOCK_WORDS, n);
        int err =
            end > first ? take_place(map->mc->st, host + first * 8, (end - first) * 8) : 0;
        if (err)
            return err;
        first = end + BLOCK_WORDS;
    }
    return 0;
}

/* Allocates a page's blocks, one thread at a time for each page.  Where that means writing
 * zeroes, they must not overwrite words that were stored and written back since.  So a page
 * that was evicted after the caller had found it is left alone: the page may have been loaded
 * again, stored to and written back, while this copy still has the old zeroes.  While `mine` is
 * in the list, no thread loads the page again.  After 0 the caller has to look again. */
static int ensure_place(struct mcmap *map, struct mc_page *page)
{
    struct mc_load_stripe *stripe = &map->mc->load[page->index % LOAD_STRIPES];
    struct mc_loading mine = {.map = map, .index = page->index};
    {
        LOCK_GUARD(&stripe->lock);
        while (is_loading(stripe, map, page->index))
            lock_wait(&stripe->lock, &stripe->done);
        if (atomic_load(&page->has_place) || find_page(map, page->index) != page)
            return 0;
        begin_loading(stripe, &mine);
    }
    int err = take_places(map, page);

    LOCK_GUARD(&stripe->lock);
    if (!err)
        atomic_store(&page->has_place, true);
    list_remove(&mine.link);
    pthread_cond_broadcast(&stripe->done);
    return err;
}

/* mcmap_get_for_store for a page without a place. */
ASIDE static int get_with_place(struct mcmap *map, struct mc_page *page,
                                struct mc_page **out)
{
    int err = 0;

    while (!err && !atomic_load(&page->has_place)) {
        err = ensure_place(map, page);
        if (!err)
            err = mcmap_get(map, page->index, &page);
    }
    if (out)
        *out = page;
    return err;
}

int mcmap_get_for_store(struct mcmap *map, uint64_t index, struct mc_page **out)
{
    struct mc_page *page;

    int err = mcmap_get(map, index, &page);
    if (err)
        return err;
    if (out)
        *out = page;
    if (LIKELY(atomic_load_explicit(&page->has_place, memory_order_relaxed)))
        return 0;
    return get_with_place(map, page, out);
}

struct mc_page *mcmap_peek_for_store(struct mcmap *map, uint64_t index)
{
    struct mc_page *page = mcmap_peek(map, index);

    return page && atomic_load_explicit(&page->has_place, memory_order_relaxed) ? page
                                                                                : NULL;
}

struct mc_page *mcmap_peek(struct mcmap *map, uint64_t index)
{
    lock_assert_held(&map->mc->meta);
    return find_page(map, index);
}

static bool is_unwritten(const struct mc_page *page)
{
    return page && (page->dirty != MC_CLEAN || page->frozen);
}

bool mcmap_has_unwritten(struct mcmap *map, uint64_t first, uint64_t n_pages)
{
    lock_assert_held(&map->mc->meta);
    for (uint64_t i = first; i < first + n_pages; i++)
        if (is_unwritten(find_page(map, i)))
            return true;
    return false;
}

/* META: copies the pages that aren't in the file yet over what was read from the file. */
static bool overlay(struct mcmap *map, uint64_t first, uint64_t n_pages, char *bytes)
{
    bool any = false;

    for (uint64_t i = 0; i < n_pages; i++) {
        const struct mc_page *page = find_page(map, first + i);
        if (!is_unwritten(page))
            continue;
        any = true;
        mc_page_copy(page, bytes + i * map->page_bytes);
    }
    return any;
}

/* When a group ends between the read and the overlay, its pages may have been written after the
 * read, and are clean by the time of the overlay: then all is read again. */
int mcmap_read_as_is(struct mcmap *map, uint64_t first, uint64_t n_pages, uint64_t offset,
                     void *bytes, bool *unwritten)
{
    struct mcache *mc = map->mc;

    for (;;) {
        uint64_t ended = atomic_load(&mc->ended);
        int err = storage_read(mc->st, bytes, offset, n_pages * map->page_bytes);
        if (err)
            return err;
        LOCK_GUARD(&mc->meta);
        *unwritten = overlay(map, first, n_pages, bytes);
        if (atomic_load(&mc->ended) == ended)
            return 0;
    }
}
