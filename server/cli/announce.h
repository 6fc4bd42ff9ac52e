/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints the URI of `qimg serve` when nbdkit really serves clients.  A process that is forked
 * before this one becomes nbdkit waits for that.  Layer: server. */
#ifndef CLI_ANNOUNCE_H
#define CLI_ANNOUNCE_H

struct announcement {
    const char *uri; /* printed, as a line, when nbdkit is ready */
    /* A Unix socket's file, removed when nbdkit has ended if the file is still the same;
     * NULL: none. */
    const char *socket_path;
    /* the first of n_sockets descriptors that nbdkit will listen on; the forked process
     * closes its copies */
    int first_socket;
    unsigned n_sockets;
    /* Control connection of the server that is replaced: it ends when nbdkit is ready, and
     * continues if nbdkit fails to start; -1: none. */
    int replaced_fd;
};

/* Forks the waiting process.  *pidfile, which the caller frees, is the file to which nbdkit
 * must write its process id (its option -P): that tells that it is ready.  Complains and
 * returns an exit code. */
int announce_when_ready(const struct announcement *announcement, char **pidfile);

#endif
