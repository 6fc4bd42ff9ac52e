/* SPDX-License-Identifier: BSD-3-Clause */
/* A byte store: what an image's bytes lie in.
 *
 * Contract of every implementation and of the functions below:
 *   - full transfer or an error: 0, or -errno of the call that failed; after an error the
 *     range of a write holds old or new bytes, sector by sector;
 *   - reads past the end give zeroes; writes past the end grow the store, unless its size
 *     is fixed (then -ENOSPC);
 *   - offsets and lengths are bytes, of any alignment; offset + length must not exceed
 *     INT64_MAX (-EINVAL);
 *   - every function from any thread at once; no order between concurrent calls, except
 *     that overlapping accesses of whole sectors are not torn by the store's own
 *     read-modify-write;
 *   - storage_flush covers every write, zero, discard and truncate that returned before it
 *     was called;
 *   - none may be called under a lock of rank RANK_COMMIT or above (asserted).
 * Layer: storage. */
#ifndef STORAGE_STORAGE_H
#define STORAGE_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/compiler.h"
#include "base/diag.h"

struct storage;
struct storage_folder;

/* storage_write and storage_zero: durable when the call returns. */
#define STORAGE_FUA 0x1u
/* storage_zero: the range may lose its allocation. */
#define STORAGE_MAY_UNMAP 0x2u
/* storage_zero: -ENOTSUP, and nothing touched, rather than writing zero bytes. */
#define STORAGE_FAST 0x4u

/* What others may do meanwhile, as QEMU understands it: a reader can't have anybody write
 * or resize; a writer can't have another writer or resizer, nor a reader. */
/* What somebody else's marks say of a run that begins where was asked.  Nothing follows from it
 * for what is read there. */
struct storage_marks {
    bool data, zero;
    uint64_t run; /* bytes, 1..len */
};

enum storage_lock_level { STORAGE_READER, STORAGE_WRITER };

struct storage_ops {
    /* Mandatory.  iov is not modified; count is at most STORAGE_MAX_IOV. */
    int (*pread)(struct storage *st, void *buf, uint64_t off, uint64_t len);
    int (*pwritev)(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                   unsigned flags);
    int (*flush)(struct storage *st);
    int (*size)(struct storage *st, uint64_t *bytes);
    int (*truncate)(struct storage *st, uint64_t bytes);
    void (*close)(struct storage *st); /* frees all but the name */

    /* Optional; absent or -ENOTSUP, with no byte changed: storage_zero falls back to
     * writing zero bytes.  flags: STORAGE_MAY_UNMAP and STORAGE_FAST, never FUA (a flush
     * follows). */
    int (*zero)(struct storage *st, uint64_t off, uint64_t len, unsigned flags);
    /* Optional and advisory; absent or -ENOTSUP: nothing happens and 0 is returned. */
    int (*discard)(struct storage *st, uint64_t off, uint64_t len);
    /* Optional; absent: all data.  Sets *data and *run (1..len) for what lies at off. */
    int (*extent)(struct storage *st, uint64_t off, uint64_t len, bool *data,
                  uint64_t *run);
    /* Optional: see storage_marks. */
    int (*marks)(struct storage *st, uint64_t off, uint64_t len, struct storage_marks *out);
    /* Optional and advisory: the range will be read soon. */
    void (*prefetch)(struct storage *st, uint64_t off, uint64_t len);
    /* Optional: bytes the store really takes (st_blocks). */
    int (*allocated)(struct storage *st, uint64_t *bytes);
    /* Optional: the range's blocks are reserved, so that writing them can't meet ENOSPC;
     * contents stay, growth reads as zeroes. */
    int (*preallocate)(struct storage *st, uint64_t off, uint64_t len);
    /* Optional: see storage_copy. */
    int (*copy)(struct storage *st, uint64_t off, struct storage *from, uint64_t from_off,
                uint64_t len);
    /* Optional: see the functions of the same names. */
    bool (*expect)(struct storage *st, uint64_t off, uint64_t len);
    void (*expect_filling)(struct storage *st);
    void (*expect_pieces)(struct storage *st, uint64_t off, uint64_t len);
    /* Optional: see storage_lock. */
    int (*lock)(struct storage *st, enum storage_lock_level level, struct diag *diag);
    /* Optional: see storage_settle. */
    int (*settle)(struct storage *st);
    /* Optional: see storage_identity. */
    int (*identity)(struct storage *st, uint64_t *device, uint64_t *inode);

