/* SPDX-License-Identifier: BSD-3-Clause */
/* What nbdkit was started with and doesn't tell its plugins before the first client
 * connects.  Threads: any.  Layer: server. */
#ifndef SERVER_NBDKIT_ARGS_H
#define SERVER_NBDKIT_ARGS_H

#include <stdbool.h>

/* May -r be among the arguments?  True also when that can't be known: an argument of
 * another option may look like it. */
bool nbdkit_args_may_be_read_only(void);

/* The same of the `size` bytes of a command line as the kernel has it: each argument ends
 * with a NUL. */
bool nbdkit_args_look_read_only(const char *args, unsigned long size);

#endif
