/* SPDX-License-Identifier: BSD-3-Clause */
/* What `qimg create -o` takes, format by format.  Layer: server. */
#ifndef CLI_CREATE_OPTIONS_H
#define CLI_CREATE_OPTIONS_H

#include "block/driver.h"
#include "options.h"
#include "secrets.h"

/* Complains that `what` (a format) is none of those there are; returns CLI_FAILED. */
int create_format_unknown(const char *what, const char *name);

/* Prints the options with what they mean. */
void create_format_help(const struct driver *format);

/* The same of a table, without a headline. */
void create_options_print(const struct create_option_info *table);

/* Brings values into one form, of keys that all are in the table.  Returns an exit code. */
int create_options_normalise(const struct create_option_info *table,
                             struct option_list *list, const char *filename);

/* The pairs, of each key the last; with a table, whose keys they are, but those that have a
 * field of their own in the request.  The caller frees the array, whose texts stay the
 * list's.  Returns an exit code. */
int create_options_list(const struct create_option_info *table,
                        const struct option_list *list, struct create_option **options,
                        size_t *count);

/* Refuses keys the format doesn't have and values that aren't of their kind, and brings
 * values into one form: sizes and numbers in decimal, switches as on and off.  Returns an
 * exit code. */
int create_options_check(const struct driver *format, struct option_list *list,
                         const char *filename);

/* Prints "Formatting ..." with the options in effect. */
void create_options_announce(const struct driver *format, const struct option_list *list,
                             const char *filename);

/* What a list that was checked asks for, of a size that is settled; what it names is found
 * among the secrets.  Texts stay the list's; *options is for the caller to free, whatever
 * is returned: an exit code. */
int create_options_request(const struct driver *format, const struct option_list *list,
                           const char *filename, const struct secrets *secrets,
                           struct create_request *req, struct create_option **options);

#endif
