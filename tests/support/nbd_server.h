/* SPDX-License-Identifier: BSD-3-Clause */
/* A real NBD server as a child process, on a Unix socket in a test's folder.
 *
 * Functions abort when the server can't be started; ask nbd_server_missing first, and skip.
 * The server dies with the test.  Threads: one. */
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

/* At once, without a good-bye. */
void nbd_server_kill(struct nbd_server *server);

/* As it was started. */
void nbd_server_restart(struct nbd_server *server);

/* Hangs; goes on. */
void nbd_server_pause(struct nbd_server *server);
void nbd_server_resume(struct nbd_server *server);

/* Kills it, if it runs, and frees the rest. */
void nbd_server_free(struct nbd_server *server);

#endif
