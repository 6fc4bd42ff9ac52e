/* SPDX-License-Identifier: BSD-3-Clause */
/* Trimmed clusters that are still to be punched.
 *
 * QED can't say that a cluster is free, so what is trimmed keeps its place; but a hole can
 * take the filesystem 0.1 ms and more, for which no client is to wait.  So a trim only changes words:
 *
 *   word = host --trim--> word = ZERO, the host kept here --punched--> word = host
 *
 * Meanwhile the cluster reads as zeroes by its word, and a commit makes just that durable.
 * Neighbours that were trimmed one by one are punched as one.  A crash on the way leaks the
 * clusters that were kept here, as it does those of allocations under way.
 *
 *   (1) a cluster is kept here exactly when its word is ZERO and its place its own; that
 *       changes under its guest range's lock only, so that who holds that may rely on it;
 *   (2) it is punched under that lock; who writes to it, under the same, gets its old place
 *       back and fills all of it: nothing is punched that was written to again;
 *   (3) a word that becomes a place again makes its group strict: hole or data are durable
 *       before it;
 *   (4) who writes in place holds no such lock: node_took_place tells him that the place he
 *       wrote to may not have been one any more;
 *   (5) the image's mark, where it uses one (without a backing file), stays as long as anything
 *       is kept here.
 *
 * There is room for so many; what is trimmed beyond is punched by who trims it.
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
    struct list pages; /* those with something trimmed; the first is dealt with next */
    struct trimmed_page *buckets[QED_TRIM_BUCKETS];
    uint32_t next_word; /* of the first page */
    uint32_t n_runs;    /* holes to be made, if all were made now */
    bool holds_mark;
    /* Changed under META; who has a cluster's range locked may ask whether it can be here. */
    _Atomic uint32_t n_pages;
    /* Of whoever punches, one at a time: 0, or -errno of the last attempt; when holes are given up
     * for zeroes that keep their blocks (the housekeeper's clock; 0: never). */
    int error;
    uint64_t punch_until_ns;
};

void qed_trims_init(struct qed_image *img);
/* What is still kept leaks. */
void qed_trims_free(struct qed_image *img);

/* Keeps whole clusters of data at guest offset `off`, within what one page maps, whose range
 * is locked and whose mark has begun.  *full: there is no room, and nothing has changed.  0 or
 * -errno. */
int qed_trims_keep(struct qed_image *img, uint64_t off, uint64_t len, bool *full) MUST_USE;

/* META: trims that had begun the mark leave it to what is kept, or end it. */
void qed_trims_end_mark(struct qed_image *img);

/* The guest range is locked.  Shortens *len to what is kept here in a row, and says where in
 * the file, or to what isn't kept: 0.  Both are whole clusters. */
uint64_t qed_trims_place(struct qed_image *img, uint64_t off, uint64_t *len);

/* META: the word of the cluster at off is going to be its place again. */
void qed_trims_forget(struct qed_image *img, uint64_t off);

/* Puts back all that is kept, on this thread: punched, as far as there is time for that, the rest
 * zeroed where it is, which takes a filesystem less.  Nobody changes the image meanwhile.  0 or
 * -errno: the rest is still kept. */
int qed_trims_finish(struct qed_image *img) MUST_USE;

/* Nothing happens to the tables by itself between the two. */
void qed_trims_pause(struct qed_image *img);
void qed_trims_resume(struct qed_image *img);

#endif
