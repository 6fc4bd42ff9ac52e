/* SPDX-License-Identifier: BSD-3-Clause */
/* What nbdkit's command line says and nbdkit doesn't tell its plugins before the first
 * client connects.  Threads: any.  Layer: server. */
#ifndef SERVER_NBDKIT_ARGS_H
#define SERVER_NBDKIT_ARGS_H

#include <stdbool.h>

/* May the arguments contain -r?  Also true when that can't be known: another option's
 * argument may look like it. */
bool nbdkit_args_may_be_read_only(void);

/* The same for a given command line in the kernel's form: `size` bytes, each argument ends
 * with a NUL. */
bool nbdkit_args_look_read_only(const char *args, unsigned long size);

#endif
