/* SPDX-License-Identifier: BSD-3-Clause */
/* The sockets that `qimg serve` passes to nbdkit. */
#include <errno.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/percent.h"
#include "base/unix_socket.h"
#include "cli.h"
#include "listen.h"

/* Clients that can wait while the image is opened. */
#define BACKLOG 64

static int new_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int bind_to(int fd, const struct sockaddr_un *addr)
{
    if (bind(fd, (const struct sockaddr *)addr, sizeof *addr) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -1;
    if (!unix_socket_is_stale(addr)) {
        errno = EADDRINUSE;
        return -1;
    }
    unlink(addr->sun_path);
    return bind(fd, (const struct sockaddr *)addr, sizeof *addr);
}

int listen_unix(const char *path, int *fd)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof addr.sun_path)
        return cli_error("%s: a socket's path has at most %zu bytes; choose another", path,
                         sizeof addr.sun_path - 1);
    strcpy(addr.sun_path, path);
    *fd = new_socket();
    if (*fd < 0 || bind_to(*fd, &addr) < 0 || listen(*fd, BACKLOG) < 0)
        return cli_error("%s: cannot listen: %s", path, strerror(errno));
    return CLI_OK;
}

char *uri_of_unix_socket(const char *path)
{
    char *uri = NULL;
    size_t n;
    FILE *f = open_memstream(&uri, &n);

    if (!f)
        return NULL;
    fputs("nbd+unix:///?socket=", f);
    percent_print(f, path, "-._~/");
    if (fclose(f) == 0)
        return uri;
    free(uri);
    return NULL;
}

char *uri_of_tcp(const char *address, const char *port)
{
    bool is_v6 = strchr(address, ':') != NULL;
    char *uri;

    if (asprintf(&uri, "nbd://%s%s%s:%s", is_v6 ? "[" : "", address, is_v6 ? "]" : "",
                 port) < 0)
        return NULL;
    return uri;
}

static char *uri_of_address(const struct sockaddr *addr, socklen_t length)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getnameinfo(addr, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return NULL;
    return uri_of_tcp(host, port);
}

union address {
    struct sockaddr any;
    struct sockaddr_un unix_domain;
    struct sockaddr_storage room;
};

char *path_of_socket(int fd)
{
    union address addr = {0};
    socklen_t length = sizeof addr;

    if (getsockname(fd, &addr.any, &length) < 0 || addr.any.sa_family != AF_UNIX ||
        addr.unix_domain.sun_path[0] != '/')
        return NULL;
    return strdup(addr.unix_domain.sun_path);
}

char *uri_of_socket(int fd)
{
    union address addr = {0};
    socklen_t length = sizeof addr;

    if (getsockname(fd, &addr.any, &length) < 0)
        return NULL;
    return addr.any.sa_family == AF_UNIX ? uri_of_unix_socket(addr.unix_domain.sun_path)
                                         : uri_of_address(&addr.any, length);
}
