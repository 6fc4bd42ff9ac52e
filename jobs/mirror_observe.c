/* SPDX-License-Identifier: BSD-3-Clause */
/* How a mirror notices writes to its source.  In the background mode it marks what they changed.
 * In the write-blocking mode it sends them to the target before they are answered.
 *
 * The mode can change while the job runs.  So a mirror takes one of the source's places for
 * observers that act before and after a change; in the background mode it only marks there.  If
 * all places are taken, a mirror in the background mode uses a plain observer instead, and can't
 * become write-blocking. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "jobs/mirror_internal.h"

#define BOUNCE_BYTES (64u << 10)

static void mark_dirty(struct mirror *m, uint64_t off, uint64_t len)
{
    dirty_bitmap_set(m->dirty, off, len);
    if (atomic_load(&m->idle))
        job_kick(m->job);
}

static void on_wrote(struct observer *observer, uint64_t off, uint64_t len)
{
    struct mirror *m = CONTAINER_OF(observer, struct mirror, observer);

    mark_dirty(m, off, len);
}

/* Nothing to do: on_after marks or sends. */
static void on_wrote_around(struct observer *observer, uint64_t off, uint64_t len)
{
    (void)observer;
    (void)off;
    (void)len;
}

static bool sends_on(struct mirror *m)
{
    return atomic_load(&m->active) && atomic_load(&m->forwarding);
}

/* The chunks that the change covers, whole or in part. */
static struct split split_change(const struct mirror *m, const struct change *change)
{
    struct split s = split_range(change->off, change->len, m->granularity);

    /* the last chunk may be short; if its end is covered it counts as whole */
    if (s.end == m->source->size)
        s.last = s.end;
    return s;
}

/* Write-blocking: locks the chunks of the change from before it until the end of its copy.  The
 * chunks that it covers become clean before the change, not when it is sent: a concurrent change
 * to the same place that began before the mode was switched marks it afterwards. */
static void *on_before(struct observer *observer, const struct change *change)
{
    struct mirror *m = CONTAINER_OF(observer, struct mirror, observer);
    uint64_t start = align_down(change->off, m->granularity);
    uint64_t end = align_up(change->off + change->len, m->granularity);
    struct locked_range *range = sends_on(m) ? malloc(sizeof *range) : NULL;

    if (!range)
        return NULL;
    copier_lock_range(m->copier, range, start, end - start);
    struct split s = split_change(m, change);
    if (s.last > s.first)
        dirty_bitmap_clear(m->dirty, s.first, s.last - s.first);
    return range;
}

static unsigned unmap_flag(const struct mirror *m)
{
    return m->unmap ? BLOCK_MAY_UNMAP : 0;
}

/* Sends the source's present data.  What can't be read is marked for the copier. */
static int send_as_it_is(struct mirror *m, uint64_t off, uint64_t len, unsigned flags)
{
    CLEANUP_FREE void *bounce = malloc(MIN(len, BOUNCE_BYTES));
    int err = 0;

    while (!err && len > 0) {
        uint64_t n = MIN(len, BOUNCE_BYTES);
        if (!bounce || block_read(m->source, bounce, off, n)) {
            mark_dirty(m, off, len);
            return 0;
        }
        err = block_write(m->target, bounce, off, n, flags);
        off += n;
        len -= n;
    }
    return err;
}

/* What a trimmed range reads as depends on the store, so the target gets what the source has now.
 */
static int send_trimmed(struct mirror *m, uint64_t off, uint64_t len, unsigned flags)
{
    int err = 0;

    while (!err && len > 0) {
        struct block_status st;
        if (block_status(m->source, off, len, &st))
            st = (struct block_status){.length = len};
        err = st.zero ? block_zero(m->target, off, st.length, unmap_flag(m) | flags)
                      : send_as_it_is(m, off, st.length, flags);
        off += st.length;
        len -= st.length;
    }
    return err;
}

/* Sends the part [off, off+len) of the change. */
static int send_range(struct mirror *m, const struct change *change, uint64_t off,
                      uint64_t len)
{
    if (len == 0)
        return 0;
    switch (change->kind) {
    case CHANGE_WRITE:
        return block_write(m->target, (const char *)change->buf + (off - change->off), off,
                           len, (change->flags & BLOCK_FUA) | BLOCK_INSIDE);
    case CHANGE_ZERO:
        return block_zero(m->target, off, len,
                          (change->flags & (unmap_flag(m) | BLOCK_FUA)) | BLOCK_INSIDE);
    case CHANGE_DISCARD:
        return send_trimmed(m, off, len, (change->flags & BLOCK_FUA) | BLOCK_INSIDE);
    }
    return 0;
}

/* For a chunk that is covered in part: if it is dirty, the copier copies all of it anyway. */
static int send_part(struct mirror *m, const struct change *change, uint64_t off,
                     uint64_t end)
{
    if (off >= end || dirty_bitmap_get(m->dirty, off))
        return 0;
    return send_range(m, change, off, end - off);
}

static int send_change(struct mirror *m, const struct change *change)
{
    struct split s = split_change(m, change);
    int err = send_part(m, change, s.start, s.first);
    if (err)
        return err;
    err = send_range(m, change, s.first, s.last - s.first);
    if (err)
        return err;
    return send_part(m, change, s.last, s.end);
}

