/* SPDX-License-Identifier: BSD-3-Clause */
/* What is wished of the filesystem for a new file. */
#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "base/log.h"
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
