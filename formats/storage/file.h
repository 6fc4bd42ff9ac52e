/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two stores over a local file share: buffered (file.c) and O_DIRECT
 * (file_direct.c).  Private to this folder. */
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
    /* The same file opened once more, for RWF_DSYNC, or -1.  The kernel tells each open
     * file once of what it failed to write back, whoever asks: a durable write must not
     * take from the next flush what that has to say of other writes. */
    int dsync_fd;
    bool device;            /* a block device */
    atomic_bool is_writers; /* a writer's lock is held */
    uint32_t zero_align;    /* what fallocate wants: 1, or a device's logical sector */
    atomic_bool no_dsync;   /* no RWF_DSYNC: read-only, or learned from the kernel */
    atomic_bool no_punch;   /* learned: can't punch holes */
    atomic_bool no_zeroing; /* learned: can't zero and keep the allocation */
    atomic_bool filling;    /* see storage_expect_filling */
    uint64_t ready_to;      /* under data_lock: so far it got ready for that */
    /* A run of data that was found: some filesystems (tmpfs) look at each page to find
     * where it ends, which would be quadratic for who asks piece by piece. */
    struct lock data_lock; /* RANK_LEAF */
    uint64_t data_from, data_to;
    uint64_t data_changes; /* how often it was forgotten */
};

static inline struct file_storage *file_of(struct storage *st)
{
    return (struct file_storage *)st;
}

/* Does an errno say that the kernel or the filesystem hasn't got the operation? */
static inline bool errno_unsupported(int err)
{
    return err == EOPNOTSUPP || err == ENOSYS;
}

/* Fills an empty file_storage over fd, which it owns from then on.  0 or -errno. */
int file_init(struct file_storage *file, const char *path, int fd, bool device) MUST_USE;

/* One transfer at off of up to all that is asked for: bytes done, or -errno; a vector is
 * advanced past them.  0 on a read is the end of the file. */
int64_t file_pwritev_some(struct file_storage *file, struct iovec **iov, int *count,
                          uint64_t off, bool dsync);
int64_t file_pread_some(struct file_storage *file, void *buf, uint64_t off, uint64_t len);

/* The operations as storage.h describes them.  Those that change bytes do it without any
 * regard for others who change the same ones. */
int file_flush(struct storage *st);
int file_flush_for_write(struct storage *st); /* the second half of a durable write */
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

/* Of a file that is filled, before a write of so many bytes. */
void file_prepare_to_fill(struct file_storage *file, uint64_t off, uint64_t len);

/* Zeroes a range of a device that isn't made of whole sectors: the whole ones by the
 * store's own `zero`, then the rest by its `pwritev`.  -ENOTSUP, with nothing changed, as
 * `zero` has it. */
int file_zero_unaligned(struct storage *st, uint64_t off, uint64_t len, unsigned flags);

static inline bool file_zero_is_aligned(const struct file_storage *file, uint64_t off,
                                        uint64_t len)
{
    return ((off | len) & (file->zero_align - 1)) == 0;
}

/* The buffered store, and the O_DIRECT one.  They own fd whatever happens. */
int file_buffered_new(const char *path, int fd, bool device, struct storage **out,
                      struct diag *diag) MUST_USE;
int file_direct_new(const char *path, int fd, bool device, struct storage **out,
                    struct diag *diag) MUST_USE;

#endif
