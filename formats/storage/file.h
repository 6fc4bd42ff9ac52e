/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by the two stores over a local file: buffered (file.c) and O_DIRECT (file_direct.c).
 * Private to this folder. */
#ifndef STORAGE_FILE_H
#define STORAGE_FILE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/lock.h"
#include "storage/storage.h"

struct file_storage {
    struct storage st; /* first, so that a storage can be cast back */
    int fd;
    /* A second open file description of the same file, for RWF_DSYNC, or -1.  The kernel
     * reports a write-back error once to each open file description.  A durable write must not
     * consume the report that the next flush has to get. */
    int dsync_fd;
    bool device;            /* a block device */
    atomic_bool is_writers; /* a writer's lock is held */
    uint32_t zero_align;    /* alignment that fallocate requires: 1, or a device's sector */
    atomic_bool no_dsync;   /* no RWF_DSYNC: read-only, or the kernel has refused it */
    atomic_bool no_punch;   /* the kernel has refused to punch holes */
    atomic_bool no_zeroing; /* the kernel has refused to zero and keep the allocation */
    atomic_bool filling;    /* see storage_expect_filling */
    uint64_t ready_to;      /* under data_lock: blocks were allocated up to here for that */
    /* The last run of data that was found.  Some filesystems (tmpfs) look at each page to find
     * its end, so asking piece by piece would take quadratic time. */
    struct lock data_lock; /* RANK_LEAF */
    uint64_t data_from, data_to;
    uint64_t data_changes; /* how often the run was forgotten */
};

static inline struct file_storage *file_of(struct storage *st)
{
    return (struct file_storage *)st;
}

/* Does an errno mean that the kernel or the filesystem doesn't have the operation? */
static inline bool errno_unsupported(int err)
{
    return err == EOPNOTSUPP || err == ENOSYS;
}

/* Initialises a zeroed file_storage for fd, which it owns from then on.  Returns 0 or -errno. */
int file_init(struct file_storage *file, const char *path, int fd, bool device) MUST_USE;

/* One system call at off, for at most everything that is requested.  Returns the number of
 * bytes, or -errno; the vector is advanced past them.  0 from a read: the end of the file. */
int64_t file_pwritev_some(struct file_storage *file, struct iovec **iov, int *count,
                          uint64_t off, bool dsync);
int64_t file_pread_some(struct file_storage *file, void *buf, uint64_t off, uint64_t len);

/* The operations as storage.h describes them.  Those that change bytes don't take care of
 * concurrent changes to the same bytes. */
int file_flush(struct storage *st);
/* Also flushes a write that RWF_DSYNC couldn't make durable. */
int file_flush_for_write(struct storage *st);
int file_size(struct storage *st, uint64_t *bytes);
int file_truncate(struct storage *st, uint64_t bytes);
int file_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags);
int file_discard(struct storage *st, uint64_t off, uint64_t len);
int file_extent(struct storage *st, uint64_t off, uint64_t len, bool *data, uint64_t *run);
int file_allocated(struct storage *st, uint64_t *bytes);
int file_preallocate(struct storage *st, uint64_t off, uint64_t len);
int file_identity(struct storage *st, uint64_t *device, uint64_t *inode);
int file_lock(struct storage *st, enum storage_lock_level level, struct diag *diag);
void file_close(struct storage *st);
bool file_expect(struct storage *st, uint64_t off, uint64_t len);
void file_expect_filling(struct storage *st);
void file_expect_pieces(struct storage *st, uint64_t off, uint64_t len); /* O_DIRECT only */

/* Before a write of len bytes to a file that is being filled (storage_expect_filling). */
void file_prepare_to_fill(struct file_storage *file, uint64_t off, uint64_t len);

/* Zeroes a range of a device that doesn't consist of whole sectors: the whole ones by the
 * store's own `zero`, then the rest by its `pwritev`. -ENOTSUP, with nothing changed, when
 * `zero` returns that. */
int file_zero_unaligned(struct storage *st, uint64_t off, uint64_t len, unsigned flags);

static inline bool file_zero_is_aligned(const struct file_storage *file, uint64_t off,
                                        uint64_t len)
{
    return ((off | len) & (file->zero_align - 1)) == 0;
}

/* Create the buffered store and the O_DIRECT one.  They own fd, also on failure. */
int file_buffered_new(const char *path, int fd, bool device, struct storage **out,
                      struct diag *diag) MUST_USE;
int file_direct_new(const char *path, int fd, bool device, struct storage **out,
                    struct diag *diag) MUST_USE;

#endif
