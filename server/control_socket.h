/* SPDX-License-Identifier: BSD-3-Clause */
/* The listening Unix socket of the control thread.  Threads: the main thread.  Layer: server. */
#ifndef SERVER_CONTROL_SOCKET_H
#define SERVER_CONTROL_SOCKET_H

#include <sys/types.h>

#include "base/compiler.h"
#include "base/diag.h"

struct control_socket {
    int fd; /* listening, non-blocking, closed on exec */
    const char *path;
    char *aside;  /* its present path while another server uses `path`; NULL otherwise */
    dev_t device; /* identity of our file, so that no other file is removed */
    ino_t inode;
};

/* Listens at `path` (borrowed).  The file has mode 0600 from its creation on, which changes
 * the umask for a moment; so only one thread may exist.  Replaces a socket on which nobody
 * listens.  0 or -errno with diag. */
int control_socket_open(struct control_socket *socket, const char *path,
                        struct diag *diag) MUST_USE;

/* Renames the file, as another server is going to listen there; and renames it back, over what
 * that left there.  Failures are logged. */
void control_socket_put_aside(struct control_socket *socket);
void control_socket_put_back(struct control_socket *socket);

/* Removes the file, if it is still ours, and closes the socket. */
void control_socket_close(struct control_socket *socket);

#endif
