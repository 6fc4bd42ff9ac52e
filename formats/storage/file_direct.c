/* SPDX-License-Identifier: BSD-3-Clause */
/* The O_DIRECT store, for callers of any alignment.
 *
 * Aligned transfers go directly to the kernel.  All others, which is all transfers of servers,
 * go through bounce buffers of at most BOUNCE_BYTES; a write that doesn't fill its first or
 * last block reads that block first (read-modify-write).  Copying costs less than passing
 * unaligned memory: a device gets an address for each of its pages (bounce.h).
 *
 * Rules for concurrency; `ranges` consist of whole blocks:
 *   (1) a read-modify-write locks its blocks exclusively from its read to the end of its write;
 *       every other change of bytes (a write of whole blocks, a zero, a discard, a cut) locks
 *       its blocks at least shared: so none comes between the two;
 *   (2) an operation that may move the end of the file locks everything from its first block to
 *       infinity exclusively: there is one at a time, and the end doesn't move meanwhile;
 *   (3) reads lock nothing: what a read-modify-write writes back is what was there.
 *
 * The end of a file that isn't block aligned.  Only whole blocks can be written, so a write
 * that ends in the last block, or grows the file to an unaligned end, first makes the file too
 * long, with zeroes.  It is cut back under the lock of rule (2), for which storage_size waits.
 * If the process is killed in between, the file has less than a block of zeroes too many.
 *
 * `size` is a lower bound of the file's length: a write within it, which is nearly every write,
 * needs no system call to know that it doesn't grow the file.  It decreases only in a truncate,
 * which has everything beyond the new end locked. */
#include <fcntl.h>
#include <linux/fs.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/range_lock.h"
#include "storage/bounce.h"
#include "storage/file.h"
#include "storage/iov.h"

#define MIN_ALIGN  512u
#define PAGE_ALIGN 4096u

struct direct {
    struct file_storage file;
    uint32_t block;     /* alignment of offsets and lengths; a power of two */
    uint32_t mem_align; /* alignment of memory; a power of two */
    struct range_lock ranges;
    _Atomic uint64_t size;
};

static struct direct *direct_of(struct storage *st)
{
    return (struct direct *)st;
}

static uint64_t block_floor(const struct direct *d, uint64_t off)
{
    return align_down(off, d->block);
}

static uint64_t block_ceil(const struct direct *d, uint64_t off)
{
    return align_up(off, d->block);
}

static bool memory_fits(const struct direct *d, const void *p)
{
    return is_aligned((uintptr_t)p, d->mem_align);
}

/* ---- reading ---- */

/* Everything is aligned.  A count that isn't aligned means the end of the file. */
static int read_straight(struct direct *d, char *to, uint64_t off, uint64_t len)
{
    while (len > 0) {
        int64_t n = file_pread_some(&d->file, to, off, len);
        if (n < 0)
            return (int)n;
        to += n;
        off += (uint64_t)n;
        len -= (uint64_t)n;
        if (n == 0 || !is_aligned((uint64_t)n, d->block)) {
            memset(to, 0, len);
            break;
        }
    }
    return 0;
}

/* By way of a page on the stack, which needs no allocation and is one segment for the device. */
static int read_by_page(struct direct *d, char *to, uint64_t off, uint64_t len)
{
    _Alignas(PAGE_ALIGN) char page[PAGE_ALIGN];
    uint64_t pos = block_floor(d, off), stop = block_ceil(d, off + len);

    int err = read_straight(d, page, pos, stop - pos);
    if (err == 0)
        memcpy(to, page + (off - pos), len);
    return err;
}

static int read_bounced(struct direct *d, char *to, uint64_t off, uint64_t len)
{
    uint64_t pos = block_floor(d, off), stop = block_ceil(d, off + len);

    if (stop - pos <= PAGE_ALIGN && d->mem_align <= PAGE_ALIGN)
        return read_by_page(d, to, off, len);
    struct bounce CLEANUP(bounce_release) bounce = bounce_new(stop - pos, d->mem_align);
    if (!bounce.bytes)
        return -ENOMEM;
    for (; pos < stop; pos += bounce.capacity) {
        uint64_t n = MIN(stop - pos, bounce.capacity);
        int err = read_straight(d, bounce.bytes, pos, n);
        if (err)
            return err;
        uint64_t from = MAX(off, pos), until = MIN(off + len, pos + n);
        memcpy(to + (from - off), bounce.bytes + (from - pos), until - from);
    }
    return 0;
}

