/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds nbdkit's sockets, which nbdkit doesn't show to plugins, among the sockets of the process.
 *
 * own_socket: path of a Unix socket whose connections aren't nbdkit's; or NULL.  Threads: any.
 * Layer: server. */
#ifndef SERVER_CLIENT_SOCKETS_H
#define SERVER_CLIENT_SOCKETS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "base/compiler.h"

/* Makes nbdkit read an end of file from each client; it can still write replies. */
void client_sockets_end(const char *own_socket);

/* Connections that were cut.  nbdkit still writes to sockets that replaced them, whose other ends
 * are the sinks. */
struct cut_connections {
    int *sinks;
    size_t n, capacity;
};

/* Ends all connections as a failure of the network would: from now on no client gets anything.
 *
 * Shutting down the sockets wouldn't do that: nbdkit answers requests that it has read before an
 * end of file with an error, which the client would report as its disk's; and nbdkit before 1.34
 * aborts when a write fails.  So each of its descriptors is replaced by another socket, which
 * reads as an end of file and accepts everything that is written.
 *
 * Returns how many connections there were, some of which may have to be cut again, or -errno.
 * `cut` is zeroed before the first call. */
int client_sockets_cut(const char *own_socket, struct cut_connections *cut) MUST_USE;

/* Drops what nbdkit has written to sockets that were cut; to be called repeatedly until nbdkit has
 * closed them. */
void cut_connections_drain(struct cut_connections *cut);
void cut_connections_free(struct cut_connections *cut);

/* Does nbdkit listen at this address?  It is a Unix socket's path, or an IPv4 or IPv6 address of
 * this machine with a port. */
bool client_sockets_listen_at(const char *own_socket, const struct sockaddr *address,
                              socklen_t length);

/* Writes the sockets on which nbdkit listens to fds, at most max of them.  Returns how many there
 * are. */
unsigned client_sockets_listening(const char *own_socket, int *fds, unsigned max);

#endif
