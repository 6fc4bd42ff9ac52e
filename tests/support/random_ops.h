/* SPDX-License-Identifier: BSD-3-Clause */
/* Random requests on a node, done to a flat array too and compared as they go.
 *
 * The same case and seed give the same run.  A difference fails the Criterion test with the
 * case, the seed and the last requests.  QIMG_SEED and QIMG_OPS override seed and length.
 */
#ifndef SUPPORT_RANDOM_OPS_H
#define SUPPORT_RANDOM_OPS_H

#include "image.h"

struct trial; /* private; for trial_note and trial_fail */

/* What a test does beside the requests.  Each is optional, and runs with the image open. */
struct trial_more {
    /* A changing request was done on this range, or refused; the model is up to date. */
    void (*changed)(void *opaque, uint64_t off, uint64_t len);
    /* Between two requests; what it does to the disk it does to the model. */
    void (*step)(void *opaque, struct trial *t, struct image *img, struct rng *rng);
    /* The image is going to be closed; it was, and was opened. */
    void (*closing)(void *opaque);
    void (*reopened)(void *opaque, struct trial *t, struct image *img);
    /* After the last request, and again when qemu-img has judged the image. */
    void (*end)(void *opaque, struct trial *t, struct image *img);
    /* The image is to be as if nothing beside requests had been done; it is judged again. */
    void (*undo)(void *opaque, struct trial *t, struct image *img);
};

struct trial_case {
    const char *name;
    struct image_spec image;
    uint64_t ops;
    uint64_t max_len; /* of a request; 0: 128 KiB */
    const struct trial_more *more;
    void *opaque; /* for `more` */
};

/* Makes the image, does the requests, reads it all back, closes, and asks qemu-img. */
void trial_run(const struct trial_case *what);

/* What is being done, for the list that a failure shows; and a failure. */
void trial_note(struct trial *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
void trial_fail(struct trial *t, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
