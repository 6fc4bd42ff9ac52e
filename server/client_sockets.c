/* SPDX-License-Identifier: BSD-3-Clause */
/* How nbdkit's sockets are found: a socket that accept() returned has the local address of the
 * listening socket.  No other socket in the process has: those that we connect to others have an
 * address of their own, or none. */
#include "client_sockets.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/descriptors.h"

#ifdef __linux__
#include <linux/vm_sockets.h>
#endif

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
#ifdef __linux__
    struct sockaddr_vm vm;
#endif
    struct sockaddr_storage room;
};

struct named_socket {
    int fd;
    bool listens;
    union address name;
};

static bool read_socket(int fd, struct named_socket *out)
{
    int listens = 0;
    socklen_t length = sizeof listens;

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0)
        return false;
    memset(out, 0, sizeof *out); /* union members are compared by memcmp */
    out->fd = fd;
    out->listens = listens;
    length = sizeof out->name;
    return getsockname(fd, &out->name.any, &length) == 0;
}

static bool is_own(const struct named_socket *socket, const char *own_socket)
{
    return own_socket && socket->name.any.sa_family == AF_UNIX &&
           strcmp(socket->name.un.sun_path, own_socket) == 0;
}

/* All named sockets of the process except own_socket's; the caller frees *out. */
static size_t list_sockets(const char *own_socket, struct named_socket **out)
{
    size_t n = 0, capacity = 0;
    DIR *dir = opendir("/proc/self/fd");

    *out = NULL;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        struct named_socket socket;
        if (entry->d_name[0] == '.' || !read_socket(atoi(entry->d_name), &socket) ||
            is_own(&socket, own_socket))
            continue;
        if (n == capacity) {
            capacity = capacity ? capacity * 2 : 64;
            struct named_socket *more = realloc(*out, capacity * sizeof *more);
            if (!more)
                break;
            *out = more;
        }
        (*out)[n++] = socket;
    }
    if (dir)
        closedir(dir);
    return n;
}

/* Is `name` the local address of a connection to `listening`?  A socket that listens at all
 * addresses has connections at each of them. */
static bool is_accepted_at(const union address *name, const union address *listening)
{
    if (name->any.sa_family != listening->any.sa_family)
        return false;
    switch (name->any.sa_family) {
    case AF_UNIX: /* the name of an abstract socket begins with a NUL */
        return (name->un.sun_path[0] || name->un.sun_path[1]) &&
               memcmp(name->un.sun_path, listening->un.sun_path,
                      sizeof name->un.sun_path) == 0;
    case AF_INET:
        return name->in.sin_port == listening->in.sin_port &&
               (listening->in.sin_addr.s_addr == htonl(INADDR_ANY) ||
                name->in.sin_addr.s_addr == listening->in.sin_addr.s_addr);
    case AF_INET6:
        return name->in6.sin6_port == listening->in6.sin6_port &&
               (IN6_IS_ADDR_UNSPECIFIED(&listening->in6.sin6_addr) ||
                IN6_ARE_ADDR_EQUAL(&name->in6.sin6_addr, &listening->in6.sin6_addr));
#ifdef __linux__
    case AF_VSOCK:
        return name->vm.svm_port == listening->vm.svm_port;
#endif
    default:
        return false;
    }
}

static bool is_accepted(const struct named_socket *socket,
                        const struct named_socket *sockets, size_t n)
{
    for (size_t i = 0; i < n && !socket->listens; i++)
        if (sockets[i].listens && is_accepted_at(&socket->name, &sockets[i].name))
            return true;
    return false;
}

/* Is the descriptor still that socket?  The client may have left, and another one got the number.
 */
static bool is_still(int fd, const struct named_socket *socket)
{
    struct named_socket now;

    return read_socket(fd, &now) && !now.listens &&
           memcmp(&now.name, &socket->name, sizeof now.name) == 0;
}

/* A duplicate of the client's descriptor; -ESTALE: the client has left. */
static int hold_client(const struct named_socket *socket)
{
    CLEANUP_CLOSE int client = fcntl(socket->fd, F_DUPFD_CLOEXEC, 0);

    if (client < 0)
        return errno == EBADF ? -ESTALE : -errno;
    if (!is_still(client, socket))
        return -ESTALE;
    int held = client;
    client = -1;
    return held;
}

void client_sockets_end(const char *own_socket)
{
    CLEANUP_FREE struct named_socket *sockets = NULL;
    size_t n = list_sockets(own_socket, &sockets);

    for (size_t i = 0; i < n; i++) {
        CLEANUP_CLOSE int client =
            is_accepted(&sockets[i], sockets, n) ? hold_client(&sockets[i]) : -1;
        if (client >= 0)
            (void)shutdown(client, SHUT_RD);
    }
}

