/* SPDX-License-Identifier: BSD-3-Clause */
/* Common to all stores: checking arguments, splitting requests, and fallbacks for optional
 * operations that a store doesn't have. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/lock.h"
#include "base/no_space.h"
#include "storage/storage.h"

/* Zero bytes for all callers, aligned for O_DIRECT.  Never written, so that only the pages that
 * were read take memory. */
#define ZERO_CHUNK 65536
static _Alignas(4096) uint8_t zero_bytes[ZERO_CHUNK];

static int check_range(uint64_t off, uint64_t len)
{
    return range_inside(off, len, INT64_MAX) ? 0 : -EINVAL;
}

static int check_change(const struct storage *st, uint64_t off, uint64_t len)
{
    lock_assert_io_allowed();
    return st->read_only ? -EROFS : check_range(off, len);
}

/* Returns -ENOSPC if the range ends beyond a store that can't grow. */
static int check_fixed(struct storage *st, uint64_t end)
{
    uint64_t size;

    if (!st->fixed_size)
        return 0;
    int err = st->ops->size(st, &size);
    if (err)
        return err;
    return end > size ? -ENOSPC : 0;
}

int storage_read(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    lock_assert_io_allowed();
    int err = check_range(off, len);
    if (err || len == 0)
        return err;
    return st->ops->pread(st, buf, off, len);
}

int storage_write(struct storage *st, const void *buf, uint64_t off, uint64_t len,
                  unsigned flags)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};

    return storage_writev(st, &iov, 1, off, flags);
}

/* Sums the lengths; *used: how many elements aren't empty. */
static int measure_iov(const struct iovec *iov, int count, uint64_t *len, int *used)
{
    *len = 0;
    *used = 0;
    for (int i = 0; i < count; i++) {
        if (add_overflows(*len, iov[i].iov_len, len))
            return -EINVAL;
        *used += iov[i].iov_len != 0;
    }
    return 0;
}

/* Writes at most STORAGE_MAX_IOV elements at a time, leaving out empty ones. */
static int write_groups(struct storage *st, const struct iovec *iov, int count,
                        uint64_t off, unsigned flags)
{
    struct iovec group[STORAGE_MAX_IOV];

    for (int i = 0; i < count;) {
        int n = 0;
        uint64_t len = 0;
        for (; i < count && n < STORAGE_MAX_IOV; i++) {
            if (iov[i].iov_len == 0)
                continue;
            group[n++] = iov[i];
            len += iov[i].iov_len;
        }
        int err = n ? st->ops->pwritev(st, group, n, off, flags) : 0;
        if (err)
            return err;
        off += len;
    }
    return 0;
}

int storage_writev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                   unsigned flags)
{
    uint64_t len;
    int used;

    if (count < 0 || measure_iov(iov, count, &len, &used) != 0)
        return -EINVAL;
    int err = check_change(st, off, len);
    if (err || len == 0)
        return err;

    bool fua = (flags & STORAGE_FUA) && !st->no_flush;
    /* One sync at the end costs less than one for each group. */
    bool sync_after = fua && used > STORAGE_MAX_IOV;
    unsigned op_flags = fua && !sync_after ? STORAGE_FUA : 0;
    if (used == count && count <= STORAGE_MAX_IOV)
        return st->ops->pwritev(st, iov, count, off, op_flags);
    err = write_groups(st, iov, count, off, op_flags);
    return err || !sync_after ? err : storage_flush_for_write(st);
}

/* The slow way to zero: writes the same buffer of zero bytes repeatedly. */
static int write_zero_bytes(struct storage *st, uint64_t off, uint64_t len)
{
    while (len > 0) {
        struct iovec iov[STORAGE_MAX_IOV];
        uint64_t step = 0;
        int n = 0;
        for (; n < STORAGE_MAX_IOV && step < len; n++) {
            uint64_t piece = MIN(len - step, ZERO_CHUNK);
            iov[n] = (struct iovec){.iov_base = zero_bytes, .iov_len = piece};
            step += piece;
        }
        int err = st->ops->pwritev(st, iov, n, off, 0);
        if (err)
            return err;
        off += step;
        len -= step;
    }
    return 0;
}

