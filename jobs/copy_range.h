/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies a range from one node to another: the loop that moves data for all jobs and offline
 * commands.  What reads as zeroes isn't read, and is zeroed on the target.
 *
 * Threads: any, on ranges that nobody else copies.  Layer: jobs. */
#ifndef JOBS_COPY_RANGE_H
#define JOBS_COPY_RANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "block/node.h"

/* The result for a range. */
struct copy_result {
    uint64_t off, len;  /* in the source, bytes */
    int err;            /* 0 or -errno */
    bool write_side;    /* err came from the target */
    uint64_t failed_at; /* with err: the offset that failed, in the source or the target */
    uint64_t sent;      /* bytes of data written to the target (not zeroes) */
};

/* With everything but the nodes zero-initialised, all layers are copied, and data isn't searched
 * for zeroes. */
struct copy_how {
    struct node *source, *target;
    uint64_t source_start, target_start; /* offsets that correspond to each other */
    bool unmap;                          /* zeroes may become holes on the target */
    /* Data is searched for zeroes in units of so many bytes; 0: it isn't. */
    uint32_t zero_unit;
    /* the kernel copies data that isn't compressed or encrypted (block_copy) */
    bool offload;
    bool write_zeroes; /* zeroes are written as data, so that they are allocated */
    /* Runs begin and end at multiples of this in the target, unless the range doesn't; bytes, 0
     * or a power of two, at most buffer_bytes. */
    uint32_t align;
    /* it reads as zeroes from target_zero_from on: zeroes aren't written */
    bool target_is_zero;
    uint64_t target_zero_from;
    bool expect; /* the target was never written to: announce writes to it (block_expect) */
    unsigned depth; /* only layers of the source above this one are copied; 0: all */
    /* The target may have data of its own where nothing is copied; the source's data replaces
     * it. */
    bool target_has_data;
    /* Optional: [off, off+len) of the source can't be read.  0: copy zeroes instead; else the copy
     * fails with that. */
    int (*read_failed)(void *opaque, uint64_t off, uint64_t len, int err);
    void *opaque;
};

/* Copies [off, off+len) of the source.  The buffer has buffer_bytes, at least `align`. */
void copy_range(const struct copy_how *how, void *buffer, size_t buffer_bytes, uint64_t off,
                uint64_t len, struct copy_result *result);

#endif
