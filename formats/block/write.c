/* SPDX-License-Identifier: BSD-3-Clause */
/* The write engine.
 *
 * A write in place is one call to the storage, without a lock: the cluster is allocated and not
 * shared.  Any other write takes three steps: the driver reserves clusters that nothing points
 * to; the engine fills all of each (where the write doesn't cover it, with the old content);
 * the driver links them (invariant 8 of mcache.h).  A crash before the link leaks clusters and
 * harms nothing.
 *
 * From before the reservation until after the link the guest range of these clusters is locked.
 * So of two writes into one cluster, the second sees what the first has linked.  Writes to other
 * clusters, even of the same table, go on. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/no_space.h"
#include "base/zero_bytes.h"
#include "block/coded.h"
#include "block/engine.h"

/* Old content up to this many bytes is written together with the data in one call; more is
 * copied in pieces, to bound the memory of a request. */
#define GATHER_MAX (256u << 10)

static int alloc_bounce(void **buf, size_t bytes)
{
    return posix_memalign(buf, 4096, bytes ? bytes : 1) == 0 ? 0 : -ENOMEM;
}

/* The bytes of the guest range as they are now, zeroes beyond the virtual size. */
static int read_old(struct node *node, unsigned char *buf, uint64_t off, uint64_t len)
{
    uint64_t inside = off < node->size ? MIN(len, node->size - off) : 0;
    int err = engine_read(node, buf, off, inside);

    for (uint64_t i = inside; i < len; i++)
        buf[i] = 0;
    return err;
}

/* Copies old contents of a guest range to its new place, in pieces. */
static int copy_old(struct node *node, const struct reservation *res, uint64_t off,
                    uint64_t len)
{
    CLEANUP_FREE void *bounce = NULL;
    int err = alloc_bounce(&bounce, MIN(len, ENGINE_CHUNK));

    while (!err && len > 0) {
        uint64_t n = MIN(len, ENGINE_CHUNK);
        err = read_old(node, bounce, off, n);
        if (!err)
            err = storage_write(res->file, bounce,
                                res->host_offset + (off - res->guest_offset), n, 0);
        off += n;
        len -= n;
    }
    return err;
}

/* Fills a reservation in three writes: old content before, old content behind, the data. */
static int write_with_copies(struct node *node, const struct reservation *res,
                             const void *buf, uint64_t off, uint64_t len)
{
    uint64_t end = off + len, head = off - res->guest_offset;

    int err = copy_old(node, res, res->guest_offset, head);
    if (err)
        return err;
    err = copy_old(node, res, end, res->guest_offset + res->length - end);
    if (err)
        return err;
    return storage_write(res->file, buf, res->host_offset + head, len, 0);
}

/* Fills a reservation in one write. */
static int write_gathered(struct node *node, const struct reservation *res, const void *buf,
                          uint64_t off, uint64_t len)
{
    uint64_t end = off + len, head = off - res->guest_offset;
    uint64_t tail = res->guest_offset + res->length - end;

    CLEANUP_FREE void *bounce = NULL;
    int err = alloc_bounce(&bounce, head + tail);
    if (err)
        return err;
    err = read_old(node, bounce, res->guest_offset, head);
    if (err)
        return err;
    err = read_old(node, (unsigned char *)bounce + head, end, tail);
    if (err)
        return err;
    struct iovec iov[] = {
        {.iov_base = bounce, .iov_len = head},
        {.iov_base = (void *)(uintptr_t)buf, .iov_len = len},
        {.iov_base = (char *)bounce + head, .iov_len = tail},
    };
    return storage_writev(res->file, iov, (int)ARRAY_LEN(iov), res->host_offset, 0);
}

/* Writes the part [at, end) of an encrypted reservation (guest offsets): the new data where
 * [off, off+len) from buf overlaps it, the old content elsewhere. */
static int encrypt_mixed(struct node *node, const struct reservation *res, uint64_t at,
                         uint64_t end, const void *buf, uint64_t off, uint64_t len)
{
    CLEANUP_FREE void *plain = NULL;
    int err = at < end ? alloc_bounce(&plain, MIN(end - at, ENGINE_CHUNK)) : 0;

    for (uint64_t n; !err && at < end; at += n) {
        n = MIN(end - at, ENGINE_CHUNK);
        uint64_t from = MAX(at, off), to = MIN(at + n, off + len);
        err = read_old(node, plain, at, n);
        if (err)
            return err;
        if (from < to)
            memcpy((char *)plain + (from - at), (const char *)buf + (from - off),
                   to - from);
        err = encrypted_write(node, res->file, plain,
                              res->host_offset + (at - res->guest_offset), at, n, 0);
    }
    return err;
}

/* As fill_reservation, for encrypted data: whole sectors of new data are encrypted from the
 * caller's buffer; the rest is put together with old content first. */