    /* Optional, of a store that somebody else keeps for us, who can go away: see the
     * functions of the same names. */
    void (*rest)(struct storage *st);
    int (*start)(struct storage *st);
    void (*abort)(struct storage *st);
    uint64_t (*lost_writes)(const struct storage *st);
    int (*prove)(struct storage *st, bool by_reading, unsigned timeout_ms);
    void (*persist)(struct storage *st, unsigned patience_ms);
    uint32_t (*preferred)(const struct storage *st);
};

/* The common head of every implementation; set before the storage is handed out and, but
 * for `unreported_failure`, not changed afterwards. */
struct storage {
    const struct storage_ops *ops;
    char *name;      /* for messages; owned */
    char *location;  /* what opens it again, when that can't be shown; else NULL; owned */
    uint32_t align;  /* 1, or what makes accesses fast when aligned to it (O_DIRECT) */
    bool fixed_size; /* block device: can't grow */
    bool read_only;  /* writes return -EROFS */
    int refused_err; /* with fallback_read_only: why it wasn't opened for writing, else 0 */
    /* A flush that fails loses nothing of what was written before: it can be asked for
     * again.  Else it is unknown afterwards what is durable. */
    bool keeps_writes;
    /* A reader's lock keeps no writer out: what was read without a writer's may be old.  And that
     * has to be taken by the very store that is written to. */
    bool lets_writers_in;
    _Atomic bool
        no_flush; /* cache=volatile: storage_flush and STORAGE_FUA make nothing durable */
    /* A flush for one write failed, and with that used up what the store had to tell of
     * others: the next storage_flush fails for it. */
    atomic_bool unreported_failure;
};

/* For implementations: the flush that makes one write durable. */
int storage_flush_for_write(struct storage *st) MUST_USE;

#define STORAGE_MAX_IOV 64

/* How storage_open_file opens. */
struct storage_open {
    bool read_only;
    bool fallback_read_only; /* EACCES, EPERM, EROFS on read/write: open it read-only */
    bool direct; /* O_DIRECT, at any alignment of the caller's; -EINVAL where the filesystem
                    doesn't know it */
    bool no_flush;
    /* Of files: the path is one of this folder's (storage_folder_path), and what lies outside
     * isn't reached; NULL: it is a path like any other. */
    const struct storage_folder *folder;
    /* For stores of another server's: the name was found in an image, and is hostile; and,
     * until storage_start, set by another thread when nobody waits for it any more (NULL:
     * nobody will). */
    bool named_by_image;
    const _Atomic bool *give_up;
};

/* Opens a local file or block device; anything else (FIFO, socket, directory, character
 * device) is refused with -EINVAL and never waited for.  On success *out is the caller's,
 * to be released with storage_close.  No byte of the file changes. */
int storage_open_file(const char *path, const struct storage_open *how,
                      struct storage **out, struct diag *diag) MUST_USE;

/* Creates path, or truncates a regular file that is there, and opens it read/write.  A
 * block device is opened as it is.  As for storage_open_file otherwise. */
int storage_create_file(const char *path, struct storage **out, struct diag *diag) MUST_USE;

/* A file without a name, of `size` bytes that read as zeroes and take no space, on the
 * filesystem of `folder`.  It is gone with its last user, whatever becomes of the process. */
int storage_open_temporary(const char *folder, uint64_t size, struct storage **out,
                           struct diag *diag) MUST_USE;

/* Wishes for a new file, which filesystems may know or not. */
struct storage_hints {
    bool nocow;                /* no copy-on-write of its data (btrfs) */
    uint32_t extent_size_hint; /* bytes to allocate at once (XFS); 0: no wish */
};

/* For a file that storage_create_file has just made.  A wish that isn't granted costs
 * nothing: of the extent size it is said. */
void storage_set_hints(struct storage *st, const struct storage_hints *hints);

/* Stable identity of the local file behind st, to find loops in chains: -ENOTSUP when it is
 * not a local file. */
int storage_identity(struct storage *st, uint64_t *device, uint64_t *inode);

/* Are both the same local file?  False when one isn't local. */
bool storage_is_same(struct storage *a, struct storage *b);

/* Locks the image against other processes (QEMU's tools take the same locks); a reader can
 * become a writer, and a writer a reader.  -EAGAIN, with a message, when another process is
 * in the way; nothing is waited for. Lasts until the storage is closed.  0 on a store that
 * others can't open. */
int storage_lock(struct storage *st, enum storage_lock_level level,
                 struct diag *diag) MUST_USE;

int storage_read(struct storage *st, void *buf, uint64_t off, uint64_t len) MUST_USE;
int storage_write(struct storage *st, const void *buf, uint64_t off, uint64_t len,
                  unsigned flags) MUST_USE;
/* Any count; empty elements are allowed.  More than STORAGE_MAX_IOV elements are written in
 * several steps. */
