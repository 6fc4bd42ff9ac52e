/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver: waits for the sockets and handles events and timeouts. */
#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/nbd_internal.h"

static struct nbd_request *first_request(struct list *head)
{
    return list_empty(head) ? NULL : CONTAINER_OF(head->next, struct nbd_request, link);
}

/* The request is queued and not in flight. */
void nbd_finish(struct nbd_storage *nbd, struct nbd_request *req, int err)
{
    req->err = err;
    list_remove(&req->link);
    list_append(&nbd->finished, &req->link);
}

void nbd_fail_waiting(struct nbd_storage *nbd, int err)
{
    for (struct nbd_request *req; (req = first_request(&nbd->waiting));)
        nbd_finish(nbd, req, err);
}

/* ---- the queue ---- */

void nbd_loop_wake(struct nbd_storage *nbd)
{
    const uint64_t one = 1;

    /* Can fail only if the counter is at its maximum; then the driver is about to read it. */
    ssize_t n = write(nbd->wake_fd, &one, sizeof one);
    (void)n;
}

bool nbd_given_up(struct nbd_storage *nbd)
{
    const _Atomic bool *give_up = atomic_load(&nbd->give_up);

    return give_up && atomic_load(give_up);
}

unsigned nbd_patience_ms(const struct nbd_storage *nbd, const struct nbd_request *req)
{
    return req->timeout_ms ? MIN(req->timeout_ms, nbd->how.timeout_ms)
                           : nbd->how.timeout_ms;
}

void nbd_loop_enqueue(struct nbd_storage *nbd, struct nbd_request *req)
{
    lock_assert_held(&nbd->lock);
    uint64_t now = clock_ms();
    req->on = NULL;
    req->next = req->off;
    req->covers = 0;
    req->flushing = false;
    req->err = 0;
    req->n_runs = 0;
    req->deadline_ms = now + nbd_patience_ms(nbd, req);
    req->give_up_ms = now + atomic_load(&nbd->reconnect_ms);
    req->lost = false;
    bool was_empty = list_empty(&nbd->incoming);
    list_append(&nbd->incoming, &req->link);
    if (was_empty)
        nbd_loop_wake(nbd);
}

/* Sorted by deadline; those with the same deadline in order of arrival. */
static void add_waiting(struct nbd_storage *nbd, struct list *pos)
{
    uint64_t deadline = CONTAINER_OF(pos, struct nbd_request, link)->deadline_ms;
    struct list *before = nbd->waiting.prev;

    while (before != &nbd->waiting &&
           CONTAINER_OF(before, struct nbd_request, link)->deadline_ms > deadline)
        before = before->prev;
    list_append(before->next, pos);
}

static void take_incoming(struct nbd_storage *nbd)
{
    LOCK_GUARD(&nbd->lock);

    LIST_FOR_EACH_SAFE (pos, &nbd->incoming) {
        list_remove(pos);
        add_waiting(nbd, pos);
    }
}

/* ---- requests ---- */

static struct nbd_link *find_idlest_link(struct nbd_storage *nbd)
{
    struct nbd_link *best = NULL;

    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        if (link->state == LINK_READY && (!best || link->n_in_flight < best->n_in_flight))
            best = link;
    }
    return best;
}

/* Answers requests that need no server.  Returns true if it did. */
static bool answer_here(struct nbd_storage *nbd, struct nbd_request *req)
{
    bool flush = req->op == NBD_FLUSH || req->flushing;

    if (flush && nbd->unreported_loss) {
        /* The flush of an FUA write doesn't consume the report that the next flush has to give. */
        nbd->unreported_loss = req->flushing;
        nbd_finish(nbd, req, -EIO);
        return true;
    }
    if (flush && !nbd->info.can_flush) {
        nbd_finish(nbd, req, 0);
        return true;
    }
    if (req->op == NBD_STATUS && !nbd->info.has_status) {
        req->runs[0] = (struct nbd_run){.length = req->len};
        req->n_runs = 1;
        nbd_finish(nbd, req, 0);
        return true;
    }
    return false;
}

static void dispatch_waiting(struct nbd_storage *nbd)
{
    struct nbd_link *link = find_idlest_link(nbd);
    bool busy = false;

    for (struct nbd_request *req; (req = first_request(&nbd->waiting));) {
        if (answer_here(nbd, req))
            continue;
        if (!link)
            break;
        busy |= link->n_in_flight > 0;
        list_remove(&req->link);
        nbd_link_issue(link, req);
        nbd_link_act(link, 0); /* the connection may have failed */
        link = find_idlest_link(nbd);
    }
    if (busy || !list_empty(&nbd->waiting))
        nbd_connect_one(nbd);
}

/* Counts what a part that succeeded has done. */
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

/* Is there another part?  If so, sets `next` or `flushing` for it. */
static bool advance_request(struct nbd_storage *nbd, struct nbd_request *req)
{
    if (req->op == NBD_FLUSH || req->op == NBD_STATUS || req->flushing)
        return false;
    req->next += req->piece;
    if (req->next < req->off + req->len)
        return true;
    req->flushing = (req->flags & STORAGE_FUA) && !nbd->info.can_fua;
    return req->flushing;
}

