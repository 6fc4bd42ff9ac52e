/* SPDX-License-Identifier: BSD-3-Clause */
/* An independent check of an image's metadata, written after the specifications.  It uses nothing
 * of the code under test.  It finds what qemu-img check would find, and can read the disk of a
 * snapshot. */
#ifndef CRASH_STRUCTURE_H
#define CRASH_STRUCTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

struct structure {
    bool marked;          /* the dirty bit (qcow2) or NEED_CHECK (QED) is set */
    unsigned corruptions; /* errors that even a marked image must not have */
    /* Refcounts lower than the number of references; allowed in a marked image, because it is
     * repaired when it is opened. */
    unsigned refcount_errors;
    unsigned leaks;
    char first[160]; /* describes the first corruption or refcount error */
};

void structure_check_qcow2(struct storage *st, struct structure *out);
void structure_check_qed(struct storage *st, struct structure *out);

/* Reads a range of the first snapshot's disk.  The range must lie in one cluster, and with
 * extended L2 entries in one subcluster.  If it is unallocated, *found is false and buf is
 * untouched.  0, or -1 when there is no snapshot or its tables are invalid. */
int structure_read_snapshot(struct storage *st, void *buf, uint64_t off, uint64_t len,
                            bool *found);

#endif
