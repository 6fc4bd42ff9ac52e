/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests file storages with a kernel that does as little as it may: short transfers, interruptions,
 * missing features.  The system calls are replaced by functions that misbehave as a test wants and
 * count the calls. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "storage_testing.h"

/* ---- the kernel that misbehaves ---- */

static struct kernel {
    size_t longest;       /* transfers are cut to this length; 0: they aren't */
    unsigned interrupt;   /* every nth call is interrupted; 0: none */
    bool no_dsync;        /* RWF_DSYNC isn't supported */
    bool no_progress;     /* writes return 0 */
    size_t fail_after;    /* writes fail with ENOSPC after so many bytes; 0: they don't */
    int missing_modes[4]; /* modes that fallocate doesn't support */
    unsigned n_missing;
    bool interrupt_fallocate;
    long filesystem; /* the filesystem's magic number; 0: the real one */
    uint64_t room;   /* free bytes of the filesystem */
    bool lost;       /* a write-back has failed: reported once to each descriptor */
    uint64_t told;   /* a bit for each descriptor to which it was reported */

    unsigned calls, writes, dsync_writes, syncs, cuts;
    unsigned fallocates;
    size_t written, largest_buffer;
} kernel;

static bool interrupted(void)
{
    return kernel.interrupt && ++kernel.calls % kernel.interrupt == 0;
}

static bool tell_of_loss(int fd)
{
    uint64_t bit = UINT64_C(1) << fd;

    if (!kernel.lost || (kernel.told & bit))
        return false;
    kernel.told |= bit;
    errno = EIO;
    return true;
}

ssize_t pread(int fd, void *buf, size_t n, off_t off)
{
    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    if (kernel.longest)
        n = MIN(n, kernel.longest);
    return syscall(SYS_pread64, fd, buf, n, off);
}

static ssize_t write_some(int fd, const struct iovec *iov, int count, off_t off, int flags)
{
    struct iovec cut[STORAGE_MAX_IOV];
    size_t room = kernel.longest ? kernel.longest : SIZE_MAX;
    int n = 0;

    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    kernel.writes++;
    if ((flags & RWF_DSYNC) && kernel.no_dsync) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (kernel.fail_after && kernel.written >= kernel.fail_after) {
        errno = ENOSPC;
        return -1;
    }
    if (kernel.no_progress)
        return 0;
    kernel.dsync_writes += (flags & RWF_DSYNC) != 0;
    for (; n < count && room > 0; n++) {
        cut[n] = iov[n];
        cut[n].iov_len = MIN(cut[n].iov_len, room);
        room -= cut[n].iov_len;
    }
    ssize_t done = syscall(SYS_pwritev2, fd, cut, n, off, 0L, flags);
    kernel.written += done > 0 ? (size_t)done : 0;
    return (flags & RWF_DSYNC) && tell_of_loss(fd) ? -1 : done;
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t off, int flags)
{
    return write_some(fd, iov, count, off, flags);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t off)
{
    return write_some(fd, iov, count, off, 0);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t off)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = n};

    return write_some(fd, &iov, 1, off, 0);
}

