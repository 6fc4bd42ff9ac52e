/* SPDX-License-Identifier: BSD-3-Clause */
/* What a mirror copies, when it is in sync, and how it completes.
 *
 * The disk is divided into chunks of `granularity` bytes.  Three bitmaps have a bit for each:
 *   dirty      the chunk may differ between source and target;
 *   unflushed  it was written to the target after the target's last flush began.  Such chunks may
 *              be lost when a flush fails, or when the connection to the target is lost (which the
 *              target's next flush reports);
 *   flushing   the flush in progress covers it.
 *
 * Nothing is lost because of this order: a user's write marks its chunks as dirty after it was done
 * and before it is answered; the copier clears the marks before it reads the source; a failed copy
 * sets them again before it unlocks its range.
 *
 * Everything runs on the job's thread, except what workers report (the first section). */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/clock.h"
#include "jobs/mirror_internal.h"

/* To complete, users are drained while the last bytes are copied: only when at most LAST_BYTES are
 * left, and for DRAIN_NS at first.  When that was too short, the next attempt may take twice as
 * long, up to DRAIN_MOST_NS. */
#define LAST_BYTES    (16u << 20)
#define DRAIN_NS      250000000ull
#define DRAIN_MOST_NS 8000000000ull

/* How long the target may take to answer before the job completes (target_answers). */
#define PROOF_MS 10000u

/* Bytes copied between two early flushes.  These make the target's disk work while copying goes
 * on, so that little is left for the flush before READY or with users drained.  They also bound
 * what has to be copied again after a lost connection. */
#define FLUSH_BYTES (128u << 20)

/* ---- what the workers report ---- */

void mirror_note_error(struct mirror *m, int err, bool write_side)
{
    if (write_side)
        atomic_store(&m->forwarding, false);
    LOCK_GUARD(&m->lock);
    if (m->sticky_error)
        return;
    m->sticky_error = err;
    m->error_on_write = write_side;
}

void mirror_copied(void *opaque, const struct copy_result *result)
{
    struct mirror *m = opaque;

    if (result->err) {
        dirty_bitmap_set(m->dirty, result->off, result->len);
        mirror_note_error(m, result->err, result->write_side);
        return;
    }
    dirty_bitmap_set(m->unflushed, result->off, result->len);
    atomic_fetch_add(&m->copied, result->len);
    atomic_fetch_add(&m->sent, result->sent);
    /* The target takes writes (again). */
    if (atomic_load(&m->active))
        atomic_store(&m->forwarding, true);
}

void mirror_worker_freed(void *opaque)
{
    struct mirror *m = opaque;

    job_kick(m->job);
}

/* ---- errors ---- */

bool mirror_has_failed(struct mirror *m)
{
    LOCK_GUARD(&m->lock);
    return m->sticky_error != 0;
}

/* The first error since the last call, or 0. */
static int take_sticky_error(struct mirror *m, bool *write_side)
{
    LOCK_GUARD(&m->lock);
    int err = m->sticky_error;

    *write_side = m->error_on_write;
    m->sticky_error = 0;
    return err;
}

int mirror_handle_error(struct mirror *m)
{
    bool write_side;

    /* Other copies in flight may fail for the same reason: wait, so that it is reported once. */
    copier_wait_in_flight(m->copier);
    int err = take_sticky_error(m, &write_side);
    if (job_is_cancelled(m->job))
        return -ECANCELED;
    m->in_sync = false;
    enum job_on_error policy = write_side ? m->on_target_error : m->on_source_error;
    if (!job_handle_error(m->job, policy, write_side, err))
        return err;
    /* If tried again at once, the same range would fail again. */
    if (policy == JOB_IGNORE)
        job_rest(m->job, JOB_SLICE_NS);
    return 0;
}

void mirror_report_progress(struct mirror *m)
{
    uint64_t remaining = dirty_bitmap_count(m->dirty) + copier_in_flight(m->copier);

    job_progress(m->job, atomic_load(&m->copied), remaining);
}

/* ---- the first look at the source ---- */

/* Does the target read as zeroes there already?  Then zeroes needn't be written. */
static bool target_is_zero(struct mirror *m, uint64_t off, uint64_t len)
{
    while (len > 0) {
        struct block_status st;
        if (block_status(m->target, off, len, &st) || !st.zero)
            return false;
        off += st.length;
        len -= st.length;
    }
    return true;
}

/* Does a run of the source, which st describes, have to be copied? */
static bool is_wanted(struct mirror *m, const struct block_status *st, uint64_t off)
{
    /* A layer says "zeroes" without an entry past the end of what lies below it; a target
     * that is longer may have something there. */
    bool own = st->depth <= m->layers.depth && (st->present || st->zero);

    if (m->sync != MIRROR_FULL && !own)
        return false;
    return !st->zero || (m->sync != MIRROR_FULL && st->present) ||
           !(m->params.target_is_zero || target_is_zero(m, off, st->length));
}

static void forget_range(struct mirror *m, uint64_t off, uint64_t len)
{
    if (m->forget)
        m->forget(m, off, len);
}

