/* SPDX-License-Identifier: BSD-3-Clause */
/* A real NBD server (nbdkit or qemu-nbd) as a child process, on a Unix socket in a test's
 * folder.
 *
 * Functions abort when the server can't be started: a test calls nbd_server_missing first and
 * skips itself if the program isn't installed.  The server is killed when the test's process
 * ends.  Threads: one. */
#ifndef SUPPORT_NBD_SERVER_H
#define SUPPORT_NBD_SERVER_H

#include <stdbool.h>
#include <sys/types.h>

#include "scratch.h"

#define NBD_SERVER_ARGS 24

struct nbd_server {
    pid_t pid; /* 0: not running */
    char *socket;
    char *uri;
    const char *argv[NBD_SERVER_ARGS];
};

/* Is a program not installed? */
bool nbd_server_missing(const char *program);

/* Runs "nbdkit ARGS..." (filters, plugin, parameters; NULL at the end), and waits until it
 * accepts connections.  The strings must live as long as the server may be started again.
 */
void nbd_server_nbdkit(struct nbd_server *server, const struct scratch *scratch,
                       const char *const args[]);

/* The same with "qemu-nbd ARGS...". */
void nbd_server_qemu(struct nbd_server *server, const struct scratch *scratch,
                     const char *const args[]);

/* Kills the server with SIGKILL: clients see the connection break. */
void nbd_server_kill(struct nbd_server *server);

/* Starts a killed server again with the same arguments and socket. */
void nbd_server_restart(struct nbd_server *server);

/* Pause makes the server hang (SIGSTOP); resume lets it continue. */
void nbd_server_pause(struct nbd_server *server);
void nbd_server_resume(struct nbd_server *server);

/* Kills the server if it is running, and frees the memory. */
void nbd_server_free(struct nbd_server *server);

#endif