/* For lack of space a filesystem may have zeroed the range, kept its content or even restored an
 * older one: ext4 drops unwritten data before it looks for space.  Zero bytes are written to
 * what has blocks, which needs no space; a hole is zero already.  *holes: there are some. */
static int zero_what_is_there(struct storage *st, uint64_t off, uint64_t len, bool *holes)
{
    *holes = false;
    while (len > 0) {
        bool data;
        uint64_t run;
        int err = storage_extent(st, off, len, &data, &run);
        if (!err && data)
            err = write_zero_bytes(st, off, run);
        if (err)
            return err;
        *holes |= !data;
        off += run;
        len -= run;
    }
    return 0;
}

/* After -ENOSPC of the quick way.  The range reads as zeroes afterwards, but still returns
 * -ENOSPC if it should have blocks and has none. */
static int zero_without_space(struct storage *st, uint64_t off, uint64_t len,
                              unsigned flags)
{
    uint64_t size;
    bool holes;

    int err = zero_what_is_there(st, off, len, &holes);
    if (!err)
        err = st->ops->size(st, &size);
    if (err)
        return err;
    return (holes && !(flags & STORAGE_MAY_UNMAP)) || off + len > size ? -ENOSPC : 0;
}

int storage_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    int err = check_change(st, off, len);
    if (err || len == 0)
        return err;
    err = check_fixed(st, off + len);
    if (err)
        return err;

    err = st->ops->zero ? st->ops->zero(st, off, len, flags & ~STORAGE_FUA) : -ENOTSUP;
    if (err == -ENOTSUP && !(flags & STORAGE_FAST))
        err = write_zero_bytes(st, off, len);
    else if (means_no_space(err))
        err = zero_without_space(st, off, len, flags);
    if (err == 0 && (flags & STORAGE_FUA) && !st->no_flush)
        err = storage_flush_for_write(st);
    return err;
}

int storage_copy(struct storage *st, uint64_t off, struct storage *from, uint64_t from_off,
                 uint64_t len)
{
    int err = check_change(st, off, len);
    if (err || len == 0)
        return err;
    err = check_fixed(st, off + len);
    if (err)
        return err;
    return st->ops->copy ? st->ops->copy(st, off, from, from_off, len) : -ENOTSUP;
}

int storage_discard(struct storage *st, uint64_t off, uint64_t len)
{
    int err = check_change(st, off, len);
    if (err || len == 0 || !st->ops->discard)
        return err;
    bool holes;
    err = st->ops->discard(st, off, len);
    if (means_no_space(err))
        err = zero_what_is_there(st, off, len, &holes);
    return err == -ENOTSUP ? 0 : err;
}

int storage_flush_for_write(struct storage *st)
{
    int err = st->ops->flush(st);

    if (err && !st->keeps_writes)
        atomic_store(&st->unreported_failure, true);
    return err;
}

int storage_flush(struct storage *st)
{
    return st->no_flush ? storage_settle(st) : storage_sync(st);
}

int storage_sync(struct storage *st)
{
    lock_assert_io_allowed();
    if (st->read_only)
        return 0;
    int err = st->ops->flush(st);
    return atomic_exchange(&st->unreported_failure, false) && !err ? -EIO : err;
}

int storage_sync_if_void(struct storage *st)
{
    return st->no_flush ? storage_sync(st) : 0;
}

int storage_settle(struct storage *st)
{
    lock_assert_io_allowed();
    return st->ops->settle ? st->ops->settle(st) : 0;
}

int storage_size(struct storage *st, uint64_t *bytes)
{
    lock_assert_io_allowed();
    return st->ops->size(st, bytes);
}

int storage_truncate(struct storage *st, uint64_t bytes)
{
    int err = check_change(st, bytes, 0);
    if (err)
        return err;
    return st->fixed_size ? check_fixed(st, bytes) : st->ops->truncate(st, bytes);
}

