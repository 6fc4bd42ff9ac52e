/* SPDX-License-Identifier: BSD-3-Clause */
/* How the end of the server is noticed.  nbdkit doesn't tell a plugin.  It installs its
 * handlers for SIGINT, SIGQUIT and SIGTERM before it calls the plugin's after_fork; there
 * our handlers replace them, and call them.  The command `quit` ends the server without a
 * signal; it calls shutdown_begin. */
#include "shutdown.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "client_sockets.h"
#include "export_table.h"

/* Connections are looked for repeatedly, as one may just have been accepted. */
#define AGAIN_MS 20
/* A request has left the export a moment before nbdkit has sent its reply. */
#define REPLY_MS 10

static const int signals[] = {SIGINT, SIGQUIT, SIGTERM};

/* One for the process: a signal handler gets no argument of ours. */
static struct {
    struct shutdown_steps steps;
    struct sigaction nbdkits[ARRAY_LEN(signals)];
    int wake_fd; /* eventfd; readable: the end has begun, or the thread is to stop */
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
        return; /* EAGAIN: the counter is full, which wakes the thread too */
}

bool shutdown_has_begun(void)
{
    return atomic_load(&ending.begun);
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
        /* A signal that nbdkit doesn't handle doesn't end the server. */
        if (!(ours.sa_flags & SA_SIGINFO) &&
            (ours.sa_handler == SIG_DFL || ours.sa_handler == SIG_IGN))
            continue;
        ours.sa_flags |= SA_SIGINFO;
        ours.sa_sigaction = on_signal;
        (void)sigaction(signals[i], &ours, NULL);
    }
}

/* ---- the thread ---- */

static bool is_idle(void)
{
    return export_table_is_idle(ending.steps.exports);
}

/* Sleeps for ms milliseconds, or until shutdown_stop is called: all clients have left. */
static void doze(unsigned ms)
{
    struct pollfd wake = {.fd = ending.wake_fd, .events = POLLIN};
    uint64_t count, until = clock_ms() + ms;

    for (uint64_t now = clock_ms(); now < until && !atomic_load(&ending.stopping);
         now = clock_ms())
        if (poll(&wake, 1, (int)(until - now)) >
            0) /* another signal: read it, and sleep on */
            (void)!read(ending.wake_fd, &count, sizeof count);
}

static void wait_until_idle(uint64_t until)
{
    while (!is_idle() && clock_ms() < until)
        clock_nap_ns(1000000);
    doze(REPLY_MS);
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
    for (; !atomic_load(&ending.stopping); doze(AGAIN_MS)) {
        client_sockets_end(ending.steps.own_socket);
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
    /* wake_fd stays open: the handlers, which stay installed, write to it. */
}