int mirror_mark_first(struct mirror *m)
{
    uint64_t off = 0, size = m->source->size;

    if (m->sync == MIRROR_NONE)
        return 0;
    if (m->sync == MIRROR_INCREMENTAL)
        return 0; /* merged at the start */
    while (off < size) {
        struct block_status st;
        int err = job_checkpoint(m->job, 0);
        if (err)
            return err;
        if (block_status(m->source, off, MIN(size - off, 64u << 20), &st))
            st = (struct block_status){
                .length = MIN(size - off, m->granularity), .data = true, .present = true};
        if (is_wanted(m, &st, off))
            dirty_bitmap_set(m->dirty, off, st.length);
        else
            forget_range(m, off, st.length);
        off += st.length;
    }
    return 0;
}

/* ---- the copying ---- */

/* How many bytes the next copy may have; 0: by the rate limit enough is in flight.  (The limit
 * counts bytes when they have arrived.) */
static uint64_t next_copy_limit(struct mirror *m)
{
    uint64_t slice = job_slice_bytes(m->job), copying = copier_copying(m->copier);

    if (copying > 0 && copying >= slice)
        return 0;
    return MIN(m->max_range, MAX(align_down(slice, m->granularity), m->granularity));
}

/* Starts the next copy; false when there is none to start now. */
static bool start_next_copy(struct mirror *m)
{
    uint64_t most = next_copy_limit(m), size = m->source->size;

    /* Chunks whose range is locked are skipped for now. */
    for (unsigned tries = 0; most > 0 && tries < 8; tries++) {
        uint64_t off, len;
        if (!dirty_bitmap_next(m->dirty, m->cursor, &off, &len) &&
            !dirty_bitmap_next(m->dirty, 0, &off, &len))
            return false;
        len = MIN(len, most);
        uint64_t locked = len;
        struct copy_worker *worker = copier_begin(m->copier, off, &locked);
        uint64_t next = off + (locked ? locked : len);
        if (worker) {
            /* Before the source is read: a write that comes later marks the chunk again. */
            dirty_bitmap_clear(m->dirty, off, locked);
            copier_go(worker);
        } else if (locked > 0) { /* all workers are busy */
            return false;
        }
        m->cursor = next < size ? next : 0;
        if (worker)
            return true;
    }
    return false;
}

void mirror_copy_more(struct mirror *m)
{
    if (start_next_copy(m))
        return;
    atomic_store(&m->idle, true);
    if (copier_in_flight(m->copier) > 0)
        job_sleep(m->job, JOB_SLICE_NS);
    else if (dirty_bitmap_count(m->dirty) == 0)
        job_idle(m->job, JOB_SLICE_NS);
    atomic_store(&m->idle, false);
}

bool mirror_is_clean(struct mirror *m)
{
    /* In this order: a failed copy marks its chunks before its worker becomes idle. */
    return copier_copying(m->copier) == 0 && dirty_bitmap_count(m->dirty) == 0;
}

/* ---- flushing ---- */

/* Has the target lost its connection with unflushed writes?  Its next flush will fail. */
static bool note_connection_loss(struct mirror *m)
{
    uint64_t losses = node_lost_writes(m->target);
    if (losses == m->losses)
        return false;
    m->losses = losses;
    m->unreported_loss = true;
    m->in_sync = false;
    return true;
}

/* Has a flush of the target failed since the last call, whoever asked for it: a user, the timed
 * write-back, a durable write?  The next successful flush doesn't make good for it. */
static bool note_flush_failure(struct mirror *m)
{
    uint64_t failures = node_flush_failures(m->target);
    bool news = failures != m->failures;

    m->failures = failures;
    return news;
}

/* After a failed flush: everything written before its end may be lost. */
static void mark_unflushed_dirty(struct mirror *m)
{
    copier_wait_in_flight(m->copier); /* so that all of it is marked */
    dirty_bitmap_merge(m->dirty, m->unflushed);
    dirty_bitmap_merge(m->dirty, m->flushing);
    m->in_sync = false;
}

void mirror_check_losses(struct mirror *m)
{
    note_connection_loss(m);
    if (note_flush_failure(m))
        mark_unflushed_dirty(m);
}

bool mirror_flush_reported_loss(struct mirror *m)
{
    return node_lost_writes(m->target) != atomic_load(&m->losses) ||
           atomic_exchange(&m->unreported_loss, false);
}

/* Moves the bits of `unflushed` to `flushing`.  Users' writes (write-blocking mode) set bits
 * there at any time, each after its write has ended: a bit that is moved here belongs to a write
 * that the flush covers. */
static void begin_flush(struct mirror *m)
{
    uint64_t off, len;

    for (uint64_t at = 0; dirty_bitmap_next(m->unflushed, at, &off, &len); at = off + len) {
        dirty_bitmap_clear(m->unflushed, off, len);
        dirty_bitmap_set(m->flushing, off, len);
    }
}

/* A backup: what was flushed won't be copied again. */
static void forget_flushed(struct mirror *m)
{
    uint64_t off, len;

    for (uint64_t at = 0; dirty_bitmap_next(m->flushing, at, &off, &len); at = off + len)
        m->forget(m, off, len);
}

