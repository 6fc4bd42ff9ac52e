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
 *   - none may be called under a lock of rank RANK_LAYERS or above (debug builds assert it).
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

/* What a metadata context other than base:allocation says of a run that begins at the offset asked
 * for.  The content of the run doesn't depend on it. */
struct storage_marks {
    bool data, zero;
    uint64_t run; /* bytes, 1..len */
};

/* What others may do meanwhile, as with QEMU's locks: beside a reader nobody may write or resize;
 * beside a writer nobody may write, resize or read. */
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

    /* Optional, for stores that are another server's and can become unreachable: see the functions
     * of the same names. */
    void (*rest)(struct storage *st);
    int (*start)(struct storage *st);
    void (*abort)(struct storage *st);
    uint64_t (*lost_writes)(const struct storage *st);
    int (*prove)(struct storage *st, bool by_reading, unsigned timeout_ms);
    void (*persist)(struct storage *st, unsigned patience_ms);
    uint32_t (*preferred)(const struct storage *st);
};

/* The common head of every implementation; set before the storage is handed out and, except for
 * `unreported_failure` and `no_flush`, not changed afterwards. */
struct storage {
    const struct storage_ops *ops;
    char *name; /* for messages; owned */
    /* The name that opens it again, if that has secrets; else NULL; owned. */
    char *location;
    uint32_t align;  /* bytes: accesses aligned to it are fastest (O_DIRECT); 1: any */
    bool fixed_size; /* block device: can't grow */
    bool read_only;  /* writes return -EROFS */
    int refused_err; /* with fallback_read_only: why it wasn't opened for writing, else 0 */
    /* A failed flush loses nothing that was written before, and can be tried again.  Otherwise
     * it is unknown after a failed flush what is durable. */
    bool keeps_writes;
    /* A reader's lock doesn't keep writers out, so what was read before the writer's lock was taken
     * may be outdated.  And each store that is written to has to take the lock itself. */
    bool lets_writers_in;
    /* cache=volatile: storage_flush and STORAGE_FUA make nothing durable. */
    _Atomic bool no_flush;
    /* A flush for a single write failed, and has consumed the kernel's only report of that failure:
     * the next storage_flush fails, too. */
    atomic_bool unreported_failure;
};

/* For implementations: the flush that makes one write durable. */
int storage_flush_for_write(struct storage *st) MUST_USE;

#define STORAGE_MAX_IOV 64

/* How storage_open_file opens. */
struct storage_open {
    bool read_only;
    bool fallback_read_only; /* EACCES, EPERM, EROFS on read/write: open it read-only */
    /* O_DIRECT; callers may still use any alignment.  -EINVAL where the filesystem doesn't
     * support it. */
    bool direct;
    bool no_flush; /* cache=volatile: flushes make nothing durable */
    /* Of files: the path is relative to this folder (storage_folder_path), and nothing outside
     * of it is opened; NULL: an ordinary path. */
    const struct storage_folder *folder;
    /* For stores of another server: the name was found in an image, so it is hostile. */
    bool named_by_image;
    /* For stores of another server: another thread sets it to true when the result isn't wanted
     * any more, until storage_start.  NULL: never. */
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

/* A nameless file (O_TMPFILE) of `size` bytes that read as zeroes and take no space, on the
 * filesystem of `folder`.  It disappears with its last user, even if the process is killed. */
int storage_open_temporary(const char *folder, uint64_t size, struct storage **out,
                           struct diag *diag) MUST_USE;

/* Hints for a new file; filesystems without support ignore them. */
struct storage_hints {
    bool nocow;                /* no copy-on-write of its data (btrfs) */
    uint32_t extent_size_hint; /* bytes to allocate at once (XFS); 0: none */
};

/* For a file that storage_create_file has just made.  A hint that can't be set is no error; for the
 * extent size a warning is logged. */
void storage_set_hints(struct storage *st, const struct storage_hints *hints);

/* Stable identity of the local file behind st, to find loops in chains: -ENOTSUP when it is
 * not a local file. */
int storage_identity(struct storage *st, uint64_t *device, uint64_t *inode);

/* Are both the same local file?  False when one isn't local. */
bool storage_is_same(struct storage *a, struct storage *b);

/* Locks the image against other processes (QEMU's tools take the same locks), until the storage
 * is closed.  A reader can become a writer, and a writer a reader.  Never waits: -EAGAIN with a
 * message when another process has a conflicting lock.  0 on a store that others can't open. */
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

/* Writes bytes of another store, which the kernel copies or, where the filesystem can, shares
 * (reflink).  -ENOTSUP, or another -errno of either side: a part of the range may have been
 * written, and the caller has to write the range in another way. */
int storage_copy(struct storage *st, uint64_t off, struct storage *from, uint64_t from_off,
                 uint64_t len) MUST_USE;

/* Contents become unspecified (a local file reads as zeroes, or as before where the
 * filesystem can't punch).  Never grows, and never touches a byte outside of the range. */
int storage_discard(struct storage *st, uint64_t off, uint64_t len);

/* Barrier: makes durable what was written before.  With no_flush it does storage_settle only; on a
 * read-only store nothing. */
int storage_flush(struct storage *st) MUST_USE;

/* A real flush, even with no_flush: for the clean end of a session with cache=volatile. */
int storage_sync(struct storage *st) MUST_USE;

/* storage_sync with no_flush, else nothing. */
int storage_sync_if_void(struct storage *st) MUST_USE;

/* Hands everything that was answered to the host's kernel or the server: then the end of this
 * process loses nothing, and other users of the store see it.  It needn't be durable.  Most stores
 * have nothing to do, because each write does that. */
int storage_settle(struct storage *st) MUST_USE;

int storage_size(struct storage *st, uint64_t *bytes) MUST_USE;

/* Cuts, or grows with zeroes.  A store of fixed size keeps it: -ENOSPC when it should grow,
 * and nothing happens when it should shrink. */
int storage_truncate(struct storage *st, uint64_t bytes) MUST_USE;

/* Data or hole at off?  *run is 1..len; past the end all is hole. */
int storage_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                   uint64_t *run);

