/* SPDX-License-Identifier: BSD-3-Clause */
/* The backup job.
 *
 * Its source isn't the disk but a frozen point of it, a node that never changes.  So mirror's
 * engine does all the copying, and ends when everything is copied.  Old data that users are
 * about to overwrite is saved beside the disk, not on the target, so users never wait for the
 * target.
 *
 * When the target has data durably, the point needn't keep it any longer.
 *
 * A bitmap goes on recording all the time.  `since` records the changes after the point, too; at
 * the end it replaces the bitmap's contents.  Until then the bitmap has everything it had,
 * whatever happens. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "jobs/backup_internal.h"
#include "jobs/manager.h"

#define DEFAULT_WORKERS 16u
#define DEFAULT_CHUNK   (1u << 20)

static struct backup *backup_of(struct mirror *m)
{
    return CONTAINER_OF(m, struct backup, mirror);
}

/* ---- the point ---- */

/* On users' threads. */
static void note_unsaved(void *opaque, int err)
{
    struct backup *b = opaque;
    int none = 0;

    if (b->params.give_up && atomic_compare_exchange_strong(&b->unsaved, &none, err))
        job_kick(b->job);
}

/* For sync=none, if the target isn't the store: the copier copies what was saved. */
static void note_saved(void *opaque, uint64_t off, uint64_t len)
{
    struct backup *b = opaque;

    dirty_bitmap_set(b->mirror.dirty, off, len);
}

/* The target has this range durably: the point can release the whole chunks in it. */
static void forget_range(struct mirror *m, uint64_t off, uint64_t len)
{
    struct backup *b = backup_of(m);
    uint64_t start = align_up(off, m->granularity), end = off + len;

    if (end < m->source->size)
        end = align_down(end, m->granularity);
    if (b->params.sync == BACKUP_NONE || start >= end)
        return;
    frozen_release(b->point, start, end - start);
    /* a failure only leaves the space in use */
    (void)!block_discard(b->store, start, end - start, 0);
}

/* Releases the chunks that won't be copied. */
static void release_clean_chunks(struct backup *b)
{
    uint64_t off, len, size = b->source->size, at = 0;

    for (; dirty_bitmap_next(b->mirror.dirty, at, &off, &len); at = off + len)
        frozen_release(b->point, at, off - at);
    frozen_release(b->point, at, size - at);
}

/* Ends the point: old data isn't saved any more. */
static void end_point(struct backup *b)
{
    if (b->point)
        frozen_end(b->point);
}

/* ---- the start, on the job's thread ---- */

static int compress_target(struct node *target, struct diag *diag)
{
    const char *why_not = node_why_not_compress(target);

    if (why_not)
        return diag_set(diag, ENOTSUP, "%s: compress: %s", target->filename, why_not);
    target->options.compress = true;
    return 0;
}

static int open_target(struct backup *b, struct diag *diag)
{
    const struct mirror_opener *opener = &b->mirror.params.opener;
    struct node *target = TAKE(&b->params.target);

    if (!target) {
        int err =
            opener->open(opener->opaque, b->source, &b->mirror.give_up, &target, diag);
        if (err)
            return err;
    }
    /* mirror_finish or mirror_free closes it from here on. */
    b->mirror.params.target = b->mirror.target = target;
    return b->params.compress ? compress_target(target, diag) : 0;
}

static int open_point(struct backup *b, struct diag *diag)
{
    struct node *target = b->mirror.target;
    bool on_target = b->params.sync == BACKUP_NONE && !node_is_remote(target);

    if (!on_target) {
        int err = frozen_store_open(b->source, &b->own_store, diag);
        if (err)
            return err;
    }
    b->store = on_target ? target : b->own_store;
    const struct frozen_setup setup = {
        .source = b->source,
        .store = b->store,
        .store_is_blank = !on_target,
        .give_up = b->params.give_up,
        .timeout_ms = b->params.save_timeout_ms,
        .failed = note_unsaved,
        .saved = b->params.sync == BACKUP_NONE && !on_target ? note_saved : NULL,
        .opaque = b,
    };
    return frozen_new(&setup, &b->point, diag);
}

/* Everything except setting the point. */
static int prepare_backup(struct backup *b, struct diag *diag)
{
    struct mirror_params *p = &b->mirror.params;

    int err = backup_check_bitmap(b, diag);
    if (!err)
        err = open_target(b, diag);
    if (!err)
        err = open_point(b, diag);
    if (err)
        return err;
    frozen_backing_tell(b->mirror.target, b->point);
    p->source = frozen_node(b->point);
    p->granularity = MAX(FROZEN_GRANULE, node_preferred(p->target));
    /* If only a part of a target's unit is written, the target may read the rest from the point. */
    p->granularity = MAX(p->granularity, p->target->subcluster_size);
    p->granularity = MIN(p->granularity, BITMAP_MAX_GRANULARITY);
    return mirror_prepare(&b->mirror, diag);
}

