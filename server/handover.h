/* SPDX-License-Identifier: BSD-3-Clause */
/* Hands the disks over to another server: this one disconnects its clients, closes its images,
 * and passes on the sockets on which it listens.  If the other server fails to start, this one
 * takes everything back.
 *
 * Clients lose their connections as if the network had failed, so a client that reconnects
 * repeats what wasn't answered.  They must not get an error reply, which they would report to
 * their users.  Requests that nbdkit has already read are finished before the images are
 * closed.  Clients that connect meanwhile wait in the sockets' queues.
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
    pthread_t acceptor; /* nbdkit's thread that accepts clients */
    int nbdkits[HANDOVER_MAX_SOCKETS], listening[HANDOVER_MAX_SOCKETS];
    unsigned n;        /* length of both; listening[i] is the socket that was nbdkits[i] */
    int idle;          /* the socket that nbdkit listens on meanwhile */
    _Atomic bool done; /* all images are closed; another server has the sockets */
    struct handover_kept kept;
};

/* On nbdkit's main thread, after the fork. */
void handover_init(struct handover *h);

/* Disconnects clients and closes all images, durably and clean.  On success h->listening may be
 * passed on.  On failure, -errno with diag, the server continues.  *give_up: set when the
 * handover has become pointless. */
int handover_begin(struct server *server, const _Atomic bool *give_up,
                   struct diag *diag) MUST_USE;

/* After handover_begin: opens the images and serves clients again.  An image that can't be
 * opened is logged, and not served. */
void handover_undo(struct server *server);

/* After handover_begin, when the other server is serving and this one is about to end. */
void handover_finish(struct server *server);

#endif
