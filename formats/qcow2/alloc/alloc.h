/* SPDX-License-Identifier: BSD-3-Clause */
/* The cluster allocator of qcow2: where new clusters come from, and how old ones become free.
 *
 * New clusters come from two sources, in this order:
 *   free clusters   freed in this session, or found free by a scan of the refcount blocks that
 *                   were there at the start; not fresh: they may have old content;
 *   the tail        the end of the file (block/tail.h); fresh: reads as zeroes.
 * Clusters of the tail get a refcount of 1 when the file grows, before they are used.  So an
 * allocation there changes no refcount, and a group of such links needs no barrier before its L2
 * entries.  What isn't used is given back at close; a crash leaks it.
 *
 * A cluster that loses a reference passes through these states (invariant 2 of mcache.h):
 *   unlinked  in the open group
 *   frozen    its group is being written
 *   retired   the removal is durable; stamped by the gate
 *   free      older requests have left the gate: the refcount is decremented and, at 0, the
 *             cluster is punched
 * In memory a refcount is 0 exactly when the cluster is free for use, so the scan may rely on it.
 * The housekeeper makes retired clusters free, in slices of a few milliseconds; so does a writer
 * that finds no free cluster, one slice at a time.
 *
 * Threads: functions marked META under mcache_meta(); the others outside it, inside the
 * gate. Private to this folder. */
#ifndef ALLOC_ALLOC_H
#define ALLOC_ALLOC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/background.h"
#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "base/lock.h"
#include "block/node.h"
#include "block/tail.h"
#include "qcow2/alloc/meta_set.h"
#include "qcow2/alloc/refcount.h"
#include "qcow2/qcow2_format.h"

/* The image that clusters are taken for, and what the allocator asks of it. */
struct alloc_image {
    struct node *node;
    uint32_t cluster_bits, refcount_order;
    uint64_t refcount_table_offset; /* bytes, in the file */
    uint32_t refcount_table_clusters;
    void *owner; /* for the functions below */
    /* An impossible table entry was found.  May be called under any lock. */
    void (*met_corruption)(void *owner);
    /* Growth lock: writes another refcount table (bytes, clusters) into the header, durably on
     * return.  Returns 0 or -errno: then the header may name either table, and the node refuses
     * writes. */
    int (*move_refcount_table)(void *owner, uint64_t offset, uint32_t clusters);
};

/* A run of host clusters, by cluster number. */
struct run {
    uint64_t first, n;
};

struct run_list {
    struct run *runs;
    size_t n, capacity;
};

struct alloc {
    struct node *node;
    uint32_t cluster_bits;
    struct alloc_image image; /* as given to alloc_open */
    struct refcounts refs;
    struct meta_set metadata;  /* filled when the image is activated */
    struct lock pack;          /* finding places for compressed clusters */
    struct lock growth;        /* extending the file or the refcount structures */
    _Atomic bool held;         /* no clusters may be taken: see alloc_hold */
    _Atomic uint64_t file_end; /* bytes, cluster aligned: no cluster in use lies beyond */
    bool grown;                /* under growth: the file has grown in this session */
    bool shrunk;               /* the disk was made smaller; changed alone with the image */
    /* under META */
    struct tail tail;
    struct run_list free, unlinked, frozen;
    struct list retired; /* struct retired: oldest first */
    bool reclaiming;     /* a thread is making retired runs free */
    /* Changed under META; read anywhere: may there be something to reclaim? */
    _Atomic bool reclaimable;
    uint64_t scan_next, scan_end; /* cluster numbers not scanned yet */
    _Atomic bool scanned;         /* the scan has ended, as seen under META */
    /* Bytes: the rest of a cluster that holds compressed clusters, where the next one goes;
     * equal: there is none.  Changed under `pack` as well, except by alloc_end_packing. */
    uint64_t pack_next, pack_end;

    struct lock reclaim; /* dropping references */
    /* under reclaim */
    bool paused;
    /* Runs that all older requests have left; `done` of them are free. */
    struct run_list passed;
    size_t done;
    uint64_t punch_until_ns; /* the housekeeper's clock; 0: no limit */
    struct background background;
};

/* Determines the end of the file.  What writing needs is done by alloc_activate. */
int alloc_open(struct alloc *a, const struct alloc_image *image,
               struct diag *diag) MUST_USE;
/* Reads the refcount table; needs node->mc. */
int alloc_open_refcounts(struct alloc *a, struct diag *diag) MUST_USE;
/* Before the first write. */
int alloc_activate(struct alloc *a, struct diag *diag) MUST_USE;

/* Is any cluster unlinked, frozen or retired? */
bool alloc_has_unlinked(struct alloc *a);

/* Commits, frees everything that was unlinked, and gives back what was reserved ahead.  Nobody
 * may be inside the gate.  The file may then be cut with alloc_trim_file. */
int alloc_settle(struct alloc *a) MUST_USE;
/* After alloc_settle and a commit: cuts the file after the last cluster in use. */
int alloc_trim_file(struct alloc *a) MUST_USE;
void alloc_close(struct alloc *a);

static inline uint64_t alloc_cluster_size(const struct alloc *a)
{
    return 1ull << a->cluster_bits;
}

/* META: n clusters from byte offset `host` on hold metadata from now on. */
void alloc_note_metadata(struct alloc *a, uint64_t host, uint64_t n);

