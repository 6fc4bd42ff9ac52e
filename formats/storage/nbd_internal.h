/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the NBD store share.
 *
 *   nbd.c            open, close, and the public functions
 *   nbd_io.c         the storage interface: any alignment onto the export's blocks
 *   nbd_loop.c       the driver: queue, connections, timeouts, completions
 *   nbd_link.c       one connection: one libnbd handle
 *   nbd_reconnect.c  connections that are made, lost, and made again
 *   nbd_self.c       whether this process is the server
 *   nbd_uri.c        names of exports taken apart; nbd_uri_print.c: put together
 *   nbd_tls.c        which keys a connection takes
 *   nbd_library.c    libnbd, loaded when it is needed first
 *
 * Way of a request: `incoming` (under lock) -> `waiting` for a connection ->
 * link->in_flight -> `finished` -> its callback; and back to `waiting` while there are
 * parts left.
 *
 * Only the driver touches a link or a list other than `incoming`: the role passes from
 * thread to thread under `lock`.  Private to this folder. */
#ifndef STORAGE_NBD_INTERNAL_H
#define STORAGE_NBD_INTERNAL_H

#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>

#include "base/lock.h"
#include "base/range_lock.h"
#include "storage/nbd.h"
#include "storage/nbd_library.h"

#define NBD_BACKOFF_MIN 100u /* ms, doubled with each attempt that fails */
#define NBD_BACKOFF_MAX 1000u

struct nbd_storage;

enum nbd_link_state { LINK_DOWN, LINK_CONNECTING, LINK_READY };

struct nbd_link {
    struct nbd_storage *owner;
    enum nbd_link_state state;
    bool was_up;
    struct nbd_handle *handle; /* NULL: LINK_DOWN */
    struct list in_flight;     /* struct nbd_request.link, by deadline */
    unsigned n_in_flight;
    int drop_err; /* not 0: it is being ended, and this becomes of what is in flight */
    uint64_t deadline_ms; /* LINK_CONNECTING */
    uint64_t retry_ms;    /* LINK_DOWN: no attempt before */
    unsigned backoff_ms;
};

struct nbd_storage {
    struct storage st;
    struct nbd_uri uri;
    struct nbd_open how; /* with defaults filled in */
    struct nbd_info info;
    unsigned n_links;
    /* Whom the host's name meant at open; peer_len 0: ask libnbd to look it up. */
    struct sockaddr_storage peer;
    socklen_t peer_len;
    struct range_lock blocks; /* read-modify-write against other synchronous writers */
    int wake_fd;
    _Atomic bool aborted, connected;
    const _Atomic bool *_Atomic give_up;
    /* How long a request lets attempts go on; and does it survive its connection? */
    _Atomic unsigned reconnect_ms;
    _Atomic bool persists;
    _Atomic uint64_t losses;

    struct lock lock;
    /* under lock */
    struct list incoming; /* struct nbd_request.link */
    struct list callers;  /* struct sync_call.link: who waits, and could drive */
    bool driven;          /* somebody is the driver */
    bool has_thread, stop;
    pthread_t thread;
    pthread_cond_t driver_left; /* for the thread */

    /* the driver's */
    struct list waiting, finished; /* struct nbd_request.link; waiting: by deadline */
    struct nbd_link links[NBD_MAX_CONNECTIONS];
    uint64_t changes, flushed; /* changes that ended; how many of them are durable */
    bool unreported_loss;      /* the next flush must fail */
    bool mismatch_reported;
};

static inline struct nbd_storage *nbd_of(struct storage *st)
{
    return CONTAINER_OF(st, struct nbd_storage, st);
}

/* The meta context whose runs NBD_STATUS tells. */
static inline const char *nbd_context(const struct nbd_uri *uri)
{
    return uri->context ? uri->context : LIBNBD_CONTEXT_BASE_ALLOCATION;
}