/* ---- cutting ---- */

static int add_sink(struct cut_connections *cut, int fd)
{
    if (cut->n == cut->capacity) {
        size_t capacity = cut->capacity ? cut->capacity * 2 : 64;
        int *more = realloc(cut->sinks, capacity * sizeof *more);
        if (!more)
            return -ENOMEM;
        cut->sinks = more;
        cut->capacity = capacity;
    }
    cut->sinks[cut->n++] = fd;
    return 0;
}

/* Replaces the client's socket by the sink.  The shutdown also wakes a thread of nbdkit that
 * sleeps in a read of the old socket; when it has returned, the client sees the end of the
 * connection.  -ESTALE: the client has left; -EBUSY: can't be replaced just now. */
static int put_sink_in_place(const struct named_socket *socket, int sink)
{
    CLEANUP_CLOSE int client = hold_client(socket);

    if (client < 0)
        return client;
    int err = descriptor_replace(socket->fd, client, sink);
    if (!err)
        (void)shutdown(client, SHUT_RD);
    return err;
}

static int cut_connection(const struct named_socket *socket, struct cut_connections *cut)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    int err = add_sink(cut, ends[1]);
    if (err) {
        close(ends[1]);
    } else {
        (void)shutdown(ends[1], SHUT_WR);
        err = put_sink_in_place(socket, ends[0]);
    }
    close(ends[0]);
    return err;
}

int client_sockets_cut(const char *own_socket, struct cut_connections *cut)
{
    CLEANUP_FREE struct named_socket *sockets = NULL;
    size_t n = list_sockets(own_socket, &sockets);
    int done = 0;

    for (size_t i = 0; i < n; i++) {
        if (!is_accepted(&sockets[i], sockets, n))
            continue;
        int err = cut_connection(&sockets[i], cut);
        if (err && err != -ESTALE && err != -EBUSY)
            return err;
        done++; /* count one that has left, too: there may be new ones */
    }
    return done;
}

/* False: the other end was closed. */
static bool drain(int fd)
{
    char bytes[65536];
    ssize_t n;

    do {
        n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    } while (n > 0);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

void cut_connections_drain(struct cut_connections *cut)
{
    size_t left = 0;

    for (size_t i = 0; i < cut->n; i++) {
        if (drain(cut->sinks[i]))
            cut->sinks[left++] = cut->sinks[i];
        else
            close(cut->sinks[i]);
    }
    cut->n = left;
}

void cut_connections_free(struct cut_connections *cut)
{
    for (size_t i = 0; i < cut->n; i++)
        close(cut->sinks[i]);
    free(cut->sinks);
}

/* Compares files, as one folder can have several paths. */
static bool is_same_file(const union address *a, const union address *b)
{
    struct stat at_a, at_b;

    return stat(a->un.sun_path, &at_a) == 0 && stat(b->un.sun_path, &at_b) == 0 &&
           at_a.st_dev == at_b.st_dev && at_a.st_ino == at_b.st_ino;
}

static bool is_of_this_machine(const union address *address, socklen_t length)
{
    union address any_port = *address;

    if (address->any.sa_family == AF_INET)
        any_port.in.sin_port = 0;
    else
        any_port.in6.sin6_port = 0;
    CLEANUP_CLOSE int fd = socket(address->any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return fd >= 0 && bind(fd, &any_port.any, length) == 0;
}

bool client_sockets_listen_at(const char *own_socket, const struct sockaddr *address,
                              socklen_t length)
{
    CLEANUP_FREE struct named_socket *sockets = NULL;
    size_t n = list_sockets(own_socket, &sockets);
    union address wanted = {0};

    memcpy(&wanted, address, length);
    bool is_path = address->sa_family == AF_UNIX;
    if (!is_path && !is_of_this_machine(&wanted, length))
        return false;
    for (size_t i = 0; i < n; i++) {
        const union address *name = &sockets[i].name;
        if (sockets[i].listens && name->any.sa_family == address->sa_family &&
            (is_path ? is_same_file(name, &wanted) : is_accepted_at(&wanted, name)))
            return true;
    }
    return false;
}

unsigned client_sockets_listening(const char *own_socket, int *fds, unsigned max)
{
    CLEANUP_FREE struct named_socket *sockets = NULL;
    size_t n = list_sockets(own_socket, &sockets);
    unsigned found = 0;

    for (size_t i = 0; i < n; i++)
        if (sockets[i].listens && found++ < max)
            fds[found - 1] = sockets[i].fd;
    return found;
}
