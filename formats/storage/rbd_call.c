/* SPDX-License-Identifier: BSD-3-Clause */
/* One asynchronous request to librbd (a call), and its caller, who waits for it until a deadline.
 *
 * librbd can't cancel a request.  When its caller stops waiting, the call is abandoned: it stays
 * with librbd and frees itself when it ends.  It uses no memory of the caller: a read has its own
 * buffer, and librbd copies the bytes of a write before it returns (see set_own_options in
 * rbd_connect.c).
 *
 * An abandoned change may still be made at any time and could undo later ones, so later changes
 * wait for its end.  A resize waits until no change is in flight, and changes wait for its end:
 * librbd may hang if both run at the same time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "storage/iov.h"
#include "storage/rbd_internal.h"

/* The most bytes in buffers of abandoned reads; above that new reads wait. */
#define LATE_BYTES_MAX (64u << 20)

/* ---- the call ---- */

static bool take_buffer(struct rbd_call *call, const struct rbd_request *req)
{
    struct iov_cursor at = {.iov = req->iov};

    if (req->op != RBD_OP_READ && !req->early)
        return true;
    call->buffer = malloc(req->len);
    if (call->buffer && req->early)
        iov_gather(&at, call->buffer, req->len);
    return call->buffer;
}

static struct rbd_call *new_call(struct rbd_link *link, const struct rbd_request *req)
{
    struct rbd_call *call = malloc(sizeof *call);

    if (!call)
        return NULL;
    *call = (struct rbd_call){.on = link, .req = *req};
    list_init(&call->link);
    if (!take_buffer(call, req)) {
        free(call);
        return NULL;
    }
    cond_init_timed(&call->ended);
    return call;
}

void rbd_call_free(struct rbd_call *call)
{
    pthread_cond_destroy(&call->ended);
    free(call->buffer);
    free(call);
}

static uint64_t bytes_read(const struct rbd_call *call)
{
    return call->req.op == RBD_OP_READ ? call->req.len : 0;
}

/* Counts a call as abandoned, or (more: false) as ended after that.  Under the lock. */
static void count_late(struct rbd_call *call, bool more)
{
    struct rbd_link *link = call->on;
    const bool changes = rbd_changes_image(call->req.op);

    if (more) {
        link->late_changes += changes;
        link->late_bytes += bytes_read(call);
        return;
    }
    link->late_changes -= changes;
    link->late_bytes -= bytes_read(call);
    pthread_cond_broadcast(&link->changed);
}

/* Under the lock. */
static void end_change(struct rbd_call *call)
{
    struct rbd_link *link = call->on;

    link->changing -= rbd_changes_image(call->req.op);
    if (link->resizing && link->changing == 0)
        pthread_cond_broadcast(&link->changed);
}

/* Under the lock.  True: nobody else needs the call any more, so it has to be freed. */
static bool end_call(struct rbd_call *call, ssize_t result)
{
    end_change(call);
    if (call->req.early)
        return rbd_early_end(call, result);
    call->result = result;
    call->done = true;
    if (call->abandoned)
        count_late(call, false);
    else
        pthread_cond_signal(&call->ended);
    return call->abandoned;
}

/* On a thread of librbd's. */
static void on_completion(rbd_completion_t completion, void *opaque)
{
    struct rbd_call *call = opaque;
    struct rbd_link *link = call->on;

    ssize_t result = librbd.aio_get_return_value(completion);
    librbd.aio_release(completion);
    lock_acquire(&link->lock);
    bool is_ours = end_call(call, result);
    bool last = rbd_link_count_out(link);
    lock_release(&link->lock);
    if (is_ours)
        rbd_call_free(call);
    if (last)
        rbd_link_end_orphan(link, false);
}

/* ---- making it ---- */

static int submit_write(struct rbd_call *call, rbd_completion_t c)
{
    rbd_image_t image = call->on->image;
    const struct rbd_request *req = &call->req;

    if (req->early)
        return librbd.aio_write(image, req->off, req->len, call->buffer, c);
    if (req->count == 1)
        return librbd.aio_write(image, req->off, req->len, req->iov->iov_base, c);
    return librbd.aio_writev(image, req->iov, req->count, req->off, c);
}

