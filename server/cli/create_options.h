/* SPDX-License-Identifier: BSD-3-Clause */
/* What `qimg create -o` takes, format by format.  Layer: server. */
#ifndef CLI_CREATE_OPTIONS_H
#define CLI_CREATE_OPTIONS_H

#include "block/driver.h"
#include "options.h"

/* Complains that `what` (a format) is none of those there are; returns CLI_FAILED. */
int create_format_unknown(const char *what, const char *name);

/* Prints the options with what they mean. */
void create_format_help(const struct driver *format);

/* Refuses keys the format doesn't have and values that aren't of their kind, and brings
 * values into one form: sizes and numbers in decimal, switches as on and off.  Returns an
 * exit code. */
int create_options_check(const struct driver *format, struct option_list *list,
                         const char *filename);

/* Prints "Formatting ..." with the options in effect. */
void create_options_announce(const struct driver *format, const struct option_list *list,
                             const char *filename);

/* Of a list that was checked, the options that are the driver's business; the caller frees
 * the array, whose texts stay the list's.  Returns an exit code. */
int create_options_for_driver(const struct driver *format, const struct option_list *list,
                              struct create_option **options, size_t *count);

/* The wishes for the file.  Returns an exit code. */
int create_options_hints(const struct option_list *list, const char *filename,
                         struct storage_hints *hints);

#endif
