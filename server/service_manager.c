/* SPDX-License-Identifier: BSD-3-Clause */
/* Sends one datagram for each state. */
#include "service_manager.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

/* The name is a path, or '@' and a name of an abstract socket. */
static int name_address(const char *name, struct sockaddr_un *address, socklen_t *length)
{
    size_t n = strlen(name);

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if ((name[0] != '/' && name[0] != '@') || n >= sizeof address->sun_path)
        return -EINVAL;
    memcpy(address->sun_path, name, n);
    if (name[0] == '@')
        address->sun_path[0] = '\0';
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    return 0;
}

static int send_state(const char *name, const char *state)
{
    struct sockaddr_un address;
    socklen_t length;

    int err = name_address(name, &address, &length);
    if (err)
        return err;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
               length) < 0)
        err = -errno;
    close(fd);
    return err;
}

void service_manager_tell(const char *state)
{
    const char *name = getenv("NOTIFY_SOCKET");
    int err = name ? send_state(name, state) : 0;

    if (err)
        log_warning("NOTIFY_SOCKET=%s: %s: %s", name, state, strerror(-err));
}
