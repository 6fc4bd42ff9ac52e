/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a program and collects its output. */
#include "command_output.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

#define MOST 65536

extern char **environ;

static void free_actions(posix_spawn_file_actions_t **actions)
{
    posix_spawn_file_actions_destroy(*actions);
}

/* Starts the program with stdout at fd.  0 or an errno (positive). */
static int start(const char *const argv[], int fd, pid_t *pid)
{
    posix_spawn_file_actions_t own;

    int err = posix_spawn_file_actions_init(&own);
    if (err)
        return err;
    CLEANUP(free_actions) posix_spawn_file_actions_t *actions = &own;
    if (posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0) ||
        posix_spawn_file_actions_addopen(actions, STDERR_FILENO, "/dev/null", O_WRONLY,
                                         0) ||
        posix_spawn_file_actions_adddup2(actions, fd, STDOUT_FILENO))
        return ENOMEM;
    return posix_spawnp(pid, argv[0], actions, NULL, (char **)(uintptr_t)argv, environ);
}

/* Reads to the end; what exceeds the buffer is read and dropped. */
static void read_all(int fd, char *text)
{
    size_t used = 0;
    char rest[512] = "";

    for (;;) {
        size_t room = MOST - 1 - used;
        ssize_t n = read(fd, room ? text + used : rest, room ? room : sizeof rest);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        used += room ? (size_t)n : 0;
    }
    text[used] = '\0';
}

static int wait_for(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

char *command_output(const char *const argv[])
{
    CLEANUP_FREE char *text = malloc(MOST);
    int fds[2];
    pid_t pid;

    if (!text || pipe2(fds, O_CLOEXEC) < 0)
        return NULL;
    int err = start(argv, fds[1], &pid);
    close(fds[1]);
    if (!err)
        read_all(fds[0], text);
    close(fds[0]);
    if (err || wait_for(pid) != 0)
        return NULL;
    return TAKE(&text);
}