int storage_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                   uint64_t *run)
{
    lock_assert_io_allowed();
    int err = len == 0 ? -EINVAL : check_range(off, len);
    if (err)
        return err;

    err = st->ops->extent ? st->ops->extent(st, off, len, data, run) : -ENOTSUP;
    if (err == -ENOTSUP) {
        uint64_t size;
        err = st->ops->size(st, &size);
        if (err)
            return err;
        *data = off < size;
        *run = *data ? MIN(len, size - off) : len;
    }
    assert(err || (*run >= 1 && *run <= len));
    return err;
}

int storage_marks(struct storage *st, uint64_t off, uint64_t len, struct storage_marks *out)
{
    lock_assert_io_allowed();
    int err = len == 0 ? -EINVAL : check_range(off, len);

    return err ? err : !st->ops->marks ? -ENOTSUP : st->ops->marks(st, off, len, out);
}

void storage_prefetch(struct storage *st, uint64_t off, uint64_t len)
{
    lock_assert_io_allowed();
    if (st->ops->prefetch && len > 0 && check_range(off, len) == 0)
        st->ops->prefetch(st, off, len);
}

bool storage_expect(struct storage *st, uint64_t off, uint64_t len)
{
    return st->ops->expect && check_change(st, off, len) == 0 &&
           st->ops->expect(st, off, len);
}

void storage_expect_filling(struct storage *st)
{
    if (st->ops->expect_filling)
        st->ops->expect_filling(st);
}

void storage_expect_pieces(struct storage *st, uint64_t off, uint64_t len)
{
    if (st->ops->expect_pieces && check_change(st, off, len) == 0)
        st->ops->expect_pieces(st, off, len);
}

int storage_allocated(struct storage *st, uint64_t *bytes)
{
    lock_assert_io_allowed();
    return st->ops->allocated ? st->ops->allocated(st, bytes) : -ENOTSUP;
}

int storage_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    int err = check_change(st, off, len);
    if (err || len == 0)
        return err;
    err = check_fixed(st, off + len);
    if (err)
        return err;
    err = st->ops->preallocate ? st->ops->preallocate(st, off, len) : -ENOTSUP;
    if (err != -ENOTSUP)
        return err;

    uint64_t size;
    err = st->ops->size(st, &size);
    if (err)
        return err;
    return off < size ? -ENOTSUP : write_zero_bytes(st, off, len);
}

int storage_lock(struct storage *st, enum storage_lock_level level, struct diag *diag)
{
    return st->ops->lock ? st->ops->lock(st, level, diag) : 0;
}

int storage_identity(struct storage *st, uint64_t *device, uint64_t *inode)
{
    lock_assert_io_allowed();
    return st->ops->identity ? st->ops->identity(st, device, inode) : -ENOTSUP;
}

bool storage_is_same(struct storage *a, struct storage *b)
{
    uint64_t device[2], inode[2];

    return storage_identity(a, &device[0], &inode[0]) == 0 &&
           storage_identity(b, &device[1], &inode[1]) == 0 && device[0] == device[1] &&
           inode[0] == inode[1];
}

void storage_rest(struct storage *st)
{
    if (st->ops->rest)
        st->ops->rest(st);
}

bool storage_rests(const struct storage *st)
{
    return st->ops->rest;
}

int storage_start(struct storage *st)
{
    return st->ops->start ? st->ops->start(st) : 0;
}

void storage_abort(struct storage *st)
{
    if (st->ops->abort)
        st->ops->abort(st);
}

uint64_t storage_lost_writes(const struct storage *st)
{
    return st->ops->lost_writes ? st->ops->lost_writes(st) : 0;
}

int storage_prove(struct storage *st, bool by_reading, unsigned timeout_ms)
{
    lock_assert_io_allowed();
    return st->ops->prove ? st->ops->prove(st, by_reading, timeout_ms) : 0;
}

bool storage_persist(struct storage *st, unsigned patience_ms)
{
    if (!st->ops->persist)
        return false;
    st->ops->persist(st, patience_ms);
    return true;
}

uint32_t storage_preferred(const struct storage *st)
{
    return st->ops->preferred ? st->ops->preferred(st) : 0;
}

void storage_close(struct storage *st)
{
    if (!st)
        return;
    /* ops->close frees the struct itself */
    char *name = st->name, *location = st->location;
    st->ops->close(st);
    free(name);
    free(location);
}
