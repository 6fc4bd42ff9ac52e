/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets of `qimg serve`.  They exist before nbdkit runs, so that a client that reads the
 * URI can connect at once.  Layer: server. */
#ifndef CLI_LISTEN_H
#define CLI_LISTEN_H

/* Bytes of a Unix socket's path, including the NUL. */
#define LISTEN_MAX_PATH 108

/* Opens a listening Unix socket, *fd.  A socket file that no server listens on any more is
 * replaced; a live server's, or any other file, isn't.  Complains and returns an exit code. */
int listen_unix(const char *path, int *fd);

/* The NBD URI of a Unix socket, which the caller frees; NULL when memory is short. */
char *uri_of_unix_socket(const char *path);

/* The same for TCP; address and port in nbdkit's form. */
char *uri_of_tcp(const char *address, const char *port);

/* The NBD URI by which clients reach a listening socket; the caller frees it.  NULL: it
 * isn't a socket, or memory is short. */
char *uri_of_socket(int fd);

/* The absolute path of a Unix socket, which the caller frees; NULL: none. */
char *path_of_socket(int fd);

#endif
