/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking and repairing an image.  A check reads the file and uses nothing of an opened node,
 * so it can check an image that can't be opened.  Drivers do the work (driver.h, `check`); this
 * declares their options and results.
 *
 * A repair may be killed at any point: what it has written so far leaves the data as it was,
 * and running it again leads to a clean image.
 *
 * Threads: one; for a repair it has the storage to itself.  Layer: block. */
#ifndef BLOCK_CHECK_H
#define BLOCK_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

struct node;

enum check_repair {
    REPAIR_NONE,  /* no byte changes */
    REPAIR_LEAKS, /* unreferenced clusters become free */
    REPAIR_ALL,   /* contradictions are resolved as well */
};

struct check_options {
    enum check_repair repair;
    /* With REPAIR_ALL: impossible entries that may have pointed to data are left as they are
     * (and everything that depends on them).  Otherwise they are cleared. */
    bool keep_mappings;

    /* Optional.  `done` never decreases, and is `total` at the end. */
    void (*progress)(void *opaque, uint64_t done, uint64_t total);
    /* Optional: called with one line, without its newline, for each finding and for each kind
     * of repair. */
    void (*message)(void *opaque, const char *text);
    void *opaque;
};

/* Zero-initialised before the check. */
struct check_result {
    /* The remaining errors, after the repair if there was one. */
    uint64_t corruptions;  /* data is or may be lost, or writing would lose it */
    uint64_t leaks;        /* allocated clusters that nothing refers to */
    uint64_t check_errors; /* parts that could not be read */
    uint64_t corruptions_fixed, leaks_fixed;

    /* Offset of the first byte beyond what the image uses; 0: unknown. */
    uint64_t image_end_offset;
    /* Numbers of guest clusters. */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
};

/* Is there no error that writing would make worse? */
static inline bool check_is_safe(const struct check_result *result)
{
    return result->corruptions == 0 && result->check_errors == 0;
}

/* Passes a finding to options->message. */
void check_message(const struct check_options *options, const char *fmt, ...)
    PRINTF_LIKE(2, 3);

/* Before the first write to an image that wasn't closed cleanly: repairs node->file with
 * REPAIR_ALL and keep_mappings.  Logs its progress every few seconds, and the result.  Returns
 * 0 when the image is safe to write; otherwise -errno and a sentence. */
int check_before_writing(struct node *node, struct diag *diag) MUST_USE;

#endif