/* If its connection was lost and the store persists, queues it again and returns true. */
static bool requeue_if_lost(struct nbd_storage *nbd, struct nbd_request *req)
{
    uint64_t now = clock_ms();

    if (!req->lost || !atomic_load(&nbd->persists) || atomic_load(&nbd->aborted) ||
        req->deadline_ms <= now)
        return false;
    req->lost = false;
    req->err = 0;
    req->n_runs = 0;
    req->give_up_ms = now + atomic_load(&nbd->reconnect_ms);
    add_waiting(nbd, &req->link);
    return true;
}

/* Removes it from `finished`: back to `waiting`, or done. */
static void end_or_requeue(struct nbd_storage *nbd, struct nbd_request *req)
{
    list_remove(&req->link);
    if (requeue_if_lost(nbd, req))
        return;
    if (!req->err) {
        note_success(nbd, req);
        if (advance_request(nbd, req)) {
            req->deadline_ms = clock_ms() + nbd_patience_ms(nbd, req);
            add_waiting(nbd, &req->link);
            return;
        }
        if (req->op == NBD_STATUS && req->n_runs == 0)
            req->err = -EIO; /* an empty answer */
    }
    req->done(req, req->err);
}

static bool settle_all(struct nbd_storage *nbd)
{
    bool any = false;

    for (struct nbd_request *req; (req = first_request(&nbd->finished)); any = true)
        end_or_requeue(nbd, req);
    return any;
}

/* ---- time ---- */

static bool is_overdue(struct list *head, uint64_t now)
{
    struct nbd_request *req = first_request(head);

    return req && req->deadline_ms <= now;
}

static void expire_overdue(struct nbd_storage *nbd)
{
    uint64_t now = clock_ms();
    struct diag diag = {0};

    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        bool connecting = link->state == LINK_CONNECTING;
        if ((connecting && link->deadline_ms <= now) || is_overdue(&link->in_flight, now)) {
            diag_errno(&diag, ETIMEDOUT, "%s: no answer for %u ms", nbd->st.name,
                       connecting ? nbd->how.connect_ms
                                  : nbd_patience_ms(nbd, first_request(&link->in_flight)));
            nbd_link_lost(link, -ETIMEDOUT, &diag);
        }
    }
    while (is_overdue(&nbd->waiting, now))
        nbd_finish(nbd, first_request(&nbd->waiting), -ETIMEDOUT);
}

static uint64_t earlier_deadline(struct list *head, uint64_t than)
{
    struct nbd_request *req = first_request(head);

    return req ? MIN(req->deadline_ms, than) : than;
}

/* For poll: time in ms until the next deadline or attempt; -1: none. */
static int quiet_ms(struct nbd_storage *nbd)
{
    uint64_t nearest = earlier_deadline(&nbd->waiting, UINT64_MAX), now = clock_ms();
    bool attempts = !list_empty(&nbd->waiting) && find_idlest_link(nbd) == NULL &&
                    nbd_count_links(nbd, LINK_CONNECTING) == 0;

    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        nearest = earlier_deadline(&link->in_flight, nearest);
        if (link->state == LINK_CONNECTING)
            nearest = MIN(nearest, link->deadline_ms);
        if (attempts && nbd_link_may_start(link))
            nearest = MIN(nearest, link->retry_ms);
    }
    if (atomic_load(&nbd->give_up))
        nearest = MIN(nearest, now + NBD_LOOK_MS);
    if (nearest == UINT64_MAX)
        return -1;
    return nearest <= now ? 0 : (int)MIN(nearest - now, INT_MAX);
}

/* ---- one turn ---- */

static void wait_for_events(struct nbd_storage *nbd)
{
    struct pollfd fds[1 + NBD_MAX_CONNECTIONS];
    /* For gcc 14, which can't see the bound. */
    unsigned n_links = MIN(nbd->n_links, NBD_MAX_CONNECTIONS);
    uint64_t ignored;

    fds[0] = (struct pollfd){.fd = nbd->wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < n_links; i++) {
        int fd;
        short events = nbd_link_wants(&nbd->links[i], &fd);
        /* poll ignores negative descriptors.  A link that waits for no event would only make it
         * spin. */
        fds[1 + i] = (struct pollfd){.fd = events ? fd : -1, .events = events};
    }
    int n = poll(fds, 1 + n_links, quiet_ms(nbd));
    if (n <= 0) /* timeout, or a signal */
        return;
    if (fds[0].revents) {
        ssize_t got = read(nbd->wake_fd, &ignored, sizeof ignored);
        (void)got;
    }
    for (unsigned i = 0; i < n_links; i++)
        if (fds[1 + i].revents)
            nbd_link_act(&nbd->links[i], fds[1 + i].revents);
}

static void end_all(struct nbd_storage *nbd)
{
    for (unsigned i = 0; i < nbd->n_links; i++)
        if (nbd->links[i].handle)
            nbd_link_drop(&nbd->links[i], -ECANCELED);
    nbd_fail_waiting(nbd, -ECANCELED);
}

void nbd_loop_turn(struct nbd_storage *nbd)
{
    wait_for_events(nbd);
    if (nbd_given_up(nbd))
        atomic_store(&nbd->aborted, true);
    take_incoming(nbd);
    if (atomic_load(&nbd->aborted))
        end_all(nbd);
    else
        expire_overdue(nbd);
    do {
        if (!atomic_load(&nbd->aborted))
            dispatch_waiting(nbd);
        /* Before `done` callbacks run: they may look at it. */
        atomic_store(&nbd->connected, nbd_count_links(nbd, LINK_READY) > 0);
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
