/* SPDX-License-Identifier: BSD-3-Clause */
/* Mutations that know the layout of images: header fields and table entries get plausible values
 * (offsets inside the file, other entries, flags, limits).  Random bytes hardly ever give such
 * values.  Only used with libFuzzer. */
#ifndef SUPPORT_MUTATE_H
#define SUPPORT_MUTATE_H

#include <stdbool.h>
#include <stdint.h>

#include "rng.h"

/* The place of a number in the image. */
struct place {
    uint64_t off;
    unsigned bytes; /* 2, 4 or 8 */
};

/* What the mutations have to know of one format. */
struct layout {
    bool big_endian;
    uint64_t cluster;
    uint64_t flags[4]; /* flags of table entries */
    /* Picks a random number of the image: a header field, table entry and so on.  The result may
     * lie outside of the image. */
    struct place (*pick)(const uint8_t *image, uint64_t n, uint64_t cluster,
                         struct rng *rng);
};

/* Fills in *out; false if the bytes are no image of that format. */
bool mutate_qcow2_layout(const uint8_t *image, uint64_t n, struct layout *out);
bool mutate_qed_layout(const uint8_t *image, uint64_t n, struct layout *out);

/* The number at that place; 0 if the place isn't inside the image. */
uint64_t mutate_get(const uint8_t *image, uint64_t n, struct place place, bool big_endian);

#endif
