/* SPDX-License-Identifier: BSD-3-Clause */
/* The cluster allocator of qcow2: where new clusters come from and what becomes of old
 * ones.
 *
 * Sources, in this order: clusters freed in this session or found free by a scan of the
 * refcount blocks that were there at the start (not fresh); the tail of the file (fresh:
 * reads as zeroes). The clusters of the tail have a refcount of 1 ahead of their use, so
 * that an allocation there changes no refcount and a group of such links needs no barrier
 * before it; what is left over is given back at close, and leaked by a crash.
 *
 * A cluster that loses a reference goes through (invariant 2 of mcache.h)
 *   unlinked (open group) -> frozen (being written) -> retired (removal durable, stamped)
 *   -> the gate passed: refcount decremented; at 0: punched and free.
 * In memory a refcount is 0 exactly when the cluster is free for use, so the scan may trust
 * it.  The last step, which punches, is taken by the housekeeper in small slices, and by
 * whoever finds nothing free; nobody waits for more than one slice of it.
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
    /* An entry was met that can't be right.  Under any lock. */
    void (*met_corruption)(void *owner);
    /* Growth lock: the header names another refcount table, durably on return.  After a
     * failure it may name either, and the node refuses writes. */
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
    struct alloc_image image; /* as it was when it was opened */
    struct refcounts refs;
    struct meta_set metadata;  /* filled when the image is activated */
    struct lock pack;          /* who finds places for compressed clusters */
    struct lock growth;        /* who extends the file or the refcount structures */
    _Atomic bool held;         /* nothing may be taken: see alloc_hold */
    _Atomic uint64_t file_end; /* cluster aligned: nothing of the image lies beyond */
    bool grown;                /* under growth: the file is longer than it was */
    bool shrunk;               /* the disk is smaller than it was; alone with the image */
    /* under META */
    struct tail tail;
    struct run_list free, unlinked, frozen;
    struct list retired; /* struct retired: oldest first */
    bool reclaiming;     /* somebody has runs in hand that were retired */
    /* Changed under META; read anywhere: may there be something to reclaim? */
    _Atomic bool reclaimable;
    uint64_t scan_next, scan_end; /* clusters not looked at yet */
    _Atomic bool scanned;         /* there are none, as seen under META */
    /* Bytes: the next compressed cluster goes here, in a cluster that has others; equal: there
     * is none.  Changed under `pack` too, but for alloc_end_packing. */
    uint64_t pack_next, pack_end;

    struct lock reclaim; /* who drops references */
    /* under reclaim */
    bool paused;
    struct run_list passed; /* what nobody can see any more; dealt with up to `done` */
    size_t done;
    uint64_t punch_until_ns; /* the housekeeper's clock; 0: no limit */
    struct background background;
};

/* Learns the file's end; the rest comes with alloc_activate, on the first writable use. */
int alloc_open(struct alloc *a, const struct alloc_image *image,
               struct diag *diag) MUST_USE;
/* Reads the refcount table; node->mc is there. */
int alloc_open_refcounts(struct alloc *a, struct diag *diag) MUST_USE;
int alloc_activate(struct alloc *a, struct diag *diag) MUST_USE;

/* Is anything on its way from unlinked to free? */
bool alloc_has_unlinked(struct alloc *a);

/* Commits, lets go of everything unlinked, and gives back what was reserved ahead.  Nobody
 * is inside the gate.  The file may then be cut with alloc_trim_file. */
int alloc_settle(struct alloc *a) MUST_USE;
/* After alloc_settle and a commit: the file ends with the last cluster in use. */
int alloc_trim_file(struct alloc *a) MUST_USE;
void alloc_close(struct alloc *a);

static inline uint64_t alloc_cluster_size(const struct alloc *a)
{
    return 1ull << a->cluster_bits;
}

/* META: clusters that become metadata. */
void alloc_note_metadata(struct alloc *a, uint64_t host, uint64_t n);

/* Is [offset, offset+len) a place that something of the image can have? */
static inline bool alloc_inside_file(const struct alloc *a, uint64_t offset, uint64_t len)
{
    uint64_t end = atomic_load_explicit(&a->file_end, memory_order_acquire);
    return offset <= end && len <= end - offset;
}

/* The same of an image that another node writes to: the file's end is asked for again,
 * where it matters.  Not under META. */
bool alloc_inside_file_now(struct alloc *a, uint64_t offset, uint64_t len);

/* Counts that replace the present ones: in the file and durable, with the refcount table at
 * `table`'s place.  For one who holds the allocator and has its reclaim paused; 0 or -ENOMEM,
 * with nothing changed. */
int alloc_replace_counts(struct alloc *a, struct refcount_table *table) MUST_USE;

