/* SPDX-License-Identifier: BSD-3-Clause */
/* Stale Unix sockets, for every server that listens on one.  Threads: any.  Layer: base. */
#ifndef BASE_UNIX_SOCKET_H
#define BASE_UNIX_SOCKET_H

#include <stdbool.h>
#include <sys/un.h>

/* Is the path a socket on which no process listens any more, left behind by a server that was
 * killed?  Never waits. */
bool unix_socket_is_stale(const struct sockaddr_un *addr);

#endif
