/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening local files: what is refused, and how it is made sure that an open neither waits
 * nor has effects on what isn't ours. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "storage/file.h"

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
        return "a character device";
    default:
        return "of an unknown kind";
    }
}

static int refuse_other_kinds(const char *path, mode_t mode, struct diag *diag)
{
    if (S_ISREG(mode) || S_ISBLK(mode))
        return 0;
    return diag_set(diag, EINVAL, "%s: is %s, not a regular file or block device", path,
                    kind_of(mode));
}

/* Opens without O_DIRECT; *mode is what was opened.  Looks before it opens, since opening
 * alone can do harm (a tape rewinds, a FIFO's writer wakes up), and again afterwards, since
 * the name may have changed hands: O_NONBLOCK makes sure that even then nothing waits. */
static int open_checked(const char *path, int flags, mode_t *mode, struct diag *diag)
{
    struct stat sb;
    CLEANUP_CLOSE int fd = -1;

    *mode = 0;
    if (stat(path, &sb) == 0) {
        int err = refuse_other_kinds(path, sb.st_mode, diag);
        if (err)
            return err;
    } else if (errno != ENOENT || !(flags & O_CREAT)) {
        return diag_errno(diag, errno, "%s: cannot be opened", path);
    }
    fd = open(path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666);
    if (fd < 0)
        return diag_errno(diag, errno, "%s: cannot be opened%s", path,
                          (flags & O_ACCMODE) == O_RDONLY ? "" : " for writing");
    if (fstat(fd, &sb) != 0)
        return diag_errno(diag, errno, "%s: cannot be opened", path);
    int err = refuse_other_kinds(path, sb.st_mode, diag);
    if (err)
        return err;
    *mode = sb.st_mode;
    int opened = fd;
    fd = -1;
    return opened;
}

/* Replaces O_NONBLOCK, which was for the open alone, by what the transfers want. */
static int set_transfer_flags(int fd, const char *path, bool direct, struct diag *diag)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return diag_errno(diag, errno, "%s", path);
    flags = (flags & ~O_NONBLOCK) | (direct ? O_DIRECT : 0);
    if (fcntl(fd, F_SETFL, flags) == 0)
        return 0;
    if (direct && errno == EINVAL)
        return diag_set(diag, EINVAL,
                        "%s: the filesystem doesn't support direct I/O (O_DIRECT)", path);
    return diag_errno(diag, errno, "%s", path);
}

/* Owns fd. */
static int wrap_fd(const char *path, int fd, mode_t mode, const struct storage_open *how,
                   struct storage **out, struct diag *diag)
{
    int err = set_transfer_flags(fd, path, how->direct, diag);
    if (err) {
        close(fd);
        return err;
    }
    err = how->direct ? file_direct_new(path, fd, S_ISBLK(mode), out, diag)
                      : file_buffered_new(path, fd, S_ISBLK(mode), out, diag);
    if (err)
        return err;
    (*out)->read_only = how->read_only;
    (*out)->no_flush = how->no_flush;
    return 0;
}

static bool is_refusal_to_write(int err)
{
    return err == -EACCES || err == -EPERM || err == -EROFS;
}

int storage_open_file(const char *path, const struct storage_open *how,
                      struct storage **out, struct diag *diag)
{
    struct storage_open as = *how;
    mode_t mode;

    int fd = open_checked(path, as.read_only ? O_RDONLY : O_RDWR, &mode, diag), refusal = 0;
    if (!as.read_only && as.fallback_read_only && is_refusal_to_write(fd)) {
        as.read_only = true;
        refusal = -fd;
        fd = open_checked(path, O_RDONLY, &mode, diag);
    }
    if (fd < 0)
        return fd;
    int err = wrap_fd(path, fd, mode, &as, out, diag);
    if (!err)
        (*out)->refused_err = refusal;
    return err;
}

int storage_create_file(const char *path, struct storage **out, struct diag *diag)
{
    const struct storage_open how = {0};
    mode_t mode;

    int fd = open_checked(path, O_RDWR | O_CREAT, &mode, diag);
    if (fd < 0)
        return fd;
    int err = wrap_fd(path, fd, mode, &how, out, diag);
    if (err)
        return err;
    err = storage_lock(*out, STORAGE_WRITER, diag);
    if (err) {
        storage_close(*out);
        *out = NULL;
        return err;
    }
    if ((*out)->fixed_size)
        return 0;
    /* Only now: with O_TRUNC a name that changed hands would be cut before it is looked at.
     */
    err = storage_truncate(*out, 0);
    if (err) {
        storage_close(*out);
        *out = NULL;
        return diag_errno(diag, -err, "%s: cannot be truncated", path);
    }
    return 0;
}

/* Where the filesystem can't make a file without a name, it has one for a moment. */
static int open_nameless(const char *folder)
{
    CLEANUP_FREE char *path = NULL;

    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (!errno_unsupported(errno) && errno != EISDIR && errno != EINVAL))
        return fd >= 0 ? fd : -errno;
    if (asprintf(&path, "%s/.qimg-XXXXXX", folder) < 0) {
        path = NULL;
        return -ENOMEM;
    }
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    unlink(path);
    return fd;
}

int storage_open_temporary(const char *folder, uint64_t size, struct storage **out,
                           struct diag *diag)
{
    int fd = open_nameless(folder);
    if (fd < 0)
        return diag_errno(diag, -fd, "%s: no temporary file can be made there", folder);
    int err = file_buffered_new("a temporary file", fd, false, out, diag);
    if (err)
        return err;
    err = storage_truncate(*out, size);
    if (!err)
        return 0;
    storage_close(*out);
    *out = NULL;
    return diag_errno(diag, -err, "%s: a temporary file as large as the disk", folder);
}
