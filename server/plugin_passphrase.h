/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin's parameters "passphrase" and "passphrase.N".  Their values are shown to nobody.
 * Threads: the main thread, before the server forks.  Layer: server. */
#ifndef SERVER_PLUGIN_PASSPHRASE_H
#define SERVER_PLUGIN_PASSPHRASE_H

#include <stdbool.h>

#include "base/compiler.h"
#include "common/passphrases.h"

/* Is it one of these, or meant to be: may its value be secret? */
bool plugin_passphrase_is_key(const char *key);

/* Takes a parameter of which plugin_passphrase_is_key is true, with a value in one of
 * nbdkit's forms for passwords, and keeps what it stands for.  0, or -1 after nbdkit_error.
 */
int plugin_passphrase_set(struct passphrases *all, const char *key,
                          const char *value) MUST_USE;

#endif