static int submit(struct rbd_call *call, rbd_completion_t c)
{
    rbd_image_t image = call->on->image;
    const struct rbd_request *req = &call->req;

    switch (req->op) {
    case RBD_OP_READ:
        return librbd.aio_read(image, req->off, req->len, call->buffer, c);
    case RBD_OP_WRITE:
        return submit_write(call, c);
    case RBD_OP_ZERO:
        return librbd.aio_write_zeroes(image, req->off, req->len, c, req->zero_flags, 0);
    case RBD_OP_DISCARD:
        return librbd.aio_discard(image, req->off, req->len, c);
    case RBD_OP_FLUSH:
        return librbd.aio_flush(image, c);
    }
    return -EINVAL;
}

int rbd_call_start(struct rbd_call *call)
{
    rbd_completion_t completion;

    int err = librbd.aio_create_completion(call, on_completion, &completion);
    if (err)
        return err;
    err = submit(call, completion);
    if (err < 0) {
        librbd.aio_release(completion);
        return err;
    }
    return 0;
}

/* ---- waiting ---- */

/* Under the lock. */
static bool changes_must_wait(const struct rbd_link *link)
{
    return link->late_changes > 0 || link->resizing;
}

/* Under the lock: the condition that the request has to wait for; NULL: it may be made now. */
static pthread_cond_t *find_obstacle(struct rbd_link *link, const struct rbd_request *req,
                                     uint64_t before)
{
    if (rbd_changes_image(req->op) ? changes_must_wait(link)
                                   : req->op == RBD_OP_READ && link->late_bytes > 0 &&
                                         link->late_bytes + req->len > LATE_BYTES_MAX)
        return &link->changed;
    pthread_cond_t *early = rbd_early_obstacle(link, req, before);
    if (early)
        return early;
    /* Trying a failed write again is a change. */
    return changes_must_wait(link) && rbd_early_failed(link, req, before) ? &link->changed
                                                                          : NULL;
}

int rbd_wait_for(struct rbd_link *link, pthread_cond_t *cond, uint64_t deadline)
{
    if (atomic_load(&link->aborted))
        return -ECANCELED;
    if (clock_ns() >= deadline)
        return -ETIMEDOUT;
    lock_wait_until(&link->lock, cond, deadline);
    return 0;
}

int rbd_wait_for_change(struct rbd_link *link, uint64_t deadline)
{
    return rbd_wait_for(link, &link->changed, deadline);
}

/* Under the lock: waits until the request may be made.  Early writes that failed and are in its way
 * are tried again, once. */
static int wait_for_others(struct rbd_link *link, const struct rbd_request *req,
                           uint64_t deadline)
{
    const uint64_t before = link->early.next;

    for (;;) {
        pthread_cond_t *obstacle;
        while ((obstacle = find_obstacle(link, req, before))) {
            int err = rbd_wait_for(link, obstacle, deadline);
            if (err)
                return err;
        }
        struct rbd_call *failed = rbd_early_failed(link, req, before);
        if (!failed)
            return 0;
        if (failed->failed_at > req->since.failures)
            return failed->failed;
        rbd_early_try_again(failed, req->since);
    }
}

/* Waits until the call may be made, and counts it as running from then on. */
static int wait_for_turn(struct rbd_call *call, uint64_t deadline)
{
    struct rbd_link *link = call->on;
    LOCK_GUARD(&link->lock);

    int err = wait_for_others(link, &call->req, deadline);
    if (!err && atomic_load(&link->aborted))
        err = -ECANCELED;
    if (err)
        return err;
    link->changing += rbd_changes_image(call->req.op);
    rbd_link_count_in(link);
    if (call->req.early)
        rbd_early_add(call);
    return 0;
}

int rbd_begin_resize(struct rbd_link *link, uint64_t deadline_ns)
{
    int err = 0;
    LOCK_GUARD(&link->lock);

    link->resizing = true; /* the caller makes sure that there is only one */
    while (!err && (link->changing > 0 || link->late_changes > 0))
        err = rbd_wait_for_change(link, deadline_ns);
    if (err) {
        link->resizing = false;
        pthread_cond_broadcast(&link->changed);
    }
    return err;
}

