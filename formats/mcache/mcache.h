/* SPDX-License-Identifier: BSD-3-Clause */
/* The write-ordered metadata cache: pages of image metadata in memory, and the groups in
 * which their changes reach the disk.
 *
 * What it keeps.  An image has one `struct mcache`.  It owns *maps*: directories from a
 * page index to a page of 64-bit words in host order, one map for the L2 tables, one for
 * the refcount blocks, resident ones for tables that always stay in memory (L1, refcount
 * table).  Where a page lies on disk is asked from the map's owner, so that a table can
 * move.  All mcaches of a process share one *pool*, which bounds their memory; each has the
 * gate that its own readers enter.
 *
 * Order as data.  Each dirty page has a class, and a commit writes class by class:
 *   MC_PRE   what LEAF pages point to (a new refcount block);
 *   MC_LEAF  what nothing durable points to yet, or what harms nobody by coming early
 *            (refcounts);
 *   MC_LINK  what makes something reachable (L1 and L2 words).
 * There is a barrier (one fdatasync, which covers data too; and one of each other file that
 * the image's data lies in, before it) after PRE when there was any,
 * before LINK when the group is *strict*, and at the end.  A group is strict unless every
 * link in it points at clusters whose bookkeeping is durable and whose contents, durable or
 * not, are old or new: fresh clusters that read as the zeroes they replace.
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
 *  (10) a word is stored only in a page that has its place on disk: a filesystem that is
 *       full by then can't keep a commit from writing it;
 *  (11) tables that change as a whole are not stored to: others are written beside them, made
 *       durable, and put in their place by one write of the header, between two commits.
 *
 * Failure.  A metadata write that fails (ENOSPC) fails the commit; its pages stay dirty and
 * the next commit tries again.  A barrier that fails *poisons* the cache: nobody knows what
 * reached the disk, so later writes and commits return -EIO until the image is reopened.
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

/* Words are read with mc_load from any thread inside the gate; everything else is private.
 */
struct mc_page {
    _Atomic uint64_t *words;
    struct mcmap *map;
    uint64_t index;
    _Atomic bool referenced; /* the clock's second chance */
    _Atomic bool has_place;  /* writing it back needs no space that isn't there yet */
    bool resident;           /* never evicted, words not ours */
    _Atomic bool even;       /* the words are first, first + step, first + 2 step, ... */
    _Atomic uint32_t pair_stores; /* twice their number; odd: one is under way */
    uint64_t first, step;         /* of `even`; as it was loaded */
    /* under META; apart from `referenced`, so that no compiler loads both as one word */
    struct list dirty_link;
    enum mc_class dirty;
    bool frozen; /* in the group that is being written */
    /* under the pool lock */
    struct list pool_link;
    uint64_t retired; /* gate stamp; from then on the map may be gone */
    uint32_t bytes;   /* of the words, when they are ours */
};

/* Tables of data that was written in order rise by one step from word to word.  A page that was
 * loaded so needs no look at its words, which are in no processor's cache when requests go all
 * over a disk.  The first store ends that, before the word changes: who sees a later word finds
 * the page uneven. */
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

/* An old pair or a new one, never a mixture.  While a pair of the page is being stored,
 * which is done without waiting for anything, this tries again.  For who sees the first or
 * the second word of a store also sees that one was under way: the words are stored, and an
 * even page becomes uneven, after the count became odd, and they are read before it is looked
 * at again. */
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

/* What clean and dirty pages take now, of all images; evicted ones that somebody may still
 * read aren't counted.  Bytes, never much over the limit while what is dirty gets written. */
size_t mc_pool_used(const struct mc_pool *pool);

/* ---- the cache of one image ---- */

struct mcache_hooks {
    /* No lock; optional: before a group is frozen, on the committing thread.  What has to be
     * durable before anything that is stored from now on is made so here (invariant 11).  0, or
     * -errno, which fails the commit. */
    int (*settle)(void *owner);
    /* META: a group is being frozen; what the owner stamps now is covered by `durable`. */
    void (*frozen)(void *owner);
    /* No lock: the group of the last `frozen` is durable.  One call at a time; runs on the
     * committing thread before waiters are told, and may store, but not commit. */
    void (*durable)(void *owner);
};

/* Whoever reads its pages is inside `gate`.  hooks may be NULL.  The pool, the gate and the
 * storage are borrowed.  NULL when memory is short. */
struct mcache *mcache_new(struct mc_pool *pool, struct gate *gate, struct storage *st,
                          const struct mcache_hooks *hooks, void *owner) MUST_USE;

/* Whoever reads its pages from now on is inside this gate instead; nobody does, or holds one. */
void mcache_set_gate(struct mcache *mc, struct gate *gate);

/* Data of the image lies in this store, too (borrowed): each barrier flushes it before the
 * image's own.  Before anything is written; at most MC_DATA_STORES. */
#define MC_DATA_STORES 2
void mcache_add_data_store(struct mcache *mc, struct storage *st);

/* Drops everything, dirty or not; commit first.  Nobody may be inside the gate. */
void mcache_free(struct mcache *mc);

/* What it has done so far. */
struct mcache_counters {
    uint64_t loads;          /* pages that were read from the file: they weren't there */
    uint64_t commits;        /* that wrote something */
    uint64_t shared_commits; /* calls that another's commit was good for */
    uint64_t dirty_bytes;    /* of pages, now */
};

void mcache_count(struct mcache *mc, struct mcache_counters *out);

struct lock *mcache_meta(struct mcache *mc);

/* META: the open group must have its data and LEAF pages durable before its LINK pages. */
void mcache_strict(struct mcache *mc);

/* While on, LEAF and PRE pages stay in memory when a group is committed (lazy refcounts),
 * unless the commit asks for everything or memory runs short. */
