/* SPDX-License-Identifier: BSD-3-Clause */
/* The write-ordered metadata cache: pages of image metadata in memory, and the groups in
 * which their changes reach the disk.
 *
 * What it keeps.  An image has one `struct mcache`.  It owns *maps*, each of which leads from
 * a page index to a page of 64-bit words in host byte order: one map for the L2 tables, one
 * for the refcount blocks, and resident maps for tables that always stay in memory (L1 table,
 * refcount table).  The map asks its owner where a page lies on disk, so that a table can
 * move.  All mcaches of a process share one *pool*, which bounds their memory.  Each mcache
 * has the gate that its own readers enter.
 *
 * Order of writes.  All changes since the last commit form a *group*.  Each dirty page has a
 * class, and a commit writes its group class by class:
 *   MC_PRE   what LEAF pages point to (a new refcount block);
 *   MC_LEAF  what nothing durable points to yet, and what may be durable too early without
 *            harm (refcounts);
 *   MC_LINK  what makes clusters reachable (L1 and L2 words).
 * A barrier is one fdatasync of the image file, which covers data too, after one of each other
 * file that the image's data lies in.  There is a barrier after the PRE pages if there were
 * any, before the LINK pages if the group is *strict*, and at the end.  A group is strict
 * unless every link in it points at fresh clusters that read as zeroes and replace zeroes, and
 * whose refcounts and file growth are durable.  Then it does no harm when the link is durable
 * before the data: the cluster reads as the old zeroes or the new data.
 *
 * Invariants, cited by number in code and tests:
 *   (1) a durable reference never points at a cluster whose refcount, contents or table are
 *       not durable (relaxed group: whose contents are durable or still the zeroes they
 *       replaced);
 *   (2) a cluster is not reused before the removal of its last reference is durable and all
 *       older requests have left the gate;
 *   (3) an in-memory word changes only under the meta lock; readers see old or new, never
 *       torn;
 *   (4) no I/O under the meta lock;
 *   (5) a frozen group never changes;
 *   (6) a page is clean only after its write *and* the barrier behind it succeeded;
 *   (7) a flush reply implies that everything replied to before it is durable;
 *   (8) data reaches the storage before the word that maps it is stored;
 *   (9) values from disk are checked before they are used as offsets, in release builds
 *       too;
 *  (10) a word is stored only in a page whose blocks on disk are allocated, so that a full
 *       filesystem can't keep a commit from writing it;
 *  (11) tables that change as a whole are not changed in place: new ones are written elsewhere,
 *       made durable, and put in their place by one write of the header, between two commits.
 *
 * Failure.  A metadata write that fails (ENOSPC) fails the commit; its pages stay dirty and
 * the next commit tries again.  A barrier that fails *poisons* the cache: nobody knows what
 * reached the disk, so later writes and commits return -EIO until the image is reopened.  If
 * the store keeps unflushed writes (keeps_writes in storage.h), it is no worse than a failed write.
 *
 * Threads: mcmap_get from any thread inside the gate and outside ranked locks from
 * RANK_COMMIT up; functions marked META under mcache_meta(); the others from any thread
 * outside it. Layer: mcache. */
#ifndef MCACHE_MCACHE_H
#define MCACHE_MCACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/gate.h"
#include "base/list.h"
#include "base/lock.h"
#include "storage/storage.h"

struct mcache;
struct mcmap;

enum mc_class { MC_PRE, MC_LEAF, MC_LINK, MC_CLASSES, MC_CLEAN = MC_CLASSES };

/* How words stand on disk. */
enum mc_order { MC_BE64, MC_LE64 };

/* One cached page.  Words are read with mc_load from any thread inside the gate; everything
 * else belongs to the files of mcache/. */
struct mc_page {
    _Atomic uint64_t *words;
    struct mcmap *map;
    uint64_t index;
    _Atomic bool referenced; /* the clock's second chance */
    _Atomic bool has_place;  /* its blocks on disk are allocated (invariant 10) */
    bool resident;           /* never evicted; the words belong to the map's owner */
    _Atomic bool even;       /* the words are first, first + step, first + 2 step, ... */
    /* Twice the number of stored pairs; odd: during a store. */
    _Atomic uint32_t pair_stores;
    uint64_t first, step; /* for `even`: set when the page is loaded */
    /* under META; not beside `referenced`, so that no compiler loads both as one word */
    struct list dirty_link;
    enum mc_class dirty;
    bool frozen; /* in the group that is being written */
    /* under the pool lock */
    struct list pool_link;
    uint64_t retired; /* gate stamp; from then on the map may be gone */
    uint32_t bytes;   /* of the words, when they are ours */
};

/* The L2 words of data that was written in order rise by the same step from word to word.  The
 * words of such an even page are computed instead of loaded: with random requests they are
 * rarely in a processor's cache.  The first store clears `even` before it changes the word, so
 * a thread that sees the changed word also sees that the page isn't even. */
static inline uint64_t mc_load(const struct mc_page *page, uint32_t word)
{
    if (atomic_load_explicit(&page->even, memory_order_acquire))
        return page->first + word * page->step;
    return atomic_load_explicit(&page->words[word], memory_order_acquire);
}

