/* The driver: who waits for the sockets, and what happens when they, or a clock, say so. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "storage/nbd_internal.h"

uint64_t nbd_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct nbd_request *first(struct list *head)
{
    return list_empty(head) ? NULL : CONTAINER_OF(head->next, struct nbd_request, link);
}

/* Queued, and not in flight. */
static void finish(struct nbd_storage *nbd, struct nbd_request *req, int err)
{
    req->err = err;
    list_remove(&req->link);
    list_append(&nbd->finished, &req->link);
}

static void fail_waiting(struct nbd_storage *nbd, int err)
{
    for (struct nbd_request *req; (req = first(&nbd->waiting));)
        finish(nbd, req, err);
}

/* ---- the queue ---- */

void nbd_loop_wake(struct nbd_storage *nbd)
{
    const uint64_t one = 1;

    /* Can fail only when it is full, and then somebody is about to look. */
    ssize_t n = write(nbd->wake_fd, &one, sizeof one);
    (void)n;
}

void nbd_loop_enqueue(struct nbd_storage *nbd, struct nbd_request *req)
{
    lock_assert_held(&nbd->lock);
    uint64_t now = nbd_now_ms();
    req->on = NULL;
    req->next = req->off;
    req->covers = 0;
    req->flushing = false;
    req->err = 0;
    req->n_runs = 0;
    req->deadline_ms = now + nbd->how.timeout_ms;
    req->give_up_ms = now + nbd->how.reconnect_ms;
    bool was_empty = list_empty(&nbd->incoming);
    list_append(&nbd->incoming, &req->link);
    if (was_empty)
        nbd_loop_wake(nbd);
}

static void take_incoming(struct nbd_storage *nbd)
{
    LOCK_GUARD(&nbd->lock);

    LIST_FOR_EACH_SAFE(pos, &nbd->incoming)
    {
        list_remove(pos);
        list_append(&nbd->waiting, pos);
    }
}

/* ---- connections that come and go ---- */

static unsigned count_links(const struct nbd_storage *nbd, enum nbd_link_state state)
{
    unsigned n = 0;

    for (unsigned i = 0; i < nbd->n_links; i++)
        n += nbd->links[i].state == state;
    return n;
}

/* What the server may have forgotten is told by the next flush. */
static void note_loss(struct nbd_storage *nbd)
{
    if (nbd->changes == nbd->flushed)
        return;
    nbd->flushed = nbd->changes;
    nbd->forgot = true;
    atomic_fetch_add(&nbd->losses, 1);
}

/* An attempt failed and nobody else is trying: who has waited long enough gives up. */
static void give_up(struct nbd_storage *nbd)
{
    uint64_t now = nbd_now_ms();

    if (count_links(nbd, LINK_DOWN) < nbd->n_links)
        return;
    LIST_FOR_EACH_SAFE(pos, &nbd->waiting)
    {
        struct nbd_request *req = CONTAINER_OF(pos, struct nbd_request, link);
        if (req->give_up_ms <= now)
            finish(nbd, req, -ENOTCONN);
    }
}

/* err: what becomes of the requests in flight. */
static void lost(struct nbd_link *link, int err, const struct diag *diag)
{
    struct nbd_storage *nbd = link->owner;
    bool was_ready = link->state == LINK_READY;

    if (link->handle)
        nbd_link_drop(link, err);
    if (was_ready) {
        note_loss(nbd);
        log_warning("%s: connection lost", diag->text);
    } else {
        log_debug("%s: no connection", diag->text);
        give_up(nbd);
    }
}

/* Is what came back what went away?  NULL, or what isn't. */
static const char *difference(const struct nbd_storage *nbd, const struct nbd_info *now)
{
    const struct nbd_info *was = &nbd->info;

    if (now->size != was->size)
        return "its size";
    if (now->read_only && !nbd->st.read_only)
        return "that it can be written";
    if (now->min_block > was->min_block || now->max_block < was->max_block)
        return "its block sizes";
    if (now->multi_conn < (nbd->n_links > 1))
        return "that it takes several connections";
    bool less = now->can_flush < was->can_flush || now->can_fua < was->can_fua ||
                now->can_zero < was->can_zero || now->can_fast_zero < was->can_fast_zero ||
                now->can_trim < was->can_trim || now->can_cache < was->can_cache ||
                now->has_status < was->has_status;
    return less ? "what it can do" : NULL;
}

