/* SPDX-License-Identifier: BSD-3-Clause */
/* Another server takes over: this one lets go of its clients and its images, and hands out the
 * sockets on which it listens; and takes all back when nothing came of it.
 *
 * Clients lose their connections as if the network had failed, and what wasn't answered they
 * ask for
 * again: no error comes, which those that reconnect would hand to their users.  What nbdkit
 * had read
 * is done before the images are closed.  Connections that come meanwhile wait in the sockets'
 * queues,
 * and are refused by nobody.
 *
 * Threads: one at a time.  Layer: server. */
#ifndef SERVER_HANDOVER_H
#define SERVER_HANDOVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "handover_kept.h"

struct server;

#define HANDOVER_MAX_SOCKETS 7

struct handover {
    pthread_t acceptor; /* nbdkit's thread that waits for clients */
    int nbdkits[HANDOVER_MAX_SOCKETS], listening[HANDOVER_MAX_SOCKETS];
    unsigned n; /* of both; the latter are the sockets that nbdkit's descriptors were */
    int idle;   /* what nbdkit listens on meanwhile */
    _Atomic bool done; /* everything is closed, and another server's */
    struct handover_kept kept;
};

/* On nbdkit's main thread, after the fork. */
void handover_init(struct handover *h);

/* Ends connections and closes all images, durable and clean; then h->listening may be handed
 * out.  0, or -errno with diag: the server goes on.  *give_up: it has become pointless. */
int handover_begin(struct server *server, const _Atomic bool *give_up,
                   struct diag *diag) MUST_USE;

/* After handover_begin: opens the images and serves again.  What can't be opened is logged, and
 * isn't served. */
void handover_undo(struct server *server);

/* After handover_begin, when the other one serves: this one is about to end. */
void handover_finish(struct server *server);

#endif
