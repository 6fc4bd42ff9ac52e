/* SPDX-License-Identifier: BSD-3-Clause */
/* Declarations that the files of this folder share; private to it. */
#ifndef MCACHE_INTERNAL_H
#define MCACHE_INTERNAL_H

#include <pthread.h>

#include "mcache/mcache.h"

#define LOAD_STRIPES 8

/* A map finds its pages through a directory of two levels: `top` leads to arrays of
 * 1 << dir_bits slots, which are allocated on demand and freed with the map. */
struct mc_slot {
    _Atomic(struct mc_page *) page;
};

struct mcmap {
    struct mcache *mc;
    struct list link; /* in mcache.maps, under the pool's lock */
    uint64_t n_pages;
    uint64_t n_words; /* resident maps: words in the whole table; else 0 */
    uint32_t page_bytes;
    enum mc_order order;
    bool resident;
    mcmap_locate *locate;
    void *owner;
    struct mc_page *pages; /* resident maps: all n_pages of them */
    uint64_t n_dirs;
    unsigned dir_bits;
    _Atomic(struct mc_slot *) *top;
};

/* Says that a thread is loading a page; lies on that thread's stack. */
struct mc_loading {
    struct list link;
    struct mcmap *map;
    uint64_t index;
    uint64_t round; /* the stripe's round when the load began */
};

struct mc_load_stripe {
    struct lock lock;
    pthread_cond_t done;
    struct list loading;
    uint64_t round; /* incremented by each mcmap_forget */
};

/* A page of a frozen group. */
struct mc_write {
    struct mc_page *page;
    enum mc_class cls;
    uint64_t host_offset;
    void *bytes;
    size_t n_bytes;
};

/* The memory that a commit needs for its group.  It is kept for the next commit: allocated and
 * freed each time, it would be new memory in the heap of every thread that ever commits. */
struct mc_room {
    struct mc_write *writes;
    size_t n_pages;
    unsigned char *buffer;
    size_t n_bytes;
};

struct mcache {
    struct mc_pool *pool;
    struct gate *gate; /* entered by all readers of the pages */
    struct storage *st;
    struct storage *data[MC_DATA_STORES]; /* in use: the first n_data */
    unsigned n_data;
    struct mcache_hooks hooks;
    void *owner;
    struct list maps;
    struct mc_load_stripe load[LOAD_STRIPES];

    struct lock meta;
    /* under META: the open group */
    struct list dirty[MC_CLASSES]; /* struct mc_page.dirty_link */
    size_t n_dirty;
    bool strict;
    bool postpone;

    _Atomic size_t dirty_bytes;
    _Atomic size_t n_links; /* LINK pages, dirty or frozen */
    _Atomic uint64_t written;
    _Atomic uint64_t durable;
    _Atomic uint64_t ended; /* groups that ended, written or not; changed under META */
    _Atomic bool poisoned, forgiving;
    _Atomic uint64_t failures;
    _Atomic uint64_t loads, commits, shared_commits; /* mcache_counters */

    struct lock commit;
    /* under commit */
    pthread_cond_t commit_done;
    bool committing;
    bool want_everything;
    uint64_t started, finished, finished_ok;
    int last_result;

    struct mc_room room; /* used by the committing thread */

    /* under the pool's lock */
    struct list retired; /* struct mc_page.pool_link: evicted, waiting for the gate */
    size_t n_retired;
    struct list retiring; /* in mc_pool.retiring while `retired` isn't empty */
};

struct mc_pool {
    size_t limit;
    _Atomic size_t used;
    _Atomic size_t dirty_bytes;    /* of all images */
    _Atomic size_t n_dirty_images; /* which have dirty pages */
    struct lock lock;
    /* under lock */
    struct list clock;    /* struct mc_page.pool_link: oldest first */
    struct list retiring; /* struct mcache.retiring: caches with retired pages */
    size_t n_pages;
    struct list spares; /* struct mc_page.pool_link: memory for the next pages */
    size_t n_spares;
};

/* map.c */
size_t mc_page_words(const struct mc_page *page);
void mcmap_detach(struct mc_page *page); /* META: takes the page out of the directory */
void mcmap_clean(struct mc_page *page);  /* META: the page isn't dirty any more */

/* page_memory.c */

/* Allocates a page of page_bytes bytes, at least 1, with undefined words; NULL: no memory. */
struct mc_page *mc_page_new(struct mc_pool *pool, uint32_t page_bytes);
void mc_page_free(struct mc_page *page);
/* Under the pool's lock: frees a page, or keeps its memory for the next one. */
void mc_page_recycle(struct mc_pool *pool, struct mc_page *page);
/* Frees the kept memory; under the pool's lock, or when no other thread uses the pool. */
void mc_pool_free_spares(struct mc_pool *pool);

/* pool.c */
void mc_pool_insert(struct mc_pool *pool, struct mc_page *page);
/* Evicts a page, dirty or not; under the pool's lock, with the page in no group. */
void mc_pool_drop(struct mc_pool *pool, struct mc_page *page);
/* For mcmap_free, under the pool's lock: the page leaves the pool. */
void mc_pool_forget(struct mc_pool *pool, struct mc_page *page);
/* For mcache_free: frees the retired pages of this cache. */
void mc_pool_leave(struct mcache *mc);
/* A page of that many bytes became dirty, or clean. */
void mc_pool_count_dirty(struct mcache *mc, size_t bytes);
void mc_pool_count_clean(struct mcache *mc, size_t bytes);
/* Are so many bytes of dirty pages more than one image's share of the pool? */
bool mc_pool_is_too_dirty(const struct mc_pool *pool, size_t own);

/* dirty.c */

/* META: its words as they stand on disk. */
void mc_page_copy(const struct mc_page *page, void *bytes);

struct mc_group {
    struct mc_write *writes; /* in the room; sorted by class, then host offset */
    size_t n_writes;
    bool strict;
    uint64_t generation;
};

int mc_group_freeze(struct mcache *mc, bool everything, struct mc_group *group) MUST_USE;
/* done: the group is durable; else its pages become dirty again. */
void mc_group_end(struct mcache *mc, struct mc_group *group, bool done);
void mc_room_free(struct mc_room *room);

#endif
