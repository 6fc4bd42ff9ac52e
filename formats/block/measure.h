/* SPDX-License-Identifier: BSD-3-Clause */
/* How much space a new image would need.  Layer: block. */
#ifndef BLOCK_MEASURE_H
#define BLOCK_MEASURE_H

#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

struct create_request;
struct driver;
struct node;

struct image_measure {
    uint64_t required;  /* bytes, for the data of the source */
    uint64_t allocated; /* bytes, if the whole disk gets written */
};

/* Measures the requested image with the contents of `source`; NULL: an empty image.  -ENOTSUP
 * with a sentence if the format can't tell. */
int measure_image(const struct driver *driver, const struct create_request *req,
                  struct node *source, struct image_measure *out,
                  struct diag *diag) MUST_USE;

/* For drivers: the number of bytes of the source's data, each run rounded outwards to whole
 * units.  Returns 0 or -errno. */
int measure_data(struct node *source, uint64_t unit, uint64_t *bytes) MUST_USE;

#endif
