/* SPDX-License-Identifier: BSD-3-Clause */
/* Two things that nbdkit knows and doesn't tell, found from outside.
 *
 * That the end has come: nbdkit's handlers for SIGINT, SIGQUIT and SIGTERM are in place
 * before the plugin's after_fork, so ours take their places there and call them.  What ends
 * the server without a signal is the command `quit`, which calls shutdown_begin.
 *
 * Which sockets are clients': a socket that accept() made has the local address of the
 * listening one.  Nothing else in the process has: what we connect to others has an address
 * of its own, or none. */
#include "shutdown.h"

#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "export_table.h"

#ifdef __linux__
#include <linux/vm_sockets.h>
#endif

/* How often connections are looked for: one may have been accepted just now. */
#define AGAIN_MS 20
/* A request has left us a moment before its reply has left the server. */
#define REPLY_MS 10

static const int signals[] = {SIGINT, SIGQUIT, SIGTERM};

/* One for the process: signal handlers are given nothing else to go by. */
static struct {
    struct shutdown_steps steps;
    struct sigaction nbdkits[ARRAY_LEN(signals)];
    int wake_fd; /* readable: the end has come, or there is no more to do */
    _Atomic bool begun, stopping;
    bool started;
    pthread_t thread;
} ending = {.wake_fd = -1};

/* ---- the signal ---- */

void shutdown_begin(void)
{
    uint64_t one = 1;

    atomic_store(&ending.begun, true);
    if (write(ending.wake_fd, &one, sizeof one) < 0)
        return; /* a full counter wakes as well */
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    int saved = errno;

    shutdown_begin();
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        const struct sigaction *nbdkits = &ending.nbdkits[i];
        if (signals[i] != number)
            continue;
        if (nbdkits->sa_flags & SA_SIGINFO)
            nbdkits->sa_sigaction(number, info, context);
        else
            nbdkits->sa_handler(number);
    }
    errno = saved;
}

static void chain_handlers(void)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        struct sigaction ours;
        if (sigaction(signals[i], NULL, &ending.nbdkits[i]) != 0)
            continue;
        ours = ending.nbdkits[i];
        /* What nbdkit doesn't handle isn't the server's end. */
        if (!(ours.sa_flags & SA_SIGINFO) &&
            (ours.sa_handler == SIG_DFL || ours.sa_handler == SIG_IGN))
            continue;
        ours.sa_flags |= SA_SIGINFO;
        ours.sa_sigaction = on_signal;
        (void)sigaction(signals[i], &ours, NULL);
    }
}

/* ---- the clients' connections ---- */

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
    *out = (struct named_socket){.fd = fd, .listens = listens};
    length = sizeof out->name;
    return getsockname(fd, &out->name.any, &length) == 0;
}

static bool is_own(const struct named_socket *socket)
{
    return ending.steps.own_socket && socket->name.any.sa_family == AF_UNIX &&
           strcmp(socket->name.un.sun_path, ending.steps.own_socket) == 0;
}

/* All sockets of the process that have a name; the caller frees *out. */
static size_t list_sockets(struct named_socket **out)
{
    size_t n = 0, capacity = 0;
    DIR *dir = opendir("/proc/self/fd");

    *out = NULL;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        struct named_socket socket;
        if (entry->d_name[0] == '.' || !read_socket(atoi(entry->d_name), &socket) ||
            is_own(&socket))
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

/* Is it the address that a connection to `listening` has at this end?  A server that
 * listens at all addresses has connections at each. */
static bool is_accepted_at(const union address *name, const union address *listening)
{
    if (name->any.sa_family != listening->any.sa_family)
        return false;
    switch (name->any.sa_family) {
    case AF_UNIX: /* an abstract name begins with 0 */
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

/* nbdkit reads an end of file from each client, and can still write to it. */
static void end_connections(void)
{
    CLEANUP_FREE struct named_socket *sockets = NULL;
    size_t n = list_sockets(&sockets);

    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n && !sockets[i].listens; j++)
            if (sockets[j].listens && is_accepted_at(&sockets[i].name, &sockets[j].name)) {
                (void)shutdown(sockets[i].fd, SHUT_RD);
                break;
            }
}

/* ---- the thread ---- */

static bool is_idle(void)
{
    return export_table_is_idle(ending.steps.exports);
}

static void wait_until_idle(uint64_t until)
{
    while (!is_idle() && clock_ms() < until)
        clock_nap_ns(1000000);
    clock_nap_ns(REPLY_MS * 1000000);
}

static void wait_to_be_woken(void)
{
    uint64_t count;

    while (read(ending.wake_fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
}

static void end_without_clients(void)
{
    log_warning("clients are still connected: the server ends without them");
    ending.steps.close(ending.steps.opaque);
    _exit(EXIT_SUCCESS);
}

static void *shutdown_main(void *unused)
{
    (void)unused;
    wait_to_be_woken();
    uint64_t began = clock_ms();
    if (!atomic_load(&ending.begun))
        return NULL;
    ending.steps.begin(ending.steps.opaque);
    wait_until_idle(began + SHUTDOWN_GRACE_MS);
    if (!is_idle())
        export_table_abandon_servers(ending.steps.exports);
    uint64_t busy = clock_ms();
    for (; !atomic_load(&ending.stopping); clock_nap_ns(AGAIN_MS * 1000000)) {
        end_connections();
        if (!is_idle())
            busy = clock_ms();
        if (clock_ms() > busy + SHUTDOWN_PATIENCE_MS)
            end_without_clients();
    }
    return NULL;
}

int shutdown_start(const struct shutdown_steps *steps)
{
    ending.steps = *steps;
    ending.wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ending.wake_fd < 0)
        return -errno;
    int err = thread_start(&ending.thread, shutdown_main, NULL);
    if (err)
        return err;
    ending.started = true;
    chain_handlers();
    return 0;
}

void shutdown_stop(void)
{
    uint64_t one = 1;

    if (!ending.started)
        return;
    ending.started = false;
    atomic_store(&ending.stopping, true);
    if (write(ending.wake_fd, &one, sizeof one) < 0)
        log_error("the thread of the server's end can't be woken (errno %d)", errno);
    pthread_join(ending.thread, NULL);
    /* The descriptor stays for handlers, which can't be taken back. */
}
