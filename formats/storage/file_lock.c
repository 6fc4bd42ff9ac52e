/* SPDX-License-Identifier: BSD-3-Clause */
/* Image locks that are compatible with QEMU's: shared open-file-description locks on single
 * bytes of the file.
 *
 * A lock on byte 100+n says "I use permission n", one on byte 200+n "nobody else may use
 * permission n" (QEMU's docs/system/qemu-block-drivers.rst.inc, image locking).  First our
 * bytes are locked, then the opposite bytes are checked for locks of others: so if two
 * processes start at once, at least one sees the other.  Such locks belong to the open file
 * description: they survive a fork and end with the last close. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "storage/file.h"

#define USES   100
#define DENIES 200

enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };

/* Formats keep metadata in the file, so that even a reader can't allow others to change it. */
static const struct {
    unsigned uses[3], n_uses;
    unsigned denies[2], n_denies;
} levels[] = {
    [STORAGE_READER] = {{PERM_READ}, 1, {PERM_WRITE, PERM_RESIZE}, 2},
    [STORAGE_WRITER] = {{PERM_READ, PERM_WRITE, PERM_RESIZE},
                        3,
                        {PERM_WRITE, PERM_RESIZE},
                        2},
};

static const char *const perm_names[] = {
    [PERM_READ] = "read", [PERM_WRITE] = "write", [PERM_RESIZE] = "resize"};

static int set_byte(int fd, unsigned byte, short type)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

/* Does another open file hold the byte? */
static int byte_is_held(int fd, unsigned byte, bool *held)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};

    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    *held = lock.l_type != F_UNLCK;
    return 0;
}

static int set_bytes(int fd, unsigned base, const unsigned *perms, unsigned n, short type)
{
    for (unsigned i = 0; i < n; i++) {
        int err = set_byte(fd, base + perms[i], type);
        if (err)
            return err;
    }
    return 0;
}

/* -EAGAIN, with a message, if another process holds one of the bytes. */
static int check_bytes_are_free(const struct storage *st, int fd, unsigned base,
                                const unsigned *perms, unsigned n, struct diag *diag)
{
    for (unsigned i = 0; i < n; i++) {
        bool held = false;
        int err = byte_is_held(fd, base + perms[i], &held);
        if (err)
            return diag_errno(diag, -err, "%s: looking for locks", st->name);
        if (held)
            return diag_set(
                diag, EAGAIN,
                "%s: lock: Failed to get %s\"%s\" lock. Is another process using the image "
                "[%s]?",
                st->name, base == DENIES ? "" : "shared ", perm_names[perms[i]], st->name);
    }
    return 0;
}

/* Reports why the locks can't be taken. */
static int report_lock_failure(const struct storage *st, int err,
                               enum storage_lock_level level, struct diag *diag)
{
    const char *what = level == STORAGE_WRITER ? "write" : "read";
    char reason[128];

    if (err == -EAGAIN || err == -EACCES || err == -EINTR)
        return diag_errno(diag, -err, "%s: lock: taking a %s lock", st->name, what);
    return diag_set(diag, -err,
                    "%s: lock: taking a %s lock: %s: a filesystem that has no locks needs "
                    "lock=off, or -U for commands that only look",
                    st->name, what, strerror_r(-err, reason, sizeof reason));
}

static int set_lock_level(struct storage *st, int fd, enum storage_lock_level level,
                          struct diag *diag)
{
    int err = set_bytes(fd, USES, levels[level].uses, levels[level].n_uses, F_RDLCK);
    if (!err)
        err = set_bytes(fd, DENIES, levels[level].denies, levels[level].n_denies, F_RDLCK);
    if (err)
        return report_lock_failure(st, err, level, diag);
    err = check_bytes_are_free(st, fd, DENIES, levels[level].uses, levels[level].n_uses,
                               diag);
    if (!err)
        err = check_bytes_are_free(st, fd, USES, levels[level].denies,
                                   levels[level].n_denies, diag);
    return err;
}

/* Releases the bytes that a writer locks and a reader doesn't. */
static void fall_back_to_reader(struct file_storage *file)
{
    atomic_store(&file->is_writers, false);
    set_byte(file->fd, USES + PERM_WRITE, F_UNLCK);
    set_byte(file->fd, USES + PERM_RESIZE, F_UNLCK);
}

int file_lock(struct storage *st, enum storage_lock_level level, struct diag *diag)
{
    struct file_storage *file = file_of(st);

    /* Not checked again: a process that only tries to lock would make the check fail for a
     * moment. */
    if (level == STORAGE_WRITER && atomic_load(&file->is_writers))
        return 0;
    if (level == STORAGE_READER)
        fall_back_to_reader(file);
    int err = set_lock_level(st, file->fd, level, diag);

    if (err && level == STORAGE_WRITER)
        fall_back_to_reader(file);
    else if (!err)
        atomic_store(&file->is_writers, level == STORAGE_WRITER);
    return err;
}