int fdatasync(int fd)
{
    kernel.syncs++;
    return tell_of_loss(fd) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int ftruncate(int fd, off_t size)
{
    kernel.cuts++;
    return (int)syscall(SYS_ftruncate, fd, size);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    kernel.fallocates++;
    if (kernel.interrupt_fallocate) {
        kernel.interrupt_fallocate = false;
        errno = EINTR;
        return -1;
    }
    for (unsigned i = 0; i < kernel.n_missing; i++)
        if (kernel.missing_modes[i] == mode) {
            errno = EOPNOTSUPP;
            return -1;
        }
    return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

int fstatfs(int fd, struct statfs *fs)
{
    int rc = (int)syscall(SYS_fstatfs, fd, fs);

    if (rc == 0 && kernel.filesystem) {
        fs->f_type = kernel.filesystem;
        fs->f_bavail = kernel.room / (uint64_t)fs->f_bsize;
    }
    return rc;
}

int posix_memalign(void **p, size_t align, size_t n)
{
    kernel.largest_buffer = MAX(kernel.largest_buffer, n);
    *p = aligned_alloc(align, (n + align - 1) / align * align);
    return *p ? 0 : ENOMEM;
}

/* ---- the tests ---- */

static void open_watched(const struct storage_open *how)
{
    open_it(how);
    kernel = (struct kernel){0};
}

static void open_either(bool direct)
{
    open_watched(&(struct storage_open){.direct = direct});
}

#define BOTH(name) BOTH_WAYS(transfer, name, 120, open_either)

enum { LONG = 3000001 };

static char *pattern(void)
{
    char *buf = malloc(LONG);

    for (size_t i = 0; i < LONG; i++)
        buf[i] = (char)(i * 2654435761u >> 11);
    return buf;
}

static void fill(uint64_t len)
{
    char *buf = malloc(len);

    memset(buf, 'x', len);
    cr_assert_eq(storage_write(st, buf, 0, len, 0), 0);
    free(buf);
}

/* In a file filled with 'x', exactly [off, off+len) must be zero. */
static void expect_zeroed(uint64_t size, uint64_t off, uint64_t len)
{
    char *buf = malloc(size);

    cr_assert_eq(storage_read(st, buf, 0, size), 0);
    for (uint64_t i = 0; i < size; i++)
        cr_assert_eq(buf[i], i >= off && i < off + len ? 0 : 'x', "at %lu",
                     (unsigned long)i);
    free(buf);
}

BOTH(short_and_interrupted_transfers_are_completed)
{
    char *buf = pattern(), *back = malloc(LONG);
    struct iovec iov[3] = {{.iov_base = buf, .iov_len = 100001},
                           {.iov_base = buf + 100001, .iov_len = 7},
                           {.iov_base = buf + 100008, .iov_len = LONG - 100008}};

    kernel.longest = 9 * 4096;
    kernel.interrupt = 3;
    cr_assert_eq(storage_writev(st, iov, 3, 333, 0), 0);
    cr_assert_eq(storage_read(st, back, 333, LONG), 0);
    cr_assert_eq(memcmp(buf, back, LONG), 0);
    cr_assert_gt(kernel.writes, (unsigned)(LONG / kernel.longest));
    free(buf);
    free(back);
}

BOTH(bounce_buffers_are_bounded)
{
    char *buf = pattern();

    cr_assert_eq(storage_write(st, buf, 1, LONG, 0), 0);
    cr_assert_eq(storage_read(st, buf, 1, LONG), 0);
    cr_assert_leq(kernel.largest_buffer, 1u << 20);
    free(buf);
}

BOTH(errors_in_the_middle_are_returned)
{
    char *buf = pattern();

    kernel.longest = 64 << 10;
    kernel.fail_after = 1 << 20;
    cr_assert_eq(storage_write(st, buf, 0, LONG, 0), -ENOSPC);
    kernel.fail_after = 0;
    kernel.no_progress = true;
    cr_assert_eq(storage_write(st, buf, 0, 4096, 0), -EIO);
    free(buf);
}

BOTH(fua_is_a_flag_of_the_write)
{
    fill(100000);
    kernel = (struct kernel){0};
    cr_assert_eq(storage_write(st, "fua", 5000, 3, STORAGE_FUA), 0);
    cr_assert_eq(kernel.dsync_writes, 1u);
    cr_assert_eq(kernel.syncs, 0u);
    cr_assert_eq(storage_write(st, "not", 5000, 3, 0), 0);
    cr_assert_eq(kernel.dsync_writes, 1u);
}

BOTH(fua_without_the_flag_is_a_sync)
{
    fill(100000);
    kernel = (struct kernel){.no_dsync = true};
    cr_assert_eq(storage_write(st, "fua", 5000, 3, STORAGE_FUA), 0);
    cr_assert_eq(kernel.syncs, 1u);
    cr_assert_eq(storage_write(st, "fua", 9000, 3, STORAGE_FUA), 0);
    cr_assert_eq(kernel.syncs, 2u);
    cr_assert_eq(kernel.writes, 3u, "the flag is tried once");
}

BOTH(fua_that_grows_is_durable_too)
{
    char *buf = pattern();

    cr_assert_eq(storage_write(st, buf, 5, LONG, STORAGE_FUA), 0);
    cr_assert(kernel.syncs + kernel.dsync_writes > 0);
    free(buf);
}

static void volatile_session(void)
{
    fill(100000);
    cr_assert_eq(storage_write(st, "fua", 5000, 3, STORAGE_FUA), 0);
    cr_assert_eq(storage_zero(st, 0, 100, STORAGE_FUA), 0);
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(kernel.syncs + kernel.dsync_writes, 0u);
    cr_assert_eq(storage_sync(st), 0);
    cr_assert_eq(kernel.syncs, 1u);
}

/* An earlier write was lost, and the kernel reports that only once.  The durable write that gets
 * the error fails; the next flush must fail, too, although the kernel doesn't report it again. */
static void lose_and_flush(bool no_dsync)
{
    fill(8192);
    kernel = (struct kernel){.lost = true, .no_dsync = no_dsync};
    cr_expect_eq(storage_write(st, "x", 4096, 1, STORAGE_FUA), -EIO);
    cr_expect_eq(storage_flush(st), -EIO);
    cr_expect_eq(storage_write(st, "y", 4096, 1, STORAGE_FUA), 0);
    cr_expect_eq(storage_flush(st), 0, "it was told");
}

BOTH(a_durable_write_leaves_the_flush_what_it_has_to_tell)
{
    lose_and_flush(false);
}

BOTH(so_does_one_that_is_a_write_and_a_flush)
{
    lose_and_flush(true);
}

BOTH(and_durable_zeroes)
{
    fill(8192);
    kernel = (struct kernel){.lost = true};
    cr_expect_eq(storage_zero(st, 4096, 4096, STORAGE_FUA), -EIO);
    cr_expect_eq(storage_flush(st), -EIO);
}

/* V-02 */
Test(buffered_transfer, volatile_syncs_nothing)
{
    open_watched(&(struct storage_open){.no_flush = true});
    volatile_session();
    done();
}

#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ZERO  FALLOC_FL_ZERO_RANGE

BOTH(zero_tries_the_next_best)
{
    fill(200000);
    kernel = (struct kernel){.missing_modes = {PUNCH}, .n_missing = 1};
    cr_assert_eq(storage_zero(st, 1000, 100000, STORAGE_MAY_UNMAP), 0);
    cr_assert_eq(kernel.writes, 0u, "FALLOC_FL_ZERO_RANGE did it");
    expect_zeroed(200000, 1000, 100000);
    fill(200000);
    kernel = (struct kernel){.missing_modes = {PUNCH, ZERO}, .n_missing = 2};
    cr_assert_eq(storage_zero(st, 1000, 100000, STORAGE_MAY_UNMAP), 0);
    cr_assert_gt(kernel.writes, 0u);
    expect_zeroed(200000, 1000, 100000);
    kernel.fallocates = 0;
    cr_assert_eq(storage_zero(st, 1000, 100000, STORAGE_MAY_UNMAP), 0);
    cr_assert_eq(kernel.fallocates, 0u, "asked again for what isn't there");
}

BOTH(fast_zero_without_support_touches_nothing)
{
    fill(200000);
    kernel = (struct kernel){.missing_modes = {PUNCH, ZERO}, .n_missing = 2};
    cr_assert_eq(storage_zero(st, 1000, 300000, STORAGE_MAY_UNMAP | STORAGE_FAST),
                 -ENOTSUP);
    cr_assert_eq(storage_zero(st, 1000, 300000, STORAGE_FAST), -ENOTSUP);
    cr_assert_eq(kernel.writes, 0u);
    expect_zeroed(200000, 0, 0);
    uint64_t size;
    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_eq(size, 200000u);
}

/* Zeroing beyond the end must not use ftruncate: with a size read before, it would cut off the data
 * of a writer that has grown the file meanwhile. */
BOTH(zero_grows_without_a_truncate)
{
    uint64_t size;

    fill(8192);
    kernel = (struct kernel){0};
    cr_assert_eq(storage_zero(st, 5000, 20000, STORAGE_MAY_UNMAP), 0);
    cr_assert_eq(storage_zero(st, 50000, 20000, 0), 0);
    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_eq(size, 70000u);
    cr_assert_eq(kernel.cuts, 0u);
}

BOTH(interrupted_fallocates_are_repeated)
{
    fill(8192);
    kernel = (struct kernel){.interrupt_fallocate = true};
    cr_assert_eq(storage_zero(st, 0, 4096, STORAGE_MAY_UNMAP), 0);
    cr_assert_eq(kernel.fallocates, 2u);
    expect_zeroed(8192, 0, 4096);
}

BOTH(discard_and_preallocate_without_support)
{
    fill(8192);
    kernel = (struct kernel){.missing_modes = {PUNCH, 0}, .n_missing = 2};
    cr_assert_eq(storage_discard(st, 0, 4096), 0);
    cr_assert_eq(storage_preallocate(st, 0, 4096), -ENOTSUP);
    expect_zeroed(8192, 0, 0);
    cr_assert_eq(storage_preallocate(st, 8192, 100000), 0);
    cr_assert_geq(kernel.written, 100000u);
}

/* ---- preallocation for expected data ---- */

#define MIB    (UINT64_C(1) << 20)
#define PLENTY (UINT64_C(64) << 30)

static uint64_t allocated(void)
{
    uint64_t bytes;

    cr_assert_eq(storage_allocated(st, &bytes), 0);
    return bytes;
}

static void expect_size(uint64_t size)
{
    uint64_t bytes;

    cr_assert_eq(storage_size(st, &bytes), 0);
    cr_assert_eq(bytes, size);
}

Test(buffered_transfer, expected_data_has_blocks)
{
    open_watched(&(struct storage_open){0});
    cr_assert_eq(storage_truncate(st, 8 * MIB), 0);
    kernel = (struct kernel){.filesystem = EXT4_SUPER_MAGIC, .room = PLENTY};
    cr_assert(storage_expect(st, MIB, 4 * MIB));
    cr_assert_geq(allocated(), 4 * MIB);
    expect_size(8 * MIB);
    cr_assert_eq(storage_discard(st, 2 * MIB, 3 * MIB), 0);
    cr_assert_lt(allocated(), 2 * MIB);
    cr_assert(storage_expect(st, 7 * MIB, 4 * MIB), "also beyond the end");
    expect_size(8 * MIB);
    done();
}

Test(buffered_transfer, nothing_is_done_where_it_would_not_help)
{
    open_watched(&(struct storage_open){0});
    kernel = (struct kernel){.filesystem = EXT4_SUPER_MAGIC, .room = PLENTY};
    cr_assert_not(storage_expect(st, 0, 65536), "it is little");
    kernel.room = MIB;
    cr_assert_not(storage_expect(st, 0, 4 * MIB), "there is hardly any room");
    kernel.room = PLENTY;
    kernel.filesystem = TMPFS_MAGIC;
    cr_assert_not(storage_expect(st, 0, 4 * MIB), "another filesystem");
    storage_expect_filling(st);
    char *data = calloc(1, MIB);
    cr_assert_eq(storage_write(st, data, 0, MIB, 0), 0);
    cr_assert_eq(kernel.fallocates, 0u);
    free(data);
    done();
}

/* Grows the file and announces that the new range will be written piece by piece. */
static void grow_by(uint64_t bytes)
{
    uint64_t size;

    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_eq(storage_truncate(st, size + bytes), 0);
    storage_expect_pieces(st, size, bytes);
    expect_size(size + bytes);
}

Test(direct_transfer, growth_that_is_written_in_pieces_has_blocks)
{
    open_watched(&(struct storage_open){.direct = true});
    kernel = (struct kernel){.filesystem = EXT4_SUPER_MAGIC, .room = PLENTY};
    grow_by(4 * MIB);
    cr_assert_geq(allocated(), 4 * MIB);
    kernel.room = MIB;
    grow_by(4 * MIB);
    cr_assert_lt(allocated(), 5 * MIB, "there is hardly any room");
    kernel = (struct kernel){.filesystem = TMPFS_MAGIC, .room = PLENTY};
    grow_by(4 * MIB);
    cr_assert_eq(kernel.fallocates, 0u, "another filesystem");
    done();
}

Test(buffered_transfer, growth_that_is_written_in_pieces_stays_a_hole)
{
    open_watched(&(struct storage_open){0});
    kernel = (struct kernel){.filesystem = EXT4_SUPER_MAGIC, .room = PLENTY};
    grow_by(4 * MIB);
    cr_assert_eq(kernel.fallocates, 0u);
    done();
}

static void write_filling(const char *data, uint64_t off, uint64_t len, unsigned steps)
{
    kernel.fallocates = 0;
    cr_assert_eq(storage_write(st, data, off, len, 0), 0);
    cr_assert_eq(kernel.fallocates, steps);
}

Test(buffered_transfer, what_is_filled_has_blocks_ahead)
{
    open_watched(&(struct storage_open){0});
    kernel = (struct kernel){.filesystem = EXT4_SUPER_MAGIC, .room = PLENTY};
    storage_expect_filling(st);
    cr_assert_eq(storage_truncate(st, 40 * MIB), 0);
    char *data = calloc(1, MIB);
    write_filling(data, 0, 65536, 0);
    write_filling(data, MIB, MIB, 1);
    cr_assert_geq(allocated(), 15 * MIB);
    write_filling(data, 2 * MIB, MIB, 0);
    write_filling(data, 15 * MIB + 65536, MIB, 1);
    write_filling(data, 39 * MIB, MIB, 1);
    expect_size(40 * MIB);
    cr_assert_lt(allocated(), 35 * MIB, "what lies between is nobody's yet");
    kernel.missing_modes[kernel.n_missing++] = FALLOC_FL_KEEP_SIZE;
    cr_assert_eq(storage_truncate(st, 80 * MIB), 0);
    write_filling(data, 50 * MIB, MIB, 1);
    write_filling(data, 70 * MIB, MIB, 0);
    free(data);
    done();
}
