/* SPDX-License-Identifier: BSD-3-Clause */
/* The client side of the control socket. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli.h"
#include "qmp_client.h"

#define READ_BYTES ((size_t)64 << 10)
/* Longer than any message. */
#define MAX_MESSAGE ((size_t)256 << 20)

/* Time left for replies, in the form of poll's argument. */
static int time_left_ms(const struct qmp *qmp)
{
    uint64_t now = clock_ms();

    if (!qmp->until)
        return -1;
    return now < qmp->until ? (int)(qmp->until - now) : 0;
}

/* Limits connecting and sending, too. */
static void limit_sending(const struct qmp *qmp, int fd)
{
    int ms = time_left_ms(qmp);
    struct timeval limit = {ms / 1000, ms % 1000 * 1000};

    if (ms > 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static int connect_to(struct qmp *qmp, const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof addr.sun_path)
        return cli_error("%s: a socket's path has at most %zu bytes", path,
                         sizeof addr.sun_path - 1);
    strcpy(addr.sun_path, path);
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        limit_sending(qmp, fd);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&addr, sizeof addr) < 0)
        return cli_error("%s: cannot connect: %s", path, strerror(errno));
    qmp->fd = fd;
    fd = -1;
    return CLI_OK;
}

/* Moves a received descriptor if that is wanted; closes it if there are too many. */
static void take_descriptor(struct qmp *qmp, int fd)
{
    int moved = qmp->fds_from ? fcntl(fd, F_DUPFD_CLOEXEC, qmp->fds_from) : fd;

    if (moved != fd)
        close(fd);
    if (moved >= 0 && qmp->n_fds < QMP_MAX_FDS)
        qmp->fds[qmp->n_fds++] = moved;
    else if (moved >= 0)
        close(moved);
}

static void take_descriptors(struct qmp *qmp, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            take_descriptor(qmp, fd);
        }
    }
}

static ssize_t receive(struct qmp *qmp, char *buf, size_t size)
{
    struct iovec iov = {buf, size};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int) * QMP_MAX_FDS)];
    } control;
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};

    ssize_t n = recvmsg(qmp->fd, &message, MSG_CMSG_CLOEXEC);
    if (n > 0)
        take_descriptors(qmp, &message);
    return n;
}

/* Waits for bytes and appends them to the buffer.  *got: false if none came within
 * timeout_ms (-1: no limit). */
static int receive_bytes(struct qmp *qmp, int timeout_ms, bool *got)
{
    struct pollfd poll_fd = {qmp->fd, POLLIN, 0};

    *got = false;
    int ready = poll(&poll_fd, 1, timeout_ms);
    if (ready == 0 || (ready < 0 && errno == EINTR))
        return CLI_OK;
    if (qmp->capacity - qmp->used < READ_BYTES) {
        size_t capacity = qmp->capacity + qmp->used + READ_BYTES;
        char *buffer = capacity < MAX_MESSAGE ? realloc(qmp->buffer, capacity) : NULL;
        if (!buffer)
            return cli_error("out of memory");
        qmp->buffer = buffer;
        qmp->capacity = capacity;
    }
    ssize_t n = receive(qmp, qmp->buffer + qmp->used, READ_BYTES);
    if (n <= 0)
        return cli_error("the server closed the connection%s%s", n < 0 ? ": " : "",
                         n < 0 ? strerror(errno) : "");
    qmp->used += (size_t)n;
    *got = true;
    return CLI_OK;
}

/* Every message is one line. */
static int take_line(struct qmp *qmp, const char *end, json_t **message)
{
    size_t length = (size_t)(end - qmp->buffer);

    *message = json_loadb(qmp->buffer, length, 0, NULL);
    qmp->used -= length + 1;
    memmove(qmp->buffer, end + 1, qmp->used);
    return *message ? CLI_OK : cli_error("the server's answer is not JSON");
}

/* The next message, or NULL if none comes in time. */
static int next_message(struct qmp *qmp, int timeout_ms, json_t **message)
{
    bool got = true;

    *message = NULL;
    while (got) {
        const char *end = qmp->used ? memchr(qmp->buffer, '\n', qmp->used) : NULL;
        if (end)
            return take_line(qmp, end, message);
        int code = receive_bytes(qmp, timeout_ms, &got);
        if (code != CLI_OK)
            return code;
    }
    return CLI_OK;
}

static int send_all(struct qmp *qmp, const char *text)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t n = send(qmp->fd, text, left, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            return cli_error("the server can't be reached: %s", strerror(errno));
        if (n > 0) {
            text += n;
            left -= (size_t)n;
        }
    }
    return CLI_OK;
}