/* Does [offset, offset+len) lie inside the file, as everything that the image refers to must? */
static inline bool alloc_inside_file(const struct alloc *a, uint64_t offset, uint64_t len)
{
    uint64_t end = atomic_load_explicit(&a->file_end, memory_order_acquire);
    return offset <= end && len <= end - offset;
}

/* The same for an image that another node may have made longer: looks at the file's size again
 * where that decides.  Not under META. */
bool alloc_inside_file_now(struct alloc *a, uint64_t offset, uint64_t len);

/* Uses the refcount table `table`, which is durable in the file, instead of the present one.  The
 * caller holds the allocator (alloc_hold) and has paused reclaim.  Returns 0, or -ENOMEM with
 * nothing changed. */
int alloc_replace_counts(struct alloc *a, struct refcount_table *table) MUST_USE;

/* Takes a run of 1..max clusters, refcount 1 each: *n of them at byte offset *host.  *fresh: they
 * read as zeroes. */
int alloc_clusters(struct alloc *a, uint64_t max, uint64_t *host, uint64_t *n,
                   bool *fresh) MUST_USE;

/* Takes n fresh contiguous clusters for a table; -EFBIG when no refcount table could count
 * them. */
int alloc_table(struct alloc *a, uint64_t n, uint64_t *host) MUST_USE;

/* Takes `bytes` (1 to the cluster size) for a compressed cluster, at any byte offset *host.  It
 * may share host clusters with other compressed clusters; so a link to it makes its group
 * strict. */
int alloc_packed(struct alloc *a, uint32_t bytes, uint64_t *host) MUST_USE;

/* META: the open group removes one reference to each of n clusters at byte offset host. */
void alloc_unlink(struct alloc *a, uint64_t host, uint64_t n);
/* META: the same for all host clusters that a compressed cluster touches. */
void alloc_unlink_bytes(struct alloc *a, uint64_t host, uint64_t bytes);

/* META: is the growth of the file durable up to host_end?  Then a link to a fresh cluster below
 * it may be durable before anything else of its group. */
bool alloc_settled(const struct alloc *a, uint64_t host_end);

/* While paused, no refcount is decremented: unlinked clusters stay in use.  alloc_pause_reclaim
 * returns when no thread is decrementing any more. */
void alloc_pause_reclaim(struct alloc *a);
void alloc_resume_reclaim(struct alloc *a);

/* While on, allocations fail with -EBUSY: all refcounts are being replaced. */
void alloc_hold(struct alloc *a, bool on);

/* From the mcache hooks (frozen: META). */
void alloc_frozen(struct alloc *a);
void alloc_durable(struct alloc *a);

/* ---- between the files of the allocator ---- */

static inline void alloc_met_corruption(struct alloc *a)
{
    a->image.met_corruption(a->image.owner);
}

/* Appends a run, merged with the last one if it continues that.  When memory is short the
 * clusters are leaked. */
void run_list_add(struct alloc *a, struct run_list *list, struct run run);

/* Moves all runs of `from` to the end of `to`; without copying if `to` is empty, because there
 * can be very many. */
void run_list_move(struct alloc *a, struct run_list *from, struct run_list *to);

/* ---- alloc_grow.c and alloc_area.c; growth lock ---- */

/* Makes the file reach new_end, all zeroes from its present end on. */
int alloc_extend_file(struct alloc *a, uint64_t new_end) MUST_USE;

/* META: unlinks what is left of the tail. */
void alloc_abandon_tail(struct alloc *a);

/* Replaces the refcount table by a larger one of at least `least` entries.  The tail must be used
 * up. */
int alloc_grow_refcount_table(struct alloc *a, uint64_t least) MUST_USE;

/* Growth lock: how many clusters from `first` on, at most n and in one page of refcounts,
 * are in use (`used`) or not, by their count or as metadata. */
int alloc_count_run(struct alloc *a, uint64_t first, uint64_t n, bool used,
                    uint64_t *run) MUST_USE;

/* alloc_table for more clusters than a refcount block counts. */
int alloc_wide_table(struct alloc *a, uint64_t n, uint64_t *host) MUST_USE;

/* ---- alloc_shrink.c ---- */

/* For a disk that was made smaller, when nobody allocates any more: removes refcount blocks without
 * any count from the table, and at the end of the file also those that count only themselves.
 * Durable on return; their clusters are free after the next commit. */
int alloc_drop_empty_blocks(struct alloc *a) MUST_USE;

/* ---- alloc_reclaim.c ---- */

void alloc_reclaim_init(struct alloc *a);
/* Stops the housekeeper's part, and forgets what it had left to do. */
void alloc_reclaim_end(struct alloc *a);

/* META: the next compressed cluster begins a new host cluster. */
void alloc_end_packing(struct alloc *a);

/* META: the removal of what is in `frozen` is durable. */
void alloc_retire(struct alloc *a);

/* Makes retired clusters free that all older requests have left: at most a slice, which takes a
 * few milliseconds.  Returns the number of runs; 0: none for now.  Inside or outside the gate. */
size_t alloc_reclaim(struct alloc *a);
/* Is nothing retired?  Exact for the thread that retires, and after it. */
static inline bool alloc_is_idle(struct alloc *a)
{
    return !atomic_load(&a->reclaimable);
}

/* The same, but returns 0 at once when another thread does it. */
size_t alloc_try_reclaim(struct alloc *a);

/* Extends the file for at least `clusters` more, unless another thread just has. */
int alloc_grow(struct alloc *a, uint64_t clusters) MUST_USE;

#endif
