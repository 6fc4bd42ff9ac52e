/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies disks for offline commands: jobs' copy_range in several threads, with progress,
 * signals and messages.  Layer: server. */
#ifndef CLI_COPY_DISK_H
#define CLI_COPY_DISK_H

#include "jobs/copy_range.h"

struct copy_disk {
    struct copy_how how;
    uint64_t length;  /* bytes, starting at how.source_start */
    unsigned threads; /* 0: chosen by the number of processors */
    uint64_t speed;   /* bytes per second; 0: no limit */
    /* salvage: ranges that can't be read become zeroes, with a message unless quiet. */
    bool salvage, quiet;
    uint64_t done_before, total; /* for progress: bytes */
};

/* Complains and returns an exit code.  Stops with a failure when interrupt_came. */
int copy_disk(const struct copy_disk *copy);

#endif
