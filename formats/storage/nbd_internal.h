/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by the parts of the NBD store.
 *
 *   nbd.c            open, close, and the public functions
 *   nbd_io.c         the storage interface: any alignment on top of the export's blocks
 *   nbd_loop.c       the driver: queue, connections, timeouts, completions
 *   nbd_link.c       one connection: one libnbd handle
 *   nbd_reconnect.c  making connections, losing them, and making them again
 *   nbd_self.c       detects that the server is this process
 *   nbd_uri.c        parsing of export names; nbd_uri_print.c: printing them
 *   nbd_tls.c        the keys that a connection uses
 *   nbd_library.c    libnbd, loaded when it is first needed
 *
 * A request passes through these lists: `incoming` (under lock) -> `waiting` for a connection
 * -> link->in_flight -> `finished` -> its callback; or from `finished` back to `waiting` while
 * there are parts left.
 *
 * Only the driver uses links and the lists other than `incoming`. The role of the driver passes
 * from thread to thread under `lock`. Private to this folder. */
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

#define NBD_BACKOFF_MIN 100u /* ms; doubled after each attempt that fails */
#define NBD_BACKOFF_MAX 1000u

struct nbd_storage;

enum nbd_link_state { LINK_DOWN, LINK_CONNECTING, LINK_READY };

struct nbd_link {
    struct nbd_storage *owner;
    enum nbd_link_state state;
    bool was_up;               /* it has been LINK_READY before */
    struct nbd_handle *handle; /* NULL: LINK_DOWN */
    struct list in_flight;     /* struct nbd_request.link, by deadline */
    unsigned n_in_flight;
    /* Not 0: it is being closed, and requests in flight end with this error. */
    int drop_err;
    uint64_t deadline_ms; /* LINK_CONNECTING */
    uint64_t retry_ms;    /* LINK_DOWN: no attempt before this time */
    unsigned backoff_ms;
};

struct nbd_storage {
    struct storage st;
    struct nbd_uri uri;
    struct nbd_open how; /* with defaults filled in */
    struct nbd_info info;
    unsigned n_links;
    /* The server's address, as the host's name resolved at open; peer_len 0: libnbd looks it
     * up. */
    struct sockaddr_storage peer;
    socklen_t peer_len;
    struct range_lock blocks; /* for read-modify-write, against other synchronous writers */
    int wake_fd;
    _Atomic bool aborted, connected;
    const _Atomic bool *_Atomic give_up;
    /* How long a request waits for attempts to connect; is it sent again after a lost
     * connection? */
    _Atomic unsigned reconnect_ms;
    _Atomic bool persists;
    _Atomic uint64_t losses;

    struct lock lock;
    /* under lock */
    struct list incoming; /* struct nbd_request.link */
    /* struct sync_call.link: waiting callers, each of which can become the driver */
    struct list callers;
    bool driven; /* a thread is the driver */
    bool has_thread, stop;
    pthread_t thread;
    pthread_cond_t driver_left; /* signalled to the thread */

    /* used by the driver only */
    struct list waiting, finished; /* struct nbd_request.link; waiting: by deadline */
    struct nbd_link links[NBD_MAX_CONNECTIONS];
    /* Changes that ended; the first `flushed` of them are durable. */
    uint64_t changes, flushed;
    bool unreported_loss; /* the next flush must fail */
    bool mismatch_reported;
};

static inline struct nbd_storage *nbd_of(struct storage *st)
{
    return CONTAINER_OF(st, struct nbd_storage, st);
}

/* The meta context for NBD_STATUS. */
static inline const char *nbd_context(const struct nbd_uri *uri)
{
    return uri->context ? uri->context : LIBNBD_CONTEXT_BASE_ALLOCATION;
}

/* Must the server's certificate have another name than libnbd expects by itself? */
static inline bool nbd_needs_hostname(const struct nbd_uri *uri)
{
    return uri->keys.hostname && (!uri->host || strcmp(uri->keys.hostname, uri->host) != 0);
}

