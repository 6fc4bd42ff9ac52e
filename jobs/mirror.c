/* SPDX-License-Identifier: BSD-3-Clause */
/* The mirror job: its start, the loop of its thread (run_one_turn), and its end, at which users may
 * be switched to the target.  What is copied, and when the target is in sync, is decided in
 * mirror_copy.c; the source's changes are observed in mirror_observe.c. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "jobs/manager.h"
#include "jobs/mirror_internal.h"

/* Bytes in flight when the user doesn't say (qimg-control(7), buf-size), and bytes of one copy. */
#define DEFAULT_BUF_SIZE (16u << 20)
#define REQUEST_BYTES    (1u << 20)

/* When users are served from the target: how long requests wait for a server that became
 * unreachable. */
#define PATIENCE_MS 10000u

/* ---- the work ---- */

/* Does the job end when everything is copied?  So it is where nobody writes to the source: an
 * intermediate commit, and most backups.  Other mirrors become READY and wait for the user. */
static bool ends_by_itself(const struct mirror *m)
{
    return m->layers.overlay != NULL || m->finite;
}

static bool wants_to_end(struct mirror *m, bool clean)
{
    return ends_by_itself(m) ? clean : job_should_finish(m->job);
}

/* One turn of the job.  1: the copy is complete, and users are drained; 0: not yet; or -errno. */
static int run_one_turn(struct mirror *m)
{
    int err = job_checkpoint(m->job, atomic_exchange(&m->sent, 0));
    if (err)
        return err;
    mirror_catch_up(m);
    if (m->check)
        err = m->check(m);
    if (err || mirror_has_failed(m))
        return err ? err : mirror_handle_error(m);
    mirror_check_losses(m);
    mirror_flush_early(m);
    mirror_report_progress(m);
    bool clean = mirror_is_clean(m);
    if (clean && !ends_by_itself(m) && !m->endless)
        mirror_try_ready(m);
    job_set_actively_synced(m->job, clean && m->in_sync && atomic_load(&m->active) &&
                                        atomic_load(&m->forwarding));
    if (wants_to_end(m, clean) && mirror_try_complete(m))
        return 1;
    mirror_copy_more(m);
    return 0;
}

/* The job will wait for the user (finalize) before it ends: users of the disk must not wait as
 * long. A job that is to switch them to the target goes on observing, and mirror_finish copies
 * what they write meanwhile.  One that only makes a copy is done with it. */
static void wait_for_others(struct mirror *m)
{
    if (!job_completes(m->job))
        mirror_detach(m);
    mirror_end_drain(m);
}

static void explain_failure(const struct mirror *m, int err, struct diag *diag)
{
    diag_errno(diag, -err, "job '%s': copying from %s to %s", m->id, m->source->filename,
               m->target->filename);
}

int mirror_run(struct job *job, void *state, struct diag *diag)
{
    struct mirror *m = state;

    m->job = job;
    int err = mirror_mark_first(m);
    while (!err)
        err = run_one_turn(m);
    copier_wait_in_flight(m->copier);
    if (err == 1) {
        if (job_waits_for_finalize(job))
            wait_for_others(m);
        return 0;
    }
    if (err != -ECANCELED)
        explain_failure(m, err, diag);
    return err;
}

void mirror_wait_in_flight(struct job *job, void *state)
{
    struct mirror *m = state;

    (void)job;
    copier_wait_in_flight(m->copier);
}

void mirror_interrupt(struct job *job, void *state)
{
    struct mirror *m = state;
    LOCK_GUARD(&m->lock);

    (void)job;
    atomic_store(&m->give_up, true);
    m->interrupted = true;
    if (m->interruptible)
        node_abort(m->interruptible);
}

int mirror_set_write_blocking(void *state, bool on, struct diag *diag)
{
    return mirror_observe_as(state, on, diag);
}

/* ---- the end ---- */

/* From now on an interrupt doesn't abort the target.  False: one has done so already. */
static bool disarm_interrupt(struct mirror *m)
{
    LOCK_GUARD(&m->lock);
    m->interruptible = NULL;
    return !m->interrupted;
}

/* The job doesn't write again what the target loses from now on.  If a server was unreachable,
 * users get one failed flush, and can write again what they wrote since the last one.  After a
 * failed flush of a file its state is unknown, so the node refuses writes. */
static void prepare_to_serve(struct node *target)
{
    if (!node_persist(target, PATIENCE_MS))
        node_set_forgiving(target, false);
}

