/* SPDX-License-Identifier: BSD-3-Clause */
/* Addresses to listen on as users give them: HOST:PORT, [V6]:PORT, :PORT (of all addresses)
 * or the path of a Unix socket.  Layer: server. */
#ifndef CLI_LISTEN_ADDRESS_H
#define CLI_LISTEN_ADDRESS_H

struct listening {
    int fd;
    const char *path; /* of a Unix socket, the caller's text; else NULL */
};

/* Opens the socket; of a host that has several addresses, at the first that can be had.
 * Port 0 is any free one.  Complains and returns an exit code. */
int listen_at(const char *address, struct listening *out);

/* Prints where that is, as clients of HTTP have it for a page ("/metrics"), or the path of a
 * Unix socket. */
void listening_print(const struct listening *listening, const char *page);

/* Removes the socket's file; the descriptor is the caller's. */
void listening_remove(const struct listening *listening);

#endif
