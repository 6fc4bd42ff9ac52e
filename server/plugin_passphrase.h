/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin's parameters "passphrase" and "passphrase.N".  Their values are never printed.
 * Threads: the main thread, before nbdkit forks.  Layer: server. */
#ifndef SERVER_PLUGIN_PASSPHRASE_H
#define SERVER_PLUGIN_PASSPHRASE_H

#include <stdbool.h>

#include "base/compiler.h"
#include "common/passphrases.h"

#define PLUGIN_PASSPHRASE_KEY "passphrase"

/* Does the key begin like one of these?  Then its value may be a secret, even if the key is
 * misspelt. */
bool plugin_passphrase_is_key(const char *key);

/* Takes a parameter for which plugin_passphrase_is_key is true.  The value has one of
 * nbdkit's forms for passwords (nbdkit_read_password); the password is kept in `all`.  0, or
 * -1 after nbdkit_error. */
int plugin_passphrase_set(struct passphrases *all, const char *key,
                          const char *value) MUST_USE;

#endif