static int direct_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    struct direct *d = direct_of(st);
    bool fits = memory_fits(d, buf) && is_aligned(off, d->block);
    uint64_t whole = fits ? block_floor(d, len) : 0;

    if (whole > 0) {
        int err = read_straight(d, buf, off, whole);
        if (err)
            return err;
    }
    if (whole == len)
        return 0;
    return read_bounced(d, (char *)buf + whole, off + whole, len - whole);
}

/* ---- locking ---- */

/* Locks [start, stop) for a change: with `mode` if it lies inside the file, otherwise as rule
 * (2) says (*growing).  On failure nothing is locked. */
static int lock_for_change(struct direct *d, struct locked_range *range, uint64_t start,
                           uint64_t stop, enum range_mode mode, bool *growing)
{
    uint64_t size;

    range_lock_acquire(&d->ranges, range, start, stop, mode);
    *growing = stop > d->size;
    if (!*growing)
        return 0;
    range_lock_release(range);
    range_lock_acquire(&d->ranges, range, start, UINT64_MAX, RANGE_EXCLUSIVE);
    int err = file_size(&d->file.st, &size);
    if (err)
        range_lock_release(range);
    else
        d->size = size;
    return err;
}

/* Under the lock of rule (2), after a change whose result is err: cuts the file to the larger
 * of its old end and `end`, and updates `size`. Returns err, or its own error. */
static int cut_back_end(struct direct *d, uint64_t end, int err)
{
    uint64_t limit = MAX(d->size, end), size;

    int failed = file_size(&d->file.st, &size);
    if (!failed && size > limit && !d->file.device) {
        failed = file_truncate(&d->file.st, limit);
        size = limit;
    }
    if (!failed)
        d->size = size;
    return err ? err : failed;
}

/* ---- writing ---- */

/* Everything is aligned; the vector is consumed. */
static int write_straight(struct direct *d, struct iovec *iov, int count, uint64_t off,
                          bool dsync)
{
    while (count > 0) {
        int64_t n = file_pwritev_some(&d->file, &iov, &count, off, dsync);
        if (n < 0)
            return (int)n;
        if (!is_aligned((uint64_t)n, d->block))
            return -EIO; /* a device that stops in the middle of a sector */
        off += (uint64_t)n;
    }
    return 0;
}

/* Reads the first and last block of [pos, pos+n) if [from, until) fills them only in part. */
static int read_edges(struct direct *d, char *bounce, uint64_t pos, uint64_t n,
                      uint64_t from, uint64_t until)
{
    uint64_t last = pos + n - d->block;
    bool head = from > pos, tail = until < pos + n;
    int err = 0;

    if (head || (tail && last == pos))
        err = read_straight(d, bounce, pos, d->block);
    if (!err && tail && last != pos)
        err = read_straight(d, bounce + (last - pos), last, d->block);
    return err;
}

static int write_bounced(struct direct *d, const struct iovec *iov, uint64_t off,
                         uint64_t len, bool dsync)
{
    uint64_t pos = block_floor(d, off), stop = block_ceil(d, off + len);
    struct iov_cursor at = {.iov = iov};
    struct bounce CLEANUP(bounce_release) bounce = bounce_new(stop - pos, d->mem_align);

    if (!bounce.bytes)
        return -ENOMEM;
    for (; pos < stop; pos += bounce.capacity) {
        uint64_t n = MIN(stop - pos, bounce.capacity);
        uint64_t from = MAX(off, pos), until = MIN(off + len, pos + n);
        int err = read_edges(d, bounce.bytes, pos, n, from, until);
        if (err)
            return err;
        iov_gather(&at, bounce.bytes + (from - pos), until - from);
        struct iovec piece = {.iov_base = bounce.bytes, .iov_len = n};
        err = write_straight(d, &piece, 1, pos, dsync);
        if (err)
            return err;
    }
    return 0;
}