/* True: what was written before it is durable. */
static bool end_flush(struct mirror *m, int err)
{
    bool lost = note_connection_loss(m), reported = m->unreported_loss;

    if (!lost)
        m->unreported_loss = false;
    if (err && !reported) /* before all else: this ends the forwarding of users' writes */
        mirror_note_error(m, err, true);
    bool failed = note_flush_failure(m) || err;
    if (failed)
        mark_unflushed_dirty(m);
    else if (m->forget && !lost)
        forget_flushed(m);
    dirty_bitmap_clear(m->flushing, 0, m->source->size);
    return !failed && !lost;
}

static bool end_early_flush(struct mirror *m)
{
    int err = copier_flush_result(m->copier);

    m->flushes = false;
    return end_flush(m, err);
}

/* A server that is gone, or doesn't answer, mustn't be taken for one that has nothing to
 * flush. */
static bool target_answers(struct mirror *m)
{
    int err = node_prove(m->target, job_completes(m->job), PROOF_MS);

    if (err)
        mirror_note_error(m, err, true);
    return !err;
}

static bool flush_target(struct mirror *m)
{
    if (m->flushes && !end_early_flush(m))
        return false;
    begin_flush(m);
    return end_flush(m, block_flush(m->target));
}

/* False: no worker is idle. */
static bool begin_early_flush(struct mirror *m)
{
    struct copy_worker *worker = copier_begin_flush(m->copier);

    if (!worker)
        return false;
    begin_flush(m);
    m->flushes = true;
    copier_go(worker);
    return true;
}

void mirror_flush_early(struct mirror *m)
{
    uint64_t copied = atomic_load(&m->copied);

    if (m->flushes && !copier_is_flushing(m->copier))
        (void)end_early_flush(m); /* notes an error itself */
    if (m->flushes || copied - m->flush_mark < FLUSH_BYTES)
        return;
    if (begin_early_flush(m))
        m->flush_mark = copied;
}

/* Flushes while users are drained, so only until `until` (clock_ns): the target may take longer
 * than users can wait.  False: not done by then; the flush goes on. */
static bool flush_until(struct mirror *m, uint64_t until)
{
    if (!begin_early_flush(m))
        return false;
    while (copier_is_flushing(m->copier)) {
        if (job_is_cancelled(m->job) || clock_ns() > until)
            return false;
        job_sleep(m->job, JOB_SLICE_NS / 10);
    }
    return end_early_flush(m);
}

void mirror_try_ready(struct mirror *m)
{
    if (m->in_sync || !flush_target(m))
        return;
    m->in_sync = true;
    /* QMP: at READY offset equals len; what users wrote during the flush is added later. */
    job_progress(m->job, atomic_load(&m->copied), 0);
    job_ready(m->job);
}

/* ---- the end ---- */

static void drain_users(struct mirror *m)
{
    m->pivot.begin_drain(m->pivot.opaque);
    m->drained = true;
}

void mirror_drain_nobody(void *opaque)
{
    (void)opaque;
}

void mirror_end_drain(struct mirror *m)
{
    if (m->drained)
        m->pivot.end_drain(m->pivot.opaque);
    m->drained = false;
}

/* Copies until nothing is dirty, which takes no end unless users are drained.  False: not done by
 * `until` (clock_ns), or failed, or cancelled. */
static bool copy_rest(struct mirror *m, uint64_t until)
{
    while (!mirror_is_clean(m)) {
        if (mirror_has_failed(m) || job_is_cancelled(m->job) || clock_ns() > until)
            return false;
        if (!start_next_copy(m))
            job_sleep(m->job, JOB_SLICE_NS / 10);
    }
    return true;
}

bool mirror_try_complete(struct mirror *m)
{
    if (dirty_bitmap_count(m->dirty) > LAST_BYTES)
        return false;
    /* Flush, and wait for a target that doesn't answer, before users are drained. */
    copier_wait_in_flight(m->copier);
    if (mirror_has_failed(m) || !target_answers(m) || !flush_target(m))
        return false;
    m->patience = MIN(MAX(2 * m->patience, DRAIN_NS), DRAIN_MOST_NS);
    drain_users(m);
    /* mirror_has_failed once more: a user's write may have failed on the target meanwhile. */
    if (copy_rest(m, clock_ns() + m->patience) &&
        flush_until(m, clock_ns() + DRAIN_MOST_NS) && mirror_is_clean(m) &&
        !mirror_has_failed(m))
        return true;
    mirror_end_drain(m);
    return false;
}

int mirror_finish_copy(struct mirror *m)
{
    while (!job_is_cancelled(m->job)) {
        if (mirror_has_failed(m)) {
            bool write_side;
            copier_wait_in_flight(m->copier);
            return take_sticky_error(m, &write_side);
        }
        mirror_check_losses(m);
        if (mirror_try_complete(m))
            return 0;
        mirror_copy_more(m);
    }
    copier_wait_in_flight(m->copier);
    return -ECANCELED;
}
