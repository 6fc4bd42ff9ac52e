/* SPDX-License-Identifier: BSD-3-Clause */
/* Early writes: a write is answered as soon as librbd has it and a copy of its bytes is kept, like
 * a write to a local file that is only in the page cache.
 *
 * Ceph takes about a millisecond for a write, but many in parallel take hardly longer.  With early
 * writes, a client that sends one write after the other has several in flight.  librbd's own
 * cache does that, too, but drops the bytes of a write that fails, and reports the failure once at
 * most.  Here the bytes are kept, so that nothing is lost while this process runs.
 *
 * The list `writes` holds the early writes that Ceph doesn't have yet.  Rules, cited by number:
 *   E1  A write that was answered stays in the list, with its bytes, until Ceph has it.
 *   E2  No two writes in the list overlap.  A write, read, zero or discard that overlaps a write
 *       of the list waits until that has ended.
 *   E3  A flush waits for all writes that were answered before it.
 *   E4  A write that failed stays in the list.  It is tried again by the next write, zero or
 *       flush, and by a discard that overlaps it; if it fails again, that request fails with the
 *       same error.  A discard elsewhere doesn't try it: in a full pool a discard makes space.  A
 *       read doesn't either, and takes the bytes from the list.
 *   E5  While Ceph doesn't answer, or answers with errors, no write is answered early: each waits
 *       for its own result.
 *
 * "Cluster" means the Ceph cluster here.  The list has at most EARLY_MAX writes and is searched
 * linearly.  Functions without LOCK_GUARD are called under the link's lock. */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "storage/rbd_internal.h"

/* Bounds of the list.  Measured: more writes in flight don't make Ceph faster, and reads wait
 * behind them in its queues. */
#define EARLY_MAX       128
#define EARLY_BYTES_MAX (4u << 20)

/* Copying a longer write costs more than it gains, unless nothing else is in flight. */
#define LONG_BYTES (256u << 10)

/* Ceph is taken for unresponsive when the oldest early write is older than this; a healthy
 * cluster answers in milliseconds. */
#define PATIENCE_MS 1000u

/* Is there no room for another write?  Hysteresis: once full, the list counts as full until it is
 * down to three quarters, so that waiting writers are woken for several places at once. */
static bool is_full(const struct rbd_early *early)
{
    const unsigned part = early->full ? 3 : 4; /* quarters */

    return early->count >= EARLY_MAX / 4 * part ||
           early->bytes >= EARLY_BYTES_MAX / 4 * part;
}

static bool overlaps(const struct rbd_call *call, const struct rbd_request *req)
{
    return call->req.off < req->off + req->len && req->off < call->req.off + call->req.len;
}

static bool stands_in_the_way(const struct rbd_call *call, const struct rbd_request *req,
                              uint64_t before)
{
    const bool failed = call->failed_at > 0;

    switch (req->op) {
    case RBD_OP_FLUSH:
        return call->number < before;
    case RBD_OP_READ:
        return !failed && overlaps(call, req);
    case RBD_OP_DISCARD:
        return overlaps(call, req);
    default:
        return failed || overlaps(call, req);
    }
}

pthread_cond_t *rbd_early_obstacle(struct rbd_link *link, const struct rbd_request *req,
                                   uint64_t before)
{
    /* Failed writes make no room by themselves: the caller has to try them again first. */
    if (req->early && link->early.full && atomic_load(&link->early.failed) == 0)
        return &link->early.room;
    LIST_FOR_EACH (pos, &link->early.writes) {
        const struct rbd_call *call = CONTAINER_OF(pos, struct rbd_call, link);
        if (!call->failed && stands_in_the_way(call, req, before))
            return &link->changed;
    }
    return NULL;
}

struct rbd_call *rbd_early_failed(const struct rbd_link *link,
                                  const struct rbd_request *req, uint64_t before)
{
    if (atomic_load(&link->early.failed) == 0)
        return NULL;
    LIST_FOR_EACH (pos, &link->early.writes) {
        struct rbd_call *call = CONTAINER_OF(pos, struct rbd_call, link);
        if (call->failed && stands_in_the_way(call, req, before))
            return call;
    }
    return NULL;
}

static void set_failed(struct rbd_call *call, int err)
{
    struct rbd_early *early = &call->on->early;

    call->failed = err;
    pthread_cond_broadcast(&call->on->changed);
    pthread_cond_broadcast(&early->room);
    if (call->failed_at == 0)
        atomic_fetch_add(&early->failed, 1);
    call->failed_at = atomic_fetch_add(&early->failures, 1) + 1;
}

