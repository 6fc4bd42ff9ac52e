/* SPDX-License-Identifier: BSD-3-Clause */
/* One client of the control socket: its half-read messages and the queue of what it has yet
 * to read.  Nothing here blocks.  Threads: the control thread.  Layer: server. */
#ifndef SERVER_CONTROL_CLIENT_H
#define SERVER_CONTROL_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/compiler.h"
#include "json_stream.h"

/* A client that lets more than this pile up is closed. */
#define CLIENT_MAX_QUEUE (1u << 20)

struct client {
    int fd;          /* owned, non-blocking */
    bool negotiated; /* it said qmp_capabilities */
    bool ending;     /* reads no more; closed when the queue is empty */
    bool dead;       /* to be closed now */
    bool took_over;  /* it has the server's sockets */
    char *queue;     /* [sent, queued) is to be sent */
    size_t sent, queued, capacity;
    struct json_stream in;

    uint64_t awaits; /* the answer of this ticket; nothing is read before; 0: none */
    json_t *id;      /* of that request; NULL: it has none */
    char *rest;      /* what had been read behind it */
    size_t n_rest;
};

/* Takes over the descriptor; NULL when memory is short. */
struct client *client_new(int fd) MUST_USE;
void client_free(struct client *client);

/* Queues a message (taken over), and sends what the socket takes. */
void client_send(struct client *client, json_t *message);
void client_send_text(struct client *client, const char *text, size_t length);
void client_flush(struct client *client);

/* Passes descriptors on, with what JSON has no use for, at the beginning of the next message;
 * what it doesn't take makes it dead.  The descriptors are borrowed. */
void client_send_sockets(struct client *client, const int *fds, unsigned n);
#define CLIENT_MAX_SOCKETS 16

static inline bool client_has_queue(const struct client *client)
{
    return client->queued > client->sent;
}

/* What a client asked: NULL for something that isn't JSON.  The reply, taken over; NULL: it
 * comes later, and the client awaits it. */
typedef json_t *client_handler(void *opaque, struct client *client, json_t *request);

/* Reads once what has come in, and answers what is complete. */
void client_receive(struct client *client, client_handler *handler, void *opaque);

/* Sends the reply that is awaited (taken over), and goes on. */
void client_answer(struct client *client, json_t *reply, client_handler *handler,
                   void *opaque);

#endif
