/* SPDX-License-Identifier: BSD-3-Clause */
/* A new image in three steps: what is asked for becomes parameters, parameters a layout, and
 * these are written.  Private to this folder. */
#ifndef QCOW2_CREATE_H
#define QCOW2_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "block/create.h"
#include "qcow2/geometry.h"

enum qcow2_preallocation {
    PREALLOC_OFF,
    PREALLOC_METADATA, /* tables for the whole disk, and places in the file */
    PREALLOC_FALLOC,   /* and the blocks of the file */
    PREALLOC_FULL,     /* and these are written to */
};

/* What the image is to be; valid, and possible together. */
struct qcow2_params {
    const char *filename; /* for messages */
    uint64_t size;        /* bytes, whole sectors */
    struct qcow2_geometry geo;
    bool lazy_refcounts;
    enum qcow2_preallocation preallocation;
    const char *backing_file, *backing_format; /* the request's; NULL: none */
};

/* Where its metadata lies, by number of cluster: header | refcount table | refcount blocks |
 * L1 table. */
struct qcow2_layout {
    uint64_t table, blocks, l1, end;
    uint32_t l1_entries;
};

/* Parses and judges a request: 0, or -errno with a sentence that names option and value. */
int qcow2_parse_params(const struct create_request *req, struct qcow2_params *out,
                       struct diag *diag) MUST_USE;

struct qcow2_layout qcow2_plan_layout(const struct qcow2_params *params);

#endif