void rbd_early_try_again(struct rbd_call *call, struct rbd_since since)
{
    struct rbd_link *link = call->on;

    call->failed = 0;
    call->req.since = since;
    link->changing++;
    rbd_link_count_in(link);
    lock_release(&link->lock);
    int err = rbd_call_start(call); /* it may be gone already */
    lock_acquire(&link->lock);
    if (!err)
        return;
    rbd_call_undo(call);
    set_failed(call, err);
}

void rbd_early_add(struct rbd_call *call)
{
    struct rbd_early *early = &call->on->early;

    call->number = early->next++;
    call->begun_ms = clock_ms();
    list_append(&early->writes, &call->link);
    early->count++;
    early->bytes += call->req.len;
    early->full = is_full(early);
}

void rbd_early_remove(struct rbd_call *call)
{
    struct rbd_early *early = &call->on->early;

    list_remove(&call->link);
    early->count--;
    early->bytes -= call->req.len;
    if (early->full && !is_full(early)) {
        early->full = false;
        pthread_cond_broadcast(&early->room);
    }
    pthread_cond_broadcast(&call->on->changed);
}

/* librbd silently drops the part of a write that lies past the end of the image.  So if another
 * client may have shrunk the image during the write, the write counts as failed and is made once
 * more, even if the image is large enough by now: it may have been shrunk and grown again. */
bool rbd_early_end(struct rbd_call *call, ssize_t result)
{
    struct rbd_link *link = call->on;

    if (result >= 0 && atomic_load(&link->doubts) != call->req.since.doubts)
        result = -EINVAL;
    if (result < 0) {
        set_failed(call, (int)result);
        return false;
    }
    if (call->failed_at > 0) {
        atomic_fetch_add(&link->early.mended, 1);
        atomic_fetch_sub(&link->early.failed, 1);
    }
    rbd_early_remove(call);
    return true;
}

void rbd_early_overlay(const struct rbd_link *link, char *buf, uint64_t off, uint64_t len)
{
    LIST_FOR_EACH (pos, &link->early.writes) {
        const struct rbd_call *call = CONTAINER_OF(pos, struct rbd_call, link);
        const struct rbd_request *w = &call->req;
        uint64_t from = MAX(w->off, off), to = MIN(w->off + w->len, off + len);
        if (call->failed_at > 0 && from < to)
            memcpy(buf + (from - off), call->buffer + (from - w->off), to - from);
    }
}

/* Has the oldest early write waited too long? */
static bool is_late(const struct rbd_early *early)
{
    if (early->count == 0)
        return false;
    return clock_ms() >=
           CONTAINER_OF(early->writes.next, struct rbd_call, link)->begun_ms + PATIENCE_MS;
}

/* Does the cluster answer in time, and without errors? */
static bool is_healthy(struct rbd_link *link)
{
    return link->early.failed == 0 && link->late_changes == 0 && link->late_tasks == 0 &&
           link->late_bytes == 0 && !atomic_load(&link->told_blocked) &&
           !is_late(&link->early);
}

/* Is no other request in flight?  Otherwise the cluster is busy anyway, and an early answer gains
 * nothing. */
static bool is_alone(const struct rbd_link *link, uint64_t len)
{
    return list_empty(&link->calls) && link->early.bytes + len <= EARLY_BYTES_MAX;
}

bool rbd_early_is_wise(struct rbd_link *link, uint64_t len)
{
    LOCK_GUARD(&link->lock);
    return (len <= LONG_BYTES || is_alone(link, len)) && is_healthy(link);
}

bool rbd_early_any(struct rbd_link *link)
{
    LOCK_GUARD(&link->lock);
    return link->early.count > 0;
}

uint64_t rbd_early_failed_end(struct rbd_link *link)
{
    uint64_t end = 0;

    if (atomic_load(&link->early.failed) == 0)
        return 0;
    LOCK_GUARD(&link->lock);
    LIST_FOR_EACH (pos, &link->early.writes) {
        const struct rbd_call *call = CONTAINER_OF(pos, struct rbd_call, link);
        if (call->failed_at > 0)
            end = MAX(end, call->req.off + call->req.len);
    }
    return end;
}

bool rbd_early_reaches_past(struct rbd_link *link, uint64_t end)
{
    LOCK_GUARD(&link->lock);

    LIST_FOR_EACH (pos, &link->early.writes) {
        const struct rbd_call *call = CONTAINER_OF(pos, struct rbd_call, link);
        if (call->req.off + call->req.len > end)
            return true;
    }
    return false;
}

void rbd_early_drop(struct rbd_link *link)
{
    LIST_FOR_EACH_SAFE (pos, &link->early.writes) {
        struct rbd_call *call = CONTAINER_OF(pos, struct rbd_call, link);
        rbd_early_remove(call);
        rbd_call_free(call);
    }
}
