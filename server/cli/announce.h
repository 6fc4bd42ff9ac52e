/* SPDX-License-Identifier: BSD-3-Clause */
/* The URI of `qimg serve`, which is printed when clients are really served, by a process
 * that outlives this one's becoming nbdkit.  Layer: server. */
#ifndef CLI_ANNOUNCE_H
#define CLI_ANNOUNCE_H

struct announcement {
    const char *uri;         /* printed, as a line, when nbdkit listens */
    const char *socket_path; /* removed when nbdkit has ended, if it is still the socket
                                that is there now; NULL: none */
    int first_socket;        /* which nbdkit listens on, for us to be closed */
    unsigned n_sockets;
    int replaced_fd; /* control connection of a server that ends when nbdkit listens, and goes
                        on when it doesn't; -1: none */
};

/* Forks the one that waits.  *pidfile, to be freed, is where nbdkit is to write its process
 * id to (its option -P): that tells that it is ready.  Complains and returns an exit code.
 */
int announce_when_ready(const struct announcement *announcement, char **pidfile);

#endif
