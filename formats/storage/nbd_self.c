/* SPDX-License-Identifier: BSD-3-Clause */
/* Detects that the server at the other end of a connection is this process.  Its answers could
 * then wait for the request that needs them. */
#include <arpa/inet.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "storage/nbd_internal.h"

struct address {
    struct sockaddr_storage sa;
    socklen_t len;
};

/* Converts an IPv4 address to the form in which an IPv6 socket that accepts both shows it. */
static void map_to_v6(struct address *a)
{
    struct sockaddr_in v4;

    if (a->sa.ss_family != AF_INET)
        return;
    memcpy(&v4, &a->sa, sizeof v4);
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port};
    v6.sin6_addr.s6_addr[10] = v6.sin6_addr.s6_addr[11] = 0xff;
    memcpy(&v6.sin6_addr.s6_addr[12], &v4.sin_addr, 4);
    memcpy(&a->sa, &v6, sizeof v6);
    a->len = sizeof v6;
}

static bool address_of(int fd, int (*which)(int, struct sockaddr *, socklen_t *),
                       struct address *out)
{
    memset(out, 0, sizeof *out);
    out->len = sizeof out->sa;
    if (which(fd, (struct sockaddr *)&out->sa, &out->len) != 0)
        return false;
    map_to_v6(out);
    return true;
}

static bool same_address(const struct address *a, const struct address *b)
{
    if (a->sa.ss_family != b->sa.ss_family)
        return false;
    if (a->sa.ss_family == AF_INET6) {
        struct sockaddr_in6 x, y;
        memcpy(&x, &a->sa, sizeof x);
        memcpy(&y, &b->sa, sizeof y);
        return x.sin6_port == y.sin6_port &&
               memcmp(&x.sin6_addr, &y.sin6_addr, sizeof x.sin6_addr) == 0;
    }
    return a->len == b->len && memcmp(&a->sa, &b->sa, a->len) == 0;
}

/* Clients of Unix sockets have no addresses: compare process ids instead. */
static bool is_ours(int fd)
{
    struct ucred who;
    socklen_t len = sizeof who;

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0 && who.pid == getpid();
}

bool nbd_peer_is_self(int fd)
{
    struct address mine, peer, local, remote;
    bool found = false;

    if (!address_of(fd, getsockname, &mine) || !address_of(fd, getpeername, &peer))
        return false;
    DIR *dir = opendir("/proc/self/fd");
    if (!dir)
        return false;
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        int other = (int)strtol(entry->d_name, NULL, 10);
        if (entry->d_name[0] == '.' || other == fd ||
            !address_of(other, getsockname, &local) ||
            !address_of(other, getpeername, &remote) || !same_address(&local, &peer))
            continue;
        found =
            local.sa.ss_family == AF_UNIX ? is_ours(other) : same_address(&remote, &mine);
    }
    closedir(dir);
    return found;
}
