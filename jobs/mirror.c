/* The mirror job: bulk copy, then in sync, then the end (block-jobs.md 2.2).
 *
 *   bitmap dirty     chunks whose bytes on the target may differ from the source's;
 *   bitmap unflushed chunks copied since the target's last successful flush: what a target
 * that went away may have forgotten. The order that loses nothing: a writer of the source
 * marks after its write and before its reply; the copier clears before it looks; a failed
 * copy marks again before its claim ends. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "jobs/mirror_internal.h"
#include "storage/nbd.h"

#define DEFAULT_BUF_SIZE    (16u << 20)
#define DEFAULT_GRANULARITY (64u << 10)
#define MIN_GRANULARITY     512u
#define MAX_GRANULARITY     (64u << 20)
#define REQUEST_BYTES       (1u << 20)

/* ---- what the workers report ---- */

static void on_copied(void *opaque, const struct copy_result *result)
{
    struct mirror *m = opaque;

    if (result->err) {
        dirty_bitmap_set(m->dirty, result->off, result->len);
        LOCK_GUARD(&m->lock);
        if (!m->error) {
            m->error = result->err;
            m->error_on_write = result->write_side;
        }
    } else {
        dirty_bitmap_set(m->unflushed, result->off, result->len);
        atomic_fetch_add(&m->copied, result->len);
        atomic_fetch_add(&m->sent, result->sent);
    }
    job_kick(m->job);
}

/* Copies that failed, and writes a lost target forgot, by policy.  0: go on. */
static int handle_errors(struct mirror *m)
{
    int err;
    bool write_side;

    {
        LOCK_GUARD(&m->lock);
        err = m->error;
        write_side = m->error_on_write;
        m->error = 0;
    }
    if (!err)
        return 0;
    enum job_on_error policy = write_side ? m->on_target_error : m->on_source_error;
    if (!job_handle_error(m->job, policy, write_side, err))
        return err;
    /* The same range will fail again if it is asked at once (M-08). */
    if (policy == JOB_IGNORE)
        job_sleep(m->job, JOB_SLICE_NS);
    return 0;
}

static void tell_progress(struct mirror *m)
{
    uint64_t remaining = dirty_bitmap_count(m->dirty) + copier_in_flight(m->copier);

    job_progress(m->job, atomic_load(&m->copied), remaining);
}

/* ---- the first look at the source ---- */

/* Are the bytes zero on the target already?  Then zeroes needn't be sent. */
static bool target_is_zero(struct mirror *m, uint64_t off, uint64_t len)
{
    while (len > 0) {
        struct block_status st;
        if (block_status(m->target, len, off, &st) || !st.zero)
            return false;
        off += st.length;
        len -= st.length;
    }
    return true;
}

/* Marks one run of the source, when it has to be copied. */
static void mark_run(struct mirror *m, const struct block_status *st, uint64_t off)
{
    bool wanted = m->sync == MIRROR_FULL || (st->present && st->depth <= m->top_depth);

    if (!wanted)
        return;
    if (st->zero && m->sync == MIRROR_FULL && target_is_zero(m, off, st->length))
        return;
    dirty_bitmap_set(m->dirty, off, st->length);
}

/* While users go on writing: they mark for themselves, so that nothing here is ever
 * cleared. */
static int mark_first(struct mirror *m)
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
        if (block_status(m->source, MIN(size - off, 64u << 20), off, &st))
            st = (struct block_status){
                .length = MIN(size - off, m->granularity), .data = true, .present = true};
        mark_run(m, &st, off);
        off += st.length;
    }
    return 0;
}

/* ---- the copying ---- */

/* Starts the next copy; false when there is none to start now. */
static bool start_one(struct mirror *m)
{
    uint64_t off, len, size = m->source->size;

    if (!dirty_bitmap_next(m->dirty, m->cursor, &off, &len) &&
        !dirty_bitmap_next(m->dirty, 0, &off, &len))
        return false;
    len = MIN(len, m->max_range);
    uint64_t claimed = len;
    struct copy_worker *worker = copier_begin(m->copier, off, &claimed);
    if (claimed == 0) { /* somebody is there: look behind it, and come back */
        m->cursor = off + len < size ? off + len : 0;
        return false;
    }
    if (!worker)
        return false;
    /* Cleared before anything is looked at: what is written from here on marks again. */
    dirty_bitmap_clear(m->dirty, off, claimed);
    copier_go(worker);
    m->cursor = off + claimed < size ? off + claimed : 0;
    return true;
}

