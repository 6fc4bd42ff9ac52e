/* SPDX-License-Identifier: BSD-3-Clause */
/* Mutations that know what an image is: fields of headers and entries of tables get values
 * that mean something (places inside the file, other entries, flags, limits), which bytes
 * at random hardly ever do.  Only with libFuzzer. */
#ifndef SUPPORT_MUTATE_H
#define SUPPORT_MUTATE_H

#include <stdbool.h>
#include <stdint.h>

#include "rng.h"

/* A number in the image. */
struct place {
    uint64_t off;
    unsigned bytes; /* 2, 4 or 8 */
};

/* What one format has of them. */
struct layout {
    bool big_endian;
    uint64_t cluster;
    uint64_t flags[4]; /* of table entries */
    /* One of its numbers; may lie outside of the image. */
    struct place (*pick)(const uint8_t *image, uint64_t n, uint64_t cluster,
                         struct rng *rng);
};

/* False: it is no image of that format. */
bool mutate_qcow2_layout(const uint8_t *image, uint64_t n, struct layout *out);
bool mutate_qed_layout(const uint8_t *image, uint64_t n, struct layout *out);

/* The word in the image; 0 when it isn't inside. */
uint64_t mutate_get(const uint8_t *image, uint64_t n, struct place place, bool big_endian);

#endif
