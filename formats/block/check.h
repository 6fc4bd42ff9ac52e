/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking an image and repairing it: a pass over the file that uses nothing of an opened
 * node, so that it can judge an image no node would open.  Drivers do the work (driver.h,
 * `check`); here is what they are asked and what they answer.
 *
 * A repair may be killed at any point: what it has written until then leaves the data as it
 * was, and running it again ends with a clean image.
 *
 * Threads: one, which has the storage to itself when it repairs.  Layer: block. */
#ifndef BLOCK_CHECK_H
#define BLOCK_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

struct node;

enum check_repair {
    REPAIR_NONE,  /* no byte changes */
    REPAIR_LEAKS, /* clusters that nothing refers to become free */
    REPAIR_ALL,   /* and what contradicts itself is made consistent */
};

struct check_options {
    enum check_repair repair;
    /* With REPAIR_ALL: entries that make no sense, but may have stood for data, are left as
     * they are (and with them everything that depends on their meaning).  Otherwise they
     * are cleared. */
    bool keep_mappings;

    /* Optional.  done never falls, and is total at the end. */
    void (*progress)(void *opaque, uint64_t done, uint64_t total);
    /* Optional: one line without its newline for each finding, and for each kind of repair.
     */
    void (*message)(void *opaque, const char *text);
    void *opaque;
};

/* Zero-initialised before the check. */
struct check_result {
    /* What is wrong now, after the repair if there was one. */
    uint64_t corruptions;  /* data is or may be lost, or would be by writing */
    uint64_t leaks;        /* clusters that are taken but not used */
    uint64_t check_errors; /* parts that could not be looked at */
    uint64_t corruptions_fixed, leaks_fixed;

    uint64_t image_end_offset; /* first byte beyond what the image uses; 0: not told */
    /* Guest clusters. */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
};

/* Is there nothing wrong that writing would make worse? */
static inline bool check_is_safe(const struct check_result *result)
{
    return result->corruptions == 0 && result->check_errors == 0;
}

/* Hands a finding to options->message. */
void check_message(const struct check_options *options, const char *fmt, ...)
    PRINTF_LIKE(2, 3);

/* On the first writable use of an image that was not closed cleanly: repairs node->file
 * with REPAIR_ALL and keep_mappings.  Logs how far it is every few seconds, and what it
 * did.  0 when the image is safe to write; else -errno and a sentence. */
int check_before_writing(struct node *node, struct diag *diag) MUST_USE;

#endif
