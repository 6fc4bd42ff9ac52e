/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocation of clusters: from the end of the file, and from those that failed writes gave
 * back.
 *
 * QED has no reference counts.  A cluster that no table points to, and that isn't at the end of
 * the file, is leaked until the image is checked.  Therefore clusters that were taken but never
 * linked are kept in a short list and used before the file grows.
 *
 * In a file that was cut short, tables may point past its end.  Clusters added there would
 * belong to those entries, too.  So before the first growth of a session all tables are read,
 * and new clusters come from behind everything that they point to.
 *
 * Threads: functions marked META under mcache_meta(node->mc); the others from any thread
 * outside it; init, activate and destroy alone.  Layer: qed. */
#ifndef QED_SPACE_H
#define QED_SPACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/lock.h"
#include "block/tail.h"

struct node;

#define QED_MAX_RELEASED 64

/* A run of contiguous clusters. */
struct qed_clusters {
    uint64_t offset, length; /* bytes */
    bool fresh;              /* they read as zeroes */
};

struct qed_space {
    struct node *node;
    /* End of the file, cluster aligned, and at least the end of everything that a table entry
     * may point to.  Read by lookups without a lock. */
    _Atomic uint64_t file_end;
    struct lock growth; /* RANK_GROWTH: for extending the file */
    bool end_is_sure;   /* under growth: no table points beyond the tail's end */
    /* under META */
    struct tail tail; /* initialised when the image is activated */
    struct qed_clusters released[QED_MAX_RELEASED];
    unsigned n_released;
};

void qed_space_init(struct qed_space *space, struct node *node, uint64_t file_end);
/* For an image to which another node writes: reads the size of the file again.  Not under META. */
void qed_space_look_again(struct qed_space *space, uint32_t cluster_size);
void qed_space_destroy(struct qed_space *space);

/* Before the first allocation: the file ends at file_end, and everything before it is in use. */
void qed_space_activate(struct qed_space *space, uint32_t cluster_size, uint64_t file_end);

/* Takes `least` to `most` bytes (whole clusters), extending the file if needed.  Returns 0 or
 * -errno. */
int qed_space_take(struct qed_space *space, uint64_t least, uint64_t most,
                   struct qed_clusters *out) MUST_USE;

/* META: gives back clusters that no table ever pointed to. */
void qed_space_put(struct qed_space *space, uint64_t offset, uint64_t length);

/* META: are the growth of the file up to these clusters and their zeroes durable, so that a
 * link to them needs no barrier before it? */
bool qed_space_settled(const struct qed_space *space, const struct qed_clusters *clusters);

/* Calls `what` with the offset of a cluster behind the end, which exists in the file during the
 * call and can't be allocated.  Returns its result, or -errno. */
int qed_space_try(struct qed_space *space,
                  int (*what)(struct storage *st, uint64_t offset)) MUST_USE;

/* Cuts the file after its last used cluster.  No allocation may be in flight.  Returns 0 or
 * -errno. */
int qed_space_trim(struct qed_space *space) MUST_USE;

#endif
