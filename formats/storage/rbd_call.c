/* SPDX-License-Identifier: BSD-3-Clause */
/* One asynchronous request to librbd, and its caller, who waits for it until a deadline.
 *
 * librbd can't be told to forget a request.  One whose caller has left stays with librbd and
 * frees itself when it ends.  It has no memory of the caller's: a read has a buffer of its
 * own, and of a write librbd makes a copy before it returns (rbd_link.c sees to that).
 *
 * A change that was left behind may still be made, so that changes which come later wait for
 * it: else it could undo them.  And while the image is resized no change is under way: beside a
 * resize librbd may end neither. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "storage/rbd_internal.h"

/* In buffers of reads that were left behind; then reads wait, too. */
#define LATE_BYTES_MAX (64u << 20)

struct rbd_call {
    struct list link; /* rbd_link.calls */
    struct rbd_link *on;
    bool changes;
    void *buffer; /* a read's */
    uint64_t bytes;
    /* under the link's lock */
    pthread_cond_t ended;
    bool done, abandoned;
    ssize_t result; /* bytes, or -errno */
};

static bool changes_image(enum rbd_op op)
{
    return op == RBD_OP_WRITE || op == RBD_OP_ZERO || op == RBD_OP_DISCARD;
}

/* ---- the call ---- */

static struct rbd_call *new_call(struct rbd_link *link, const struct rbd_request *req)
{
    struct rbd_call *call = malloc(sizeof *call);

    if (!call)
        return NULL;
    *call = (struct rbd_call){.on = link, .changes = changes_image(req->op)};
    if (req->op == RBD_OP_READ) {
        call->bytes = req->len;
        call->buffer = malloc(req->len);
        if (!call->buffer) {
            free(call);
            return NULL;
        }
    }
    cond_init_timed(&call->ended);
    return call;
}

static void free_call(struct rbd_call *call)
{
    pthread_cond_destroy(&call->ended);
    free(call->buffer);
    free(call);
}

/* Under the lock. */
static void count_late(struct rbd_call *call, bool more)
{
    struct rbd_link *link = call->on;

    if (more) {
        link->late_changes += call->changes;
        link->late_bytes += call->bytes;
        return;
    }
    link->late_changes -= call->changes;
    link->late_bytes -= call->bytes;
    pthread_cond_broadcast(&link->changed);
}

/* Under the lock. */
static void end_change(struct rbd_call *call)
{
    struct rbd_link *link = call->on;

    link->changing -= call->changes;
    if (link->resizing && link->changing == 0)
        pthread_cond_broadcast(&link->changed);
}

/* On a thread of librbd's. */
static void on_completion(rbd_completion_t completion, void *opaque)
{
    struct rbd_call *call = opaque;
    struct rbd_link *link = call->on;

    ssize_t result = librbd.aio_get_return_value(completion);
    librbd.aio_release(completion);
    lock_acquire(&link->lock);
    call->result = result;
    call->done = true;
    bool abandoned = call->abandoned;
    end_change(call);
    if (abandoned)
        count_late(call, false);
    else
        pthread_cond_signal(&call->ended);
    lock_release(&link->lock);
    if (abandoned)
        free_call(call);
    rbd_link_leave(link, false);
}

/* ---- making it ---- */

static int submit(struct rbd_call *call, const struct rbd_request *req, rbd_completion_t c)
{
    rbd_image_t image = call->on->image;

    switch (req->op) {
    case RBD_OP_READ:
        return librbd.aio_read(image, req->off, req->len, call->buffer, c);
    case RBD_OP_WRITE:
        return req->count == 1
                   ? librbd.aio_write(image, req->off, req->iov->iov_len,
                                      req->iov->iov_base, c)
                   : librbd.aio_writev(image, req->iov, req->count, req->off, c);
    case RBD_OP_ZERO:
        return librbd.aio_write_zeroes(image, req->off, req->len, c, req->zero_flags, 0);
    case RBD_OP_DISCARD:
        return librbd.aio_discard(image, req->off, req->len, c);
    case RBD_OP_FLUSH:
        return librbd.aio_flush(image, c);
    }
    return -EINVAL;
}