void backup_thaw(struct backup *b, struct dirty_bitmap *bitmap)
{
    if (bitmap)
        b->named = NULL;
    backup_drop_bitmap(b);
    end_point(b);
}

static int begin_point(struct backup *b, struct diag *diag)
{
    int err = frozen_begin(b->point, diag);

    if (err || b->params.sync != BACKUP_NONE)
        return err;
    err = frozen_show(b->point, b->params.job.id);
    return err ? diag_errno(diag, -err, "job '%s'", b->params.job.id) : 0;
}

int backup_freeze(struct backup *b, struct dirty_bitmap *bitmap, struct diag *diag)
{
    int err = backup_take_bitmap(b, bitmap, diag);
    if (err)
        return err;
    err = begin_point(b, diag);
    if (err)
        backup_thaw(b, bitmap);
    return err;
}

void backup_read_bitmap(struct backup *b)
{
    if (b->params.sync == BACKUP_BITMAP) {
        dirty_bitmap_merge(b->mirror.dirty, b->named);
        release_clean_chunks(b);
    }
    if (b->for_readers)
        dirty_bitmap_merge(b->for_readers, b->named);
}

static int freeze_drained(struct backup *b, struct diag *diag)
{
    const struct mirror_pivot *users = &b->params.pivot;

    users->begin_drain(users->opaque);
    int err = backup_freeze(b, NULL, diag);
    if (!err)
        backup_read_bitmap(b);
    users->end_drain(users->opaque);
    return err;
}

/* Reports the result of prepare_backup to the starter and waits for the decision.  That comes
 * after a failure, too: until then the starter may use the struct. */
static int wait_for_decision(struct backup *b, int err, struct diag *diag)
{
    LOCK_GUARD(&b->lock);
    b->open_err = err;
    b->open_diag = *diag;
    b->opened = true;
    pthread_cond_broadcast(&b->changed);
    while (!b->decided)
        lock_wait(&b->lock, &b->changed);
    if (err || b->goes)
        return err;
    return diag_set(diag, ECANCELED, "job '%s': isn't wanted", b->params.job.id);
}

/* ---- the disk moves ---- */

static struct backup *backup_at(struct disk_seat *seat)
{
    return CONTAINER_OF(seat, struct backup, seat);
}

static int prepare_to_move(struct disk_seat *seat, struct node *to, struct diag *diag)
{
    struct backup *b = backup_at(seat);

    int err = backup_record_at(b, to);
    if (err)
        return diag_errno(diag, -err, "job '%s'", b->params.job.id);
    err = frozen_prepare_to_move(b->point, to);
    if (err)
        backup_stop_recording(b, to);
    return err ? diag_errno(diag, -err, "job '%s'", b->params.job.id) : 0;
}

static void move(struct disk_seat *seat, struct node *to)
{
    struct backup *b = backup_at(seat);

    frozen_move(b->point, to);
    b->source = to;
}

static void stay(struct disk_seat *seat, struct node *to)
{
    struct backup *b = backup_at(seat);

    frozen_stay(b->point, to);
    backup_stop_recording(b, to);
}

static void set_seat(struct backup *b, enum disk_seat_state state)
{
    if (b->seat.state != SEAT_NONE)
        b->params.pivot.set_seat(b->params.pivot.opaque, &b->seat, state);
}

static void follow_disk(struct backup *b)
{
    b->seat.prepare = prepare_to_move;
    b->seat.move = move;
    b->seat.stay = stay;
    set_seat(b, SEAT_FOLLOWS);
}

static int backup_open(struct job *job, void *state, struct diag *diag)
{
    struct backup *b = state;

    b->job = job;
    b->source = b->params.source;
    if (!b->source)
        b->source = b->params.pivot.take_seat(b->params.pivot.opaque, &b->seat);
    int err = prepare_backup(b, diag);
    if (b->held)
        err = wait_for_decision(b, err, diag);
    else if (!err)
        err = freeze_drained(b, diag);
    if (!err)
        follow_disk(b);
    return err;
}

/* ---- the work ---- */

static int check_point(struct mirror *m)
{
    return atomic_load(&backup_of(m)->unsaved);
}

static int backup_run(struct job *job, void *state, struct diag *diag)
{
    struct backup *b = state;

    int err = mirror_run(job, &b->mirror, diag);
    int unsaved = atomic_load(&b->unsaved);
    if (err && err != -ECANCELED && unsaved)
        err = diag_errno(diag, -unsaved,
                         "job '%s': the point was given up: what a change was to destroy "
                         "couldn't be saved",
                         b->params.job.id);
    if (!err) { /* the point isn't needed while the job waits for finalization */
        set_seat(b, SEAT_LEAVES);
        end_point(b);
        set_seat(b, SEAT_FOLLOWS);
    }
    return err;
}

