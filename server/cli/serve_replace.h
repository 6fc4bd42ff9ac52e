/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg serve --replace`: takes over the disks and sockets of a running server.
 *
 * What can be tested without the other server is tested first: nbdkit is started for a moment
 * with the same settings, but read-only, without locks and on a private socket.  If something
 * fails after the other server has let go, the connection on which it was asked is closed; then
 * that server takes everything back.  Layer: server. */
#ifndef CLI_SERVE_REPLACE_H
#define CLI_SERVE_REPLACE_H

#include "serve_line.h"

/* The other server, which has let go of its disks. */
struct replaced {
    int fd;             /* the control connection; closed on exec */
    unsigned n_sockets; /* from PASSED_FD on, for the next program */
};

/* Puts passphrases into descriptors that can be read twice, as nbdkit is started twice; replaces
 * serve_passphrase_hide.  For all settings.  Complains and returns an exit code. */
int serve_replace_keep_passphrases(const struct serve_args *args);

/* Tries whether nbdkit can serve this.  Complains and returns an exit code. */
int serve_replace_try(const struct serve_args *args);

/* Asks the server whose socket is the setting control=.  Complains and returns an exit code;
 * then that server continues. */
int serve_replace_ask(const struct serve_args *args, struct replaced *out);

#endif