static void on_after(struct observer *observer, const struct change *change, void *token,
                     int err)
{
    struct mirror *m = CONTAINER_OF(observer, struct mirror, observer);
    struct locked_range *range = token;
    uint64_t failures = node_flush_failures(m->target);
    int target_err = err || !range ? 0 : send_change(m, change);

    if (range)
        dirty_bitmap_set(m->unflushed, change->off, change->len);
    /* Marks for the copier what failed on either side, or what a failed flush may have lost (the
     * job may have handled that flush before the bit in `unflushed` was set).  The user's write
     * succeeds if the source has it. */
    if (err || target_err || !range || !atomic_load(&m->forwarding) ||
        node_flush_failures(m->target) != failures)
        mark_dirty(m, change->off, change->len);
    /* Writes that were in flight together fail for the same cause, which is reported once. */
    if (target_err && atomic_exchange(&m->forwarding, false))
        mirror_note_error(m, target_err, true);
    if (range)
        copier_unlock_range(m->copier, range);
    free(range);
}

/* A flush makes both sides durable.  A failure on the target is the job's, not the user's. */
static void on_flushed(struct observer *observer)
{
    struct mirror *m = CONTAINER_OF(observer, struct mirror, observer);
    int err = sends_on(m) ? block_flush(m->target) : 0;

    if (err && !mirror_flush_reported_loss(m) && atomic_exchange(&m->forwarding, false))
        mirror_note_error(m, err, true);
}

struct dirty_bitmap *mirror_find_bitmap(struct node *source, const char *name,
                                        struct diag *diag)
{
    struct dirty_bitmap *found = name ? node_bitmap_find(source, name) : NULL;

    if (!found)
        diag_set(diag, ENOENT, "bitmap '%s': not found", name ? name : "");
    return found;
}

static int refuse_write_blocking(const struct mirror *m, struct diag *diag)
{
    return diag_set(diag, EBUSY,
                    "job '%s': copy-mode: only %u jobs at a time can be write-blocking; "
                    "'background' does without",
                    m->id, OBSERVERS_AROUND);
}

int mirror_observe_as(struct mirror *m, bool write_blocking, struct diag *diag)
{
    if (write_blocking && !m->observer.before)
        return refuse_write_blocking(m, diag);
    atomic_store(&m->active, write_blocking);
    atomic_store(&m->forwarding, write_blocking);
    return 0;
}

/* -EBUSY: it must be write-blocking, and no place is free. */
static int add_observer(struct mirror *m)
{
    m->observer = (struct observer){.wrote = on_wrote_around,
                                    .before = on_before,
                                    .after = on_after,
                                    .flushed = on_flushed};
    int err = observer_add(&m->source->observers, &m->observer);
    if (err != -EBUSY || atomic_load(&m->active))
        return err;
    m->observer = (struct observer){.wrote = on_wrote};
    return observer_add(&m->source->observers, &m->observer);
}

int mirror_attach(struct mirror *m, const char *bitmap, struct diag *diag)
{
    if (m->sync == MIRROR_INCREMENTAL) {
        m->named = node_bitmap_acquire(m->source, bitmap ? bitmap : "", diag);
        if (!m->named)
            return -diag->err;
    }
    int err = add_observer(m);
    if (err == -EBUSY)
        return refuse_write_blocking(m, diag);
    if (err)
        return diag_errno(diag, -err, "job '%s'", m->id);
    m->attached = true;
    /* After adding the observer, so that no write is missed between. */
    if (m->named)
        dirty_bitmap_merge(m->dirty, m->named);
    return 0;
}

static void set_seat(struct mirror *m, enum disk_seat_state state)
{
    const struct mirror_pivot *users = &m->params.pivot;

    if (m->seat.state != SEAT_NONE)
        users->set_seat(users->opaque, &m->seat, state);
}

void mirror_detach(struct mirror *m)
{
    if (!m->attached && !m->named)
        return;
    set_seat(m, SEAT_LEAVES);
    if (m->attached)
        observer_remove(&m->source->observers, &m->observer);
    m->attached = false;
    if (m->named)
        dirty_bitmap_release(m->named);
    m->named = NULL;
    set_seat(m, SEAT_IDLE);
}

/* ---- the disk moves ---- */

static struct mirror *mirror_at(struct disk_seat *seat)
{
    return CONTAINER_OF(seat, struct mirror, seat);
}

/* A change that is seen by the observer at both nodes is only marked twice. */
static int prepare_to_move(struct disk_seat *seat, struct node *to, struct diag *diag)
{
    struct mirror *m = mirror_at(seat);
    struct observer *observer = &m->observer;

    int err = observer_add_unseen(&to->observers, &observer, 1);
    return err ? diag_errno(diag, -err, "job '%s'", m->id) : 0;
}

/* From here on chunks that are cleared are read from the new node.  A chunk that was cleared
 * before, and is still being read from the old node, is marked again if it is written to. */
static void move(struct disk_seat *seat, struct node *to)
{
    struct mirror *m = mirror_at(seat);

    m->source = to;
    copier_set_source(m->copier, to);
    atomic_store(&m->moved, true);
}

static void stay(struct disk_seat *seat, struct node *to)
{
    struct observer *observer = &mirror_at(seat)->observer;

    observer_remove_unseen(&to->observers, &observer, 1);
}

/* A commit's layers belong to the chain, so it can't move. */
static int refuse_to_move(struct disk_seat *seat, struct node *to, struct diag *diag)
{
    (void)to;
    return diag_set(diag, EBUSY, "job '%s' uses the disk's images", mirror_at(seat)->id);
}

void mirror_follow(struct mirror *m)
{
    bool commits = m->layers.base;

    m->seat.prepare = commits ? refuse_to_move : prepare_to_move;
    m->seat.move = move;
    m->seat.stay = stay;
    set_seat(m, SEAT_FOLLOWS);
}

void mirror_catch_up(struct mirror *m)
{
    const struct mirror_pivot *users = &m->params.pivot;

    if (!atomic_exchange(&m->moved, false))
        return;
    copier_wait_in_flight(m->copier);
    users->caught_up(users->opaque, &m->seat);
}
