/* SPDX-License-Identifier: BSD-3-Clause */
/* Where clusters come from: the end of the file, and what failed writes gave back.
 *
 * QED has no reference counts; a cluster that no table names and that isn't at the end of
 * the file is leaked until somebody checks the image.  What was taken and never linked is
 * therefore kept in a short list and handed out again before the file grows.
 *
 * Tables of a file that was cut short point past its end.  What grows there would be
 * theirs, too, so before the first growth of a session all tables are looked through, and
 * new clusters come from behind what they point to.
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

/* Contiguous clusters. */
struct qed_clusters {
    uint64_t offset, length; /* bytes */
    bool fresh;              /* they read as zeroes */
};

struct qed_space {
    struct node *node;
    /* End of the file, cluster aligned, never behind what a table entry may point at; read
     * by lookups without a lock. */
    _Atomic uint64_t file_end;
    struct lock growth; /* RANK_GROWTH: who extends the file */
    bool end_is_sure;   /* under growth: no table points past the tail's end */
    /* under META */
    struct tail tail; /* once the image is writable */
    struct qed_clusters released[QED_MAX_RELEASED];
    unsigned n_released;
};

void qed_space_init(struct qed_space *space, struct node *node, uint64_t file_end);
/* Of an image that another node writes to: learns where the file ends now.  Not under META.
 */
void qed_space_look_again(struct qed_space *space, uint32_t cluster_size);
void qed_space_destroy(struct qed_space *space);

/* Before the first allocation: the file ends at file_end, everything below is in use. */
void qed_space_activate(struct qed_space *space, uint32_t cluster_size, uint64_t file_end);

/* Takes `least` to `most` bytes (whole clusters), extending the file as needed.  0 or
 * -errno. */
int qed_space_take(struct qed_space *space, uint64_t least, uint64_t most,
                   struct qed_clusters *out) MUST_USE;

/* META: gives back clusters that no table ever named. */
void qed_space_put(struct qed_space *space, uint64_t offset, uint64_t length);

/* META: may a link to these clusters go out without a barrier before it, as far as their
 * being in the file and reading as zeroes is concerned? */
bool qed_space_settled(const struct qed_space *space, const struct qed_clusters *clusters);

/* Calls `what` with the offset of a cluster past the end, which the file has meanwhile, and
 * which nobody can take.  Its result, or -errno. */
int qed_space_try(struct qed_space *space,
                  int (*what)(struct storage *st, uint64_t offset)) MUST_USE;

/* Cuts off what the file has beyond its last used cluster.  No allocation may be under way.
 */
int qed_space_trim(struct qed_space *space) MUST_USE;

#endif
