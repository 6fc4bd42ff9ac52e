/* SPDX-License-Identifier: BSD-3-Clause */
/* What is wished of the filesystem for a new file, and what makes it cheap to fill one. */
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

/* Only btrfs knows the flag, and only for empty files; elsewhere nothing is lost without
 * it. */
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

/* ---- blocks before the bytes ---- */

/* ext4 reserves space block by block for what is written to a hole, which takes about as long
 * as to copy the bytes; where there are blocks, nothing is left to do but that.  To give them is
 * one step of the journal, for any length. */

/* Below this it isn't worth the step. */
#define LEAST (256u << 10)
/* A file that is filled gets blocks for so much at once: several threads write close to each
 * other there, and what each asks for alone would lie scattered. */
#define AHEAD (16u << 20)
/* With less room on the filesystem others may need what isn't written in the end. */
#define ROOM (1ull << 30)

static bool gives_blocks(const struct file_storage *file)
{
    struct statfs fs;

    return !file->device && fstatfs(file->fd, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC &&
           fs.f_bavail >= ROOM / (uint64_t)fs.f_bsize;
}

/* ext2 and ext3, which can't, have the same magic. */
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
        (void)file_discard(st, off, len); /* what it got of them */
    return false;
}

/* Who writes to a hole with O_DIRECT keeps everybody else from ext4's file until his bytes are on
 * the disk.  To blocks that are there, though nobody wrote to them, all write at once. */
void file_expect_pieces(struct storage *st, uint64_t off, uint64_t len)
{
    (void)file_expect(st, off, len);
}

void file_expect_filling(struct storage *st)
{
    file_of(st)->filling = gives_blocks(file_of(st));
}

/* Says how far to get ready from off on, and that somebody does; 0: somebody did. */
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
