/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses addresses, and listens on them. */
#include "listen_address.h"

#include <errno.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli.h"
#include "listen.h"

/* Clients that can wait to be accepted. */
#define BACKLOG 64

#define MAX_PORT 65535

/* ---- parsing ---- */

static bool is_number(const char *text)
{
    return text[0] && strspn(text, "0123456789") == strlen(text);
}

static bool is_port(const char *text)
{
    return is_number(text) && strlen(text) <= 5 && atoi(text) <= MAX_PORT;
}

static bool is_path(const char *address)
{
    if (!address[0])
        return false;
    return strchr(address, '/') || (!strchr(address, ':') && !is_number(address));
}

static int refuse(const char *address, const char *why)
{
    return cli_usage_error("--listen=%s: %s: it is HOST:PORT, [V6-ADDRESS]:PORT, :PORT or "
                           "the path of a Unix socket",
                           address, why);
}

/* Splits "host:port" or "[host]:port" in `copy`; *host is NULL if there is no host. */
static int split(const char *address, char *copy, const char **host, const char **port)
{
    char *colon = strrchr(copy, ':');

    if (!colon)
        return refuse(address, "no host and no path");
    *port = colon + 1;
    *colon = '\0';
    if (!is_port(*port))
        return refuse(address, "the port is no number up to 65535");
    *host = copy[0] ? copy : NULL;
    if (copy[0] == '[') {
        if (colon[-1] != ']' || colon - copy < 3)
            return refuse(address, "no address in the brackets");
        colon[-1] = '\0';
        *host = copy + 1;
    } else if (strchr(copy, ':')) {
        return refuse(address, "an IPv6 address stands in brackets");
    }
    return CLI_OK;
}

/* ---- sockets ---- */

/* A listening socket; -1 with errno on failure. */
static int listen_on(const struct addrinfo *info, bool both)
{
    CLEANUP_CLOSE int fd =
        socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol);
    int on = 1, v6_only = !both;

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (info->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only);
    if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
        return -1;
    int taken = fd;
    fd = -1;
    return taken;
}

static int listen_tcp(const char *address, const char *host, const char *port, int family,
                      int *fd)
{
    struct addrinfo *infos, hints = {.ai_family = family,
                                     .ai_socktype = SOCK_STREAM,
                                     .ai_flags = AI_PASSIVE | AI_NUMERICSERV};

    int rc = getaddrinfo(host, port, &hints, &infos);
    if (rc != 0)
        return cli_error("--listen=%s: %s: %s", address, host ? host : "*",
                         rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
    *fd = -1;
    for (const struct addrinfo *info = infos; info && *fd < 0; info = info->ai_next)
        *fd = listen_on(info, !host);
    int err = errno;
    freeaddrinfo(infos);
    return *fd >= 0 ? CLI_OK
                    : cli_error("--listen=%s: cannot listen: %s", address, strerror(err));
}

/* For all addresses an IPv6 socket also takes IPv4, if the system has IPv6. */
static int family_of_all(void)
{
    CLEANUP_CLOSE int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    return fd >= 0 ? AF_INET6 : AF_INET;
}

int listen_at(const char *address, struct listening *out)
{
    *out = (struct listening){.fd = -1};
    if (is_path(address)) {
        out->path = address;
        return listen_unix(address, &out->fd);
    }
    CLEANUP_FREE char *copy = strdup(address);
    const char *host = NULL, *port = NULL;
    if (!copy)
        return cli_error("out of memory");
    int code = split(address, copy, &host, &port);
    if (code != CLI_OK)
        return code;
    return listen_tcp(address, host, port, host ? AF_UNSPEC : family_of_all(), &out->fd);
}

void listening_print(const struct listening *listening, const char *page)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage room;
    } addr = {0};
    socklen_t length = sizeof addr;
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (listening->path) {
        puts(listening->path);
        return;
    }
    if (getsockname(listening->fd, &addr.any, &length) < 0 ||
        getnameinfo(&addr.any, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return;
    bool is_v6 = strchr(host, ':') != NULL;
    printf("http://%s%s%s:%s%s\n", is_v6 ? "[" : "", host, is_v6 ? "]" : "", port, page);
}

void listening_remove(const struct listening *listening)
{
    if (listening->path)
        unlink(listening->path);
}
