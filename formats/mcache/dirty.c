/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty pages by class, and freezing them into a group.  A group holds copies of its pages in
 * disk byte order, made under the meta lock, so that later changes belong to the next group and
 * never wait. */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>

#include "mcache/internal.h"

/* META. */
static void mark_dirty(struct mcache *mc, struct mc_page *page, enum mc_class cls)
{
    if (page->dirty == MC_CLEAN) {
        mc->n_dirty++;
        mc_pool_count_dirty(mc, page->map->page_bytes);
        if (cls == MC_LINK)
            atomic_fetch_add(&mc->n_links, 1);
    } else if (cls < page->dirty) {
        /* The page moves to an earlier class.  That never happens to a LINK page: links don't
         * share pages with what must be durable before them. */
        assert(page->dirty != MC_LINK);
        list_remove(&page->dirty_link);
    } else {
        return;
    }
    page->dirty = cls;
    list_append(&mc->dirty[cls], &page->dirty_link);
}

/* META. */
static void mark_clean(struct mcache *mc, struct mc_page *page)
{
    list_remove(&page->dirty_link);
    mc->n_dirty--;
    mc_pool_count_clean(mc, page->map->page_bytes);
    page->dirty = MC_CLEAN;
}

void mcmap_store(struct mc_page *page, uint32_t word, uint64_t value, enum mc_class cls)
{
    struct mcache *mc = page->map->mc;

    lock_assert_held(&mc->meta);
    assert(word < mc_page_words(page));
    assert(atomic_load(&page->has_place)); /* invariant (10) */
    /* The page is counted before its word changes: a thread that sees a link which isn't
     * durable must not be told by mcache_has_dirty that there is none. */
    mark_dirty(mc, page, cls);
    if (atomic_load_explicit(&page->even, memory_order_relaxed))
        atomic_store_explicit(&page->even, false, memory_order_release);
    atomic_store_explicit(&page->words[word], value, memory_order_release);
}

void mcmap_store_pair(struct mc_page *page, uint32_t word, struct mc_pair pair,
                      enum mc_class cls)
{
    uint32_t stores = atomic_load_explicit(&page->pair_stores, memory_order_relaxed);

    assert(word % 2 == 0);
    atomic_store_explicit(&page->pair_stores, stores + 1, memory_order_relaxed);
    mcmap_store(page, word, pair.first, cls);
    mcmap_store(page, word + 1, pair.second, cls);
    atomic_store_explicit(&page->pair_stores, stores + 2, memory_order_release);
}

void mc_page_copy(const struct mc_page *page, void *bytes)
{
    uint64_t *out = bytes;
    size_t n = mc_page_words(page);

    for (size_t i = 0; i < n; i++) {
        uint64_t v = atomic_load_explicit(&page->words[i], memory_order_relaxed);
        out[i] = page->map->order == MC_BE64 ? htobe64(v) : htole64(v);
    }
}

/* META: copies one page into the group. */
static void freeze_page(struct mcache *mc, struct mc_page *page, struct mc_group *group,
                        unsigned char **fill)
{
    struct mcmap *map = page->map;
    size_t n = mc_page_words(page);
    void *out = *fill;

    mc_page_copy(page, out);
    uint64_t first = map->locate(map->owner, map->resident ? 0 : page->index);
    assert(first != 0);
    assert(!page->frozen);
    group->writes[group->n_writes++] = (struct mc_write){
        .page = page,
        .cls = page->dirty,
        .host_offset = map->resident ? first + page->index * map->page_bytes : first,
        .bytes = out,
        .n_bytes = n * 8,
    };
    *fill += map->page_bytes;
    mark_clean(mc, page);
    page->frozen = true;
}

static int compare_writes(const void *a, const void *b)
{
    const struct mc_write *x = a, *y = b;

    if (x->cls != y->cls)
        return x->cls < y->cls ? -1 : 1;
    return x->host_offset < y->host_offset ? -1 : x->host_offset > y->host_offset;
}

/* A larger room isn't kept for the next group. */
#define KEEP_BYTES (1u << 20)

void mc_room_free(struct mc_room *room)
{
    free(room->writes);
    free(room->buffer);
    *room = (struct mc_room){0};
}

/* Replaces the room by one for n_pages pages of `bytes` in all.  After -ENOMEM there is none. */
static int make_room(struct mc_room *room, size_t n_pages, size_t bytes)
{
    void *buffer = NULL;

    mc_room_free(room);
    room->writes = calloc(n_pages, sizeof *room->writes);
    if (!room->writes || posix_memalign(&buffer, 4096, bytes) != 0) {
        mc_room_free(room);
        return -ENOMEM;
    }
    room->buffer = buffer;
    room->n_pages = n_pages;
    room->n_bytes = bytes;
    return 0;
}

/* META: copies the dirty pages of the classes from `first` on; the room is large enough. */
static void freeze_classes(struct mcache *mc, enum mc_class first, struct mc_group *group)
{
    unsigned char *fill = mc->room.buffer;

    *group = (struct mc_group){
        .writes = mc->room.writes,
        .generation = atomic_load(&mc->written),
        .strict = mc->strict,
    };
    mc->strict = false;
    for (enum mc_class cls = first; cls < MC_CLASSES; cls++)
        LIST_FOR_EACH_SAFE (pos, &mc->dirty[cls])
            freeze_page(mc, CONTAINER_OF(pos, struct mc_page, dirty_link), group, &fill);
    if (mc->hooks.frozen)
        mc->hooks.frozen(mc->owner);
}

int mc_group_freeze(struct mcache *mc, bool everything, struct mc_group *group)
{
    lock_acquire(&mc->meta);
    while (mc->n_dirty > mc->room.n_pages ||
           atomic_load(&mc->dirty_bytes) > mc->room.n_bytes || !mc->room.writes) {
        size_t n = mc->n_dirty, bytes = atomic_load(&mc->dirty_bytes);
        lock_release(&mc->meta);
        /* Somewhat more, for pages that become dirty before META is taken again. */
        int err = make_room(&mc->room, n + n / 8 + 16, bytes + bytes / 8 + 16 * 4096);
        if (err)
            return err;
        lock_acquire(&mc->meta);
    }
    freeze_classes(mc, mc->postpone && !everything ? MC_LINK : MC_PRE, group);
    lock_release(&mc->meta);
    qsort(group->writes, group->n_writes, sizeof *group->writes, compare_writes);
    return 0;
}

void mc_group_end(struct mcache *mc, struct mc_group *group, bool done)
{
    {
        LOCK_GUARD(&mc->meta);
        atomic_fetch_add(&mc->ended, 1);
        for (size_t i = 0; i < group->n_writes; i++) {
            struct mc_page *page = group->writes[i].page;
            page->frozen = false;
            if (!done)
                mark_dirty(mc, page, group->writes[i].cls);
            if (group->writes[i].cls == MC_LINK)
                atomic_fetch_sub(&mc->n_links, 1);
        }
        if (!done)
            mc->strict |= group->strict;
        else
            atomic_store(&mc->durable, group->generation);
    }
    if (mc->room.n_bytes > KEEP_BYTES)
        mc_room_free(&mc->room);
}