void mcache_set_postpone(struct mcache *mc, bool on);

/* Notes that bytes of the image changed (data or metadata), so that the next commit isn't
 * empty. To be called after the change and before the reply. */
void mcache_note_write(struct mcache *mc);

/* MC_COMMIT leaves what is postponed (mcache_set_postpone) in memory. */
enum mc_commit_scope { MC_COMMIT, MC_COMMIT_EVERYTHING };

/* Makes everything durable that was noted, stored and written before the call.  Concurrent
 * callers share one commit; with nothing new it returns at once without a system call.  0
 * or -errno; -EIO once poisoned. */
int mcache_commit(struct mcache *mc, enum mc_commit_scope what) MUST_USE;

/* Commits when the image's dirty pages take more than their share of the pool, which is less
 * when those of many images fill it; called by writers after their reply is decided, so its
 * error is only logged (the pages stay dirty). */
void mcache_relieve(struct mcache *mc);

/* Is any page dirty or being written?  When not, a single durable write is enough for FUA.
 */
bool mcache_has_dirty(struct mcache *mc);

/* 0, or -EIO after a failed barrier. */
int mcache_health(struct mcache *mc);
void mcache_poison(struct mcache *mc);
/* The same for another reason, which the caller tells: true the first time. */
bool mcache_refuse(struct mcache *mc);

/* While on, a barrier that fails doesn't poison: whoever writes to the image keeps what was
 * written since the last commit, and writes it again when mcache_failures tells; or the
 * store itself tells each loss once, and goes on (an NBD server that came back).  Only for
 * images without metadata. */
void mcache_set_forgiving(struct mcache *mc, bool on);

/* How many barriers have failed, whoever asked for them.  Each may have lost what was
 * written before it, and the next to succeed says nothing of that. */
uint64_t mcache_failures(struct mcache *mc);
/* Another's failure counts as one: a durable write's, which is a barrier to the disk. */
void mcache_note_failure(struct mcache *mc);

/* ---- maps ---- */

/* The host offset of a page, or 0 when it has none (then its words read as zero and must
 * not be stored to).  Called under META and from mcmap_get: takes no lock and does no I/O.
 */
typedef uint64_t mcmap_locate(void *owner, uint64_t page_index);

/* A map of n_pages pages of page_bytes (512..4096, multiple of 8) each, loaded on demand.
 */
struct mcmap *mcmap_new(struct mcache *mc, uint64_t n_pages, uint32_t page_bytes,
                        enum mc_order order, mcmap_locate *locate, void *owner);

/* A map of what was found out, which lies in no file: a page begins with zeroes, words are
 * stored by mcmap_remember, and pages are forgotten when memory is wanted. */
struct mcmap *mcmap_new_memo(struct mcache *mc, uint64_t n_pages);

/* From any thread inside the gate, as often as wanted: whoever finds something out finds the
 * same. */
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

/* Forgets the map and its pages, dirty or not.  Nobody may use it any more: those who might
 * hold one of its pages have left the gate, or took them under META only, as those of a
 * resident map that another has replaced there. */
void mcmap_free(struct mcmap *map);

/* META: is anything of n_pages pages from `first` on not in the file yet? */
bool mcmap_has_unwritten(struct mcmap *map, uint64_t first, uint64_t n_pages);

/* n_pages pages from `first` on, which lie at `offset` in the file, as they are now, whether they
 * are in memory or not; commits may go on meanwhile, but nobody stores.  *unwritten: was anything
 * of them not in the file yet?  0 or -errno. */
int mcmap_read_as_is(struct mcmap *map, uint64_t first, uint64_t n_pages, uint64_t offset,
                     void *bytes, bool *unwritten) MUST_USE;

/* Waits for the commit that is under way, and keeps others from beginning until the release,
 * by the same thread.  Locks as for mcache_commit. */
void mcache_hold(struct mcache *mc);
void mcache_release(struct mcache *mc);

/* The tables were replaced by others, in the file and where `locate` says they are: pages that
 * are in memory, or being read, are forgotten, dirty or not, and read anew when they are
 * wanted.  For one who holds commits, and who has kept all from storing to them since he wrote
 * the new tables.  Waits for reads of the disk, never for who is inside the gate. */
void mcmap_forget(struct mcmap *map);

uint32_t mcmap_words_per_page(const struct mcmap *map);

/* The page, loaded when needed (once, however many ask).  Valid while inside the gate, for
 * reading.  0 or -errno of the read. */
int mcmap_get(struct mcmap *map, uint64_t index, struct mc_page **page) MUST_USE;

/* META: the page when it is in memory, else NULL: release META, mcmap_get, and look again.
 */
struct mc_page *mcmap_peek(struct mcmap *map, uint64_t index);

/* As mcmap_get, for who is going to store: afterwards the page has its place on disk
 * (invariant 10).  Where its words are zero a page may lie in a hole of the file; then the
 * storage is asked for the blocks.  May do I/O; inside the gate, outside META.  0 or -errno
 * (-ENOSPC here, so that a commit never meets it).  page: NULL when it isn't wanted. */
int mcmap_get_for_store(struct mcmap *map, uint64_t index, struct mc_page **page) MUST_USE;

/* META: the page when it can be stored to, else NULL: release META, mcmap_get_for_store,
 * and look again. */
struct mc_page *mcmap_peek_for_store(struct mcmap *map, uint64_t index);

/* META: changes one word of a page that mcmap_peek_for_store returned under the same hold
 * of META. */
void mcmap_store(struct mc_page *page, uint32_t word, uint64_t value, enum mc_class cls);

/* META: the same of two words, for mc_load_pair. */
void mcmap_store_pair(struct mc_page *page, uint32_t word, struct mc_pair pair,
                      enum mc_class cls);

#endif
