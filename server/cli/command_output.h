/* SPDX-License-Identifier: BSD-3-Clause */
/* The output of another program.  Layer: server. */
#ifndef CLI_COMMAND_OUTPUT_H
#define CLI_COMMAND_OUTPUT_H

/* Runs the program argv[0], looked up in PATH, with empty input; its stderr is dropped.
 * Returns its output, at most 64 KiB, which the caller frees.  NULL: it can't be run, or
 * its exit status isn't 0. */
char *command_output(const char *const argv[]);

#endif
