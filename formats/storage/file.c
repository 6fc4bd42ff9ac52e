/* SPDX-License-Identifier: BSD-3-Clause */
/* The buffered store over a local file or block device, and the system calls that the O_DIRECT
 * store uses as well. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/descriptors.h"
#include "storage/file.h"
#include "storage/iov.h"

/* ---- reading and writing ---- */

int64_t file_pread_some(struct file_storage *file, void *buf, uint64_t off, uint64_t len)
{
    for (;;) {
        ssize_t n = pread(file->fd, buf, len, (off_t)off);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return -errno;
    }
}

static void advance_iov(struct iovec **iov, int *count, size_t done)
{
    while (*count > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        ++*iov;
        --*count;
    }
    if (done > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

/* Most writes are one buffer; pwrite saves the kernel copying and checking a vector. */
static ssize_t write_once(int fd, const struct iovec *iov, int count, uint64_t off)
{
    return LIKELY(count == 1) ? pwrite(fd, iov->iov_base, iov->iov_len, (off_t)off)
                              : pwritev(fd, iov, count, (off_t)off);
}

int64_t file_pwritev_some(struct file_storage *file, struct iovec **iov, int *count,
                          uint64_t off, bool dsync)
{
    for (;;) {
        bool try_dsync = dsync && !file->no_dsync;
        ssize_t n = try_dsync
                        ? pwritev2(file->dsync_fd, *iov, *count, (off_t)off, RWF_DSYNC)
                        : write_once(file->fd, *iov, *count, off);
        if (n > 0) {
            advance_iov(iov, count, (size_t)n);
            return n;
        }
        if (n == 0)
            return -EIO; /* no progress, and no reason given */
        if (try_dsync && errno_unsupported(errno))
            file->no_dsync = true;
        else if (errno != EINTR)
            return -errno;
    }
}

static int buffered_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    char *to = buf;

    while (len > 0) {
        int64_t n = file_pread_some(file_of(st), to, off, len);
        if (n < 0)
            return (int)n;
        if (n == 0) {
            memset(to, 0, len);
            break;
        }
        to += n;
        off += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

static inline int write_all(struct storage *st, const struct iovec *iov, int count,
                            uint64_t off, unsigned flags)
{
    struct file_storage *file = file_of(st);
    bool fua = flags & STORAGE_FUA;
    struct iovec copy[STORAGE_MAX_IOV];
    struct iovec *rest = copy;

    memcpy(copy, iov, (size_t)count * sizeof *iov);
    while (count > 0) {
        int64_t n = file_pwritev_some(file, &rest, &count, off, fua);
        if (n < 0)
            return (int)n;
        off += (uint64_t)n;
    }
    /* no_dsync is never reset, so if it is clear here, all parts were written with RWF_DSYNC. */
    return fua && file->no_dsync ? file_flush_for_write(st) : 0;
}

static __attribute__((noinline)) int fill(struct storage *st, const struct iovec *iov,
                                          int count, uint64_t off, unsigned flags)
{
    file_prepare_to_fill(file_of(st), off, iov_length(iov, count));
    return write_all(st, iov, count, off, flags);
}

/* Two functions, so that a plain write only pays for a test. */
static int buffered_pwritev(struct storage *st, const struct iovec *iov, int count,
                            uint64_t off, unsigned flags)
{
    bool filling = atomic_load_explicit(&file_of(st)->filling, memory_order_relaxed);

    return UNLIKELY(filling) ? fill(st, iov, count, off, flags)
                             : write_all(st, iov, count, off, flags);
}

static int buffered_copy(struct storage *st, uint64_t off, struct storage *from,
                         uint64_t from_off, uint64_t len)
{
    off_t in = (off_t)from_off, out = (off_t)off;

    if (from->ops != st->ops)
        return -ENOTSUP;
    while (len > 0) {
        ssize_t n = copy_file_range(file_of(from)->fd, &in, file_of(st)->fd, &out, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EXDEV && errno != EINVAL && !errno_unsupported(errno))
            return -errno;
        if (n <= 0) /* the kernel can't copy, or the source ends here */
            return -ENOTSUP;
        len -= (uint64_t)n;
    }
    return 0;
}

int file_flush(struct storage *st)
{
    return fdatasync(file_of(st)->fd) == 0 ? 0 : -errno;
}

int file_flush_for_write(struct storage *st)
{
    int fd = file_of(st)->dsync_fd;

    if (fd < 0)
        return storage_flush_for_write(st);
    return fdatasync(fd) == 0 ? 0 : -errno;
}

/* ---- size and allocation ---- */

int file_size(struct storage *st, uint64_t *bytes)
{
    struct file_storage *file = file_of(st);
    struct stat sb;

    if (file->device)
        return ioctl(file->fd, BLKGETSIZE64, bytes) == 0 ? 0 : -errno;
    if (fstat(file->fd, &sb) != 0)
        return -errno;
    *bytes = (uint64_t)sb.st_size;
    return 0;
}

/* After operations that can make holes.  Holes that other processes make are missed, which is
 * harmless: reporting a hole as data is always allowed. */
static void forget_data(struct file_storage *file)
{
    LOCK_GUARD(&file->data_lock);
    file->data_from = file->data_to = 0;
    file->data_changes++;
}

int file_truncate(struct storage *st, uint64_t bytes)
{
    int rc;

    do {
        rc = ftruncate(file_of(st)->fd, (off_t)bytes);
    } while (rc != 0 && errno == EINTR);
    forget_data(file_of(st));
    return rc == 0 ? 0 : -errno;
}

int file_allocated(struct storage *st, uint64_t *bytes)
{
    struct file_storage *file = file_of(st);
    struct stat sb;

    if (file->device)
        return file_size(st, bytes);
    if (fstat(file->fd, &sb) != 0)
        return -errno;
    *bytes = (uint64_t)sb.st_blocks * 512;
    return 0;
}

/* If off lies in the run of data that was found before, returns how many bytes of it follow;
 * otherwise 0.  *changes: for remember_data. */
static uint64_t known_data(struct file_storage *file, uint64_t off, uint64_t *changes)
{
    LOCK_GUARD(&file->data_lock);
    *changes = file->data_changes;
    return off >= file->data_from && off < file->data_to ? file->data_to - off : 0;
}

static void remember_data(struct file_storage *file, uint64_t from, uint64_t to,
                          uint64_t changes)
{
    LOCK_GUARD(&file->data_lock);
    if (changes != file->data_changes)
        return;
    file->data_from = from;
    file->data_to = to;
}

int file_extent(struct storage *st, uint64_t off, uint64_t len, bool *data, uint64_t *run)
{
    struct file_storage *file = file_of(st);
    uint64_t changes, known;

    if (file->device)
        return -ENOTSUP;
    known = known_data(file, off, &changes);
    if (known) {
        *data = true;
        *run = MIN(len, known);
        return 0;
    }
    /* No other code uses the file position. */
    off_t next = lseek(file->fd, (off_t)off, SEEK_DATA);
    *data = next == (off_t)off;
    if (*data)
        next = lseek(file->fd, (off_t)off, SEEK_HOLE);
    if (next < 0 && errno == ENXIO) {
        /* No data from here on, or the file was cut meanwhile. */
        *data = false;
        *run = len;
        return 0;
    }
    if (next < 0)
        return errno == EINVAL ? -ENOTSUP : -errno;
    if (*data)
        remember_data(file, off, (uint64_t)next, changes);
    /* If a hole was punched between the two calls, it is reported as data, which is allowed. */
    *run = (uint64_t)next > off ? MIN(len, (uint64_t)next - off) : len;
    return 0;
}

/* ---- fallocate ---- */

static int fallocate_range(struct file_storage *file, int mode, uint64_t off, uint64_t len)
{
    int rc;

    do {
        rc = fallocate(file->fd, mode, (off_t)off, (off_t)len);
    } while (rc != 0 && errno == EINTR);
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        forget_data(file);
    if (rc == 0)
        return 0;
    return errno_unsupported(errno) ? -ENOTSUP : -errno;
}

/* As fallocate_range, but remembers in *unsupported when the operation isn't supported.
 * -EINVAL: some filesystems return it for ranges that they can't handle. */
static int allocate_if_known(struct file_storage *file, atomic_bool *unsupported, int mode,
                             uint64_t off, uint64_t len)
{
    if (*unsupported)
        return -ENOTSUP;
    int err = fallocate_range(file, mode, off, len);
    if (err == -ENOTSUP)
        *unsupported = true;
    return err == -EINVAL ? -ENOTSUP : err;
}

static int punch_range(struct file_storage *file, uint64_t off, uint64_t len)
{
    return allocate_if_known(file, &file->no_punch,
                             FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
}

static int zero_keeping(struct file_storage *file, uint64_t off, uint64_t len)
{
    int mode = FALLOC_FL_ZERO_RANGE | (file->device ? FALLOC_FL_KEEP_SIZE : 0);

    return allocate_if_known(file, &file->no_zeroing, mode, off, len);
}

/* Punches the part of the range inside the file, and grows the file to the range's end.  Not
 * with ftruncate, which could cut off what a concurrent writer has appended: allocating the
 * last byte can only move the end forwards. */
static int punch_and_grow(struct file_storage *file, uint64_t off, uint64_t len)
{
    uint64_t size;

    int err = file_size(&file->st, &size);
    if (err)
        return err;
    if (off < size)
        err = punch_range(file, off, MIN(len, size - off));
    if (err == 0 && off + len > size)
        err = fallocate_range(file, 0, off + len - 1, 1);
    return err;
}

int file_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    struct file_storage *file = file_of(st);
    int err = -ENOTSUP;

    if (!file_zero_is_aligned(file, off, len))
        return file_zero_unaligned(st, off, len, flags);
    if (flags & STORAGE_MAY_UNMAP)
        err = file->device ? punch_range(file, off, len) : punch_and_grow(file, off, len);
    /* If a device can't zero, the kernel writes zeroes to it, which isn't fast. */
    if (err == -ENOTSUP && !(file->device && (flags & STORAGE_FAST)))
        err = zero_keeping(file, off, len);
    return err;
}

int file_zero_unaligned(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    static _Alignas(4096) uint8_t zero_bytes[4096];
    uint32_t align = file_of(st)->zero_align;
    uint64_t end = off + len;
    uint64_t start = align_up(off, align), stop = align_down(end, align);

    if (start >= stop || align > sizeof zero_bytes)
        return -ENOTSUP;
    int err = st->ops->zero(st, start, stop - start, flags);
    if (err == 0 && off < start) {
        struct iovec head = {.iov_base = zero_bytes, .iov_len = start - off};
        err = st->ops->pwritev(st, &head, 1, off, 0);
    }
    if (err == 0 && stop < end) {
        struct iovec tail = {.iov_base = zero_bytes, .iov_len = end - stop};
        err = st->ops->pwritev(st, &tail, 1, stop, 0);
    }
    return err;
}

int file_discard(struct storage *st, uint64_t off, uint64_t len)
{
    struct file_storage *file = file_of(st);
    uint64_t start = align_up(off, file->zero_align);
    uint64_t stop = align_down(off + len, file->zero_align);

    return start < stop ? punch_range(file, start, stop - start) : 0;
}

int file_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    struct file_storage *file = file_of(st);

    return file->device ? 0 : fallocate_range(file, 0, off, len);
}

/* ---- other operations ---- */

static void buffered_prefetch(struct storage *st, uint64_t off, uint64_t len)
{
    (void)posix_fadvise(file_of(st)->fd, (off_t)off, (off_t)len, POSIX_FADV_WILLNEED);
}

int file_identity(struct storage *st, uint64_t *device, uint64_t *inode)
{
    struct file_storage *file = file_of(st);
    struct stat sb;

    if (fstat(file->fd, &sb) != 0)
        return -errno;
    /* A device has several names (and inodes); no regular file has inode 0. */
    *device = file->device ? sb.st_rdev : sb.st_dev;
    *inode = file->device ? 0 : sb.st_ino;
    return 0;
}

void file_close(struct storage *st)
{
    if (file_of(st)->dsync_fd >= 0)
        close(file_of(st)->dsync_fd);
    close(file_of(st)->fd);
    lock_destroy(&file_of(st)->data_lock);
    free(file_of(st));
}

/* Returns a second open file description, or -1.  Without /proc there is none, and each durable
 * write is followed by a flush. */
static int open_for_dsync(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    char path[64];

    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    DESCRIPTORS_GUARD();
    return open(path, (flags & (O_ACCMODE | O_DIRECT)) | O_CLOEXEC | O_NOCTTY);
}

int file_init(struct file_storage *file, const char *path, int fd, bool device)
{
    int sector = 1;

    lock_init(&file->data_lock, RANK_LEAF);
    file->fd = fd;
    file->dsync_fd = open_for_dsync(fd);
    file->no_dsync = file->dsync_fd < 0;
    file->device = device;
    if (device && ioctl(fd, BLKSSZGET, &sector) != 0)
        return -errno;
    file->zero_align = (uint32_t)sector;
    file->st.align = 1;
    file->st.fixed_size = device;
    file->st.name = strdup(path);
    return file->st.name ? 0 : -ENOMEM;
}

static const struct storage_ops buffered_ops = {
    .pread = buffered_pread,
    .pwritev = buffered_pwritev,
    .flush = file_flush,
    .size = file_size,
    .truncate = file_truncate,
    .close = file_close,
    .zero = file_zero,
    .copy = buffered_copy,
    .discard = file_discard,
    .extent = file_extent,
    .prefetch = buffered_prefetch,
    .allocated = file_allocated,
    .preallocate = file_preallocate,
    .expect = file_expect,
    .expect_filling = file_expect_filling,
    .lock = file_lock,
    .identity = file_identity,
};

int file_buffered_new(const char *path, int fd, bool device, struct storage **out,
                      struct diag *diag)
{
    struct file_storage *file = calloc(1, sizeof *file);

    if (!file) {
        close(fd);
        return diag_errno(diag, ENOMEM, "%s", path);
    }
    file->st.ops = &buffered_ops;
    int err = file_init(file, path, fd, device);
    if (err) {
        storage_close(&file->st);
        return diag_errno(diag, -err, "%s", path);
    }
    *out = &file->st;
    return 0;
}