static bool vector_fits(const struct direct *d, const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++)
        if (!memory_fits(d, iov[i].iov_base) || !is_aligned(iov[i].iov_len, d->block))
            return false;
    return true;
}

/* Rejects a write beyond the end of a device before any of it is done. */
static int check_device_end(struct direct *d, uint64_t end)
{
    uint64_t size;

    if (!d->file.device || end <= d->size)
        return 0;
    int err = file_size(&d->file.st, &size);
    return err ? err : end > size ? -ENOSPC : 0;
}

static int direct_pwritev(struct storage *st, const struct iovec *iov, int count,
                          uint64_t off, unsigned flags)
{
    struct direct *d = direct_of(st);
    uint64_t len = iov_length(iov, count), end = off + len;
    bool whole_blocks = is_aligned(off | len, d->block);
    bool straight = whole_blocks && vector_fits(d, iov, count);
    struct iovec copy[STORAGE_MAX_IOV]; /* consumed by write_straight */
    struct locked_range range;
    bool growing;

    int err = check_device_end(d, end);
    if (err)
        return err;
    err = lock_for_change(d, &range, block_floor(d, off), block_ceil(d, end),
                          whole_blocks ? RANGE_SHARED : RANGE_EXCLUSIVE, &growing);
    if (err)
        return err;
    memcpy(copy, iov, (size_t)count * sizeof *iov);
    /* RWF_DSYNC only if no cut follows, which must be durable too, and if the write is one
     * piece; otherwise one flush at the end. */
    bool fua = flags & STORAGE_FUA;
    bool dsync = fua && !growing && (straight || len < BOUNCE_BYTES / 2);
    err = straight ? write_straight(d, copy, count, off, dsync)
                   : write_bounced(d, iov, off, len, dsync);
    if (growing)
        err = cut_back_end(d, end, err);
    range_lock_release(&range);
    if (err == 0 && fua && (!dsync || d->file.no_dsync))
        err = file_flush_for_write(st);
    return err;
}

/* ---- changes by fallocate and ftruncate ---- */

typedef int change_fn(struct storage *st, uint64_t off, uint64_t len, unsigned flags);

/* Runs a change of [off, off+len), which the kernel can do at any alignment. */
static int change_range(struct direct *d, change_fn *fn, uint64_t off, uint64_t len,
                        unsigned flags)
{
    struct locked_range range;
    bool growing;

    int err = lock_for_change(d, &range, block_floor(d, off), block_ceil(d, off + len),
                              RANGE_SHARED, &growing);
    if (err)
        return err;
    err = fn(&d->file.st, off, len, flags);
    if (growing)
        err = cut_back_end(d, off + len, err);
    range_lock_release(&range);
    return err;
}

static int direct_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    struct direct *d = direct_of(st);

    /* file_zero_unaligned locks its parts one by one. */
    if (!file_zero_is_aligned(&d->file, off, len))
        return file_zero_unaligned(st, off, len, flags);
    return change_range(d, file_zero, off, len, flags);
}

static int preallocate_fn(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    (void)flags;
    return file_preallocate(st, off, len);
}

static int direct_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    return change_range(direct_of(st), preallocate_fn, off, len, 0);
}

static int direct_discard(struct storage *st, uint64_t off, uint64_t len)
{
    struct direct *d = direct_of(st);
    struct locked_range range;

    /* Never grows the file, wherever it ends. */
    range_lock_acquire(&d->ranges, &range, block_floor(d, off), block_ceil(d, off + len),
                       RANGE_SHARED);
    int err = file_discard(st, off, len);
    range_lock_release(&range);
    return err;
}

static int direct_truncate(struct storage *st, uint64_t bytes)
{
    struct direct *d = direct_of(st);
    struct locked_range range;
    uint64_t from;

    /* Lock everything from the smaller of old and new size on.  The old size may decrease
     * before the lock is granted. */
    for (;;) {
        from = MIN(bytes, d->size);
        range_lock_acquire(&d->ranges, &range, block_floor(d, from), UINT64_MAX,
                           RANGE_EXCLUSIVE);
        if (from <= d->size)
            break;
        range_lock_release(&range);
    }
    int err = file_truncate(st, bytes);
    if (err == 0)
        d->size = bytes;
    range_lock_release(&range);
    return err;
}