/* A connection has just been made. */
static int welcome(struct nbd_link *link, struct diag *diag)
{
    struct nbd_storage *nbd = link->owner;
    struct nbd_info info;

    int err = nbd_link_describe(link, &info, diag);
    const char *what = err ? NULL : difference(nbd, &info);
    if (what)
        err = diag_set(diag, ESTALE, "%s: the export came back and lost %s", nbd->st.name,
                       what);
    if (err && !nbd->told_of_mismatch)
        log_error("%s", diag->text);
    nbd->told_of_mismatch = err != 0;
    if (err)
        link->state = LINK_CONNECTING; /* it never was ready */
    else
        link->was_up = true;
    return err;
}

static void act_on(struct nbd_link *link, short revents)
{
    bool was_connecting = link->state == LINK_CONNECTING;
    struct diag diag = {0};

    int err = nbd_link_event(link, revents, &diag);
    if (!err && was_connecting && link->state == LINK_READY)
        err = welcome(link, &diag);
    if (err)
        lost(link, -EIO, &diag);
}

static bool may_start(const struct nbd_link *link)
{
    return link->state == LINK_DOWN && !(link->owner->how.no_reconnect && link->was_up);
}

/* One attempt at a time. */
static void connect_one(struct nbd_storage *nbd)
{
    uint64_t now = nbd_now_ms();
    bool possible = false;

    if (count_links(nbd, LINK_CONNECTING) > 0)
        return;
    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        possible |= may_start(link) || link->state == LINK_READY;
        if (!may_start(link) || link->retry_ms > now)
            continue;
        struct diag diag = {0};
        int err = nbd_link_begin(link, &diag);
        if (err)
            lost(link, -EIO, &diag);
        else
            act_on(link, 0);
        return;
    }
    if (!possible)
        fail_waiting(nbd, -ENOTCONN);
}

/* ---- requests ---- */

static struct nbd_link *idlest(struct nbd_storage *nbd)
{
    struct nbd_link *best = NULL;

    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        if (link->state == LINK_READY && (!best || link->n_in_flight < best->n_in_flight))
            best = link;
    }
    return best;
}

/* What needs no server.  True when that was so. */
static bool answer_here(struct nbd_storage *nbd, struct nbd_request *req)
{
    bool flush = req->op == NBD_FLUSH || req->flushing;

    if (flush && nbd->forgot) {
        /* A write's own flush doesn't use up what the next flush must tell. */
        nbd->forgot = req->flushing;
        finish(nbd, req, -EIO);
        return true;
    }
    if (flush && !nbd->info.can_flush) {
        finish(nbd, req, 0);
        return true;
    }
    if (req->op == NBD_STATUS && !nbd->info.has_status) {
        req->runs[0] = (struct nbd_run){.length = req->len};
        req->n_runs = 1;
        finish(nbd, req, 0);
        return true;
    }
    return false;
}

static void dispatch(struct nbd_storage *nbd)
{
    struct nbd_link *link = idlest(nbd);
    bool busy = false;

    for (struct nbd_request *req; (req = first(&nbd->waiting));) {
        if (answer_here(nbd, req))
            continue;
        if (!link)
            break;
        busy |= link->n_in_flight > 0;
        list_remove(&req->link);
        nbd_link_issue(link, req);
        act_on(link, 0); /* it may have died of it */
        link = idlest(nbd);
    }
    if (busy || !list_empty(&nbd->waiting))
        connect_one(nbd);
}

/* Books what a part that succeeded did. */
static void note_success(struct nbd_storage *nbd, struct nbd_request *req)
{
    bool change = req->op == NBD_WRITE || req->op == NBD_ZERO || req->op == NBD_TRIM;
    bool durable = (req->flags & STORAGE_FUA) && nbd->info.can_fua;

    if (req->on)
        req->on->backoff_ms = NBD_BACKOFF_MIN;
    if (req->op == NBD_FLUSH || req->flushing)
        nbd->flushed = MAX(nbd->flushed, req->covers);
    else if (change && !durable)
        nbd->changes++;
}

/* Is there another part?  Then it's in `next` and `flushing`. */
static bool advance(struct nbd_storage *nbd, struct nbd_request *req)
{
    if (req->op == NBD_FLUSH || req->op == NBD_STATUS || req->flushing)
        return false;
    req->next += req->piece;
    if (req->next < req->off + req->len)
        return true;
    req->flushing = (req->flags & STORAGE_FUA) && !nbd->info.can_fua;
    return req->flushing;
}

