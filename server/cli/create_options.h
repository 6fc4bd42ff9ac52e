/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of `qimg create -o`, for each format.  Layer: server. */
#ifndef CLI_CREATE_OPTIONS_H
#define CLI_CREATE_OPTIONS_H

#include "block/driver.h"
#include "options.h"
#include "secrets.h"

/* Complains with "WHAT 'NAME'" and the formats that there are; returns CLI_FAILED.  what:
 * "Unknown file format", for example. */
int create_format_unknown(const char *what, const char *name);

/* Prints the format's options and their meaning. */
void create_format_help(const struct driver *format);

/* The same for a table, without a heading. */
void create_options_print(const struct create_option_info *table);

/* Brings values into a normal form; all keys of the list must be in the table.  Returns an
 * exit code. */
int create_options_normalise(const struct create_option_info *table,
                             struct option_list *list, const char *filename);

/* Lists the pairs of the list, only the last one for each key.  With a table (which must
 * have all keys), pairs whose value has a field of its own in the request are left out.
 * The caller frees *options; its strings remain the list's.  Returns an exit code. */
int create_options_list(const struct create_option_info *table,
                        const struct option_list *list, struct create_option **options,
                        size_t *count);

/* Refuses keys that the format doesn't have and values of the wrong kind, and normalises
 * values: sizes and numbers become decimal, switches "on" or "off".  Returns an exit code. */
int create_options_check(const struct driver *format, struct option_list *list,
                         const char *filename);

/* Prints "Formatting ..." with the options and their defaults. */
void create_options_announce(const struct driver *format, const struct option_list *list,
                             const char *filename);

/* Fills the request from a checked list, except the size.  Secrets that the options name
 * are looked up in `secrets`.  Strings remain the list's.  The caller frees *options
 * whatever is returned: an exit code. */
int create_options_request(const struct driver *format, const struct option_list *list,
                           const char *filename, const struct secrets *secrets,
                           struct create_request *req, struct create_option **options);

#endif