/* ---- nbd_link.c; called by the driver ---- */

/* Starts to connect.  It ends with LINK_READY, or later with an error of nbd_link_event.
 * Returns 0 or -errno. */
int nbd_link_begin(struct nbd_link *link, struct diag *diag);

/* What to poll for: returns the events, and the socket in *fd. */
short nbd_link_wants(struct nbd_link *link, int *fd);

/* Lets libnbd handle what poll returned.  -errno: the connection or the attempt has failed;
 * call nbd_link_drop. */
int nbd_link_event(struct nbd_link *link, short revents, struct diag *diag) MUST_USE;

/* Reads what the server says about its export.  Returns 0 or -errno with diag. */
int nbd_link_describe(struct nbd_link *link, struct nbd_info *info,
                      struct diag *diag) MUST_USE;

/* Sends one part of a request.  Afterwards it is in flight or, if it could not be queued, in
 * owner->finished with its error. */
void nbd_link_issue(struct nbd_link *link, struct nbd_request *req);

/* Closes the connection at once; everything in flight ends with err. */
void nbd_link_drop(struct nbd_link *link, int err);

/* Disconnects in order, within a limited time, and closes the connection. */
void nbd_link_close(struct nbd_link *link);

/* ---- nbd_reconnect.c; called by the driver ---- */

unsigned nbd_count_links(const struct nbd_storage *nbd, enum nbd_link_state state);

/* May another attempt be made, at retry_ms or later? */
bool nbd_link_may_start(const struct nbd_link *link);

/* Starts an attempt to connect, if one is allowed now and none is in progress. */
void nbd_connect_one(struct nbd_storage *nbd);

/* Handles what poll returned for a link (0: only checks its state), and the result: that it
 * became ready, or failed. */
void nbd_link_act(struct nbd_link *link, short revents);

/* Handles the end of a connection or of an attempt.  err: the error of requests in flight. */
void nbd_link_lost(struct nbd_link *link, int err, const struct diag *diag);

/* ---- nbd_self.c ---- */

/* fd is connected to a server: is it this process? */
bool nbd_peer_is_self(int fd);

/* ---- nbd_loop.c ---- */

/* Ends a request that is queued and not in flight; its callback is called later. */
void nbd_finish(struct nbd_storage *nbd, struct nbd_request *req, int err);
void nbd_fail_waiting(struct nbd_storage *nbd, int err);

/* Has the opener set give_up? */
bool nbd_given_up(struct nbd_storage *nbd);
/* How often give_up is looked at, in ms. */
#define NBD_LOOK_MS 100

/* How long the request may wait for one answer, in ms. */
unsigned nbd_patience_ms(const struct nbd_storage *nbd, const struct nbd_request *req);

/* Waits for events, at most until the nearest deadline, and handles everything that is due.
 * Driver only. */
void nbd_loop_turn(struct nbd_storage *nbd);

/* Fails all requests and ends all connections.  Driver only. */
void nbd_loop_end(struct nbd_storage *nbd);

/* Queues a request that was checked. */
void nbd_loop_enqueue(struct nbd_storage *nbd, struct nbd_request *req);

/* Wakes the driver. */
void nbd_loop_wake(struct nbd_storage *nbd);

/* ---- nbd.c ---- */

/* Can the export do this request?  Returns 0 or an error of storage_nbd_submit. */
int nbd_check_request(struct nbd_storage *nbd, const struct nbd_request *req) MUST_USE;

/* Submits a request and waits for it; this thread is the driver if no other is. */
int nbd_call(struct nbd_storage *nbd, struct nbd_request *req) MUST_USE;

/* ---- nbd_io.c ---- */

extern const struct storage_ops nbd_ops;

void nbd_close_storage(struct storage *st); /* in nbd.c */

#endif