/* Makes users be served from the target. */
static int replace_source(struct mirror *m, struct diag *diag)
{
    /* A target that was aborted can't serve users. */
    if (!disarm_interrupt(m))
        return -ECANCELED;
    mirror_detach(m);
    prepare_to_serve(m->target);
    int err = m->pivot.replace(m->pivot.opaque, m->target, diag);
    m->replaced = !err;
    if (!err)
        m->target = NULL;
    return err;
}

static int complete_with_target(struct mirror *m, struct diag *diag)
{
    int err = m->drained ? 0 : mirror_finish_copy(m);

    if (!err)
        return replace_source(m, diag);
    if (err != -ECANCELED)
        explain_failure(m, err, diag);
    mirror_interrupt(m->job, m);
    return err;
}

/* Before the end of the job is reported, so that the user can open the target then. */
static int close_target(struct mirror *m, struct diag *diag)
{
    int err = 0;

    (void)disarm_interrupt(m);
    if (m->target)
        err = node_close(m->target);
    m->target = NULL;
    return err ? diag_errno(diag, -err, "job '%s': closing its target", m->id) : 0;
}

/* Threads and memory. */
static void free_copy_state(struct mirror *m)
{
    copier_free(m->copier);
    dirty_bitmap_free(m->dirty);
    dirty_bitmap_free(m->unflushed);
    dirty_bitmap_free(m->flushing);
    m->copier = NULL;
    m->dirty = m->unflushed = m->flushing = NULL;
}

int mirror_finish(struct job *job, void *state, bool success, struct diag *diag)
{
    struct mirror *m = state;
    struct diag ignored;
    int err = 0;

    bool completes = job_completes(job);
    if (!success) /* the target is of no use: don't wait for its requests */
        mirror_interrupt(job, m);
    else if (completes)
        err = complete_with_target(m, diag);
    else if (job_is_cancelled(job)) /* by force, when it was about to complete */
        err = -ECANCELED;
    mirror_detach(m);
    mirror_end_drain(m);
    bool is_copy = success && !err;
    int close_err = close_target(m, is_copy ? diag : &ignored);
    free_copy_state(m); /* a concluded job may stay in the list for long */
    return is_copy ? close_err : err;
}

void mirror_leave_seat(struct mirror *m)
{
    const struct mirror_pivot *users = &m->params.pivot;

    if (m->seat.state != SEAT_NONE)
        users->leave_seat(users->opaque, &m->seat);
}

void mirror_free(void *state)
{
    struct mirror *m = state;

    mirror_detach(m);
    free_copy_state(m);
    node_close(m->target);
    if (m->params.opener.free) /* what the target lived in, too */
        m->params.opener.free(m->params.opener.opaque);
    free((char *)(uintptr_t)m->params.bitmap);
    lock_destroy(&m->lock);
    free(m->id);
    free(m);
}

/* ---- the start ---- */

#define MAX_GRANULARITY (64u << 20)

static int check_granularity(uint64_t granularity, struct diag *diag)
{
    if (dirty_bitmap_granularity_ok(granularity) && granularity <= MAX_GRANULARITY)
        return 0;
    return diag_set(diag, EINVAL,
                    "granularity: %" PRIu64 " is not a power of two from 512 to 64M",
                    granularity);
}

/* What can be validated without a target. */
static int check_early(const struct mirror_params *p, struct diag *diag)
{
    int err = p->granularity ? check_granularity(p->granularity, diag) : 0;

    if (!err && p->source && p->sync == MIRROR_INCREMENTAL)
        err = mirror_find_bitmap(p->source, p->bitmap, diag) ? 0 : -ENOENT;
    return err;
}

static int check_params(struct mirror *m, const struct mirror_params *p, struct diag *diag)
{
    m->granularity = p->granularity
                         ? p->granularity
                         : dirty_bitmap_default_granularity(node_preferred(p->target));
    int err = check_granularity(m->granularity, diag);
    if (err)
        return err;
    if (p->source == p->target)
        return diag_set(diag, EINVAL, "target: %s: can't mirror a disk to itself",
                        p->target->filename);
    /* A base may be larger than what is committed to it: it is never shrunk. */
    if (p->source->size != p->target->size &&
        !(m->layers.base && p->target->size > p->source->size))
        return diag_set(diag, EINVAL,
                        "target: %s: its size of %" PRIu64
                        " bytes differs from the source's of %" PRIu64,
                        p->target->filename, p->target->size, p->source->size);
    return 0;
}