static int fill_encrypted(struct node *node, const struct reservation *res, const void *buf,
                          uint64_t off, uint64_t len)
{
    struct split s = split_range(off, len, CRYPT_SECTOR);
    uint64_t end = res->guest_offset + res->length;

    if (s.first >= s.last)
        return encrypt_mixed(node, res, res->guest_offset, end, buf, off, len);
    int err = encrypt_mixed(node, res, res->guest_offset, s.first, buf, off, len);
    if (err)
        return err;
    err = encrypt_mixed(node, res, s.last, end, buf, off, len);
    if (err)
        return err;
    return encrypted_write(node, res->file, (const char *)buf + (s.first - off),
                           res->host_offset + (s.first - res->guest_offset), s.first,
                           s.last - s.first, 0);
}

/* Is a kept place a hole of its file?  Then it reads as zeroes now.  (That isn't known of a state
 * after a crash: the hole may not be durable.) */
static bool is_hole(const struct reservation *res)
{
    bool data;
    uint64_t run;

    return res->retained &&
           storage_extent(res->file, res->host_offset, res->length, &data, &run) == 0 &&
           !data && run == res->length;
}

/* Fills a reservation: [off, off+len) from buf, the rest of its clusters with what was
 * there. */
static int fill_reservation(struct node *node, const struct reservation *res,
                            bool old_is_zero, const void *buf, uint64_t off, uint64_t len)
{
    uint64_t head = off - res->guest_offset, rest = res->length - len;

    if (UNLIKELY(node->cipher))
        return fill_encrypted(node, res, buf, off, len);
    bool rest_is_there = rest == 0 || (old_is_zero && node->host_zeroes_show &&
                                       (res->fresh || is_hole(res)));
    if (rest_is_there)
        return storage_write(res->file, buf, res->host_offset + head, len, 0);
    return rest > GATHER_MAX ? write_with_copies(node, res, buf, off, len)
                             : write_gathered(node, res, buf, off, len);
}

/* Writes the range, which ext describes, to newly reserved clusters.  The caller has locked the
 * guest range of all clusters that it touches.  *done: bytes written. */
static int write_new_clusters(struct node *node, const struct extent *ext, const void *buf,
                              uint64_t off, uint64_t *done)
{
    uint64_t start = align_down(off, node->subcluster_size);
    uint64_t end = align_up(off + ext->length, node->subcluster_size);
    struct reservation res;

    int err = node->driver->reserve(node, start, end - start, &res);
    if (err)
        return err;
    uint64_t res_end = res.guest_offset + res.length;
    assert(res.guest_offset <= start && res_end > off);
    *done = MIN(ext->length, res_end - off);

    /* Invariant (8): the data is in the storage before the word that maps it is stored.  Where
     * the reservation is larger than the range, the rest may be other than zero. */
    bool zero = ext->kind == EXTENT_ZERO && res.guest_offset == start && res_end <= end;
    err = fill_reservation(node, &res, zero, buf, off, *done);
    if (err) {
        node->driver->release(node, &res);
        return err;
    }
    return node->driver->link(node, &res, zero);
}

/* Writes a run in place.  If it is encrypted the caller has locked its sectors. */
static int write_in_place(struct node *node, const struct extent *ext, const void *buf,
                          uint64_t off, unsigned flags)
{
    return LIKELY(ext->kind == EXTENT_DATA)
               ? storage_write(ext->file, buf, ext->host_offset, ext->length, flags)
               : encrypted_update(node, ext, buf, off, flags);
}

/* The same, durably if `fua` is set and the mapping is durable; otherwise sets *needs_commit. */
static int write_durably(struct node *node, const struct extent *ext, const void *buf,
                         uint64_t off, bool fua, bool *needs_commit)
{
    /* After the map call: if nothing is dirty now, the mapping that it saw is durable. */
    bool sync = fua && !mcache_has_dirty(node->mc);
    int err = write_in_place(node, ext, buf, off, sync ? STORAGE_FUA : 0);

    *needs_commit |= !sync;
    if (err && sync)
        mcache_note_failure(node->mc);
    return err;
}

int engine_write_locked(struct node *node, const void *buf, uint64_t off, uint64_t len)
{
    while (len > 0) {
        struct extent ext;
        uint64_t done = 0;
        int err = node->driver->map(node, off, len, &ext);
        if (err)
            return err;
        if (ext.writable) {
            done = ext.length;
            err = write_in_place(node, &ext, buf, off, 0);
        } else {
            err = write_new_clusters(node, &ext, buf, off, &done);
        }
        if (err)
            return err;
        buf = (const char *)buf + done;
        off += done;
        len -= done;
    }
    return 0;
}

/* Writes encrypted sectors in place.  For a partial sector the rest is read first, so the sectors
 * are locked.  *done: false if the range can't be written in place any more. */