static int send_message(struct qmp *qmp, json_t *message)
{
    CLEANUP_FREE char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

    json_decref(message);
    return text ? send_all(qmp, text) : cli_error("out of memory");
}

/* The next message, within the time for replies. */
static int await_message(struct qmp *qmp, json_t **message)
{
    int code = next_message(qmp, time_left_ms(qmp), message);

    if (code == CLI_OK && !*message && qmp->until)
        return cli_error("the server doesn't answer");
    return code;
}

/* The next reply; events before it are queued. */
static int next_reply(struct qmp *qmp, json_t **reply)
{
    for (;;) {
        int code = await_message(qmp, reply);
        if (code != CLI_OK)
            return code;
        if (*reply && !json_object_get(*reply, "event"))
            return CLI_OK;
        if (*reply)
            json_array_append_new(qmp->events, *reply);
    }
}

static int take_reply(const char *command, json_t *reply, json_t **value, json_t **refusal)
{
    *value = json_incref(json_object_get(reply, "return"));
    *refusal = json_incref(json_object_get(reply, "error"));
    json_decref(reply);
    return *value || *refusal
               ? CLI_OK
               : cli_error("%s: the server's answer makes no sense", command);
}

int qmp_try(struct qmp *qmp, const char *command, json_t *args, json_t **value,
            json_t **refusal)
{
    json_t *reply, *message = json_pack("{s:s}", "execute", command);

    *value = *refusal = NULL;
    if (args)
        json_object_set_new(message, "arguments", args);
    int code = send_message(qmp, message);
    if (code == CLI_OK)
        code = next_reply(qmp, &reply);
    return code == CLI_OK ? take_reply(command, reply, value, refusal) : code;
}

int qmp_command(struct qmp *qmp, const char *command, json_t *args, json_t **value)
{
    json_t *refusal;
    int code = qmp_try(qmp, command, args, value, &refusal);

    if (code == CLI_OK && refusal)
        code = cli_error("%s", json_string_value(json_object_get(refusal, "desc")));
    json_decref(refusal);
    return code;
}

static json_t *disk_called(const json_t *disks, const char *name)
{
    json_t *disk;
    size_t i;

    json_array_foreach (disks, i, disk) {
        const char *its = json_string_value(json_object_get(disk, "device"));
        if (its && (!name || strcmp(its, name) == 0))
            return json_incref(disk);
    }
    return NULL;
}

int qmp_find_disk(struct qmp *qmp, const char *name, json_t **disk)
{
    json_t *disks;
    int code = qmp_command(qmp, "query-block", NULL, &disks);

    *disk = NULL;
    if (code == CLI_OK && !name && json_array_size(disks) > 1)
        code = cli_error("the server has %zu disks: --device=NAME has to say which",
                         json_array_size(disks));
    if (code == CLI_OK)
        *disk = disk_called(disks, name);
    if (code == CLI_OK && !*disk)
        code = name ? cli_error("the server has no disk '%s'", name)
                    : cli_error("the server has no disk");
    json_decref(disks);
    return code;
}

int qmp_event(struct qmp *qmp, int timeout_ms, json_t **event)
{
    if (json_array_size(qmp->events) > 0) {
        *event = json_incref(json_array_get(qmp->events, 0));
        json_array_remove(qmp->events, 0);
        return CLI_OK;
    }
    return next_message(qmp, timeout_ms, event);
}

static int negotiate_capabilities(struct qmp *qmp, const char *path)
{
    json_t *greeting, *nothing;
    int code = await_message(qmp, &greeting);

    if (code != CLI_OK)
        return code;
    bool is_qmp = json_object_get(greeting, "QMP");
    json_decref(greeting);
    if (!is_qmp)
        return cli_error("%s: is not a control socket", path);
    code = qmp_command(qmp, "qmp_capabilities", NULL, &nothing);
    json_decref(nothing);
    return code;
}

static int open_until(struct qmp *qmp, const char *path, uint64_t until)
{
    *qmp = (struct qmp){.fd = -1, .until = until};
    int code = connect_to(qmp, path);
    if (code != CLI_OK)
        return code;
    qmp->events = json_array();
    code = negotiate_capabilities(qmp, path);
    if (code != CLI_OK)
        qmp_close(qmp);
    return code;
}

int qmp_open(struct qmp *qmp, const char *path)
{
    return open_until(qmp, path, 0);
}

int qmp_open_within(struct qmp *qmp, const char *path, uint32_t timeout_ms)
{
    return open_until(qmp, path, clock_ms() + timeout_ms);
}

void qmp_close(struct qmp *qmp)
{
    for (unsigned i = 0; i < qmp->n_fds; i++)
        close(qmp->fds[i]);
    close(qmp->fd);
    free(qmp->buffer);
    json_decref(qmp->events);
}
