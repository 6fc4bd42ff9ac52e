/* SPDX-License-Identifier: BSD-3-Clause */
/* Starts, kills, stops and restarts a real NBD server for a test. */
#include "nbd_server.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_TRIES 1000 /* each of 10 ms */

static void give_up(const char *what)
{
    perror(what);
    abort();
}

bool nbd_server_missing(const char *program)
{
    const char *path = getenv("PATH");
    char *folders = strdup(path ? path : "/usr/bin:/bin");
    char *save = NULL;
    bool missing = true;

    for (char *dir = strtok_r(folders, ":", &save); dir; dir = strtok_r(NULL, ":", &save)) {
        char file[1024];
        snprintf(file, sizeof file, "%s/%s", dir, program);
        missing = missing && access(file, X_OK) != 0;
    }
    free(folders);
    return missing;
}

static bool accepts(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
    char greeting[18];
    /* Reads the server's greeting, so that the server logs no error about this connection. */
    bool good = connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0 &&
                recv(fd, greeting, sizeof greeting, MSG_WAITALL) == sizeof greeting;
    close(fd);
    return good;
}

static void wait_until_it_accepts(struct nbd_server *server)
{
    const struct timespec nap = {.tv_nsec = 10000000};

    for (int i = 0; i < START_TRIES; i++) {
        int status;
        if (accepts(server->socket))
            return;
        if (waitpid(server->pid, &status, WNOHANG) == server->pid)
            break;
        nanosleep(&nap, NULL);
    }
    fprintf(stderr, "%s doesn't accept connections\n", server->argv[0]);
    abort();
}

void nbd_server_restart(struct nbd_server *server)
{
    pid_t parent = getpid();

    unlink(server->socket);
    server->pid = fork();
    if (server->pid < 0)
        give_up("fork");
    if (server->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close_range(3, ~0u, 0); /* the test's own business */
        if (getppid() == parent)
            execvp(server->argv[0], (char *const *)server->argv);
        _exit(127);
    }
    wait_until_it_accepts(server);
}

static void start(struct nbd_server *server, const struct scratch *scratch,
                  const char *const head[], const char *const args[])
{
    size_t n = 0;

    *server = (struct nbd_server){.socket = scratch_path(scratch, "socket")};
    if (asprintf(&server->uri, "nbd+unix:///?socket=%s", server->socket) < 0)
        abort();
    for (size_t i = 0; head[i]; i++)
        server->argv[n++] = head[i];
    server->argv[n++] = server->socket;
    for (size_t i = 0; args[i]; i++) {
        if (n == NBD_SERVER_ARGS - 1)
            abort();
        server->argv[n++] = args[i];
    }
    nbd_server_restart(server);
}

void nbd_server_nbdkit(struct nbd_server *server, const struct scratch *scratch,
                       const char *const args[])
{
    start(server, scratch, (const char *const[]){"nbdkit", "-f", "-U", NULL}, args);
}

void nbd_server_qemu(struct nbd_server *server, const struct scratch *scratch,
                     const char *const args[])
{
    start(server, scratch, (const char *const[]){"qemu-nbd", "-t", "-k", NULL}, args);
}

void nbd_server_kill(struct nbd_server *server)
{
    if (server->pid == 0)
        return;
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    server->pid = 0;
}

void nbd_server_pause(struct nbd_server *server)
{
    int status;

    kill(server->pid, SIGSTOP);
    waitpid(server->pid, &status, WUNTRACED);
}

void nbd_server_resume(struct nbd_server *server)
{
    kill(server->pid, SIGCONT);
}

void nbd_server_free(struct nbd_server *server)
{
    nbd_server_kill(server);
    free(server->socket);
    free(server->uri);
}
