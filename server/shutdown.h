/* SPDX-License-Identifier: BSD-3-Clause */
/* Ends the server while clients are connected.
 *
 * At its end nbdkit waits for its clients, even for idle ones, without a time limit.  A
 * supervisor then kills it, and what wasn't flushed is lost.  This file makes the end take
 * about a second:
 *
 *   1.  At the signal, jobs are cancelled; nbdkit answers ESHUTDOWN to new requests.
 *   2.  When the requests in flight are answered, or after SHUTDOWN_GRACE_MS, nbdkit is
 *       made to read an end of file from each client's connection; it then closes that in
 *       an orderly way.
 *   3.  Requests that are still in flight wait for a server that doesn't answer: that
 *       server is abandoned.
 *   4.  A client that doesn't read its replies would block a thread of nbdkit for ever.  So
 *       when no request has been in flight for SHUTDOWN_PATIENCE_MS, the images are closed
 *       here and the process exits.
 *
 * nbdkit (up to 1.32 at least) tells a plugin neither of the signal nor which sockets are
 * its clients'; shutdown.c says how it learns both.
 *
 * Threads: start and stop on the main thread; begin from any thread and from signal
 * handlers.  Layer: server. */
#ifndef SERVER_SHUTDOWN_H
#define SERVER_SHUTDOWN_H

#include <stdbool.h>

#include "base/compiler.h"

struct export_table;

#define SHUTDOWN_GRACE_MS    500
#define SHUTDOWN_PATIENCE_MS 2000

/* Callbacks for the steps above, each called once, on this file's thread. */
struct shutdown_steps {
    struct export_table *exports; /* whose requests and servers steps 2 and 3 look at */
    void (*begin)(void *opaque);  /* step 1; must not wait */
    /* step 4: closes everything; requests that come later never return */
    void (*close)(void *opaque);
    void *opaque;
    /* path of a Unix socket whose connections aren't nbdkit's; or NULL */
    const char *own_socket;
};

/* After the fork, once in a process, as signal handlers are per process.  0 or -errno. */
int shutdown_start(const struct shutdown_steps *steps) MUST_USE;

/* Ends the server without a signal. */
void shutdown_begin(void);

/* Has the end begun, by whatever cause?  nbdkit itself may not know yet.  From any thread. */
bool shutdown_has_begun(void);

/* When nbdkit's clients have left.  Does nothing if not started. */
void shutdown_stop(void);

#endif
