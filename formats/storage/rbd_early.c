/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes that are answered when they are under way, as a file's are when the kernel has them.
 *
 * A cluster takes a millisecond for a write, and does many at a time faster than one by one: who
 * writes one after the other has them under way together, so.  librbd's own cache does the same,
 * but lets go of a write that failed, and tells of it once at most.  Here its bytes stay, and
 * nothing is lost as long as this process lives:
 *
 *   E1  A write that was answered is in the list, with its bytes, until the cluster has it.
 *   E2  No two in the list overlap: one that comes later waits for the earlier.  So do reads,
 *       zeroes and discards.
 *   E3  A flush waits for all that were answered before it.
 *   E4  Each that failed is tried again by the next write, zero or flush, and by a discard of its
 *       bytes.  When it fails again, so does that, for the same reason.  Other discards are made:
 *       of a full cluster they make room.  A read tries nothing, and has the bytes from here.
 *   E5  Of a cluster that doesn't answer, or whose answers are errors, no write is answered early:
 *       who writes is told.
 *
 * The list is short (EARLY_MAX), so it is simply gone through. */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "storage/rbd_internal.h"

/* More than these in the list at a time don't make the cluster faster, but those who read wait
 * for them in its queues. */
#define EARLY_MAX       128
#define EARLY_BYTES_MAX (4u << 20)

/* The copy of what is longer costs more than it brings, unless one writes alone. */
#define LONG_BYTES (256u << 10)

/* A cluster that is well has long answered by then. */
#define PATIENCE_MS 1000u

/* Who waits for room is woken when there is some for several: not each time for one. */
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
    /* What failed makes no room by itself. */
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

/* Of a write that goes past the end librbd leaves out what lies there, and says nothing.  When
 * somebody may have made the image smaller meanwhile it has to be made once more, whatever is known
 * of the size by now: it may be larger again. */
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

/* Under the lock. */
static bool is_late(const struct rbd_early *early)
{
    if (early->count == 0)
        return false;
    return clock_ms() >=
           CONTAINER_OF(early->writes.next, struct rbd_call, link)->begun_ms + PATIENCE_MS;
}

/* Under the lock: does the cluster answer, and well? */
static bool is_healthy(struct rbd_link *link)
{
    return link->early.failed == 0 && link->late_changes == 0 && link->late_tasks == 0 &&
           link->late_bytes == 0 && !atomic_load(&link->told_blocked) &&
           !is_late(&link->early);
}

/* Under the lock: others that are waited for keep the cluster busy anyway. */
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