int storage_writev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                   unsigned flags) MUST_USE;

/* The range reads as zeroes afterwards.  Grows a store that ends before the range does. */
int storage_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags) MUST_USE;

/* The bytes of another store, which never come to this process; filesystems that can share
 * them do.  -ENOTSUP, or another -errno of either side: the range may be written in part, and
 * has to be written in another way. */
int storage_copy(struct storage *st, uint64_t off, struct storage *from, uint64_t from_off,
                 uint64_t len) MUST_USE;

/* Contents become unspecified (a local file reads as zeroes, or as before where the
 * filesystem can't punch).  Never grows, and never touches a byte outside of the range. */
int storage_discard(struct storage *st, uint64_t off, uint64_t len);

/* Barrier; with no_flush storage_settle alone, and nothing on a read-only store. */
int storage_flush(struct storage *st) MUST_USE;

/* A real sync, no_flush or not: the clean end of a volatile session. */
int storage_sync(struct storage *st) MUST_USE;

/* storage_sync where storage_flush makes nothing durable, else nothing. */
int storage_sync_if_void(struct storage *st) MUST_USE;

/* All that was answered has left this process: its end loses nothing then, and other users of the
 * store see it.  It needn't be durable.  Nothing to do for most, whose writes leave it at once. */
int storage_settle(struct storage *st) MUST_USE;

int storage_size(struct storage *st, uint64_t *bytes) MUST_USE;

/* Cuts, or grows with zeroes.  A store of fixed size keeps it: -ENOSPC when it should grow,
 * and nothing happens when it should shrink. */
int storage_truncate(struct storage *st, uint64_t bytes) MUST_USE;

/* Data or hole at off?  *run is 1..len; past the end all is hole. */
int storage_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                   uint64_t *run);

/* The marks at off, where the user asked for some instead of what is data and what isn't (an NBD
 * export's x-dirty-bitmap): all is data for storage_extent then.  -ENOTSUP: there are none. */
int storage_marks(struct storage *st, uint64_t off, uint64_t len,
                  struct storage_marks *out) MUST_USE;

void storage_prefetch(struct storage *st, uint64_t off, uint64_t len);

/* All of the range, to which nobody wrote before, is going to be written: the store may get
 * ready, where that makes the writes cheaper.  True: it did, and the range may have its blocks
 * already; what isn't written after all is to be discarded.  Contents and size stay. */
bool storage_expect(struct storage *st, uint64_t off, uint64_t len);

/* The same of all that the store grows by from here on, as soon as a large piece of it is
 * written; what is left over is cut off.  Before others use the store. */
void storage_expect_filling(struct storage *st);

/* The range, by which the store has just grown, is going to be written piece by piece, by many at
 * the same time: the store may get ready.  What is left over is cut off. */
void storage_expect_pieces(struct storage *st, uint64_t off, uint64_t len);

int storage_allocated(struct storage *st, uint64_t *bytes);

/* As the op; absent or unsupported by the filesystem: writes zeroes to a range past the
 * present end, which nobody else may be writing, and -ENOTSUP with nothing done when it
 * starts before it. */
int storage_preallocate(struct storage *st, uint64_t off, uint64_t len) MUST_USE;

/* ---- stores that can go away: another server's.  For all others they do nothing. ---- */

/* A fork comes: nothing is asked of it until storage_start. */
void storage_rest(struct storage *st);

/* Does it rest at all, so that others can have it until it starts? */
bool storage_rests(const struct storage *st);

/* Background work may start: to be called after a fork.  Again: nothing.  0 or -errno. */
int storage_start(struct storage *st) MUST_USE;

/* For good: all requests, also those under way, fail with -ECANCELED.  Never waits; from any
 * thread. */
void storage_abort(struct storage *st);

/* How often writes may have been lost that weren't flushed; the next flush fails for it. */
uint64_t storage_lost_writes(const struct storage *st);

/* Is there still somebody who keeps it?  Asks, and waits for the answer: 0, or -errno.
 * by_reading: and it can be read from. */
int storage_prove(struct storage *st, bool by_reading, unsigned timeout_ms) MUST_USE;

/* Requests wait up to patience_ms for who went away, and are asked again.  False: it isn't a
 * store that can go away. */
bool storage_persist(struct storage *st, unsigned patience_ms);

/* The size of requests, a power of two, that costs least; 0: it isn't known. */
uint32_t storage_preferred(const struct storage *st);

/* Closes and frees; NULL is allowed.  Doesn't flush. */
void storage_close(struct storage *st);

static inline void cleanup_storage(struct storage **st)
{
    storage_close(*st);
}
#define CLEANUP_STORAGE CLEANUP(cleanup_storage)

#endif