/* Takes a run of 1..max clusters, refcount 1 each; *n of them at byte offset *host. */
int alloc_clusters(struct alloc *a, uint64_t max, uint64_t *host, uint64_t *n,
                   bool *fresh) MUST_USE;

/* Takes n clusters in a row that nobody used before, for a table; -EFBIG when no refcount
 * table could count them. */
int alloc_table(struct alloc *a, uint64_t n, uint64_t *host) MUST_USE;

/* Takes a place for a compressed cluster of 1 to a cluster of bytes; it may begin and end
 * anywhere, and shares its clusters with others.  A link to it makes its group strict. */
int alloc_packed(struct alloc *a, uint32_t bytes, uint64_t *host) MUST_USE;

/* META: the open group removes one reference to each of n clusters at byte offset host. */
void alloc_unlink(struct alloc *a, uint64_t host, uint64_t n);
/* META: the same of all clusters that a compressed cluster touches. */
void alloc_unlink_bytes(struct alloc *a, uint64_t host, uint64_t bytes);

/* META: is the growth durable that made the tail up to host_end?  Then a link to a fresh
 * cluster in there may reach the disk before anything else of its group. */
bool alloc_settled(const struct alloc *a, uint64_t host_end);

/* While paused no reference is dropped: what was let go of stays in use, and counted.  The
 * first returns when nobody is at it. */
void alloc_pause_reclaim(struct alloc *a);
void alloc_resume_reclaim(struct alloc *a);

/* While on, whoever wants clusters gets -EBUSY: the counts are being replaced as a whole. */
void alloc_hold(struct alloc *a, bool on);

/* From the mcache hooks (frozen: META). */
void alloc_frozen(struct alloc *a);
void alloc_durable(struct alloc *a);

/* ---- between the files of the allocator ---- */

static inline void alloc_met_corruption(struct alloc *a)
{
    a->image.met_corruption(a->image.owner);
}

/* Appends, merged with the last run when it continues it; memory short: the clusters leak.
 */
void run_list_add(struct alloc *a, struct run_list *list, struct run run);

/* Moves all runs of a list behind those of another; without a copy when that is empty, for
 * there can be very many. */
void run_list_move(struct alloc *a, struct run_list *from, struct run_list *to);

/* ---- alloc_grow.c and alloc_area.c; growth lock ---- */

/* Makes the file reach new_end, all zeroes from its present end on. */
int alloc_extend_file(struct alloc *a, uint64_t new_end) MUST_USE;

/* META: what is left in the tail becomes free like unlinked clusters. */
void alloc_abandon_tail(struct alloc *a);

/* The tail is used up: a refcount table of at least `least` entries, and larger than the
 * present one, takes its place. */
int alloc_grow_refcount_table(struct alloc *a, uint64_t least) MUST_USE;

/* Growth lock: how many clusters from `first` on, at most n and in one page of refcounts,
 * are in use (`used`) or not, by their count or as metadata. */
int alloc_count_run(struct alloc *a, uint64_t first, uint64_t n, bool used,
                    uint64_t *run) MUST_USE;

/* alloc_table for more clusters than a refcount block counts. */
int alloc_wide_table(struct alloc *a, uint64_t n, uint64_t *host) MUST_USE;

/* ---- alloc_shrink.c ---- */

/* The image was let go of behind some place, and nobody takes clusters any more: refcount
 * blocks that count nothing, and at the end those that count themselves alone, leave the table,
 * durably.  Their own clusters are free after the next commit. */
int alloc_drop_empty_blocks(struct alloc *a) MUST_USE;

/* ---- alloc_reclaim.c ---- */

void alloc_reclaim_init(struct alloc *a);
/* Stops the housekeeper's part, and forgets what it had left to do. */
void alloc_reclaim_end(struct alloc *a);

/* META: nothing more is packed behind what was. */
void alloc_end_packing(struct alloc *a);

/* META: the removal of what is in `frozen` is durable. */
void alloc_retire(struct alloc *a);

/* Makes clusters whose removal is durable and seen by nobody free: at most a slice of
 * them, which takes a few milliseconds.  How many runs were dealt with; 0: there is none
 * for now.  Inside or outside the gate. */
size_t alloc_reclaim(struct alloc *a);
/* Is there nothing on its way to become free?  Right for those who come after whoever
 * retires. */
static inline bool alloc_is_idle(struct alloc *a)
{
    return !atomic_load(&a->reclaimable);
}

/* The same, but 0 when somebody else is at it: who asks goes on without. */
size_t alloc_try_reclaim(struct alloc *a);

/* Extends the file for at least `clusters` more, unless somebody else just did. */
int alloc_grow(struct alloc *a, uint64_t clusters) MUST_USE;

#endif
