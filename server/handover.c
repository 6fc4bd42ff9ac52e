/* SPDX-License-Identifier: BSD-3-Clause */
/* Stops listening and closes the images; or takes both back.
 *
 * nbdkit has no way to stop accepting connections.  So each of its listening descriptors is
 * replaced (dup3) by an idle socket that nobody connects to, while a duplicate keeps the
 * original socket open.  nbdkit's accepting thread still sleeps in poll() for the old sockets; a
 * signal makes it poll again. */
#include "handover.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/descriptors.h"
#include "base/log.h"
#include "client_sockets.h"
#include "server.h"
#include "view.h"

/* How often to look whether all clients have left, and how many looks in a row must find none:
 * one may just have been accepted. */
#define AGAIN_NS 5000000u
#define TIMES    4
/* How long to wait: a request may hang on a server below, or its client may not read the reply. */
#define LONGEST_MS 30000
#define REOPEN_MS  10000

/* Neither nbdkit nor this plugin uses it otherwise, and its default action is to do nothing. */
#define WAKE_SIGNAL SIGURG

/* `qimg serve` gives nbdkit the number of a pipe's descriptor in this variable.  The pipe leads
 * to the process that removes the socket's file when the server has ended. */
#define PIPE_VARIABLE "QIMG_SERVE_PIPE"

/* ---- nbdkit's sockets ---- */

static void do_nothing(int number)
{
    (void)number;
}

void handover_init(struct handover *h)
{
    const struct sigaction action = {.sa_handler = do_nothing};

    handover_kept_init(&h->kept);
    h->acceptor = pthread_self();
    h->idle = -1;
    (void)sigaction(WAKE_SIGNAL, &action, NULL);
}

/* With a name that the kernel chooses (abstract socket). */
static int new_idle_socket(void)
{
    const struct sockaddr_un any = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && bind(fd, (const struct sockaddr *)&any, sizeof any.sun_family) == 0 &&
        listen(fd, 1) == 0)
        return fd;
    int err = errno;
    if (fd >= 0)
        close(fd);
    return -err;
}

/* nbdkit's thread may have been between poll() and accept() when its descriptor was replaced;
 * then it is blocked in accept() on the idle socket.  A connection releases it. */
static void release_acceptor(const struct handover *h)
{
    struct sockaddr_un name;
    socklen_t length = sizeof name;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || getsockname(h->idle, (struct sockaddr *)&name, &length) < 0 ||
        connect(fd, (const struct sockaddr *)&name, length) < 0)
        log_warning("nbdkit's thread can't be woken: %s", strerror(errno));
    clock_nap_ns(AGAIN_NS);
}

/* Replaces nbdkit's descriptor, if it is still the same socket as `was`: nbdkit closes it when it
 * ends (-ESTALE).  0 or -errno. */
static int replace(int nbdkits, int was, int with)
{
    int err;

    for (uint64_t began = clock_ms();
         (err = descriptor_replace(nbdkits, was, with)) == -EBUSY &&
         clock_ms() < began + REOPEN_MS;)
        clock_nap_ns(AGAIN_NS);
    return err;
}

static void listen_again(struct handover *h)
{
    for (unsigned i = 0; i < h->n; i++) {
        int err = replace(h->nbdkits[i], h->idle, h->listening[i]);
        /* An opening hangs.  Without its sockets the server would be lost, and nbdkit keeps these
         * descriptors until it ends. */
        if (err == -EBUSY)
            err = descriptor_replace_kept(h->nbdkits[i], h->idle, h->listening[i]);
        if (err && err != -ESTALE)
            log_error("a socket can't be listened on any more: %s", strerror(-err));
        close(h->listening[i]);
    }
    h->n = 0;
    close(h->idle);
    h->idle = -1;
    (void)pthread_kill(h->acceptor, WAKE_SIGNAL);
}

/* Replaces nbdkit's n descriptors.  0, or -errno with nothing changed. */
static int put_aside(struct handover *h, unsigned n)
{
    for (; h->n < n; h->n++) {
        CLEANUP_CLOSE int kept = fcntl(h->nbdkits[h->n], F_DUPFD_CLOEXEC, 0);
        int err = kept < 0 ? -errno : replace(h->nbdkits[h->n], kept, h->idle);
        if (err) {
            listen_again(h);
            return err;
        }
        h->listening[h->n] = kept;
        kept = -1;
    }
    return 0;
}

