/* SPDX-License-Identifier: BSD-3-Clause */
/* What every server on a Unix socket has to know.  Threads: any.  Layer: base. */
#ifndef BASE_UNIX_SOCKET_H
#define BASE_UNIX_SOCKET_H

#include <stdbool.h>
#include <sys/un.h>

/* Is the path a socket that nobody listens on any more, left by a server that was killed?
 * Never waits. */
bool unix_socket_is_stale(const struct sockaddr_un *addr);

#endif
