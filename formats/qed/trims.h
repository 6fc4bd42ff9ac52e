/* SPDX-License-Identifier: BSD-3-Clause */
/* Trimmed clusters that are still to be punched.
 *
 * QED can't express that a cluster is free, so a trimmed cluster keeps its place and is
 * punched.  As a punch can take the filesystem 0.1 ms and more, and no client should wait for
 * it, a trim only changes words:
 *
 *   word = host --trim--> word = ZERO, the host offset is kept here --punched--> word = host
 *
 * In between, the cluster reads as zeroes by its word, and a commit makes that durable.
 * Neighbours that were trimmed one by one are punched together.  A crash in between leaks the
 * clusters that are kept here, as it leaks those of allocations in flight.
 *
 *   (1) a cluster is kept here exactly when its word is ZERO and it has a place of its own; this
 *       changes only with its guest range locked, so a thread that holds that lock may rely on
 *       it;
 *   (2) it is punched under that lock. A write to it takes the same lock, gives the old place
 *       back to the word and fills the whole cluster: so nothing is punched after it was
 *       written again;
 *   (3) a word that gets its place back makes its group strict: hole or data are durable before
 *       it;
 *   (4) a write in place takes no such lock: by node_took_place it learns that the cluster may
 *       have lost its place while it was written;
 *   (5) the image's mark, if it uses one (no backing file), stays set as long as anything is
 *       kept here.
 *
 * The number of kept clusters is limited; what is trimmed beyond that is punched by the request
 * itself.
 *
 * Threads: functions marked META under mcache_meta(); the others outside it, inside the gate.
 * Layer: qed. */
#ifndef QED_TRIMS_H
#define QED_TRIMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/background.h"
#include "base/compiler.h"
#include "base/list.h"

struct qed_image;
struct trimmed_page;

#define QED_TRIM_BUCKETS 256u

struct qed_trims {
    struct background background;
    /* under META */
    struct list pages; /* pages that have trimmed clusters; the first is punched next */
    struct trimmed_page *buckets[QED_TRIM_BUCKETS];
    uint32_t next_word; /* in the first page: where to continue */
    uint32_t n_runs;    /* number of holes that punching everything would make */
    bool holds_mark;
    /* Changed under META; read without it by threads that have a cluster's range locked: may
     * the cluster be kept here? */
    _Atomic uint32_t n_pages;
    /* Used by the punching thread, of which there is one at a time.  error: 0, or -errno of the
     * last attempt.  punch_until_ns: from then on (housekeeper's clock; 0: never) clusters are
     * zeroed and keep their blocks, instead of being punched. */
    int error;
    uint64_t punch_until_ns;
};

void qed_trims_init(struct qed_image *img);
/* Clusters that are still kept leak. */
void qed_trims_free(struct qed_image *img);

/* Keeps whole clusters with data at guest offset `off`, all in one page.  Their range is
 * locked, and dirty_mark_begin was called.  *full: there is no room, and nothing has changed.
 * Returns 0 or -errno. */
int qed_trims_keep(struct qed_image *img, uint64_t off, uint64_t len, bool *full) MUST_USE;

/* META: after a trim that called dirty_mark_begin: calls dirty_mark_end now, or when the last
 * cluster is no longer kept. */
void qed_trims_end_mark(struct qed_image *img);

/* With the guest range locked: returns the place in the file of the cluster at off, and
 * shortens *len to the contiguous clusters that are kept; or returns 0, and shortens *len to
 * the clusters that aren't kept.  All in whole clusters. */
uint64_t qed_trims_place(struct qed_image *img, uint64_t off, uint64_t *len);

/* META: the word of the cluster at off is about to get its place back. */
void qed_trims_forget(struct qed_image *img, uint64_t off);

/* Gives all kept clusters their place back, on this thread: punched as long as time permits,
 * then zeroed with their blocks, which is faster.  Nobody may change the image meanwhile.
 * Returns 0; or -errno: the rest is still kept. */
int qed_trims_finish(struct qed_image *img) MUST_USE;

/* Between the two, the background work changes no tables. */
void qed_trims_pause(struct qed_image *img);
void qed_trims_resume(struct qed_image *img);

#endif