static int make_copy_state(struct mirror *m, const struct mirror_params *p)
{
    uint64_t buf = align_up(p->buf_size ? p->buf_size : DEFAULT_BUF_SIZE, m->granularity);

    m->max_range =
        MAX(MIN(align_down(buf / 8, m->granularity), REQUEST_BYTES), m->granularity);
    m->dirty = dirty_bitmap_new(NULL, m->source->size, m->granularity);
    m->unflushed = dirty_bitmap_new(NULL, m->source->size, m->granularity);
    m->flushing = dirty_bitmap_new(NULL, m->source->size, m->granularity);
    const struct copier_config config = {
        .source = m->source,
        .target = m->target,
        .buf_size = buf,
        .max_range = m->max_range,
        .unmap = p->unmap,
        .done = mirror_copied,
        .freed = mirror_worker_freed,
        .opaque = m,
    };
    m->copier = copier_new(&config);
    return m->dirty && m->unflushed && m->flushing && m->copier ? 0 : -ENOMEM;
}

static void note_target(struct mirror *m)
{
    LOCK_GUARD(&m->lock);
    m->interruptible = m->target;
    m->losses = node_lost_writes(m->target);
    if (m->interrupted)
        node_abort(m->target);
}

int mirror_prepare(struct mirror *m, struct diag *diag)
{
    const struct mirror_params *p = &m->params;

    m->source = p->source;
    m->target = p->target;
    m->sync = p->sync;
    m->on_source_error = p->on_source_error;
    m->on_target_error = p->on_target_error;
    m->active = p->copy_mode == MIRROR_WRITE_BLOCKING;
    m->unmap = p->unmap;
    m->pivot = p->pivot;
    atomic_store(&m->forwarding, m->active);
    note_target(m);
    m->failures = node_flush_failures(m->target);
    /* What a target without metadata loses is copied again; it needn't be reopened for that. */
    if (!node_can(m->target, DRIVER_CLUSTERS))
        node_set_forgiving(m->target, true);
    int err = check_params(m, p, diag);
    if (err)
        return err;
    err = make_copy_state(m, p);
    return err ? diag_errno(diag, -err, "job '%s'", m->id)
               : mirror_attach(m, p->bitmap, diag);
}

/* The job's own copy. */
static int keep_params(struct mirror *m, const struct mirror_params *p)
{
    m->params = *p;
    m->id = strdup(p->job.id);
    m->params.bitmap = p->bitmap ? strdup(p->bitmap) : NULL;
    return m->id && !m->params.bitmap == !p->bitmap ? 0 : -ENOMEM;
}

int mirror_launch(struct job_manager *manager, struct mirror *m,
                  const struct mirror_params *p, const struct job_ops *ops,
                  struct diag *diag)
{
    lock_init(&m->lock, RANK_LEAF);
    m->target = p->target;
    int err = keep_params(m, p);
    if (err)
        diag_errno(diag, -err, "job '%s'", p->job.id);
    if (!err)
        err = check_early(p, diag);
    if (!err && p->target)
        err = mirror_prepare(m, diag);
    if (err) {
        ops->free(m);
        return err;
    }
    return job_start(manager, ops, m, &p->job, diag);
}

/* On the job's thread, when there was no target at the start. */
static int mirror_open(struct job *job, void *state, struct diag *diag)
{
    struct mirror *m = state;
    struct mirror_params *p = &m->params;

    (void)job;
    if (m->target)
        return 0;
    if (!p->source)
        p->source = p->pivot.take_seat(p->pivot.opaque, &m->seat);
    int err = check_early(p, diag);
    if (!err)
        err = p->opener.open(p->opener.opaque, p->source, &m->give_up, &p->target, diag);
    if (!err)
        err = mirror_prepare(m, diag);
    if (!err)
        mirror_follow(m);
    return err;
}

static int finish_mirror(struct job *job, void *state, bool success, struct diag *diag)
{
    int err = mirror_finish(job, state, success, diag);

    mirror_leave_seat(state);
    return err;
}

static const struct job_ops mirror_job_ops = {
    .type = "mirror",
    .open = mirror_open,
    .run = mirror_run,
    .wait_in_flight = mirror_wait_in_flight,
    .interrupt = mirror_interrupt,
    .set_write_blocking = mirror_set_write_blocking,
    .finish = finish_mirror,
    .free = mirror_free,
};

int mirror_start(struct job_manager *manager, const struct mirror_params *params,
                 struct diag *diag)
{
    struct mirror *m = calloc(1, sizeof *m);

    if (!m) {
        node_close(params->target);
        if (params->opener.free)
            params->opener.free(params->opener.opaque);
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    }
    return mirror_launch(manager, m, params, &mirror_job_ops, diag);
}