void rbd_end_resize(struct rbd_link *link)
{
    LOCK_GUARD(&link->lock);

    link->resizing = false;
    pthread_cond_broadcast(&link->changed);
}

/* False: the call is abandoned, and belongs to librbd from now on. */
static bool wait_for_result(struct rbd_call *call, uint64_t deadline, int *err)
{
    struct rbd_link *link = call->on;
    LOCK_GUARD(&link->lock);

    list_append(&link->calls, &call->link);
    *err = 0;
    while (!call->done && !*err) {
        *err = atomic_load(&link->aborted) ? -ECANCELED
               : clock_ns() >= deadline    ? -ETIMEDOUT
                                           : 0;
        if (!*err)
            lock_wait_until(&link->lock, &call->ended, deadline);
    }
    list_remove(&call->link);
    if (call->done)
        return true;
    call->abandoned = true;
    count_late(call, true);
    return false;
}

/* The request's result: 0 or -errno.  Copies the bytes of a read to the caller's buffer. */
static int judge_result(const struct rbd_call *call, const struct rbd_request *req)
{
    if (call->result < 0)
        return (int)call->result;
    if (req->op != RBD_OP_READ)
        return 0;
    if ((uint64_t)call->result > req->len)
        return -EIO;
    memcpy(req->buf, call->buffer, (size_t)call->result);
    /* A short read: another client has made the image smaller. */
    memset((char *)req->buf + call->result, 0, req->len - (uint64_t)call->result);
    return 0;
}

void rbd_call_undo(struct rbd_call *call)
{
    end_change(call);
    (void)rbd_link_count_out(call->on); /* its owner is the caller, so it is no orphan */
}

/* Undoes wait_for_turn for a call that librbd didn't accept. */
static void give_turn_back(struct rbd_call *call)
{
    LOCK_GUARD(&call->on->lock);

    rbd_call_undo(call);
    if (call->req.early)
        rbd_early_remove(call);
}

/* True: the call belongs to the caller again, with a result, or with *err if it wasn't made. */
static bool run_call(struct rbd_call *call, uint64_t deadline, int *err)
{
    const bool early = call->req.early;

    *err = wait_for_turn(call, deadline);
    if (*err)
        return true;
    *err = rbd_call_start(call);
    if (*err) {
        give_turn_back(call);
        return true;
    }
    return !early && wait_for_result(call, deadline, err);
}

static int call_once(struct rbd_link *link, const struct rbd_request *req,
                     uint64_t deadline)
{
    struct rbd_call *call = new_call(link, req);
    int err;

    if (!call)
        return -ENOMEM;
    if (!run_call(call, deadline, &err))
        return err;
    if (!err)
        err = judge_result(call, req);
    rbd_call_free(call);
    return err;
}

/* Copies the bytes of failed early writes, which are in memory only, over what was read.  False:
 * the read has to be repeated, because such a write has succeeded since `mended` was read: the
 * cluster may have got it after the read. */
static bool complete_read(struct rbd_link *link, const struct rbd_request *req,
                          uint64_t mended)
{
    bool any = atomic_load(&link->early.failed) > 0;

    if (atomic_load(&link->early.mended) != mended)
        return false;
    if (!any)
        return true;
    LOCK_GUARD(&link->lock);
    if (atomic_load(&link->early.mended) != mended)
        return false;
    rbd_early_overlay(link, req->buf, req->off, req->len);
    return true;
}

int rbd_call(struct rbd_link *link, const struct rbd_request *req)
{
    uint64_t deadline = clock_ns() + (uint64_t)req->timeout_ms * 1000000;
    uint64_t mended;
    int err;

    do {
        mended = atomic_load(&link->early.mended);
        err = call_once(link, req, deadline);
    } while (!err && req->op == RBD_OP_READ && !complete_read(link, req, mended));
    return err;
}

void rbd_call_abort_all(struct rbd_link *link)
{
    LOCK_GUARD(&link->lock);

    atomic_store(&link->aborted, true);
    pthread_cond_broadcast(&link->changed);
    pthread_cond_broadcast(&link->early.room);
    LIST_FOR_EACH (pos, &link->calls)
        pthread_cond_signal(&CONTAINER_OF(pos, struct rbd_call, link)->ended);
}
