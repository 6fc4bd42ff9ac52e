/* SPDX-License-Identifier: BSD-3-Clause */
/* The storage interface of an RBD image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "storage/iov.h"
#include "storage/rbd_internal.h"

/* For a request whose image other clients shrink again and again. */
#define MOST_TRIES 10

/* Logs the meaning of -ESHUTDOWN, once. */
static void tell_blocked(struct rbd_storage *rbd)
{
    if (!atomic_exchange(&rbd->link->told_blocked, true))
        log_error("%s: the cluster has blocklisted this client (its lock was broken, or an "
                  "administrator did it): nothing can be asked for before a new start",
                  rbd->st.name);
}

static int make_call(struct rbd_storage *rbd, struct rbd_request req)
{
    if (!rbd->link)
        return -ENOTCONN;
    if (req.timeout_ms == 0)
        req.timeout_ms = rbd->facts.timeout_ms;
    int err = rbd_call(rbd->link, &req);
    if (err == -ESHUTDOWN)
        tell_blocked(rbd);
    return err;
}

static int read_up_to(struct rbd_storage *rbd, void *buf, uint64_t off, uint64_t len,
                      uint64_t size)
{
    uint64_t inside = off < size ? MIN(len, size - off) : 0;

    memset((char *)buf + inside, 0, len - inside);
    if (inside == 0)
        return 0;
    return make_call(rbd, (struct rbd_request){
                              .op = RBD_OP_READ, .buf = buf, .off = off, .len = inside});
}

/* librbd refuses requests that begin past the end with -EINVAL: then another client has made the
 * image smaller.  Learns the size, so that the request can be tried again. */
static bool is_worth_another(struct rbd_storage *rbd, int err, unsigned *tries)
{
    return err == -EINVAL && ++*tries < MOST_TRIES && rbd_learn_size(rbd) == 0;
}

static int io_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    struct rbd_storage *rbd = rbd_of(st);
    unsigned tries = 0;
    uint64_t size;
    int err;

    do {
        err = rbd_settle_past_end(rbd, off + len, &size);
        if (!err)
            err = read_up_to(rbd, buf, off, len, size);
    } while (is_worth_another(rbd, err, &tries));
    return err;
}

/* ---- the size ---- */

static int io_size(struct storage *st, uint64_t *bytes)
{
    *bytes = atomic_load(&rbd_of(st)->size);
    return 0;
}

/* ---- changing ---- */

/* Makes the image large enough for a request that ends at `end`, and for failed early writes,
 * which are tried again with it: another client may have made the image smaller.  Repeats that if
 * the size has changed meanwhile; our own growth counts as such a change, too. */
static int make_place(struct rbd_storage *rbd, struct rbd_request *req, uint64_t end)
{
    struct rbd_link *link = rbd->link;
    unsigned tries = 0;
    int err;

    if (!link)
        return -ENOTCONN;
    do {
        req->since = (struct rbd_since){.failures = atomic_load(&link->early.failures),
                                        .doubts = atomic_load(&link->doubts)};
        err = rbd_grow_to(rbd, MAX(end, rbd_early_failed_end(link)));
    } while (!err && atomic_load(&link->doubts) != req->since.doubts &&
             ++tries < MOST_TRIES);
    if (err == -ESHUTDOWN)
        tell_blocked(rbd);
    return err;
}

static int io_flush(struct storage *st)
{
    struct rbd_storage *rbd = rbd_of(st);
    struct rbd_request req = {.op = RBD_OP_FLUSH};
    unsigned tries = 0;
    int err;

    do {
        err = make_place(rbd, &req, 0);
        if (!err)
            err = make_call(rbd, req);
    } while (is_worth_another(rbd, err, &tries));
    return err;
}

int rbd_settle(struct rbd_storage *rbd)
{
    return rbd->link && rbd_early_any(rbd->link) ? io_flush(&rbd->st) : 0;
}

int rbd_settle_past_end(struct rbd_storage *rbd, uint64_t end, uint64_t *size)
{
    *size = atomic_load(&rbd->size);
    if (end <= *size || !rbd->link || !rbd_early_reaches_past(rbd->link, *size))
        return 0;
    int err = io_flush(&rbd->st);
    *size = atomic_load(&rbd->size); /* the flush has grown the image */
    return err;
}

/* Makes a change of the complete range.  librbd silently drops the part of a change that lies
 * past the end of the image, so the change is repeated if the size may have changed meanwhile.
 * (For early writes see rbd_early_end.) */
