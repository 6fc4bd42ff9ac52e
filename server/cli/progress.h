/* SPDX-License-Identifier: BSD-3-Clause */
/* The progress of a long command, shown as by qemu-img.  Layer: server. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* shown (-p): prints every percent to stdout.  Otherwise prints a line to stderr whenever
 * SIGUSR1 comes. */
void progress_begin(bool shown);

/* The part of the whole work that the next reports are about: `from` to `to`, in [0, 1]. */
void progress_part(double from, double to);

/* `done` of `total` of the current part.  A report that says less than an earlier one is
 * ignored. */
void progress_report(uint64_t done, uint64_t total);

/* complete: reports 100 %.  With -p also ends the line. */
void progress_end(bool complete);

#endif
