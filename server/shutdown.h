/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of the server while clients are connected.
 *
 * nbdkit waits for its clients at the end, for an idle one for ever; a supervisor then
 * kills it, and what wasn't flushed is lost.  Here the end takes about a second:
 *
 *   1. at the signal: jobs are cancelled; nbdkit answers ESHUTDOWN to new requests;
 *   2. when the requests under way are answered, or after SHUTDOWN_GRACE_MS: each client's
 *      connection gives nbdkit an end of file, upon which it ends in order;
 *   3. requests still under way read from a server that doesn't answer: it is let go of;
 *   4. a client that doesn't take its replies keeps a thread of nbdkit for ever: when no
 *      request was under way for SHUTDOWN_PATIENCE_MS the images are closed here, and the
 *      process ends.
 *
 * nbdkit (up to 1.32 at least) tells a plugin neither of the signal nor which sockets are
 * its clients'; see shutdown.c for how both are found.
 *
 * Threads: start and stop on the main thread, begin from any and from signal handlers.
 * Layer: server. */
#ifndef SERVER_SHUTDOWN_H
#define SERVER_SHUTDOWN_H

#include <stdbool.h>

#include "base/compiler.h"

struct export_table;

#define SHUTDOWN_GRACE_MS    500
#define SHUTDOWN_PATIENCE_MS 2000

/* What the server does at the steps; called on the thread of this file, once each. */
struct shutdown_steps {
    struct export_table *exports; /* whose requests and servers 2 and 3 are about */
    void (*begin)(void *opaque);  /* 1: must not wait */
    void (*close)(
        void *opaque); /* 4: ends cleanly; requests that come later never return */
    void *opaque;
    const char
        *own_socket; /* path of a Unix socket whose clients aren't nbdkit's; or NULL */
};

/* After the fork; once in a process, for its signal handlers are one.  0 or -errno. */
int shutdown_start(const struct shutdown_steps *steps) MUST_USE;

/* The end has come otherwise than by a signal. */
void shutdown_begin(void);

/* Whoever began it; nbdkit doesn't know before.  From any thread. */
bool shutdown_has_begun(void);

/* When nbdkit's clients have left; harmless when not started. */
void shutdown_stop(void);

#endif
