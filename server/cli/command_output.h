/* SPDX-License-Identifier: BSD-3-Clause */
/* What another program prints.  Layer: server. */
#ifndef CLI_COMMAND_OUTPUT_H
#define CLI_COMMAND_OUTPUT_H

/* Runs the program argv[0], found as a shell finds it, without input and with its messages
 * dropped.  Its output, up to 64 KiB, for the caller to free; NULL when it can't be run or
 * doesn't end with 0. */
char *command_output(const char *const argv[]);

#endif
