/* SPDX-License-Identifier: BSD-3-Clause */
/* One client of the control socket: input and output. */
#include "control_client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"

/* How much is read from one client before the others have their turn. */
#define READ_BYTES 4096

struct client *client_new(int fd)
{
    struct client *client = calloc(1, sizeof *client);

    if (!client)
        return NULL;
    client->fd = fd;
    json_stream_init(&client->in);
    return client;
}

void client_free(struct client *client)
{
    close(client->fd);
    free(client->queue);
    free(client->rest);
    json_decref(client->id);
    free(client);
}

void client_flush(struct client *client)
{
    while (client_has_queue(client) && !client->dead) {
        ssize_t n = send(client->fd, client->queue + client->sent,
                         client->queued - client->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            client->sent += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return;
        else if (errno != EINTR)
            client->dead = true;
    }
    client->sent = client->queued = 0;
    client->dead |= client->ending;
}

void client_send_sockets(struct client *client, const int *fds, unsigned n)
{
    char space = ' ';
    struct iovec iov = {&space, 1};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int) * CLIENT_MAX_SOCKETS)];
    } control = {0};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
    struct cmsghdr *header = &control.align;

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * n);
    client_flush(client);
    if (client_has_queue(client) ||
        sendmsg(client->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
        client->dead = true;
}

/* Makes room for `length` bytes behind what is queued. */
static bool make_queue_room(struct client *client, size_t length)
{
    if (client->sent > 0) {
        memmove(client->queue, client->queue + client->sent, client->queued - client->sent);
        client->queued -= client->sent;
        client->sent = 0;
    }
    if (client->capacity - client->queued >= length)
        return true;
    size_t capacity = client->queued + length + READ_BYTES;
    char *queue = realloc(client->queue, capacity);
    if (!queue)
        return false;
    client->queue = queue;
    client->capacity = capacity;
    return true;
}

void client_send_text(struct client *client, const char *text, size_t length)
{
    if (client->dead)
        return;
    /* Checked before appending: a single message may be larger than the limit, which is
     * meant for clients that don't read. */
    if (client->queued - client->sent > CLIENT_MAX_QUEUE) {
        client->dead = true;
        return;
    }
    if (client->capacity - client->queued < length && !make_queue_room(client, length)) {
        client->dead = true;
        return;
    }
    memcpy(client->queue + client->queued, text, length);
    client->queued += length;
    client_flush(client);
}

void client_send(struct client *client, json_t *message)
{
    CLEANUP_FREE char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

    json_decref(message);
    if (!text) {
        /* no memory: disconnecting is better than letting the client wait */
        client->dead = true;
        return;
    }
    client_send_text(client, text, strlen(text));
    client_send_text(client, "\r\n", 2);
}

static void answer_request(struct client *client, json_t *request, client_handler *handler,
                           void *opaque)
{
    json_t *reply = handler(opaque, client, request);

    json_decref(request);
    if (reply || !client->awaits)
        client_send(client, reply);
}

/* Keeps the input behind a request that isn't answered yet. */
static void keep_rest(struct client *client, const char *p, size_t n)
{
    if (n == 0)
        return;
    client->rest = malloc(n);
    if (!client->rest) {
        client->dead = true;
        return;
    }
    memcpy(client->rest, p, n);
    client->n_rest = n;
}

/* Handles n more bytes of input. */
static void answer_bytes(struct client *client, const char *p, size_t n,
                         client_handler *handler, void *opaque)
{
    while (!client->dead) {
        if (client->awaits) {
            keep_rest(client, p, n);
            return;
        }
        switch (json_stream_next(&client->in, &p, &n)) {
        case JSON_STREAM_MORE:
            return;
        case JSON_STREAM_VALUE:
            answer_request(
                client,
                json_loadb(client->in.text, client->in.used, JSON_REJECT_DUPLICATES, NULL),
                handler, opaque);
            break;
        case JSON_STREAM_BAD:
            answer_request(client, NULL, handler, opaque);
            break;
        case JSON_STREAM_TOO_LONG:
            client->ending = true;
            answer_request(client, NULL, handler, opaque);
            return;
        }
    }
}

void client_answer(struct client *client, json_t *reply, client_handler *handler,
                   void *opaque)
{
    CLEANUP_FREE char *rest = TAKE(&client->rest);
    size_t n = client->n_rest;

    client->awaits = 0;
    client->n_rest = 0;
    json_decref(client->id);
    client->id = NULL;
    client_send(client, reply);
    answer_bytes(client, rest, n, handler, opaque);
}

void client_receive(struct client *client, client_handler *handler, void *opaque)
{
    char buf[READ_BYTES];
    ssize_t got = recv(client->fd, buf, sizeof buf, MSG_DONTWAIT);

    if (got < 0) {
        client->dead |= errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR;
        return;
    }
    if (got == 0) {
        client->ending = true;
        client_flush(client);
        return;
    }
    answer_bytes(client, buf, (size_t)got, handler, opaque);
}
