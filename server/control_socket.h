/* SPDX-License-Identifier: BSD-3-Clause */
/* The listening Unix socket of the control thread: made safely, removed at the end.
 * Threads: the main one.  Layer: server. */
#ifndef SERVER_CONTROL_SOCKET_H
#define SERVER_CONTROL_SOCKET_H

#include <sys/types.h>

#include "base/compiler.h"
#include "base/diag.h"

struct control_socket {
    int fd; /* listening, non-blocking, closed on exec */
    const char *path;
    char *aside;  /* where it lies while another server has its path; NULL: it doesn't */
    dev_t device; /* what we made, so that nothing else is removed */
    ino_t inode;
};

/* Listens at path (borrowed) with mode 0600 from the first moment on; to be called while
 * there is one thread.  A socket that nobody listens on any more is replaced. */
int control_socket_open(struct control_socket *socket, const char *path,
                        struct diag *diag) MUST_USE;

/* Another server is to listen there: the file goes beside.  And back, in the place of what was
 * left.  That it can't be is logged. */
void control_socket_put_aside(struct control_socket *socket);
void control_socket_put_back(struct control_socket *socket);

/* Removes the file, if it is still ours, and closes. */
void control_socket_close(struct control_socket *socket);

#endif
