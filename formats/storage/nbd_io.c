/* SPDX-License-Identifier: BSD-3-Clause */
/* The storage interface of an NBD export: any alignment, any number of buffers.
 *
 * A write of a part of a block reads the block and writes all of it, with the block locked
 * against other synchronous writers of this store.  If the block size is 1, this is skipped. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/iov.h"
#include "storage/nbd_internal.h"

/* Several buffers are copied together in pieces of at most this many bytes. */
#define GATHER_MAX (4u << 20)
/* The longest range of one status request; answers are rarely longer. */
#define STATUS_MAX (1u << 30)

static int transfer_range(struct nbd_storage *nbd, enum nbd_op op, void *buf, uint64_t len,
                          uint64_t off, unsigned flags)
{
    struct nbd_request req = {.op = op, .flags = flags, .off = off, .len = len, .buf = buf};

    return len == 0 && op != NBD_FLUSH ? 0 : nbd_call(nbd, &req);
}

static bool in_blocks(const struct nbd_storage *nbd, uint64_t off, uint64_t len)
{
    return is_aligned(off | len, nbd->info.min_block);
}

/* ---- parts of blocks ---- */

/* Part of one block. */
static int read_part(struct nbd_storage *nbd, void *buf, uint64_t start, uint64_t end)
{
    uint32_t block = nbd->info.min_block;
    uint64_t base = align_down(start, block);

    if (start == end)
        return 0;
    CLEANUP_FREE char *bounce = malloc(block);
    if (!bounce)
        return -ENOMEM;
    int err = transfer_range(nbd, NBD_READ, bounce, block, base, 0);
    if (!err)
        memcpy(buf, bounce + (start - base), end - start);
    return err;
}

/* Writes a part of one block, which is locked exclusively; buf NULL: zeroes. */
static int write_part(struct nbd_storage *nbd, const void *buf, uint64_t start,
                      uint64_t end, unsigned flags)
{
    uint32_t block = nbd->info.min_block;
    uint64_t base = align_down(start, block);

    if (start == end)
        return 0;
    CLEANUP_FREE char *bounce = malloc(block);
    if (!bounce)
        return -ENOMEM;
    int err = transfer_range(nbd, NBD_READ, bounce, block, base, 0);
    if (err)
        return err;
    if (buf)
        memcpy(bounce + (start - base), buf, end - start);
    else
        memset(bounce + (start - base), 0, end - start);
    return transfer_range(nbd, NBD_WRITE, bounce, block, base, flags);
}

/* Locks the blocks of a range against other writers; does nothing if the block size is 1. */
static void lock_blocks(struct nbd_storage *nbd, struct locked_range *range, uint64_t off,
                        uint64_t len)
{
    uint32_t block = nbd->info.min_block;

    if (block > 1)
        range_lock_acquire(&nbd->blocks, range, align_down(off, block),
                           align_up(off + len, block),
                           in_blocks(nbd, off, len) ? RANGE_SHARED : RANGE_EXCLUSIVE);
}

static void unlock_blocks(struct nbd_storage *nbd, struct locked_range *range)
{
    if (nbd->info.min_block > 1)
        range_lock_release(range);
}

/* ---- reading ---- */

static int read_inside(struct nbd_storage *nbd, char *buf, uint64_t off, uint64_t len)
{
    struct split p = split_range(off, len, nbd->info.min_block);

    int err = read_part(nbd, buf, p.start, p.first);
    if (err)
        return err;
    err =
        transfer_range(nbd, NBD_READ, buf + (p.first - off), p.last - p.first, p.first, 0);
    if (err)
        return err;
    return read_part(nbd, buf + (p.last - off), p.last, p.end);
}

static int io_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    struct nbd_storage *nbd = nbd_of(st);
    uint64_t inside = off < nbd->info.size ? MIN(len, nbd->info.size - off) : 0;

    memset((char *)buf + inside, 0, len - inside);
    return read_inside(nbd, buf, off, inside);
}

/* ---- writing ---- */

static int write_one(struct nbd_storage *nbd, const char *buf, uint64_t off, uint64_t len,
                     unsigned flags)
{
    struct split p = split_range(off, len, nbd->info.min_block);
    struct locked_range range;

    lock_blocks(nbd, &range, off, len);
    int err = write_part(nbd, buf, p.start, p.first, flags);
    if (!err) /* cast: reads and writes share the request's buf */
        err = transfer_range(nbd, NBD_WRITE, (char *)(uintptr_t)(buf + (p.first - off)),
                             p.last - p.first, p.first, flags);
    if (!err)
        err = write_part(nbd, buf + (p.last - off), p.last, p.end, flags);
    unlock_blocks(nbd, &range);
    return err;
}

static int write_gathered(struct nbd_storage *nbd, const struct iovec *iov, uint64_t len,
                          uint64_t off, unsigned flags)
{
    CLEANUP_FREE char *bounce = malloc(MIN(len, GATHER_MAX));
    struct iov_cursor at = {.iov = iov};
    int err = bounce ? 0 : -ENOMEM;

    while (!err && len > 0) {
        uint64_t n = MIN(len, GATHER_MAX);
        if (n < len) /* cut where a block ends */
            n = align_down(off + n, nbd->info.min_block) - off;
        iov_gather(&at, bounce, n);
        err = write_one(nbd, bounce, off, n, flags);
        off += n;
        len -= n;
    }
    return err;
}

static int io_flush(struct storage *st)
{
    return transfer_range(nbd_of(st), NBD_FLUSH, NULL, 0, 0, 0);
}

