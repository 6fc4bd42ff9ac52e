/* SPDX-License-Identifier: BSD-3-Clause */
/* Random requests on a node, done to a flat array too and compared as they go.
 *
 * The same case and seed give the same run.  A difference fails the Criterion test with the
 * case, the seed and the last requests.  QIMG_SEED and QIMG_OPS override seed and length.
 */
#ifndef SUPPORT_RANDOM_OPS_H
#define SUPPORT_RANDOM_OPS_H

#include "image.h"

struct trial_case {
    const char *name;
    struct image_spec image;
    uint64_t ops;
    uint64_t max_len; /* of a request; 0: 128 KiB */
};

/* Makes the image, does the requests, reads it all back, closes, and asks qemu-img. */
void trial_run(const struct trial_case *what);

#endif