/* The marks at off, if the user chose a metadata context in place of base:allocation
 * (x-dirty-bitmap of an NBD export); storage_extent then calls everything data.  -ENOTSUP: there
 * is none. */
int storage_marks(struct storage *st, uint64_t off, uint64_t len,
                  struct storage_marks *out) MUST_USE;

void storage_prefetch(struct storage *st, uint64_t off, uint64_t len);

/* Announces that all of the range, which was never written to, is going to be written.  The
 * store may allocate its blocks, if that makes the writes cheaper; then it returns true, and the
 * caller has to discard what it doesn't write after all.  Contents and size stay. */
bool storage_expect(struct storage *st, uint64_t off, uint64_t len);

/* Announces that everything will be written by which the store grows from here on.  It may allocate
 * ahead as soon as a large piece has been written; what is left over is cut off at close.  To be
 * called before others use the store. */
void storage_expect_filling(struct storage *st);

/* Announces that the range, by which the store has just grown, is going to be written in pieces by
 * many threads.  The store may allocate its blocks; what is left over is cut off at close. */
void storage_expect_pieces(struct storage *st, uint64_t off, uint64_t len);

/* Bytes that the store takes on its disk (st_blocks).  0 or -errno. */
int storage_allocated(struct storage *st, uint64_t *bytes);

/* Reserves the blocks of the range, so that writing there can't fail with ENOSPC; contents stay,
 * growth reads as zeroes.  Where the store can't: a range past the present end, which nobody
 * else may be writing, is written with zeroes; for one that starts before the end -ENOTSUP, with
 * nothing done. */
int storage_preallocate(struct storage *st, uint64_t off, uint64_t len) MUST_USE;

/* ---- stores of another server, which can become unreachable; for others these do nothing ---- */

/* Before a fork: closes connections.  No request may come until storage_start. */
void storage_rest(struct storage *st);

/* Does storage_rest close anything, so that others can have the store until storage_start? */
bool storage_rests(const struct storage *st);

/* After a fork: connects again, and may start threads.  A second call does nothing.  0 or
 * -errno. */
int storage_start(struct storage *st) MUST_USE;

/* Fails all requests with -ECANCELED, those in flight too, and for good.  Never waits; from any
 * thread. */
void storage_abort(struct storage *st);

/* How often unflushed writes may have been lost, each time with the connection.  The next flush
 * after such a loss fails. */
uint64_t storage_lost_writes(const struct storage *st);

/* Sends a request to the server and waits for the reply: 0, or -errno.  by_reading: the request
 * is a read. */
int storage_prove(struct storage *st, bool by_reading, unsigned timeout_ms) MUST_USE;

/* From now on requests wait up to patience_ms for a server that became unreachable, and are then
 * sent again.  False: it isn't a store of another server. */
bool storage_persist(struct storage *st, unsigned patience_ms);

/* The cheapest size of requests: bytes, a power of two; 0: unknown. */
uint32_t storage_preferred(const struct storage *st);

/* Closes and frees; NULL is allowed.  Doesn't flush. */
void storage_close(struct storage *st);

static inline void cleanup_storage(struct storage **st)
{
    storage_close(*st);
}
#define CLEANUP_STORAGE CLEANUP(cleanup_storage)

#endif