static int io_pwritev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                      unsigned flags)
{
    struct nbd_storage *nbd = nbd_of(st);
    /* Without FUA in the protocol: one flush after all parts. */
    unsigned each = nbd->info.can_fua ? flags & STORAGE_FUA : 0;
    uint64_t len = iov_length(iov, count);

    if (!range_inside(off, len, nbd->info.size))
        return -ENOSPC;
    int err = count == 1 ? write_one(nbd, iov->iov_base, off, len, each)
                         : write_gathered(nbd, iov, len, off, each);
    if (!err && (flags & STORAGE_FUA) && !each)
        err = storage_flush_for_write(st);
    return err;
}

static int io_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    struct nbd_storage *nbd = nbd_of(st);
    struct split p = split_range(off, len, nbd->info.min_block);
    struct locked_range range;

    if (p.first == p.last)
        return -ENOTSUP; /* less than a block: has to be written */
    lock_blocks(nbd, &range, off, len);
    /* The blocks first: if the server can't zero them, nothing may have changed. */
    int err = transfer_range(nbd, NBD_ZERO, NULL, p.last - p.first, p.first, flags);
    if (!err)
        err = write_part(nbd, NULL, p.start, p.first, 0);
    if (!err)
        err = write_part(nbd, NULL, p.last, p.end, 0);
    unlock_blocks(nbd, &range);
    return err;
}

static int io_discard(struct storage *st, uint64_t off, uint64_t len)
{
    struct nbd_storage *nbd = nbd_of(st);
    struct locked_range range;

    if (off >= nbd->info.size)
        return 0;
    struct split p = split_range(off, MIN(len, nbd->info.size - off), nbd->info.min_block);
    if (p.first == p.last)
        return 0;
    lock_blocks(nbd, &range, p.first, p.last - p.first);
    int err = transfer_range(nbd, NBD_TRIM, NULL, p.last - p.first, p.first, 0);
    unlock_blocks(nbd, &range);
    return err;
}

/* ---- the rest ---- */

static int io_size(struct storage *st, uint64_t *bytes)
{
    *bytes = nbd_of(st)->info.size;
    return 0;
}

static int io_truncate(struct storage *st, uint64_t bytes)
{
    (void)st;
    (void)bytes;
    return -ENOTSUP; /* never asked for: the size is fixed */
}

/* Asks the server for the status of the run at off, cut to len. */
static int ask_status(struct nbd_storage *nbd, uint64_t off, uint64_t len,
                      struct nbd_run *answer)
{
    uint32_t block = nbd->info.min_block;
    uint64_t start = align_down(off, block);
    uint64_t end = MIN(off + len, start + STATUS_MAX);

    end = MIN(align_up(end, block), nbd->info.size);
    struct nbd_request req = {
        .op = NBD_STATUS, .off = start, .len = end - start, .runs = answer, .max_runs = 1};
    int err = nbd_call(nbd, &req);
    if (err)
        return err;
    if (answer->length <= off - start) /* a run shorter than a block: a protocol error */
        return -EIO;
    answer->length = MIN(len, answer->length - (off - start));
    return 0;
}

/* A hole that doesn't read as zeroes counts as data, because callers skip what isn't data. */
static int io_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                     uint64_t *run)
{
    struct nbd_storage *nbd = nbd_of(st);
    struct nbd_run answer = {0};

    if (off >= nbd->info.size) {
        *data = false;
        *run = len;
        return 0;
    }
    if (!nbd->info.has_status || nbd->uri.context)
        return -ENOTSUP;
    int err = ask_status(nbd, off, len, &answer);
    *data = !answer.zero;
    *run = answer.length;
    return err;
}

static int io_marks(struct storage *st, uint64_t off, uint64_t len,
                    struct storage_marks *out)
{
    struct nbd_storage *nbd = nbd_of(st);
    struct nbd_run answer = {0};

    if (!nbd->uri.context || off >= nbd->info.size)
        return -ENOTSUP;
    int err = ask_status(nbd, off, len, &answer);
    *out = (struct storage_marks){
        .data = !answer.hole, .zero = answer.zero, .run = answer.length};
    return err;
}

static void on_prefetched(struct nbd_request *req, int err)
{
    (void)err;
    free(req);
}

/* The caller doesn't wait for it, so it needs a thread that is the driver. */
static void io_prefetch(struct storage *st, uint64_t off, uint64_t len)
{
    struct nbd_storage *nbd = nbd_of(st);

    if (off >= nbd->info.size || !nbd->info.can_cache)
        return;
    lock_acquire(&nbd->lock);
    bool has_thread = nbd->has_thread;
    lock_release(&nbd->lock);
    if (!has_thread)
        return;
    struct nbd_request *req = calloc(1, sizeof *req);
    if (!req)
        return;
    uint64_t end = MIN(align_up(off + len, nbd->info.min_block), nbd->info.size);
    req->op = NBD_CACHE;
    req->off = align_down(off, nbd->info.min_block);
    req->len = end - req->off;
    req->done = on_prefetched;
    if (storage_nbd_submit(st, req) != 0)
        free(req);
}

static uint32_t io_preferred(const struct storage *st)
{
    return storage_nbd_info(st)->preferred_block;
}

const struct storage_ops nbd_ops = {
    .pread = io_pread,
    .pwritev = io_pwritev,
    .flush = io_flush,
    .size = io_size,
    .truncate = io_truncate,
    .close = nbd_close_storage,
    .zero = io_zero,
    .discard = io_discard,
    .extent = io_extent,
    .marks = io_marks,
    .prefetch = io_prefetch,
    .start = storage_nbd_start,
    .abort = storage_nbd_abort,
    .lost_writes = storage_nbd_losses,
    .prove = storage_nbd_prove,
    .persist = storage_nbd_persist,
    .preferred = io_preferred,
};
