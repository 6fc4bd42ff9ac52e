/* SPDX-License-Identifier: BSD-3-Clause */
/* Passphrases among the settings for nbdkit.  As plain text they would show up in the list of
 * processes and in nbdkit's log.  Layer: server. */
#ifndef CLI_SERVE_PASSPHRASE_H
#define CLI_SERVE_PASSPHRASE_H

/* The value of the setting if it is a passphrase; else NULL. */
const char *serve_passphrase(const char *setting);

/* If the setting is a passphrase given as text, replaces it by one that names a descriptor
 * from which nbdkit, which inherits it, can read the text.  The new string is never freed.
 * Complains and returns an exit code. */
int serve_passphrase_hide(char **setting);

/* As serve_passphrase_hide; a passphrase that is read from a file (or pipe) or a descriptor
 * is read now, too, and put into a descriptor that can be rewound. */
int serve_passphrase_keep(char **setting);

/* Rewinds the descriptor, so that the next program can read it again. */
void serve_passphrase_rewind(const char *setting);

#endif