/* Does the server's certificate have to have another name than the one that libnbd expects? */
static inline bool nbd_needs_hostname(const struct nbd_uri *uri)
{
    return uri->keys.hostname && (!uri->host || strcmp(uri->keys.hostname, uri->host) != 0);
}

/* ---- nbd_link.c; by the driver ---- */

/* Starts a connection, which ends in LINK_READY or, some time later, in an error of
 * nbd_link_event.  0 or -errno. */
int nbd_link_begin(struct nbd_link *link, struct diag *diag);

/* What to wait for: events to poll for, and the socket at *fd. */
short nbd_link_wants(struct nbd_link *link, int *fd);

/* Lets libnbd act on what poll returned.  -errno when the connection, or the attempt, is
 * lost: to be followed by nbd_link_drop. */
int nbd_link_event(struct nbd_link *link, short revents, struct diag *diag) MUST_USE;

/* Reads what the server said about its export.  0 or -errno with diag. */
int nbd_link_describe(struct nbd_link *link, struct nbd_info *info,
                      struct diag *diag) MUST_USE;

/* Sends one part of a request: it is now in flight, or, when it could not even be queued,
 * in owner->finished with its error. */
void nbd_link_issue(struct nbd_link *link, struct nbd_request *req);

/* Ends the connection at once; everything in flight is finished with err. */
void nbd_link_drop(struct nbd_link *link, int err);

/* Says good-bye to a server that listens, in bounded time, and ends the connection. */
void nbd_link_close(struct nbd_link *link);

/* ---- nbd_reconnect.c; by the driver ---- */

unsigned nbd_count_links(const struct nbd_storage *nbd, enum nbd_link_state state);

/* May another attempt be made, at retry_ms or later? */
bool nbd_link_may_start(const struct nbd_link *link);

/* Starts an attempt, where one may be made now and none is under way. */
void nbd_connect_one(struct nbd_storage *nbd);

/* Lets a link act on what poll returned (0: only looks at its state), and on what comes of
 * it: it's ready, or lost. */
void nbd_link_act(struct nbd_link *link, short revents);

/* A connection, or an attempt, has ended.  err: what becomes of requests in flight. */
void nbd_link_lost(struct nbd_link *link, int err, const struct diag *diag);

/* ---- nbd_self.c ---- */

/* fd is connected to a server: is that this process? */
bool nbd_peer_is_self(int fd);

/* ---- nbd_loop.c ---- */

/* Ends a request that is queued and not in flight; its callback comes later. */
void nbd_finish(struct nbd_storage *nbd, struct nbd_request *req, int err);
void nbd_fail_waiting(struct nbd_storage *nbd, int err);

/* Has whoever opens the store given it up? */
bool nbd_given_up(struct nbd_storage *nbd);
/* How often that is looked at. */
#define NBD_LOOK_MS 100

/* How long the request may wait for one answer. */
unsigned nbd_patience_ms(const struct nbd_storage *nbd, const struct nbd_request *req);

/* Waits, at most until the nearest deadline, and does all there is to do.  Driver only. */
void nbd_loop_turn(struct nbd_storage *nbd);

/* Fails everything there is and ends all connections.  Driver only. */
void nbd_loop_end(struct nbd_storage *nbd);

/* Takes a request whose arguments are right into the queue. */
void nbd_loop_enqueue(struct nbd_storage *nbd, struct nbd_request *req);

/* Makes the driver look up. */
void nbd_loop_wake(struct nbd_storage *nbd);

/* ---- nbd.c ---- */

/* Is the request one the export can take?  0 or as storage_nbd_submit. */
int nbd_check_request(struct nbd_storage *nbd, const struct nbd_request *req) MUST_USE;

/* Makes a request and waits for it, driving where there is no thread. */
int nbd_call(struct nbd_storage *nbd, struct nbd_request *req) MUST_USE;

/* ---- nbd_io.c ---- */

extern const struct storage_ops nbd_ops;

void nbd_close_storage(struct storage *st); /* in nbd.c */

#endif
