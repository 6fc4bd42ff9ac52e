/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg serve --replace`: a running server is asked for its disks and its sockets.
 *
 * What can be known without them is known before: nbdkit is started as it will be, read-only and
 * without locks, on a private socket for a moment.  What fails later makes the other server
 * take all
 * back, when it sees the end of the connection on which it was asked.  Layer: server. */
#ifndef CLI_SERVE_REPLACE_H
#define CLI_SERVE_REPLACE_H

#include "serve_line.h"

/* The other server, which has let go. */
struct replaced {
    int fd;             /* the connection; closed on exec */
    unsigned n_sockets; /* from PASSED_FD on, for the program that comes next */
};

/* Passphrases become descriptors that can be read twice, as this program starts nbdkit twice:
 * for all settings, instead of serve_passphrase_hide.  Complains and returns an exit code. */
int serve_replace_keep_passphrases(const struct serve_args *args);

/* Could it be served?  Complains and returns an exit code. */
int serve_replace_try(const struct serve_args *args);

/* Asks the server on the socket of the setting control=.  Complains and returns an exit code;
 * then that server goes on. */
int serve_replace_ask(const struct serve_args *args, struct replaced *out);

#endif