/* Two words that belong together, at an even place. */
struct mc_pair {
    uint64_t first, second;
};

/* Returns an old pair or a new one, never a mixture (a sequence lock).  The storing thread makes
 * the count odd, clears `even`, stores the words and makes the count even again; it waits for
 * nothing in between.  A reader that has seen any of these changes finds the count odd, or
 * different after its loads, and tries again. */
static inline struct mc_pair mc_load_pair(const struct mc_page *page, uint32_t word)
{
    for (;;) {
        uint32_t before = atomic_load_explicit(&page->pair_stores, memory_order_acquire);
        struct mc_pair pair = {mc_load(page, word), mc_load(page, word + 1)};
        uint32_t after = atomic_load_explicit(&page->pair_stores, memory_order_relaxed);
        if (LIKELY(before == after && before % 2 == 0))
            return pair;
    }
}

/* ---- the pool: memory for all pages, of whichever chain ---- */

struct mc_pool;

/* NULL when memory is short. */
struct mc_pool *mc_pool_new(size_t limit_bytes) MUST_USE;
void mc_pool_free(struct mc_pool *pool); /* after the last mcache_free */

/* Bytes of all clean and dirty pages, of all images.  Evicted pages that a reader may still use
 * aren't counted.  Not much above the limit as long as dirty pages can be written. */
size_t mc_pool_used(const struct mc_pool *pool);

/* ---- the cache of one image ---- */

struct mcache_hooks {
    /* Optional; without locks, on the committing thread, before a group is frozen.  Makes durable
     * what must be so before all that is stored from now on (invariant 11).  Returns 0, or -errno,
     * which fails the commit. */
    int (*settle)(void *owner);
    /* META: a group is being frozen.  What the owner has put aside until now is durable when
     * `durable` is called next. */
    void (*frozen)(void *owner);
    /* Without locks: the group of the last `frozen` is durable.  One call at a time, on the
     * committing thread, before the waiting callers are answered.  May store words, not commit. */
    void (*durable)(void *owner);
};

/* All who read its pages are inside `gate`.  hooks may be NULL.  Pool, gate and storage are
 * borrowed.  Returns NULL when memory is short. */
struct mcache *mcache_new(struct mc_pool *pool, struct gate *gate, struct storage *st,
                          const struct mcache_hooks *hooks, void *owner) MUST_USE;

/* Readers of its pages enter this gate instead from now on.  Nobody may be reading a page. */
void mcache_set_gate(struct mcache *mc, struct gate *gate);

/* The image has data in this store, too (borrowed): each barrier flushes it before the image's
 * own.  To be called before anything is written, at most MC_DATA_STORES times. */
#define MC_DATA_STORES 2
void mcache_add_data_store(struct mcache *mc, struct storage *st);

/* Drops everything, dirty pages too: commit first.  Nobody may be inside the gate. */
void mcache_free(struct mcache *mc);

struct mcache_counters {
    uint64_t loads;   /* pages read from the file, since the start */
    uint64_t commits; /* commits that wrote something, since the start */
    /* Calls of mcache_commit that another caller's commit covered. */
    uint64_t shared_commits;
    uint64_t dirty_bytes; /* bytes of dirty pages, now */
};

void mcache_count(struct mcache *mc, struct mcache_counters *out);

struct lock *mcache_meta(struct mcache *mc);

/* META: the open group must have its data and LEAF pages durable before its LINK pages. */
void mcache_strict(struct mcache *mc);

/* While on, commits leave LEAF and PRE pages in memory (lazy refcounts), except for a commit of
 * everything (MC_COMMIT_EVERYTHING) or when memory runs short. */
void mcache_set_postpone(struct mcache *mc, bool on);

/* Notes that bytes of the image changed (data or metadata), so that the next commit isn't
 * skipped.  To be called after the change and before the reply to the client. */
void mcache_note_write(struct mcache *mc);

/* MC_COMMIT leaves postponed pages (mcache_set_postpone) in memory. */
enum mc_commit_scope { MC_COMMIT, MC_COMMIT_EVERYTHING };

/* Makes durable everything that was noted, stored or written before the call.  Concurrent
 * callers share one commit; with nothing new it returns at once without a system call.  Returns
 * 0 or -errno; -EIO once poisoned. */
int mcache_commit(struct mcache *mc, enum mc_commit_scope what) MUST_USE;

/* Commits when the image's dirty pages exceed their share of the pool; the share shrinks when
 * dirty pages of many images fill the pool.  Writers call it after the result of their request is
 * decided, so an error is only logged (the pages stay dirty). */
void mcache_relieve(struct mcache *mc);

/* Is any page dirty or being written?  If not, a single durable write is enough for FUA. */
bool mcache_has_dirty(struct mcache *mc);

/* 0, or -EIO after a failed barrier. */
int mcache_health(struct mcache *mc);
/* Refuses writes and commits from now on, as after a failed barrier. */
void mcache_poison(struct mcache *mc);
/* The same for another reason, which the caller logs.  Returns true at the first call. */
bool mcache_refuse(struct mcache *mc);

