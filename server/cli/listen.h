/* SPDX-License-Identifier: BSD-3-Clause */
/* The socket of `qimg serve`, which is there before nbdkit runs, so that whoever reads its
 * URI can connect at once.  Layer: server. */
#ifndef CLI_LISTEN_H
#define CLI_LISTEN_H

/* Bytes of a Unix socket's path, with its end. */
#define LISTEN_MAX_PATH 108

/* A listening Unix socket, in *fd.  What a server that is gone left at the path is
 * replaced; a server that answers there, or any other file, is not.  Complains and returns
 * an exit code. */
int listen_unix(const char *path, int *fd);

/* The NBD URI of a Unix socket, of any path; to be freed.  NULL when memory is short. */
char *uri_of_unix_socket(const char *path);

/* As above for TCP; address and port as nbdkit takes them. */
char *uri_of_tcp(const char *address, const char *port);

/* The NBD URI of a listening socket, as its clients have it; to be freed.  NULL: it is
 * none, or memory is short. */
char *uri_of_socket(int fd);

/* The path of a Unix socket; to be freed.  NULL: it has none from the root, or is another
 * kind. */
char *path_of_socket(int fd);

#endif