static int backup_finish(struct job *job, void *state, bool success, struct diag *diag)
{
    struct backup *b = state;

    if (!success) {
        mirror_interrupt(job, &b->mirror);
        if (b->mirror.copier)
            copier_wait_in_flight(b->mirror.copier);
        backup_note_remainder(b);
    }
    bool followed = b->seat.prepare;
    set_seat(b, SEAT_LEAVES);
    end_point(b);
    /* Closing the target may take long; meanwhile the bitmap can still move along.  A job that
     * never followed has no bitmap, and uses nothing of the disk any more. */
    set_seat(b, followed ? SEAT_FOLLOWS : SEAT_IDLE);
    int err = mirror_finish(job, &b->mirror, success, diag);
    if (followed)
        set_seat(b, SEAT_LEAVES);
    backup_settle_bitmap(b, success && !err);
    if (followed)
        set_seat(b, SEAT_IDLE);
    node_close(b->own_store);
    b->own_store = NULL;
    if (b->seat.state != SEAT_NONE)
        b->params.pivot.leave_seat(b->params.pivot.opaque, &b->seat);
    return err;
}

static void backup_free(void *state)
{
    struct backup *b = state;
    struct frozen_point *point = b->point;

    end_point(b);
    backup_drop_bitmap(b);
    node_close(b->own_store);
    node_close(b->params.target);
    pthread_cond_destroy(&b->changed);
    lock_destroy(&b->lock);
    free((char *)(uintptr_t)b->params.bitmap);
    free((char *)(uintptr_t)b->params.job.id);
    mirror_free(&b->mirror); /* also frees b */
    frozen_put(point);
}

/* ---- starting ---- */

static const struct job_ops backup_job_ops = {
    .type = "backup",
    .open = backup_open,
    .run = backup_run,
    .wait_in_flight = mirror_wait_in_flight,
    .interrupt = mirror_interrupt,
    .finish = backup_finish,
    .free = backup_free,
};

/* Parameters of the copy engine, for a source that doesn't change.  `sync` determines what is
 * marked at first; for bitmaps backup_read_bitmap does that. */
static struct mirror_params engine_params(const struct backup_params *p)
{
    uint64_t chunk = p->max_chunk ? MIN(p->max_chunk, DEFAULT_CHUNK) : DEFAULT_CHUNK;
    uint64_t workers =
        p->max_workers ? MIN(p->max_workers, DEFAULT_WORKERS) : DEFAULT_WORKERS;

    return (struct mirror_params){
        .job = p->job,
        .opener = p->opener,
        .sync = p->sync == BACKUP_FULL  ? MIRROR_FULL
                : p->sync == BACKUP_TOP ? MIRROR_TOP
                                        : MIRROR_NONE,
        .on_source_error = p->on_source_error,
        .on_target_error = p->on_target_error,
        .buf_size = MAX(chunk, FROZEN_GRANULE) * workers,
        .unmap = true,
        .pivot = {.begin_drain = mirror_drain_nobody, .end_drain = mirror_drain_nobody},
    };
}

static struct backup *new_backup(const struct backup_params *params)
{
    struct backup *b = calloc(1, sizeof *b);
    char *id = strdup(params->job.id);
    char *bitmap = params->bitmap ? strdup(params->bitmap) : NULL;

    if (!b || !id || !bitmap != !params->bitmap) {
        free(b);
        free(id);
        free(bitmap);
        return NULL;
    }
    b->params = *params;
    b->params.job.id = id;
    b->params.bitmap = bitmap;
    lock_init(&b->lock, RANK_LEAF);
    pthread_cond_init(&b->changed, NULL);
    b->mirror.finite = params->sync != BACKUP_NONE;
    b->mirror.endless = params->sync == BACKUP_NONE;
    b->mirror.forget = forget_range;
    b->mirror.check = check_point;
    return b;
}

/* out not NULL: the job is held. */
static int launch_backup(struct job_manager *manager, const struct backup_params *params,
                         struct backup **out, struct diag *diag)
{
    struct mirror_params engine = engine_params(params);
    struct backup *b = new_backup(params);

    if (!b) {
        node_close(params->target);
        if (params->opener.free)
            params->opener.free(params->opener.opaque);
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    }
    b->held = out != NULL;
    if (out)
        *out = b;
    return mirror_launch(manager, &b->mirror, &engine, &backup_job_ops, diag);
}

int backup_start(struct job_manager *manager, const struct backup_params *params,
                 struct diag *diag)
{
    return launch_backup(manager, params, NULL, diag);
}

/* ---- several backups at one point ---- */

int backup_start_held(struct job_manager *manager, const struct backup_params *params,
                      struct backup **out, struct diag *diag)
{
    return launch_backup(manager, params, out, diag);
}

int backup_wait_until_open(struct backup *b, struct diag *diag)
{
    LOCK_GUARD(&b->lock);
    while (!b->opened)
        lock_wait(&b->lock, &b->changed);
    if (b->open_err)
        *diag = b->open_diag;
    return b->open_err;
}

struct node *backup_target(const struct backup *b)
{
    return b->mirror.target;
}

void backup_decide(struct backup *b, bool go)
{
    LOCK_GUARD(&b->lock);
    b->goes = go;
    b->decided = true;
    pthread_cond_broadcast(&b->changed);
}