static int direct_size(struct storage *st, uint64_t *bytes)
{
    struct direct *d = direct_of(st);
    struct locked_range range;

    /* Waits while a file is longer than its writer wanted. */
    range_lock_acquire(&d->ranges, &range, UINT64_MAX - 1, UINT64_MAX, RANGE_SHARED);
    int err = file_size(st, bytes);
    range_lock_release(&range);
    return err;
}

static void direct_close(struct storage *st)
{
    range_lock_destroy(&direct_of(st)->ranges);
    file_close(st);
}

static const struct storage_ops direct_ops = {
    .pread = direct_pread,
    .pwritev = direct_pwritev,
    .flush = file_flush,
    .size = direct_size,
    .truncate = direct_truncate,
    .close = direct_close,
    .zero = direct_zero,
    .discard = direct_discard,
    .extent = file_extent,
    .allocated = file_allocated,
    .preallocate = direct_preallocate,
    .expect_pieces = file_expect_pieces,
    .lock = file_lock,
    .identity = file_identity,
};

/* ---- opening ---- */

/* Does a read with this alignment, and no larger one, succeed? */
static bool read_fits(int fd, uint32_t align)
{
    void *p;

    if (posix_memalign(&p, PAGE_ALIGN, 2 * PAGE_ALIGN) != 0)
        return false;
    ssize_t n = pread(fd, (char *)p + (align & (PAGE_ALIGN - 1)), align, 0);
    free(p);
    return n >= 0;
}

/* Determines the alignment that the kernel requires.  Linux reports it for some filesystems
 * from 6.1 on.  Otherwise it is a device's sector, or found by trial reads, which tell nothing
 * while the file is empty. */
static int find_alignment(struct direct *d)
{
    int fd = d->file.fd;
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
        (sx.stx_mask & STATX_DIOALIGN)) {
        d->block = sx.stx_dio_offset_align;
        d->mem_align = sx.stx_dio_mem_align;
        return d->block && d->mem_align ? 0 : -ENOTSUP;
    }
#endif
    if (d->file.device)
        d->block = d->file.zero_align;
    else if (d->size >= MIN_ALIGN && read_fits(fd, MIN_ALIGN))
        d->block = MIN_ALIGN;
    else if (read_fits(fd, PAGE_ALIGN))
        d->block = PAGE_ALIGN;
    else
        return -ENOTSUP;
    d->mem_align = d->block;
    return 0;
}

static int direct_init(struct direct *d, const char *path, int fd, bool device,
                       struct diag *diag)
{
    uint64_t size;

    int err = file_init(&d->file, path, fd, device);
    if (err == 0)
        err = file_size(&d->file.st, &size);
    if (err)
        return diag_errno(diag, -err, "%s", path);
    d->size = size;
    err = find_alignment(d);
    if (err == 0 && (!is_power_of_two(d->block) || !is_power_of_two(d->mem_align) ||
                     MAX(d->block, d->mem_align) > BOUNCE_BYTES / 4))
        err = -ENOTSUP;
    if (err)
        return diag_set(diag, EINVAL, "%s: no O_DIRECT access at any usable alignment",
                        path);
    if (size > align_down(INT64_MAX, d->block))
        return diag_set(diag, EFBIG,
                        "%s: the last of its %" PRIu64
                        " bytes can't be reached with O_DIRECT (cache=none, directsync), "
                        "which transfers whole blocks of %u; another cache mode can",
                        path, size, d->block);
    d->file.st.align = d->block;
    return 0;
}

int file_direct_new(const char *path, int fd, bool device, struct storage **out,
                    struct diag *diag)
{
    struct direct *d = calloc(1, sizeof *d);

    if (!d) {
        close(fd);
        return diag_errno(diag, ENOMEM, "%s", path);
    }
    d->file.st.ops = &direct_ops;
    range_lock_init(&d->ranges, RANK_LEAF);
    int err = direct_init(d, path, fd, device, diag);
    if (err) {
        storage_close(&d->file.st);
        return err;
    }
    *out = &d->file.st;
    return 0;
}
