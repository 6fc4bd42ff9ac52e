/* SPDX-License-Identifier: BSD-3-Clause */
/* One client of the control socket: its incomplete input and its output queue.  Nothing here
 * blocks.  Threads: the control thread.  Layer: server. */
#ifndef SERVER_CONTROL_CLIENT_H
#define SERVER_CONTROL_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/compiler.h"
#include "json_stream.h"

/* A client with more unread bytes than this is disconnected. */
#define CLIENT_MAX_QUEUE (1u << 20)

struct client {
    int fd;          /* owned, non-blocking */
    bool negotiated; /* it has sent qmp_capabilities */
    bool ending;     /* nothing more is read; closed when the queue is empty */
    bool dead;       /* to be closed at once */
    bool took_over;  /* it has got the server's listening sockets */
    char *queue;     /* the bytes [sent, queued) are still to be sent */
    size_t sent, queued, capacity;
    struct json_stream in;

    /* ticket of the answer it waits for; until then nothing is read; 0: none */
    uint64_t awaits;
    json_t *id; /* "id" of that request; NULL: it had none */
    char *rest; /* input that was read behind that request */
    size_t n_rest;
};

/* Takes over the descriptor; NULL when memory is short. */
struct client *client_new(int fd) MUST_USE;
void client_free(struct client *client);

/* Queues a message, which is taken over, and sends what the socket accepts. */
void client_send(struct client *client, json_t *message);
void client_send_text(struct client *client, const char *text, size_t length);
void client_flush(struct client *client);

/* Sends the descriptors (borrowed) with a space, which JSON ignores, before the next message.
 * If the socket doesn't accept that at once, the client is disconnected. */
void client_send_sockets(struct client *client, const int *fds, unsigned n);
#define CLIENT_MAX_SOCKETS 16

static inline bool client_has_queue(const struct client *client)
{
    return client->queued > client->sent;
}

/* Handles a client's request; NULL stands for input that isn't JSON.  Returns the reply,
 * which is taken over; NULL: it comes later, and client->awaits was set. */
typedef json_t *client_handler(void *opaque, struct client *client, json_t *request);

/* Reads once, and handles all complete requests. */
void client_receive(struct client *client, client_handler *handler, void *opaque);

/* Sends the awaited reply, which is taken over, and handles further input. */
void client_answer(struct client *client, json_t *reply, client_handler *handler,
                   void *opaque);

#endif
