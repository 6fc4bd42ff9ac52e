/* SPDX-License-Identifier: BSD-3-Clause */
/* The kinds of values that the plugin's parameters have.  Each function returns 0, or -1 after
 * nbdkit_error named the key, the value and what is allowed.  Threads: the main thread, before
 * nbdkit forks. */
#ifndef SERVER_PLUGIN_VALUES_H
#define SERVER_PLUGIN_VALUES_H

#include <stdbool.h>
#include <stdint.h>

/* Fails with "must be" and `allowed`. */
int value_refuse(const char *key, const char *value, const char *allowed);

/* The following store an allocated string in *out, which is NULL unless the key was given before;
 * a second value is refused.  The caller frees it. */

int value_set_text(char **out, const char *key, const char *value);

/* A file's name, made absolute.  A name with a protocol stays as it is; whether it can be used is
 * checked when it is opened. */
int value_set_path(char **out, const char *key, const char *value);

/* A file's name, or an image on Ceph RBD. */
int value_set_image(char **out, const char *key, const char *value);

/* An NBD URI, in canonical form: a relative socket is made absolute. */
int value_set_uri(char **out, const char *key, const char *value);

/* A file or a folder, made absolute.  That it can be read is checked at once, and not when a server
 * is connected to. */
int value_set_key_path(char **out, const char *key, const char *value, bool folder);

/* *index: the place of the value in `words`, which ends with NULL. */
int value_choose(unsigned *index, const char *key, const char *value,
                 const char *const *words, const char *allowed);

/* *ns: nanoseconds, of a number of seconds from 0 to 1,000,000 with decimals. */
int value_parse_delay(uint64_t *ns, const char *key, const char *value);

#endif
