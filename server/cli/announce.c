/* SPDX-License-Identifier: BSD-3-Clause */
/* Waits for nbdkit to be ready, and prints the URI that clients can use. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "announce.h"
#include "base/path.h"
#include "cli.h"

/* Names a pipe's descriptor; the plugin writes to it when another server has taken over the
 * socket's file (../handover.c). */
#define ANNOUNCE_PIPE_VARIABLE "QIMG_SERVE_PIPE"

/* Waits until bytes can be read (returns true) or all writers have closed the pipe (false). */
static bool wait_for_bytes(int fd)
{
    char bytes[64];
    ssize_t n;

    do {
        n = read(fd, bytes, sizeof bytes);
    } while (n < 0 && errno == EINTR);
    return n > 0;
}

/* Signals that are sent to the terminal's process group are meant for nbdkit; this process
 * ends after nbdkit. */
static void ignore_signals(void)
{
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

/* ready: tells the replaced server to quit, and waits until it has closed the connection,
 * that is, has ended.  Otherwise closes the connection without a word, upon which that
 * server continues. */
static void tell_replaced(int fd, bool ready)
{
    static const char quit[] = "{\"execute\": \"quit\"}\n";

    if (!ready)
        cli_error("the other server goes on");
    else if (write(fd, quit, sizeof quit - 1) > 0)
        while (wait_for_bytes(fd)) {
        }
    close(fd);
    close(STDERR_FILENO);
}

/* The pipe's writers are a descriptor that nbdkit inherits and keeps until it ends, and the
 * one it opens to write its process id. */
static void wait_and_announce(const struct announcement *a, int fd)
{
    struct stat before, now;
    bool known = a->socket_path && stat(a->socket_path, &before) == 0;
    bool handed_over = false;

    ignore_signals();
    if (a->replaced_fd < 0)
        close(STDERR_FILENO);
    for (unsigned i = 0; i < a->n_sockets; i++)
        /* or they would go on listening after nbdkit's end */
        close(a->first_socket + (int)i);
    bool ready = wait_for_bytes(fd);
    if (a->replaced_fd >= 0)
        tell_replaced(a->replaced_fd, ready);
    if (ready) {
        puts(a->uri);
        fflush(stdout);
    }
    close(STDOUT_FILENO);
    while (ready && wait_for_bytes(fd))
        handed_over = true; /* written by a server that another one has replaced */
    if (handed_over || (a->replaced_fd >= 0 && !ready))
        return;
    if (known && stat(a->socket_path, &now) == 0 && stat_is_same_file(&before, &now))
        unlink(a->socket_path);
}

/* Forks twice, so that the watcher is no child of the process that becomes nbdkit, which
 * doesn't know of it and wouldn't wait for it. */
static int fork_watcher(const struct announcement *a, const int pipe_fds[2])
{
    int status;
    pid_t child = fork();

    if (child < 0)
        return -errno;
    if (child > 0) {
        if (waitpid(child, &status, 0) < 0)
            return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EAGAIN;
    }
    pid_t watcher = fork();
    if (watcher == 0) {
        close(pipe_fds[1]);
        wait_and_announce(a, pipe_fds[0]);
    }
    _exit(watcher < 0);
}

int announce_when_ready(const struct announcement *announcement, char **pidfile)
{
    int fds[2];

    *pidfile = NULL;
    fflush(stdout);
    if (pipe(fds) < 0)
        return cli_error("cannot make a pipe: %s", strerror(errno));
    int err = fork_watcher(announcement, fds);
    close(fds[0]);
    if (err)
        return cli_error("cannot start a process: %s", strerror(-err));
    char number[16];
    snprintf(number, sizeof number, "%d", fds[1]);
    if (setenv(ANNOUNCE_PIPE_VARIABLE, number, 1) < 0 ||
        asprintf(pidfile, "/dev/fd/%d", fds[1]) < 0) {
        *pidfile = NULL;
        return cli_error("out of memory");
    }
    return CLI_OK;
}
