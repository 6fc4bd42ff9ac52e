/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that is another server's NBD export.
 *
 * Synchronous use is that of storage.h.  Beside it there are asynchronous requests, many in
 * flight, for who copies.
 *
 * Who does the I/O.  libnbd starts no threads: somebody has to wait for its sockets, the
 * *driver*.  Before the first storage_nbd_start or storage_nbd_submit the driver is
 * whichever caller waits for an answer, so that a server can open (and read) before it
 * forks. Afterwards it is one thread of the store's own.
 *
 * Connections.  One, or more where the export says that a flush on one covers all
 * (multi-conn); the others are made in the background when the first is busy, and are never
 * missed.  A connection that dies fails what was in flight on it: -EIO, for nobody knows
 * whether it was done.  A request that meets no connection starts a new one and waits for
 * it; when that fails: -ENOTCONN, and nothing was done.  Attempts are at least 100 ms
 * apart.  An export that came back with another size, read-only or with less ability than
 * before isn't taken (each attempt fails).
 *
 * Time.  Nothing waits longer than timeout_ms for one answer: -ETIMEDOUT, and the
 * connection is given up with everything in flight on it.  (But: the name of an nbds://
 * host is looked up anew for each connection, and libnbd waits for the resolver.  nbd://
 * looks it up once, at open.)  A request larger than the export allows goes in parts, each
 * with its own time.
 *
 * Lost writes.  A server that went away may have forgotten what it was not told to flush.
 * So after a connection was lost with unflushed writes the next flush fails with -EIO,
 * once, and storage_nbd_losses counts up: what was written since the last successful flush
 * must be written again by whoever still has it.
 *
 * Threads: every function from any thread at once, but not storage_close (nothing may be in
 * flight, or it is failed) and not, from a completion callback, anything but
 * storage_nbd_submit, storage_nbd_abort and what only looks.  Layer: storage. */
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
    bool read_only;        /* false: an export that is read-only is refused with -EROFS */
    bool no_reconnect;     /* a connection that is lost stays lost */
    unsigned timeout_ms;   /* for one answer; 0: the default */
    unsigned connect_ms;   /* for a connection; 0, or more than that: as long */
    unsigned reconnect_ms; /* how long a request lets attempts go on, at most timeout_ms; 0:
                              one attempt */
    unsigned connections;  /* at most so many, 1..NBD_MAX_CONNECTIONS; 0: 1 */
    enum nbd_uri_origin origin;
    /* Until storage_nbd_start: set by another thread when nobody waits for the export any
     * more, which then fails what is asked of it with -ECANCELED.  NULL: nobody will. */
    const _Atomic bool *give_up;
};

/* What the server said of its export; doesn't change. */
struct nbd_info {
    uint64_t size;
    uint32_t min_block; /* power of two; asynchronous requests must be aligned to it */
    uint32_t preferred_block; /* power of two, at least 512; 0: the server didn't say */
    uint32_t max_block;       /* bytes of data in one request; multiple of min_block */
    bool read_only, can_flush, can_fua, can_zero, can_fast_zero, can_trim, can_cache;
    bool multi_conn;
    bool has_status; /* base:allocation */
    bool is_self;    /* the server is this process (of the first connection) */
};

/* Connects, negotiates and validates; starts no thread.  On success *out is the caller's.
 */
int storage_open_nbd(const char *uri, const struct nbd_open *how, struct storage **out,
                     struct diag *diag) MUST_USE;

bool storage_is_nbd(const struct storage *st);

/* ---- for a store that storage_open_nbd returned ---- */

const struct nbd_info *storage_nbd_info(const struct storage *st);

/* Starts the driver's thread, which from then on also notices a lost connection when
 * nothing is asked. To be called after the fork.  Forgets `give_up`.  Again: nothing.  0 or
 * -errno. */
int storage_nbd_start(struct storage *st) MUST_USE;

/* How often a connection was lost while writes were unflushed. */
uint64_t storage_nbd_losses(const struct storage *st);

/* Asks the server for something that it can't leave to anybody else, and waits for the
 * answer, timeout_ms at most: 0 when there is a server that serves the export, else
 * -errno.  A flush alone doesn't tell: with nothing to flush it may be answered here.
 * by_reading: and it can be read from, which isn't asked otherwise where it needn't be. */
int storage_nbd_prove(struct storage *st, bool by_reading, unsigned timeout_ms) MUST_USE;

/* Somebody is served from the store from now on, who can do nothing about a connection that
 * was lost: requests wait up to patience_ms for another, and what was in flight is asked
 * again there.  That is harmless, for nobody was answered.  But a flush tells, once, of
 * what the server may have forgotten. */
void storage_nbd_persist(struct storage *st, unsigned patience_ms);

/* For good: fails everything in flight, and all later requests, with -ECANCELED.  Returns
 * at once; those who wait are told by the driver. */
void storage_nbd_abort(struct storage *st);

/* ---- asynchronous requests ---- */

enum nbd_op { NBD_READ, NBD_WRITE, NBD_ZERO, NBD_TRIM, NBD_FLUSH, NBD_CACHE, NBD_STATUS };

/* One run of NBD_STATUS. */
struct nbd_run {
    uint64_t length;
    bool hole; /* not allocated */
    bool zero; /* reads as zeroes */
};

/* Owned by the caller, who fills the first part and leaves it alone until `done` was
 * called. */
struct nbd_request {
    enum nbd_op op;
    /* STORAGE_FUA (write, zero, trim), STORAGE_MAY_UNMAP and STORAGE_FAST (zero) */
    unsigned flags;
    /* Inside the export, len not 0, both multiples of min_block; ignored by NBD_FLUSH. */
    uint64_t off, len;
    void *buf; /* NBD_READ: filled; NBD_WRITE: unchanged */
    /* NBD_STATUS: filled in from off on, as far as the server told: at least one run, at
     * most `len` bytes.  Without base:allocation one run of data. */
    struct nbd_run *runs;
    unsigned max_runs, n_runs;
    unsigned timeout_ms; /* for one answer; 0, or more than the store's: as that */
    /* Called once, on the driver's thread, without locks; may free the request.  err: 0 or
     * -errno, where a read or write has then been done in part. */
    void (*done)(struct nbd_request *req, int err);
    void *opaque;

    /* private */
    struct list link;
    struct nbd_link *on;  /* the connection it is in flight on */
    uint64_t next, piece; /* what is being asked: [next, next+piece) */
    uint64_t covers;      /* NBD_FLUSH: changes that ended before it was sent */
    uint64_t deadline_ms, give_up_ms;
    bool flushing; /* FUA by a flush that follows */
    bool lost;     /* with its connection */
    int err;
};

/* Queues a request; starts the thread when there is none.  0: `done` will be called.  Else
 * it never is: -EINVAL (range, alignment, flags), -EROFS, -ENOTSUP (NBD_ZERO where the
 * export can't zero, or not fast; NBD_TRIM, NBD_CACHE), -ECANCELED (aborted), -errno (no
 * thread). */
int storage_nbd_submit(struct storage *st, struct nbd_request *req) MUST_USE;

#endif
