/* SPDX-License-Identifier: BSD-3-Clause */
/* Hints to the filesystem for a new file, and allocation ahead that makes filling a file
 * cheaper. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/no_space.h"
#include "storage/file.h"

/* Only btrfs has the flag, and only for empty files; failures don't matter. */
static void set_nocow(int fd)
{
    int flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
        return;
    flags |= FS_NOCOW_FL;
    ioctl(fd, FS_IOC_SETFLAGS, &flags);
}

static int set_extent_size(int fd, uint32_t bytes)
{
    struct fsxattr attributes;

    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) < 0)
        return -errno;
    attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
    attributes.fsx_extsize = bytes;
    return ioctl(fd, FS_IOC_FSSETXATTR, &attributes) < 0 ? -errno : 0;
}

void storage_set_hints(struct storage *st, const struct storage_hints *hints)
{
    if (st->fixed_size) /* a device */
        return;
    if (hints->nocow)
        set_nocow(file_of(st)->fd);
    if (hints->extent_size_hint == 0)
        return;
    int err = set_extent_size(file_of(st)->fd, hints->extent_size_hint);
    if (err)
        log_warning("%s: extent_size_hint %u: the filesystem doesn't take it (errno %d)",
                    st->name, hints->extent_size_hint, -err);
}

/* ---- allocating before writing ---- */

/* When data is written to a hole, ext4 reserves space block by block, which takes about as long
 * as copying the data.  Where blocks are allocated already, only the copy is left.  Allocating
 * them is one step of the journal, whatever the length. */

/* Below this many bytes it isn't worth that step. */
#define LEAST (256u << 10)
/* A file that is being filled gets this many bytes of blocks at once: several threads write
 * close to each other there, and small allocations would be scattered. */
#define AHEAD (16u << 20)
/* With less free space (bytes) other files may need the blocks that aren't written in the end. */
#define ROOM (1ull << 30)

static bool gives_blocks(const struct file_storage *file)
{
    struct statfs fs;

    return !file->device && fstatfs(file->fd, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC &&
           fs.f_bavail >= ROOM / (uint64_t)fs.f_bsize;
}

/* Fails on ext2 and ext3, which have the same magic but no fallocate. */
static bool give_blocks(const struct file_storage *file, uint64_t off, uint64_t len)
{
    errno = 0;
    return gives_blocks(file) &&
           fallocate(file->fd, FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0;
}

bool file_expect(struct storage *st, uint64_t off, uint64_t len)
{
    if (len < LEAST)
        return false;
    if (give_blocks(file_of(st), off, len))
        return true;
    if (means_no_space(-errno))
        (void)file_discard(st, off, len); /* give back what was allocated */
    return false;
}

/* With O_DIRECT, a write to a hole locks ext4's file against all other writes until it is on
 * the disk.  Writes to allocated blocks, even if these were never written, run concurrently. */
void file_expect_pieces(struct storage *st, uint64_t off, uint64_t len)
{
    (void)file_expect(st, off, len);
}

void file_expect_filling(struct storage *st)
{
    file_of(st)->filling = gives_blocks(file_of(st));
}

/* Decides how far to allocate ahead for a write, and records that this thread does it.  0:
 * nothing to do, or another thread has done it. */
static uint64_t claim_ahead(struct file_storage *file, uint64_t off, uint64_t len,
                            uint64_t size)
{
    LOCK_GUARD(&file->data_lock);

    if (off + len <= file->ready_to || off + len > size)
        return 0;
    file->ready_to = MIN(size, align_up(off + len, AHEAD));
    return file->ready_to;
}

void file_prepare_to_fill(struct file_storage *file, uint64_t off, uint64_t len)
{
    uint64_t size;

    if (len < LEAST || file_size(&file->st, &size) != 0)
        return;
    uint64_t end = claim_ahead(file, off, len, size);
    if (end && !give_blocks(file, off, end - off))
        file->filling = false;
}
