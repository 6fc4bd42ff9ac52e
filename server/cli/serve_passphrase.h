/* SPDX-License-Identifier: BSD-3-Clause */
/* Passphrases among the settings that are passed on to nbdkit.  A text there could be read by
 * everybody who lists processes, and in nbdkit's log.  Layer: server. */
#ifndef CLI_SERVE_PASSPHRASE_H
#define CLI_SERVE_PASSPHRASE_H

/* The value of the setting, when it is a passphrase; else NULL. */
const char *serve_passphrase(const char *setting);

/* Where the setting is a passphrase as text, puts another in its place: that of a descriptor
 * which the next program inherits, and which the text can be read from.  What is put there
 * lasts as long as the process.  Complains and returns an exit code. */
int serve_passphrase_hide(char **setting);

/* As serve_passphrase_hide, and what is to be read from a file (which may be a pipe) or a
 * descriptor is read, and put into a descriptor that can be rewound. */
int serve_passphrase_keep(char **setting);

/* So that the next program reads it, too. */
void serve_passphrase_rewind(const char *setting);

#endif
