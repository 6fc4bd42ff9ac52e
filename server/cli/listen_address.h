/* SPDX-License-Identifier: BSD-3-Clause */
/* Addresses to listen on, in the form users give them: HOST:PORT, [IPv6]:PORT, :PORT (all
 * addresses), or the path of a Unix socket.  Layer: server. */
#ifndef CLI_LISTEN_ADDRESS_H
#define CLI_LISTEN_ADDRESS_H

struct listening {
    int fd;
    const char *path; /* of a Unix socket, the caller's string; else NULL */
};

/* Opens a listening socket.  If the host has several addresses, the first one that works is
 * used.  Port 0: any free port.  Complains and returns an exit code. */
int listen_at(const char *address, struct listening *out);

/* Prints the URL of a page ("/metrics") at this socket, or the path of a Unix socket. */
void listening_print(const struct listening *listening, const char *page);

/* Removes the file of a Unix socket.  Doesn't close the descriptor. */
void listening_remove(const struct listening *listening);

#endif
