/* SPDX-License-Identifier: BSD-3-Clause */
/* How much space an image would take.  Layer: block. */
#ifndef BLOCK_MEASURE_H
#define BLOCK_MEASURE_H

#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

struct create_request;
struct driver;
struct node;

struct image_measure {
    uint64_t required;  /* bytes, with the data that is there */
    uint64_t allocated; /* when all of the disk is written to */
};

/* Of the image that is asked for, with the contents of `source`; NULL: of an empty one.
 * -ENOTSUP, with a sentence, where the format can't tell. */
int measure_image(const struct driver *driver, const struct create_request *req,
                  struct node *source, struct image_measure *out,
                  struct diag *diag) MUST_USE;

/* For drivers: bytes of the source's data, each run of it widened to whole units.  0 or
 * -errno. */
int measure_data(struct node *source, uint64_t unit, uint64_t *bytes) MUST_USE;

#endif
