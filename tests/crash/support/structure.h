/* SPDX-License-Identifier: BSD-3-Clause */
/* An independent look at the metadata of an image: nothing of the code under test is used,
 * so that it can judge it.  It says what qemu-img check would, and where the guest's
 * sectors of a snapshot lie. */
#ifndef CRASH_STRUCTURE_H
#define CRASH_STRUCTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

struct structure {
    bool marked;          /* dirty bit, NEED_CHECK */
    unsigned corruptions; /* in what must hold even with the mark */
    /* Fewer counted than there are; with the mark they are repaired. */
    unsigned refcount_errors;
    unsigned leaks;
    char first[160]; /* the first of either kind of error */
};

void structure_check_qcow2(struct storage *st, struct structure *out);
void structure_check_qed(struct storage *st, struct structure *out);

/* Reads a range of the first snapshot's disk, within one cluster and, where there are such,
 * one subcluster; unallocated: *found is false and buf is untouched.  -1 when there is no
 * snapshot or its tables make no sense. */
int structure_read_snapshot(struct storage *st, void *buf, uint64_t off, uint64_t len,
                            bool *found);

#endif
