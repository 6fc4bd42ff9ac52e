/* SPDX-License-Identifier: BSD-3-Clause */
/* A model test: random requests are sent to a node and done to a flat array (the model) too;
 * what the node reads must equal the array all the time.  Such a run is called a trial.
 *
 * The same case and seed give the same run.  A difference fails the Criterion test and prints
 * the case, the seed and the last requests.  The environment variables QIMG_SEED and QIMG_OPS
 * set the seed and the number of requests. */
#ifndef SUPPORT_RANDOM_OPS_H
#define SUPPORT_RANDOM_OPS_H

#include "image.h"

struct trial; /* private; for trial_note and trial_fail */

/* Callbacks for a test that does something besides the requests.  Each may be NULL.  The image
 * is open when they are called. */
struct trial_more {
    /* A request that changes data was carried out on this range, or refused. */
    void (*changed)(void *opaque, uint64_t off, uint64_t len);
    /* Called between two requests.  What it changes on the disk it must change in
     * img->model, too. */
    void (*step)(void *opaque, struct trial *t, struct image *img, struct rng *rng);
    /* Called before the image is closed, and after it has been opened again. */
    void (*closing)(void *opaque);
    void (*reopened)(void *opaque, struct trial *t, struct image *img);
    /* Called after the last request, and again after the image was verified and reopened. */
    void (*end)(void *opaque, struct trial *t, struct image *img);
    /* Undoes all that the callbacks did besides the requests (deletes the snapshots, say);
     * then the image is verified once more. */
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

/* Creates the image, does the requests, reads everything back, closes the image and verifies
 * it with image_verify, then opens it and reads everything again. */
void trial_run(const struct trial_case *what);

/* Note: describes the current request for the list that is printed with a failure.
 * Fail: fails the test with that list. */
void trial_note(struct trial *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
void trial_fail(struct trial *t, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