static int make_change(struct rbd_storage *rbd, struct rbd_request req)
{
    unsigned tries = 0;
    bool cut;
    int err;

    do {
        err = make_place(rbd, &req, req.off + req.len);
        if (!err)
            err = make_call(rbd, req);
        cut = !err && !req.early && atomic_load(&rbd->link->doubts) != req.since.doubts;
        if (!err && !cut)
            return 0;
    } while (cut ? ++tries < MOST_TRIES : is_worth_another(rbd, err, &tries));
    return err ? err : -EIO;
}

static bool may_be_early(struct rbd_storage *rbd, uint64_t len, unsigned flags)
{
    return rbd->early && rbd->link && !(flags & STORAGE_FUA) &&
           rbd_early_is_wise(rbd->link, len);
}

static int io_pwritev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                      unsigned flags)
{
    struct rbd_storage *rbd = rbd_of(st);
    const uint64_t len = iov_length(iov, count);

    int err = make_change(rbd, (struct rbd_request){
                                   .op = RBD_OP_WRITE,
                                   .iov = iov,
                                   .count = count,
                                   .off = off,
                                   .len = len,
                                   .early = may_be_early(rbd, len, flags),
                               });
    if (!err && (flags & STORAGE_FUA))
        err = storage_flush_for_write(st);
    return err;
}

static int io_settle(struct storage *st)
{
    return rbd_settle(rbd_of(st));
}

/* If the range has to stay allocated, the cluster writes zeroes, which isn't fast. */
static int io_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    bool unmap = flags & STORAGE_MAY_UNMAP;

    if ((flags & STORAGE_FAST) && !unmap)
        return -ENOTSUP;
    return make_change(
        rbd_of(st),
        (struct rbd_request){.op = RBD_OP_ZERO,
                             .off = off,
                             .len = len,
                             .zero_flags =
                                 unmap ? 0 : (int)RBD_WRITE_ZEROES_FLAG_THICK_PROVISION});
}

/* librbd ignores parts that are smaller than rbd_discard_granularity_bytes. */
static int io_discard(struct storage *st, uint64_t off, uint64_t len)
{
    struct rbd_storage *rbd = rbd_of(st);
    struct rbd_request req = {.op = RBD_OP_DISCARD, .off = off};
    unsigned tries = 0;
    int err;

    do {
        err = make_place(rbd, &req, 0); /* the size has to be known */
        uint64_t size = atomic_load(&rbd->size);
        if (err || off >= size)
            return err;
        req.len = MIN(len, size - off);
        err = make_call(rbd, req);
    } while (is_worth_another(rbd, err, &tries));
    return err;
}

/* ---- the rest ---- */

static int io_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                     uint64_t *run)
{
    return rbd_find_extent(rbd_of(st), off, len, data, run);
}

static int io_lock(struct storage *st, enum storage_lock_level level, struct diag *diag)
{
    return rbd_take_lock(rbd_of(st), level, diag);
}

static int io_identity(struct storage *st, uint64_t *device, uint64_t *inode)
{
    *device = rbd_of(st)->facts.device;
    *inode = rbd_of(st)->facts.inode;
    return 0;
}

static void io_abort(struct storage *st)
{
    if (rbd_of(st)->link)
        rbd_call_abort_all(rbd_of(st)->link);
}

/* A read of one byte reaches the cluster even where there is no object. */
static int io_prove(struct storage *st, bool by_reading, unsigned timeout_ms)
{
    struct rbd_storage *rbd = rbd_of(st);
    char byte;

    (void)by_reading;
    if (atomic_load(&rbd->size) == 0)
        return make_call(
            rbd, (struct rbd_request){.op = RBD_OP_FLUSH, .timeout_ms = timeout_ms});
    return make_call(
        rbd, (struct rbd_request){
                 .op = RBD_OP_READ, .buf = &byte, .len = 1, .timeout_ms = timeout_ms});
}

/* Nothing to do: requests wait until their cluster is back, in any case. */
static void io_persist(struct storage *st, unsigned patience_ms)
{
    (void)st;
    (void)patience_ms;
}

const struct storage_ops rbd_ops = {
    .pread = io_pread,
    .pwritev = io_pwritev,
    .flush = io_flush,
    .size = io_size,
    .truncate = rbd_truncate_storage,
    .close = rbd_close_storage,
    .zero = io_zero,
    .discard = io_discard,
    .extent = io_extent,
    .lock = io_lock,
    .settle = io_settle,
    .identity = io_identity,
    .rest = rbd_rest_storage,
    .start = rbd_start_storage,
    .abort = io_abort,
    .prove = io_prove,
    .persist = io_persist,
};