/* Takes it out of `finished`: back to `waiting`, or to its owner. */
static void settle(struct nbd_storage *nbd, struct nbd_request *req)
{
    list_remove(&req->link);
    if (!req->err) {
        note_success(nbd, req);
        if (advance(nbd, req)) {
            req->deadline_ms = nbd_now_ms() + nbd->how.timeout_ms;
            list_append(&nbd->waiting, &req->link);
            return;
        }
        if (req->op == NBD_STATUS && req->n_runs == 0)
            req->err = -EIO; /* an answer without a word */
    }
    req->done(req, req->err);
}

static bool settle_all(struct nbd_storage *nbd)
{
    bool any = false;

    for (struct nbd_request *req; (req = first(&nbd->finished)); any = true)
        settle(nbd, req);
    return any;
}

/* ---- time ---- */

static bool overdue(struct list *head, uint64_t now)
{
    struct nbd_request *req = first(head);

    return req && req->deadline_ms <= now;
}

static void expire(struct nbd_storage *nbd)
{
    uint64_t now = nbd_now_ms();
    struct diag diag = {0};

    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        if ((link->state == LINK_CONNECTING && link->deadline_ms <= now) ||
            overdue(&link->in_flight, now)) {
            diag_errno(&diag, ETIMEDOUT, "%s: no answer for %u ms", nbd->st.name,
                       nbd->how.timeout_ms);
            lost(link, -ETIMEDOUT, &diag);
        }
    }
    while (overdue(&nbd->waiting, now))
        finish(nbd, first(&nbd->waiting), -ETIMEDOUT);
}

static uint64_t earlier(struct list *head, uint64_t than)
{
    struct nbd_request *req = first(head);

    return req ? MIN(req->deadline_ms, than) : than;
}

/* For poll: how long nothing can happen by itself. */
static int quiet_ms(struct nbd_storage *nbd)
{
    uint64_t nearest = earlier(&nbd->waiting, UINT64_MAX), now = nbd_now_ms();
    bool attempts = !list_empty(&nbd->waiting) && idlest(nbd) == NULL &&
                    count_links(nbd, LINK_CONNECTING) == 0;

    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        nearest = earlier(&link->in_flight, nearest);
        if (link->state == LINK_CONNECTING)
            nearest = MIN(nearest, link->deadline_ms);
        if (attempts && may_start(link))
            nearest = MIN(nearest, link->retry_ms);
    }
    if (nearest == UINT64_MAX)
        return -1;
    return nearest <= now ? 0 : (int)MIN(nearest - now, INT_MAX);
}

/* ---- one turn ---- */

static void wait_for_events(struct nbd_storage *nbd)
{
    struct pollfd fds[1 + NBD_MAX_CONNECTIONS];
    uint64_t ignored;

    fds[0] = (struct pollfd){.fd = nbd->wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < nbd->n_links; i++) {
        int fd;
        short events = nbd_link_wants(&nbd->links[i], &fd);
        /* poll passes over negative ones; one that wants nothing could only make it spin.
         */
        fds[1 + i] = (struct pollfd){.fd = events ? fd : -1, .events = events};
    }
    int n = poll(fds, 1 + nbd->n_links, quiet_ms(nbd));
    if (n <= 0) /* time, or a signal */
        return;
    if (fds[0].revents) {
        ssize_t got = read(nbd->wake_fd, &ignored, sizeof ignored);
        (void)got;
    }
    for (unsigned i = 0; i < nbd->n_links; i++)
        if (fds[1 + i].revents)
            act_on(&nbd->links[i], fds[1 + i].revents);
}

static void end_all(struct nbd_storage *nbd)
{
    for (unsigned i = 0; i < nbd->n_links; i++)
        if (nbd->links[i].handle)
            nbd_link_drop(&nbd->links[i], -ECANCELED);
    fail_waiting(nbd, -ECANCELED);
}

void nbd_loop_turn(struct nbd_storage *nbd)
{
    wait_for_events(nbd);
    take_incoming(nbd);
    if (atomic_load(&nbd->aborted))
        end_all(nbd);
    else
        expire(nbd);
    do {
        if (!atomic_load(&nbd->aborted))
            dispatch(nbd);
        /* Who is told of a failure may ask. */
        atomic_store(&nbd->connected, count_links(nbd, LINK_READY) > 0);
    } while (settle_all(nbd));
}

void nbd_loop_end(struct nbd_storage *nbd)
{
    for (unsigned i = 0; i < nbd->n_links; i++)
        if (nbd->links[i].handle)
            nbd_link_close(&nbd->links[i]);
    atomic_store(&nbd->aborted, true);
    do {
        take_incoming(nbd);
        end_all(nbd);
    } while (settle_all(nbd));
    atomic_store(&nbd->connected, false);
}
