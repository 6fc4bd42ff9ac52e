/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies one range from a node to another: the one loop that moves data, for jobs and for
 * offline commands.  What reads as zeroes isn't read, and becomes zeroes on the target.
 *
 * Threads: any, on ranges that nobody else copies.  Layer: jobs. */
#ifndef JOBS_COPY_RANGE_H
#define JOBS_COPY_RANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "block/node.h"

/* What came of a range. */
struct copy_result {
    uint64_t off, len;  /* in the source */
    int err;            /* 0 or -errno */
    bool write_side;    /* err came from the target */
    uint64_t failed_at; /* where on its side, when there is an err */
    uint64_t sent;      /* bytes of data that went over (not zeroes) */
};

/* Zero-initialised but for the nodes, all is copied, and data isn't looked into. */
struct copy_how {
    struct node *source, *target;
    uint64_t source_start, target_start; /* the same byte of both */
    bool unmap;                          /* zeroes may lose their place on the target */
    /* Data is searched for zeroes in pieces of so many bytes; 0: it isn't. */
    uint32_t zero_unit;
    bool offload;      /* data that lies plainly in a file is the kernel's to move */
    bool write_zeroes; /* zeroes are written as data, so that they have a place */
    /* Runs begin and end on multiples of it in the target, where the range does; 0 or a power
     * of two, at most the buffer. */
    uint32_t align;
    bool target_is_zero; /* from target_zero_from on, and so zeroes needn't be written */
    uint64_t target_zero_from;
    /* It has no blocks yet: it is told what comes, and what doesn't come is discarded. */
    bool expect;
    unsigned depth; /* layers of the source from this one on aren't copied; 0: all are */
    /* Optional: [off, off+len) of the source can't be read; 0: zeroes stand for it. */
    int (*read_failed)(void *opaque, uint64_t off, uint64_t len, int err);
    void *opaque;
};

/* [off, off+len) of the source; the buffer has buffer_bytes, at least `align`. */
void copy_range(const struct copy_how *how, void *buffer, size_t buffer_bytes, uint64_t off,
                uint64_t len, struct copy_result *result);

#endif
