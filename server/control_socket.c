/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates the control socket, for its owner only. */
#include "control_socket.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/unix_socket.h"

#define BACKLOG 128

static int new_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* The file is created with its final mode, so that others can never connect. */
static int bind_private(int fd, const struct sockaddr_un *addr)
{
    mode_t mask = umask(S_IXUSR | S_IRWXG | S_IRWXO);
    int rc = bind(fd, (const struct sockaddr *)addr, sizeof *addr);
    int err = errno;

    umask(mask);
    errno = err;
    return rc;
}

static int listen_at(int fd, const struct sockaddr_un *addr)
{
    if (bind_private(fd, addr) < 0) {
        if (errno != EADDRINUSE)
            return -errno;
        if (!unix_socket_is_stale(addr))
            return -EADDRINUSE;
        unlink(addr->sun_path);
        if (bind_private(fd, addr) < 0)
            return -errno;
    }
    return listen(fd, BACKLOG) < 0 ? -errno : 0;
}

int control_socket_open(struct control_socket *s, const char *path, struct diag *diag)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st = {0};

    if (strlen(path) >= sizeof addr.sun_path)
        return diag_set(diag, ENAMETOOLONG,
                        "control=%s: a socket's path has at most %zu bytes", path,
                        sizeof addr.sun_path - 1);
    strcpy(addr.sun_path, path);
    CLEANUP_CLOSE int fd = new_socket();
    int err = fd < 0 ? -errno : listen_at(fd, &addr);
    if (!err && lstat(path, &st) < 0)
        err = -errno;
    if (err)
        return diag_errno(diag, -err, "control=%s: cannot listen", path);
    *s = (struct control_socket){
        .fd = fd, .path = path, .device = st.st_dev, .inode = st.st_ino};
    fd = -1;
    return 0;
}

static void move(const char *from, const char *to)
{
    if (rename(from, to) < 0)
        log_error("control=%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

void control_socket_put_aside(struct control_socket *s)
{
    if (asprintf(&s->aside, "%s.replaced", s->path) < 0)
        s->aside = NULL;
    else
        move(s->path, s->aside);
}

void control_socket_put_back(struct control_socket *s)
{
    if (s->aside)
        move(s->aside, s->path);
    free(TAKE(&s->aside));
}

/* Another server may have its file there. */
static void remove_own(const struct control_socket *s, const char *path)
{
    struct stat st;

    if (path && lstat(path, &st) == 0 && st.st_dev == s->device && st.st_ino == s->inode)
        unlink(path);
}

void control_socket_close(struct control_socket *s)
{
    remove_own(s, s->path);
    remove_own(s, s->aside);
    free(TAKE(&s->aside));
    close(s->fd);
}
