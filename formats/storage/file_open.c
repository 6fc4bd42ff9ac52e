/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens local files: which kinds are rejected, and how it is ensured that an open neither waits
 * nor has side effects on special files. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/descriptors.h"
#include "storage/file.h"
#include "storage/folder.h"

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
    case S_IFLNK: /* only if links aren't followed */
        return "a symbolic link";
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

/* A path to open, anywhere or inside a folder. */
struct place {
    const char *path;
    const struct storage_folder *folder; /* NULL: anywhere */
};

/* stat(2) of the place.  Returns 0 or -errno. */
static int look_at(const struct place *place, struct stat *sb)
{
    if (!place->folder)
        return stat(place->path, sb) == 0 ? 0 : -errno;
    CLEANUP_CLOSE int fd = storage_folder_openat(
        place->folder, storage_folder_name(place->folder, place->path), O_PATH);
    if (fd < 0)
        return fd;
    return fstat(fd, sb) == 0 ? 0 : -errno;
}

/* open(2) of the place.  Returns a descriptor or -errno. */
static int open_at(const struct place *place, int flags)
{
    if (place->folder)
        return storage_folder_openat(
            place->folder, storage_folder_name(place->folder, place->path), flags);
    DESCRIPTORS_GUARD();
    int fd = open(place->path, flags | O_CLOEXEC, 0666);
    return fd < 0 ? -errno : fd;
}

static int refuse_to_open(const struct place *place, int err, const char *how,
                          struct diag *diag)
{
    if (place->folder && err == -EXDEV)
        return diag_set(diag, EACCES, "%s: leads out of the folder %s", place->path,
                        place->folder->path);
    return diag_errno(diag, -err, "%s: cannot be opened%s", place->path, how);
}

/* Is it a block device that was set read-only (blockdev --setro)?  Opening one for writing
 * succeeds, and only the writes fail. */
static bool takes_no_writes(int fd, int flags, mode_t mode)
{
    int read_only = 0;

    return (flags & O_ACCMODE) != O_RDONLY && S_ISBLK(mode) &&
           ioctl(fd, BLKROGET, &read_only) == 0 && read_only;
}

/* Opens without O_DIRECT; *mode is the kind of the file.  Checks the kind before opening, since
 * opening alone can have side effects (a tape rewinds, a FIFO's writer wakes up), and again
 * afterwards, since the name may have come to mean another file.  O_NONBLOCK ensures that even
 * then the open doesn't wait. */
static int open_checked(const struct place *place, int flags, mode_t *mode,
                        struct diag *diag)
{
    const char *writing = (flags & O_ACCMODE) == O_RDONLY ? "" : " for writing";
    struct stat sb;
    CLEANUP_CLOSE int fd = -1;

    *mode = 0;
    int err = look_at(place, &sb);
    if (err == 0)
        err = refuse_other_kinds(place->path, sb.st_mode, diag);
    else if (err == -ENOENT && (flags & O_CREAT))
        err = 0;
    else
        refuse_to_open(place, err, "", diag);
    if (err)
        return err;
    fd = open_at(place, flags | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return refuse_to_open(place, fd, writing, diag);
    if (fstat(fd, &sb) != 0)
        return refuse_to_open(place, -errno, "", diag);
    err = refuse_other_kinds(place->path, sb.st_mode, diag);
    if (!err && takes_no_writes(fd, flags, sb.st_mode))
        err = diag_set(diag, EACCES,
                       "%s: cannot be opened for writing: the device is read-only",
                       place->path);
    if (err)
        return err;
    *mode = sb.st_mode;
    int opened = fd;
    fd = -1;
    return opened;
}

/* Clears O_NONBLOCK, which was for the open only, and sets O_DIRECT if wanted. */
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

/* Creates the store.  Owns fd. */
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
    const struct place place = {path, how->folder};
    struct storage_open as = *how;
    mode_t mode;

    int fd = open_checked(&place, as.read_only ? O_RDONLY : O_RDWR, &mode, diag),
        refusal = 0;
    if (!as.read_only && as.fallback_read_only && is_refusal_to_write(fd)) {
        as.read_only = true;
        refusal = -fd;
        fd = open_checked(&place, O_RDONLY, &mode, diag);
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
    const struct place place = {path, NULL};
    const struct storage_open how = {0};
    mode_t mode;

    int fd = open_checked(&place, O_RDWR | O_CREAT, &mode, diag);
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
    /* Not with O_TRUNC: that would cut the file before its kind was checked. */
    err = storage_truncate(*out, 0);
    if (err) {
        storage_close(*out);
        *out = NULL;
        return diag_errno(diag, -err, "%s: cannot be truncated", path);
    }
    return 0;
}

/* If the filesystem can't make a nameless file, the file has a name for a moment. */
static int open_nameless(const char *folder)
{
    CLEANUP_FREE char *path = NULL;
    DESCRIPTORS_GUARD();

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
