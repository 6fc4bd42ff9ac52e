/* SPDX-License-Identifier: BSD-3-Clause */
/* Copying disks for offline commands: jobs' copy_range by several threads, with progress,
 * signals and messages.  Layer: server. */
#ifndef CLI_COPY_DISK_H
#define CLI_COPY_DISK_H

#include "jobs/copy_range.h"

struct copy_disk {
    struct copy_how how;
    uint64_t length;  /* bytes from how.source_start on */
    unsigned threads; /* 0: as suits the machine */
    uint64_t speed;   /* bytes per second; 0: no limit */
    /* What can't be read is left zero, and said. */
    bool salvage, quiet;
    uint64_t done_before, total; /* for progress */
};

/* Complains and returns an exit code; also when interrupt_came. */
int copy_disk(const struct copy_disk *copy);

#endif