static bool is_clean(struct mirror *m)
{
    /* In this order: a copy that fails marks before its claim ends. */
    return copier_in_flight(m->copier) == 0 && dirty_bitmap_count(m->dirty) == 0;
}

/* The target lost its connection with unflushed writes: they are to be sent again. */
static void look_for_losses(struct mirror *m)
{
    if (!storage_is_nbd(m->target->file))
        return;
    uint64_t losses = storage_nbd_losses(m->target->file);
    if (losses == m->losses)
        return;
    m->losses = losses;
    dirty_bitmap_merge(m->dirty, m->unflushed);
}

static int flush_target(struct mirror *m)
{
    int err = block_flush(m->target);

    look_for_losses(m);
    if (!err && is_clean(m) && !m->active)
        dirty_bitmap_clear(m->unflushed, 0, m->source->size);
    if (err) {
        dirty_bitmap_merge(m->dirty, m->unflushed);
        LOCK_GUARD(&m->lock);
        m->error = err;
        m->error_on_write = true;
    }
    return err;
}

/* Copies until nothing is dirty; with users held back that ends.  Fails with the first
 * error. */
static int copy_rest(struct mirror *m)
{
    while (!is_clean(m)) {
        {
            LOCK_GUARD(&m->lock);
            if (m->error)
                return m->error;
        }
        if (job_is_cancelled(m->job))
            return -ECANCELED;
        if (!start_one(m))
            job_sleep(m->job, JOB_SLICE_NS / 10);
    }
    return 0;
}

/* The completion point: users are held back, the rest is copied, the target flushed.  True:
 * it is done, and users stay held until `finish`; else everything goes on. */
static bool reach_end(struct mirror *m)
{
    m->pivot.hold(m->pivot.opaque);
    m->held = true;
    int err = copy_rest(m);
    if (!err)
        err = flush_target(m);
    if (!err && is_clean(m))
        return true;
    m->pivot.release(m->pivot.opaque);
    m->held = false;
    return false;
}

/* Nothing is dirty: READY if the target's flush succeeds. */
static void come_in_sync(struct mirror *m)
{
    if (m->in_sync)
        return;
    if (flush_target(m) == 0 && is_clean(m)) {
        m->in_sync = true;
        tell_progress(m);
        job_ready(m->job);
    }
}

/* One turn; 1: through. */
static int turn(struct mirror *m)
{
    int err = job_checkpoint(m->job, atomic_exchange(&m->sent, 0));
    if (!err)
        err = handle_errors(m);
    if (err)
        return err;
    look_for_losses(m);
    tell_progress(m);
    if (is_clean(m))
        come_in_sync(m);
    if (job_should_finish(m->job) && m->in_sync && reach_end(m))
        return 1;
    if (!start_one(m)) {
        atomic_store(&m->idle, true);
        if (dirty_bitmap_count(m->dirty) == 0 || copier_in_flight(m->copier) > 0)
            job_sleep(m->job, JOB_SLICE_NS);
        atomic_store(&m->idle, false);
    }
    return 0;
}

static int mirror_run(struct job *job, void *state, struct diag *diag)
{
    struct mirror *m = state;

    m->job = job;
    int err = mark_first(m);
    while (!err)
        err = turn(m);
    /* What is in flight ends before anything is taken apart. */
    while (copier_in_flight(m->copier) > 0)
        job_sleep(job, JOB_SLICE_NS / 10);
    if (err == 1)
        return 0;
    if (err != -ECANCELED)
        diag_errno(diag, -err, "job '%s': copying from %s to %s", m->id,
                   m->source->filename, m->target->filename);
    return err;
}

static void mirror_interrupt(struct job *job, void *state)
{
    struct mirror *m = state;

    (void)job;
    if (storage_is_nbd(m->target->file))
        storage_nbd_abort(m->target->file);
}

static int mirror_finish(struct job *job, void *state, bool success, struct diag *diag)
{
    struct mirror *m = state;
    int err = 0;

    mirror_detach(m);
    if (success && job_completes(job)) {
        err = m->pivot.swing(m->pivot.opaque, m->target, diag);
        if (!err)
            m->target = NULL;
    }
    if (m->held)
        m->pivot.release(m->pivot.opaque);
    m->held = false;
    return err;
}