/* While on, a failed barrier doesn't poison.  Only for images without metadata, of which one of
 * these is true: the writer keeps what it wrote since the last commit, and writes it again when
 * mcache_failures has grown; or the store reports each loss once and then works again (an NBD
 * server that was restarted). */
void mcache_set_forgiving(struct mcache *mc, bool on);

/* How many barriers have failed, whoever asked for them.  Each may have lost what was written
 * before it, and a later successful barrier doesn't bring that back. */
uint64_t mcache_failures(struct mcache *mc);
/* Counts a failure outside of commits: that of a durable write, which is a barrier, too. */
void mcache_note_failure(struct mcache *mc);

/* ---- maps ---- */

/* The host offset (bytes) of a page, or 0 when it has none: then its words read as zero and
 * must not be stored to.  Called under META and from mcmap_get: takes no lock, does no I/O. */
typedef uint64_t mcmap_locate(void *owner, uint64_t page_index);

/* A map of n_pages pages of page_bytes (512..4096, multiple of 8) each, loaded on demand.  NULL
 * when memory is short. */
struct mcmap *mcmap_new(struct mcache *mc, uint64_t n_pages, uint32_t page_bytes,
                        enum mc_order order, mcmap_locate *locate, void *owner);

/* A map in memory only, for results that can be computed again: a page begins with zeroes,
 * words are stored by mcmap_remember, and pages are dropped when memory is short. */
struct mcmap *mcmap_new_memo(struct mcache *mc, uint64_t n_pages);

/* From any thread inside the gate.  Threads that store the same word store the same value. */
static inline void mcmap_remember(struct mc_page *page, uint32_t word, uint64_t value)
{
    atomic_store_explicit(&page->words[word], value, memory_order_release);
}

/* A map over n_words words that the caller owns and that always stay in memory.  The table
 * lies at the host offset that locate gives for page 0, and on.  Its pages exist from the
 * start. */
struct mcmap *mcmap_new_resident(struct mcache *mc, _Atomic uint64_t *words,
                                 uint64_t n_words, enum mc_order order,
                                 mcmap_locate *locate, void *owner);

/* Forgets the map and its pages, dirty ones too.  Nobody may use it any more: all who might hold
 * one of its pages have left the gate.  (Pages of a resident map that are used under META only
 * need no gate: the map was replaced under META.) */
void mcmap_free(struct mcmap *map);

/* META: is anything of n_pages pages from `first` on not written to the file yet? */
bool mcmap_has_unwritten(struct mcmap *map, uint64_t first, uint64_t n_pages);

/* Reads into `bytes` the present content of n_pages pages from `first` on, which lie at `offset`
 * in the file: from memory or from the file.  Commits may run meanwhile, but nobody may store.
 * *unwritten: was anything of it not written to the file yet?  Returns 0 or -errno. */
int mcmap_read_as_is(struct mcmap *map, uint64_t first, uint64_t n_pages, uint64_t offset,
                     void *bytes, bool *unwritten) MUST_USE;

/* Waits for the commit in progress, and keeps others from starting until the same thread calls
 * mcache_release.  Locks as for mcache_commit. */
void mcache_hold(struct mcache *mc);
void mcache_release(struct mcache *mc);

/* The map's tables were replaced, in the file and in what `locate` returns: forgets all pages,
 * dirty ones and those being read too, so that they are read anew.  The caller holds commits
 * (mcache_hold), and has kept everybody from storing since the new tables were written.  Waits for
 * reads of the disk, never for readers inside the gate. */
void mcmap_forget(struct mcmap *map);

uint32_t mcmap_words_per_page(const struct mcmap *map);

/* The page, loaded if it isn't in memory (once, however many threads want it).  For reading,
 * valid while inside the gate.  Returns 0 or -errno of the read. */
int mcmap_get(struct mcmap *map, uint64_t index, struct mc_page **page) MUST_USE;

/* META: the page if it is in memory, else NULL: then release META, call mcmap_get, and try
 * again. */
struct mc_page *mcmap_peek(struct mcmap *map, uint64_t index);

/* As mcmap_get, before a store: afterwards the blocks of the page on disk are allocated
 * (invariant 10).  A page whose words are all zero may lie in a hole of the file; then the
 * storage is asked to allocate the blocks.  May do I/O; inside the gate, outside META.  Returns 0
 * or -errno (-ENOSPC is met here, so that a commit never meets it).  page may be NULL. */
int mcmap_get_for_store(struct mcmap *map, uint64_t index, struct mc_page **page) MUST_USE;

/* META: the page if it can be stored to, else NULL: then release META, call
 * mcmap_get_for_store, and try again. */
struct mc_page *mcmap_peek_for_store(struct mcmap *map, uint64_t index);

/* META: changes one word of a page that mcmap_peek_for_store returned under the same hold
 * of META. */
void mcmap_store(struct mc_page *page, uint32_t word, uint64_t value, enum mc_class cls);

/* META: the same of two words, for mc_load_pair. */
void mcmap_store_pair(struct mc_page *page, uint32_t word, struct mc_pair pair,
                      enum mc_class cls);

#endif