ASIDE static int write_sectors(struct node *node, const void *buf, uint64_t off,
                               uint64_t len, bool fua, bool *needs_commit, bool *done)
{
    struct extent ext;

    RANGE_LOCK_GUARD(&node->ranges, align_down(off, CRYPT_SECTOR),
                     align_up(off + len, CRYPT_SECTOR));
    int err = node->driver->map(node, off, len, &ext);
    if (err)
        return err;
    *done = ext.kind == EXTENT_ENCRYPTED && ext.writable && ext.length == len;
    return *done ? write_durably(node, &ext, buf, off, fua, needs_commit) : 0;
}

static int write_with_lock(struct node *node, const void *buf, uint64_t off, uint64_t len)
{
    RANGE_LOCK_GUARD(&node->ranges, align_down(off, node->cluster_size),
                     align_up(off + len, node->cluster_size));

    return engine_write_locked(node, buf, off, len);
}

/* While the range was written in place, some trimmed clusters lost their place (qed/trims.h): what
 * has no place now is written once more.  That makes this write come after the trim; as both
 * were in flight at once, either order is right. */
ASIDE static int write_where_lost(struct node *node, const void *buf, uint64_t off,
                                  uint64_t len, bool *needs_commit)
{
    RANGE_LOCK_GUARD(&node->ranges, align_down(off, node->cluster_size),
                     align_up(off + len, node->cluster_size));
    /* A cluster may have got its place back without that being durable. */
    *needs_commit = true;
    while (len > 0) {
        struct extent ext;
        int err = node->driver->map(node, off, len, &ext);
        if (!err && !ext.writable)
            err = engine_write_locked(node, buf, off, ext.length);
        if (err)
            return err;
        buf = (const char *)buf + ext.length;
        off += ext.length;
        len -= ext.length;
    }
    return 0;
}

int engine_write(struct node *node, const void *buf, uint64_t off, uint64_t len, bool fua,
                 bool *needs_commit)
{
    *needs_commit = false;
    while (len > 0) {
        struct extent ext;
        /* Before the map call, which then doesn't find a place that was lost earlier. */
        uint64_t taken = atomic_load(&node->places_taken);
        int err = node->driver->map(node, off, len, &ext);
        if (err)
            return err;
        bool done = false;
        if (ext.writable) {
            done = LIKELY(ext.kind == EXTENT_DATA);
            err = done
                      ? write_durably(node, &ext, buf, off, fua, needs_commit)
                      : write_sectors(node, buf, off, ext.length, fua, needs_commit, &done);
            if (UNLIKELY(atomic_load(&node->places_taken) != taken) && done && !err)
                err = write_where_lost(node, buf, off, ext.length, needs_commit);
        }
        if (!err && !done) {
            *needs_commit = true;
            err = write_with_lock(node, buf, off, ext.length);
        }
        if (err)
            return err;
        buf = (const char *)buf + ext.length;
        off += ext.length;
        len -= ext.length;
    }
    return 0;
}

int engine_write_zeroes(struct node *node, uint64_t off, uint64_t len, bool locked)
{
    CLEANUP_FREE void *zeroes = calloc(1, MIN(len, ENGINE_CHUNK) + 1);
    if (!zeroes)
        return -ENOMEM;

    while (len > 0) {
        uint64_t n = MIN(len, ENGINE_CHUNK);
        int err = locked ? engine_write_locked(node, zeroes, off, n)
                         : write_with_lock(node, zeroes, off, n);
        if (err)
            return err;
        off += n;
        len -= n;
    }
    return 0;
}

static int write_request(struct node *node, const void *buf, uint64_t off, uint64_t len,
                         unsigned flags)
{
    bool fua = (flags & BLOCK_FUA) || node->options.cache->write_through, needs_commit;
    struct engine_change change = {
        .what = {.kind = CHANGE_WRITE, .flags = flags, .off = off, .len = len, .buf = buf}};

    int err = engine_start_write(node, &change);
    if (UNLIKELY(err))
        return engine_finish_write(node, &change, err, false);
    err = UNLIKELY(node->options.compress)
              ? engine_write_compressed(node, buf, off, len, fua, &needs_commit)
              : engine_write(node, buf, off, len, fua, &needs_commit);
    return engine_finish_write(node, &change, err, fua && needs_commit);
}

int block_write(struct node *node, const void *buf, uint64_t off, uint64_t len,
                unsigned flags)
{
    enum detect_zeroes detect = node->options.detect_zeroes;

    if (detect != DETECT_OFF && bytes_are_zero(buf, len))
        return block_zero(node, off, len,
                          (flags & (BLOCK_FUA | BLOCK_INSIDE)) |
                              (detect == DETECT_UNMAP ? BLOCK_MAY_UNMAP : 0));
    int err = engine_admit_change(node, off, len);
    if (err || len == 0)
        return err;

    err = write_request(node, buf, off, len, flags);
    if (UNLIKELY(err) && means_no_space(err) && engine_make_room(node, flags))
        err = write_request(node, buf, off, len, flags);
    return err;
}