static int start_call(struct rbd_call *call, const struct rbd_request *req)
{
    rbd_completion_t completion;

    int err = librbd.aio_create_completion(call, on_completion, &completion);
    if (err)
        return err;
    rbd_link_enter(call->on);
    err = submit(call, req, completion);
    if (err < 0) {
        librbd.aio_release(completion);
        rbd_link_leave(call->on, false);
        return err;
    }
    return 0;
}

/* ---- waiting ---- */

/* Under the lock. */
static bool must_wait(const struct rbd_link *link, const struct rbd_request *req)
{
    if (changes_image(req->op))
        return link->late_changes > 0 || link->resizing;
    return req->op == RBD_OP_READ && link->late_bytes > 0 &&
           link->late_bytes + req->len > LATE_BYTES_MAX;
}

int rbd_wait_for_change(struct rbd_link *link, uint64_t deadline)
{
    if (atomic_load(&link->aborted))
        return -ECANCELED;
    if (clock_ns() >= deadline)
        return -ETIMEDOUT;
    lock_wait_until(&link->lock, &link->changed, deadline);
    return 0;
}

/* Until what was left behind leaves room; a change is counted from here on. */
static int wait_for_turn(struct rbd_link *link, const struct rbd_request *req,
                         uint64_t deadline)
{
    int err = 0;
    LOCK_GUARD(&link->lock);

    while (!err && must_wait(link, req))
        err = rbd_wait_for_change(link, deadline);
    if (!err && atomic_load(&link->aborted))
        err = -ECANCELED;
    if (!err)
        link->changing += changes_image(req->op);
    return err;
}

int rbd_begin_resize(struct rbd_link *link, uint64_t deadline_ns)
{
    int err = 0;
    LOCK_GUARD(&link->lock);

    link->resizing = true; /* resizes come one by one */
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

/* False: it is librbd's alone from now on. */
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

/* A read gives its bytes; the rest 0. */
static int judge_result(const struct rbd_call *call, const struct rbd_request *req)
{
    if (call->result < 0)
        return (int)call->result;
    if (req->op != RBD_OP_READ)
        return 0;
    if ((uint64_t)call->result > req->len)
        return -EIO;
    memcpy(req->buf, call->buffer, (size_t)call->result);
    /* Somebody else has made the image smaller. */
    memset((char *)req->buf + call->result, 0, req->len - (uint64_t)call->result);
    return 0;
}

/* Of a call that never began. */
static void give_turn_back(struct rbd_link *link, const struct rbd_request *req)
{
    LOCK_GUARD(&link->lock);

    link->changing -= changes_image(req->op);
    pthread_cond_broadcast(&link->changed);
}

int rbd_call(struct rbd_link *link, const struct rbd_request *req)
{
    uint64_t deadline = clock_ns() + (uint64_t)req->timeout_ms * 1000000;

    int err = wait_for_turn(link, req, deadline);
    if (err)
        return err;
    struct rbd_call *call = new_call(link, req);
    err = call ? start_call(call, req) : -ENOMEM;
    if (err) {
        give_turn_back(link, req);
        if (call)
            free_call(call);
        return err;
    }
    if (!wait_for_result(call, deadline, &err))
        return err;
    if (!err)
        err = judge_result(call, req);
    free_call(call);
    return err;
}

void rbd_call_abort_all(struct rbd_link *link)
{
    LOCK_GUARD(&link->lock);

    atomic_store(&link->aborted, true);
    pthread_cond_broadcast(&link->changed);
    LIST_FOR_EACH (pos, &link->calls)
        pthread_cond_signal(&CONTAINER_OF(pos, struct rbd_call, link)->ended);
}
