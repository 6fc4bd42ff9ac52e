/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that is the NBD export of another server.
 *
 * Besides the synchronous functions of storage.h there are asynchronous requests, many in
 * flight at a time, for copying.
 *
 * Which thread does the I/O.  libnbd starts no threads: some thread has to wait for its
 * sockets, the *driver*.  Before the first storage_nbd_start or storage_nbd_submit, a caller
 * that waits for an answer is the driver, so that a server can open (and read) before it forks.
 * Afterwards it is a thread of the store's own.
 *
 * Connections.  One, or several if the export says that a flush on one covers all of them
 * (multi-conn).  The others are made in the background when the first is busy; the store also
 * works without them.  When a connection is lost, the requests in flight on it fail with -EIO:
 * it is unknown whether they were done.  A request that finds no connection starts a new one
 * and waits for it; if that fails, it returns -ENOTCONN, and nothing was done.  Attempts are at
 * least 100 ms apart.  An export that comes back with another size, read-only or with fewer
 * abilities isn't accepted (each attempt fails).
 *
 * Time.  Nothing waits longer than timeout_ms for one answer: then the request fails with
 * -ETIMEDOUT, and the connection is dropped with everything in flight on it.  (Exception: for
 * nbds:// the host's name is looked up for each connection, and libnbd waits for the resolver.
 * For nbd:// it is looked up once, at open.) A request larger than the export allows is sent in
 * parts, each with its own timeout.
 *
 * Lost writes.  A server that went away may have lost what it was not told to flush.  So after
 * a connection was lost with unflushed writes, the next flush fails with -EIO, once, and
 * storage_nbd_losses increases: whoever still has the data has to write again what was written
 * since the last successful flush.
 *
 * Threads: every function from any thread at once, with two exceptions: storage_close (nothing
 * should be in flight; if it is, it fails); and a completion callback may only call
 * storage_nbd_submit, storage_nbd_abort and functions that return information.  Layer: storage. */
#ifndef STORAGE_NBD_H
#define STORAGE_NBD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "storage/nbd_uri.h"
#include "storage/storage.h"

struct nbd_link;

#define NBD_MAX_CONNECTIONS 4u
#define NBD_DEFAULT_TIMEOUT 30000u /* ms */

/* Zero-initialised: read/write, the default timeout, one connection, reconnects. */
struct nbd_open {
    bool read_only;        /* false: a read-only export is refused with -EROFS */
    bool no_reconnect;     /* a connection that is lost isn't replaced */
    unsigned timeout_ms;   /* for one answer; 0: the default */
    unsigned connect_ms;   /* for connecting; 0, or more than timeout_ms: timeout_ms */
    unsigned reconnect_ms; /* how long a request waits for new attempts to connect, at most
                              timeout_ms; 0: one attempt */
    unsigned connections;  /* the most connections, 1..NBD_MAX_CONNECTIONS; 0: 1 */
    enum nbd_uri_origin origin;
    /* Until storage_nbd_start: another thread sets this when the export isn't wanted any more;
     * then all requests fail with -ECANCELED.  NULL: never. */
    const _Atomic bool *give_up;
};

/* What the server said about its export; doesn't change. */
struct nbd_info {
    uint64_t size;
    uint32_t min_block; /* power of two; asynchronous requests must be aligned to it */
    uint32_t preferred_block; /* power of two, at least 512; 0: the server didn't say */
    uint32_t max_block;       /* most bytes of data in one request; multiple of min_block */
    bool read_only, can_flush, can_fua, can_zero, can_fast_zero, can_trim, can_cache;
    bool multi_conn;
    bool has_status; /* block status is available */
    bool is_self;    /* the server of the first connection is this process */
};

/* Connects, negotiates and validates; starts no thread.  On success the caller owns *out.
 * Returns 0 or -errno. */
int storage_open_nbd(const char *uri, const struct nbd_open *how, struct storage **out,
                     struct diag *diag) MUST_USE;

bool storage_is_nbd(const struct storage *st);

/* ---- for a store that storage_open_nbd returned ---- */

const struct nbd_info *storage_nbd_info(const struct storage *st);

/* Starts the driver's thread, which from then on also notices a lost connection while there are
 * no requests.  To be called after the fork.  Ends the use of `give_up`. Does nothing when
 * called again.  Returns 0 or -errno. */
int storage_nbd_start(struct storage *st) MUST_USE;

/* How often a connection was lost while writes were unflushed. */
uint64_t storage_nbd_losses(const struct storage *st);

/* Checks that a server serves the export, by a request that only the server can answer; waits
 * for the answer, at most timeout_ms.  (A flush doesn't suffice: without unflushed writes it
 * may be answered here.) by_reading: always by a read.  Returns 0 or -errno. */
int storage_nbd_prove(struct storage *st, bool by_reading, unsigned timeout_ms) MUST_USE;

/* From now on the store serves a user that can't handle a lost connection: requests wait up to
 * patience_ms for a new one, and those that were in flight are sent again.  That is safe,
 * because they haven't been answered.  The next flush still reports once that the server may
 * have lost writes. */
void storage_nbd_persist(struct storage *st, unsigned patience_ms);

/* Permanently: fails everything in flight, and all later requests, with -ECANCELED.  Returns at
 * once; the driver tells the waiting callers. */
void storage_nbd_abort(struct storage *st);

/* ---- asynchronous requests ---- */

enum nbd_op { NBD_READ, NBD_WRITE, NBD_ZERO, NBD_TRIM, NBD_FLUSH, NBD_CACHE, NBD_STATUS };

/* One run of NBD_STATUS. */
struct nbd_run {
    uint64_t length;
    bool hole; /* not allocated */
    bool zero; /* reads as zeroes */
};

/* Owned by the caller, who fills in the first part and doesn't touch the request until `done`
 * was called. */
struct nbd_request {
    enum nbd_op op;
    /* STORAGE_FUA (write, zero, trim), STORAGE_MAY_UNMAP and STORAGE_FAST (zero) */
    unsigned flags;
    /* Inside the export, len not 0, both multiples of min_block; ignored by NBD_FLUSH. */
    uint64_t off, len;
    void *buf; /* NBD_READ: filled; NBD_WRITE: unchanged */
    /* NBD_STATUS: filled in from off on, as far as the server's answer goes: at least one run,
     * at most `len` bytes.  Without base:allocation it is one run of data. */
    struct nbd_run *runs;
    unsigned max_runs, n_runs;
    unsigned timeout_ms; /* for one answer; 0, or more than the store's: the store's */
    /* Called once, on the driver's thread, without locks; may free the request.  err: 0 or
     * -errno; after an error a read or write may have been done in part. */
    void (*done)(struct nbd_request *req, int err);
    void *opaque;

    /* private */
    struct list link;
    struct nbd_link *on;  /* the connection it is in flight on */
    uint64_t next, piece; /* the current part: [next, next+piece) */
    uint64_t covers;      /* NBD_FLUSH: changes that had ended when it was sent */
    uint64_t deadline_ms, give_up_ms;
    bool flushing; /* for FUA: the flush after the write is being done */
    bool lost;     /* its connection was lost */
    int err;
};

/* Queues a request; starts the driver's thread if there is none.  Returns 0: `done` will be
 * called.  Otherwise it isn't called: -EINVAL (range, alignment, flags), -EROFS, -ENOTSUP
 * (NBD_ZERO if the export can't zero, or not fast; NBD_TRIM, NBD_CACHE), -ECANCELED (aborted),
 * -errno (no thread). */
int storage_nbd_submit(struct storage *st, struct nbd_request *req) MUST_USE;

#endif