static void mirror_free(void *state)
{
    struct mirror *m = state;

    mirror_detach(m);
    copier_free(m->copier);
    dirty_bitmap_free(m->dirty);
    dirty_bitmap_free(m->unflushed);
    node_close(m->target);
    lock_destroy(&m->lock);
    free(m->id);
    free(m);
}

const struct job_ops mirror_job_ops = {
    .type = "mirror",
    .run = mirror_run,
    .interrupt = mirror_interrupt,
    .finish = mirror_finish,
    .free = mirror_free,
};

const struct job_ops commit_job_ops = {
    .type = "commit",
    .run = mirror_run,
    .interrupt = mirror_interrupt,
    .finish = mirror_finish,
    .free = mirror_free,
};

/* ---- the start ---- */

static uint64_t default_granularity(const struct node *target)
{
    uint64_t cluster = target->cluster_size;

    if (storage_is_nbd(target->file))
        cluster = storage_nbd_info(target->file)->preferred_block;
    if (cluster <= 1)
        cluster = DEFAULT_GRANULARITY;
    return MIN(MAX(cluster, 4096), DEFAULT_GRANULARITY);
}

static int check_params(const struct mirror_params *p, uint64_t *granularity,
                        struct diag *diag)
{
    *granularity = p->granularity ? p->granularity : default_granularity(p->target);
    if (!is_power_of_two(*granularity) || *granularity < MIN_GRANULARITY ||
        *granularity > MAX_GRANULARITY)
        return diag_set(diag, EINVAL,
                        "granularity: %" PRIu64 " is not a power of two from 512 to 64M",
                        *granularity);
    if (p->source == p->target)
        return diag_set(diag, EINVAL, "target: %s: can't mirror a disk to itself",
                        p->target->filename);
    if (p->source->size != p->target->size)
        return diag_set(diag, EINVAL,
                        "target: %s: its size of %" PRIu64
                        " bytes differs from the source's of %" PRIu64,
                        p->target->filename, p->target->size, p->source->size);
    return 0;
}

static int make_parts(struct mirror *m, const struct mirror_params *p)
{
    uint64_t buf = align_up(p->buf_size ? p->buf_size : DEFAULT_BUF_SIZE, m->granularity);

    m->max_range =
        MAX(MIN(align_down(buf / 8, m->granularity), REQUEST_BYTES), m->granularity);
    m->dirty = dirty_bitmap_new(NULL, m->source->size, m->granularity);
    m->unflushed = dirty_bitmap_new(NULL, m->source->size, m->granularity);
    const struct copier_config config = {
        .source = m->source,
        .target = m->target,
        .buf_size = buf,
        .max_range = m->max_range,
        .unmap = p->unmap,
        .done = on_copied,
        .opaque = m,
    };
    m->copier = copier_new(&config);
    return m->dirty && m->unflushed && m->copier ? 0 : -ENOMEM;
}

int mirror_launch(struct job_manager *manager, const struct mirror_params *p,
                  const struct job_ops *ops, unsigned top_depth, struct diag *diag)
{
    uint64_t granularity;
    struct mirror *m = NULL;

    int err = check_params(p, &granularity, diag);
    if (!err) {
        m = calloc(1, sizeof *m);
        if (!m)
            err = diag_errno(diag, ENOMEM, "job '%s'", p->job.id);
    }
    if (err) {
        node_close(p->target);
        return err;
    }
    lock_init(&m->lock, RANK_LEAF);
    m->id = strdup(p->job.id);
    m->source = p->source;
    m->target = p->target;
    m->sync = p->sync;
    m->granularity = granularity;
    m->on_source_error = p->on_source_error;
    m->on_target_error = p->on_target_error;
    m->active = p->copy_mode == MIRROR_WRITE_BLOCKING;
    m->top_depth = top_depth;
    m->pivot = p->pivot;
    err = m->id ? make_parts(m, p) : -ENOMEM;
    if (err)
        diag_errno(diag, -err, "job '%s'", p->job.id);
    if (!err)
        err = mirror_attach(m, p->bitmap, diag);
    if (err) {
        mirror_free(m);
        return err;
    }
    return job_start(manager, ops, m, &p->job, diag);
}

int mirror_start(struct job_manager *manager, const struct mirror_params *params,
                 struct diag *diag)
{
    return mirror_launch(manager, params, &mirror_job_ops, 0, diag);
}
