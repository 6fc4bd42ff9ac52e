/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdkit's sockets, which it doesn't show to plugins, found among those of the process.
 *
 * own_socket: path of a Unix socket whose connections aren't nbdkit's; or NULL.
 * Threads: any.  Layer: server. */
#ifndef SERVER_CLIENT_SOCKETS_H
#define SERVER_CLIENT_SOCKETS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "base/compiler.h"

/* nbdkit reads an end of file from each client, and can still write to it. */
void client_sockets_end(const char *own_socket);

/* Connections that were cut: what nbdkit still sends there is drained. */
struct cut_connections {
    int *sinks;
    size_t n, capacity;
};

/* Ends all connections as a failure of the network would: from here on no client gets anything.
 * nbdkit answers what it has just read before an end of file with an error, which a client would
 * take for one of its disk; and aborts (before 1.34) when what it sends fails.  So its descriptors
 * are made to mean others, from which comes an end of file, and which take all that is sent.
 * Returns how many there were, of which some may have to be cut once more, or -errno; begins with a
 * zeroed `cut`. */
int client_sockets_cut(const char *own_socket, struct cut_connections *cut) MUST_USE;

/* Again and again, until nbdkit has done with them. */
void cut_connections_drain(struct cut_connections *cut);
void cut_connections_free(struct cut_connections *cut);

/* Does nbdkit listen there?  A path, or an address of this machine with a port: of AF_UNIX, or of
 * AF_INET or AF_INET6. */
bool client_sockets_listen_at(const char *own_socket, const struct sockaddr *address,
                              socklen_t length);

/* The sockets on which nbdkit listens, up to max of them; returns how many there are. */
unsigned client_sockets_listening(const char *own_socket, int *fds, unsigned max);

#endif
