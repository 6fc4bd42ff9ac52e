/* SPDX-License-Identifier: BSD-3-Clause */
/* How far a long command is, as qemu-img shows it.  Layer: server. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* With -p each percent is shown on standard output; without it one line goes to standard
 * error whenever SIGUSR1 comes. */
void progress_begin(bool shown);

/* For as long as a part of the work lasts; of all of it, `from` to `to` in [0, 1]. */
void progress_part(double from, double to);

/* `done` of `total` of the part; other calls may say less or the same again. */
void progress_report(uint64_t done, uint64_t total);

/* All is done, or (not complete) no more will be; with -p the line ends. */
void progress_end(bool complete);

#endif