static int stop_listening(struct handover *h, const char *own_socket, struct diag *diag)
{
    unsigned n = client_sockets_listening(own_socket, h->nbdkits, HANDOVER_MAX_SOCKETS);

    if (n == 0 || n > HANDOVER_MAX_SOCKETS)
        return diag_set(diag, ENOTSUP,
                        "the server listens on %u sockets: from 1 to %u can be handed over",
                        n, HANDOVER_MAX_SOCKETS);
    h->n = 0;
    h->idle = new_idle_socket();
    int err = h->idle < 0 ? h->idle : put_aside(h, n);
    return err ? diag_errno(diag, -err, "the sockets can't be put aside") : 0;
}

/* ---- clients ---- */

/* One attempt to disconnect clients.  1: somebody was still there, 0: nobody was; or -errno. */
static int cut_clients(struct server *server, struct cut_connections *cut,
                       struct diag *diag)
{
    const struct served_export *kept = server->snapshot ? server->snapshot->exp : NULL;
    int n = client_sockets_cut(server->config.control, cut);

    if (n < 0)
        return diag_errno(diag, -n, "a client's connection can't be ended");
    cut_connections_drain(cut);
    return n > 0 || export_table_is_used(&server->exports, kept);
}

static int wait_for_clients(struct server *server, const _Atomic bool *give_up,
                            struct diag *diag)
{
    CLEANUP(cut_connections_free) struct cut_connections cut = {0};
    uint64_t began = clock_ms();

    for (unsigned times = 0; times < TIMES; clock_nap_ns(AGAIN_NS)) {
        int used = cut_clients(server, &cut, diag);
        if (used < 0)
            return used;
        if (atomic_load(give_up))
            return diag_set(diag, ESHUTDOWN, "the server ends");
        if (clock_ms() > began + LONGEST_MS)
            return diag_set(diag, EBUSY, "a client's request doesn't end");
        times = used ? 0 : times + 1;
    }
    return 0;
}

static int flush_all(struct server *server, struct diag *diag)
{
    EXPORT_TABLE_EACH (exp, &server->exports) {
        int err = export_flush(exp, diag);
        if (err) {
            export_put(exp);
            return err;
        }
    }
    return 0;
}

/* ---- the handover ---- */

/* Does everything that can fail, while the images are still open. */
static int let_go_of_clients(struct server *server, const _Atomic bool *give_up,
                             struct diag *diag)
{
    int err = flush_all(server, diag);
    if (!err)
        err = stop_listening(&server->handover, server->config.control, diag);
    if (err)
        return err;
    throttle_groups_lift(&server->throttles, true);
    err = wait_for_clients(server, give_up, diag);
    if (!err)
        err = flush_all(server, diag);
    if (err) {
        throttle_groups_lift(&server->throttles, false);
        release_acceptor(&server->handover);
        listen_again(&server->handover);
    }
    return err;
}

int handover_begin(struct server *server, const _Atomic bool *give_up, struct diag *diag)
{
    int err = server_note_what_is_served(server, diag);
    if (!err)
        err = let_go_of_clients(server, give_up, diag);
    if (err)
        return err;
    handover_kept_take(&server->handover.kept, &server->exports);
    server_close_exports(server);
    handover_kept_note_files(&server->handover.kept);
    atomic_store(&server->handover.done, true);
    return 0;
}

/* Tries again for a while: the other server may be ending, and still hold locks. */
static void reopen(struct server *server)
{
    uint64_t began = clock_ms();
    struct diag diag = {0};

    while (server_reopen_exports(server, &diag)) {
        if (clock_ms() > began + REOPEN_MS || atomic_load(&server->ending)) {
            log_error("after a handover that came to nothing: %s", diag.text);
            return;
        }
        server_close_exports(server);
        clock_nap_ns(AGAIN_NS);
    }
}

void handover_undo(struct server *server)
{
    atomic_store(&server->handover.done, false);
    reopen(server);
    handover_kept_give_back(&server->handover.kept, &server->exports, &server->throttles);
    throttle_groups_lift(&server->throttles, false);
    release_acceptor(&server->handover);
    listen_again(&server->handover);
}

/* Tells the process at the pipe not to remove the socket's file, which is the other server's
 * now. */
static void tell_who_removes_it(void)
{
    static const char text[] = "handed over\n";
    const char *number = getenv(PIPE_VARIABLE);
    int fd = number ? atoi(number) : -1;
    struct stat st;

    if (fd <= STDERR_FILENO || fstat(fd, &st) < 0 || !S_ISFIFO(st.st_mode))
        return;
    if (write(fd, text, sizeof text - 1) < 0)
        log_warning("%s=%s: %s", PIPE_VARIABLE, number, strerror(errno));
}

void handover_finish(struct server *server)
{
    handover_kept_free(&server->handover.kept);
    tell_who_removes_it();
    release_acceptor(&server->handover);
}
