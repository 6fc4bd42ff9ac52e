/* SPDX-License-Identifier: BSD-3-Clause */
/* The stream job looks at every part of the disk once, and writes to the layer what shows from
 * the layers between it and the base (block_populate), while others may write to it.  For
 * readers nothing changes.  So after a crash the chain is right with the old backing name at
 * any time, and with the new one too once everything is copied and durable.
 *
 *      streaming into the active layer     into another layer
 *
 *      active = layer                      overlay   (the active one, or below it)
 *        |  ^                                |
 *       middle  copied                     layer     written to through a second instance
 *        |                                   |  ^
 *      base     stays                      middle  copied
 *                                            |
 *                                          base     stays
 *
 * A layer that isn't active is open read-only, and the chain reads that instance to the end:
 * whether it sees what the second instance has written or not, it reads the same.  At the end
 * the layer is opened a third time, above the base, and replaces it. */
#include "jobs/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/no_space.h"
#include "block/open_policy.h"
#include "block/chain.h"
#include "jobs/copier.h"
#include "jobs/layers.h"
#include "jobs/manager.h"

#define BUF_SIZE (16u << 20)
#define PIECE    (1u << 20)

struct stream {
    struct disk_seat seat;
    struct job *job; /* set by run */
    /* as the user gave them; NULL: not given */
    char *id, *top_name, *base_name, *bottom_name, *backing_file;
    enum job_on_error on_error;
    struct mirror_pivot pivot;

    struct node *layer;   /* the instance that the chain reads */
    struct node *overlay; /* the layer above it; NULL: the layer is the active one */
    struct node *base;    /* NULL: none */
    struct node *writer;  /* the instance that is written to; owned unless it is `layer` */
    bool locked;          /* the layer holds a writer's lock for this job */
    char *new_name;       /* name of the base, to be written; NULL: none */

    struct dirty_bitmap *left; /* what wasn't looked at yet */
    struct copier *copier;
    uint64_t cursor; /* the job's thread: where the search for the next piece continues */
    _Atomic uint64_t seen, sent;
    _Atomic int error; /* the first error that wasn't handled yet; 0 or -errno */
    _Atomic bool give_up;
};

/* ---- which layers ---- */

static int refuse_name(const char *what, const char *name, const struct node *top,
                       struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s '%s': is not in the backing chain of %s", what, name,
                    top->filename);
}

static int find_base(struct stream *s, struct diag *diag)
{
    struct node *above;

    if (s->base_name) {
        s->base =
            s->layer->backing ? layer_find(s->layer->backing, s->base_name, &above) : NULL;
        return s->base ? 0 : refuse_name("base", s->base_name, s->layer, diag);
    }
    if (s->bottom_name) {
        struct node *bottom = layer_find(s->layer, s->bottom_name, &above);
        if (!bottom || bottom == s->layer)
            return refuse_name("bottom", s->bottom_name, s->layer, diag);
        s->base = bottom->backing;
    }
    return 0;
}

static int find_layers(struct stream *s, struct node *active, struct diag *diag)
{
    s->layer = active;
    if (s->top_name)
        s->layer = layer_find(active, s->top_name, &s->overlay);
    if (!s->layer)
        return refuse_name("device", s->top_name, active, diag);
    int err = find_base(s, diag);
    if (err)
        return err;
    if (s->backing_file && !s->base)
        return diag_set(diag, EINVAL,
                        "backing file specified, but streaming the entire chain");
    return 0;
}

static int check_layer(const struct stream *s, struct diag *diag)
{
    struct node *layer = s->layer;

    if (!node_can(layer, DRIVER_BACKING))
        return diag_set(diag, ENOTSUP, "%s: %s images have no backing file",
                        layer->filename, node_format(layer));
    if (s->overlay && node_is_remote(layer))
        return diag_set(diag, ENOTSUP,
                        "%s: is an NBD export: only local files are opened for writing",
                        layer->filename);
    return layer->backing ? node_check_no_snapshots(layer, diag) : 0;
}

/* ---- the start ---- */

static int open_writer(struct stream *s, struct node *active, struct diag *diag)
{
    struct node *layer = s->layer;
    struct chain_options options = {
        .format = node_format(layer),
        .protocol = node_protocol(layer),
        .no_backing = true,
        .give_up = &s->give_up,
        .keys_of = layer,
        .node = layer->options,
    };

    if (!s->overlay) {
        s->writer = layer;
        return s->pivot.make_writable(s->pivot.opaque, diag);
    }
    int err = node_end_writing(layer, diag);
    if (!err)
        err = node_lock_for_writing(layer, diag);
    if (err)
        return err;
    s->locked = true;
    options.node.lock_off |= !node_locks_apart(layer);
    err = chain_open(layer->ctx, node_location(layer), &options, &s->writer, diag);
    if (err)
        return err;
    node_note_writer(active, layer);
    /* The second instance reads through the chain's own layers. */
    s->writer->backing = layer->backing;
    return node_activate(s->writer, diag);
}

static void close_writer(struct stream *s)
{
    struct diag ignored;

    if (s->writer && s->writer != s->layer) {
        s->writer->backing = NULL;
        (void)!node_close(s->writer);
    }
    s->writer = NULL;
    if (s->locked)
        (void)!node_lock_for_reading(s->layer, &ignored);
    s->locked = false;
}

static void populate(void *opaque, struct copy_result *result);
static void note_result(void *opaque, const struct copy_result *result);
static void note_freed(void *opaque);

static int make_copy_state(struct stream *s)
{
    uint64_t granularity =
        MAX(MIN(s->layer->cluster_size, (uint64_t)BITMAP_MAX_GRANULARITY), 64u << 10);
    const struct copier_config config = {
        .source = s->layer,
        .target = s->writer,
        .buf_size = BUF_SIZE,
        .max_range = MAX(PIECE, granularity),
        .copy = populate,
        .done = note_result,
        .freed = note_freed,
        .opaque = s,
    };

    s->left = dirty_bitmap_new(NULL, s->layer->size, granularity);
    s->copier = copier_new(&config);
    if (!s->left || !s->copier)
        return -ENOMEM;
    /* If nothing lies between, there is nothing to look at. */
    if (s->layer->backing != s->base)
        dirty_bitmap_set(s->left, 0, s->layer->size);
    return 0;
}

static int stream_open(struct job *job, void *state, struct diag *diag)
{
    struct stream *s = state;
    struct node *active = s->pivot.take_seat(s->pivot.opaque, &s->seat);

    (void)job;
    int err = s->pivot.check_changes(s->pivot.opaque, diag);
    if (!err)
        err = s->pivot.check_layers(s->pivot.opaque, diag);
    if (!err)
        err = find_layers(s, active, diag);
    if (!err)
        err = check_layer(s, diag);
    if (err)
        return err;
    s->new_name = !s->base          ? NULL
                  : s->backing_file ? strdup(s->backing_file)
                                    : layer_name_for(s->layer, s->layer, s->base);
    if (s->base && !s->new_name)
        return diag_errno(diag, ENOMEM, "job '%s'", s->id);
    err = s->new_name ? reference_check_recorded(s->layer->filename, s->new_name, diag) : 0;
    if (err)
        return err;
    err = open_writer(s, active, diag);
    if (err)
        return err;
    err = make_copy_state(s);
    return err ? diag_errno(diag, -err, "job '%s'", s->id) : 0;
}

/* ---- the work: on the copier's threads ---- */

static void populate(void *opaque, struct copy_result *result)
{
    struct stream *s = opaque;

    result->err =
        block_populate(s->writer, result->off, result->len, s->base, &result->sent);
}

static void note_result(void *opaque, const struct copy_result *result)
{
    struct stream *s = opaque;
    int none = 0;

    if (result->err) {
        dirty_bitmap_set(s->left, result->off, result->len);
        atomic_compare_exchange_strong(&s->error, &none, result->err);
        return;
    }
    atomic_fetch_add(&s->seen, result->len);
    atomic_fetch_add(&s->sent, result->sent);
}

static void note_freed(void *opaque)
{
    struct stream *s = opaque;

    job_kick(s->job);
}

/* ---- the work: on the job's thread ---- */

static int handle_error(struct stream *s)
{
    copier_wait_in_flight(s->copier);
    int err = atomic_exchange(&s->error, 0);
    if (job_is_cancelled(s->job))
        return -ECANCELED;
    /* Only a lack of space certainly comes from the layer's side; other errors may be of either
     * side, and count as reads. */
    if (!job_handle_error(s->job, s->on_error, means_no_space(err), err))
        return err;
    if (s->on_error == JOB_IGNORE)
        job_rest(s->job, JOB_SLICE_NS);
    return 0;
}

/* Gives the next piece to a worker.  False: no piece or no worker is left. */
static bool begin_piece(struct stream *s)
{
    uint64_t off, len;

    if (!dirty_bitmap_next(s->left, s->cursor, &off, &len) &&
        !dirty_bitmap_next(s->left, 0, &off, &len))
        return false;
    len = MIN(len, MAX(job_slice_bytes(s->job), dirty_bitmap_granularity(s->left)));
    struct copy_worker *worker = copier_begin(s->copier, off, &len);
    if (!worker)
        return false;
    dirty_bitmap_clear(s->left, off, len);
    s->cursor = off + len;
    copier_go(worker);
    return true;
}

/* 1: everything is in the layer; 0: not yet; or -errno. */
static int run_one_turn(struct stream *s)
{
    int err = job_checkpoint(s->job, atomic_exchange(&s->sent, 0));
    if (err)
        return err;
    if (atomic_load(&s->error))
        return handle_error(s);
    job_progress(s->job, atomic_load(&s->seen),
                 dirty_bitmap_count(s->left) + copier_in_flight(s->copier));
    if (begin_piece(s))
        return 0;
    if (copier_copying(s->copier) == 0 && dirty_bitmap_count(s->left) == 0)
        return atomic_load(&s->error) ? 0 : 1;
    job_sleep(s->job, JOB_SLICE_NS);
    return 0;
}

static int stream_run(struct job *job, void *state, struct diag *diag)
{
    struct stream *s = state;
    int err = 0;

    s->job = job;
    while (!err)
        err = run_one_turn(s);
    copier_wait_in_flight(s->copier);
    if (err == 1)
        return 0;
    if (err != -ECANCELED)
        diag_errno(diag, -err, "job '%s': streaming into %s", s->id, s->layer->filename);
    return err;
}

static void wait_in_flight(struct job *job, void *state)
{
    struct stream *s = state;

    (void)job;
    copier_wait_in_flight(s->copier);
}

static void interrupt(struct job *job, void *state)
{
    struct stream *s = state;

    (void)job;
    atomic_store(&s->give_up, true);
}

/* ---- the end ---- */

/* Makes the copied data durable, then writes the base's name into the layer. */
static int name_base(struct stream *s, struct diag *diag)
{
    int err = s->pivot.check_layers(s->pivot.opaque, diag);
    if (err)
        return err;
    err = block_flush(s->writer);
    if (err)
        return diag_errno(diag, -err, "job '%s': flushing %s", s->id, s->layer->filename);
    if (!s->new_name && !s->layer->backing_name)
        return 0; /* it has no backing name already */
    return node_set_backing(s->writer, s->new_name, s->base ? node_format(s->base) : NULL,
                            diag);
}

/* Opens the layer again in its present state, above the base. */
static int reopen_layer(struct stream *s, struct node **out, struct diag *diag)
{
    struct node *layer = s->layer;
    const struct chain_options options = {
        .format = node_format(layer),
        .protocol = node_protocol(layer),
        .read_only = true,
        .no_backing = true,
        .give_up = &s->give_up,
        .keys_of = layer,
        .node = layer->options,
    };

    int err = chain_open(layer->ctx, node_location(layer), &options, out, diag);
    if (err)
        return err;
    (*out)->name = node_name_get(layer->name);
    (*out)->backing = s->base;
    return 0;
}

static int replace_layer(struct stream *s, struct diag *diag)
{
    struct node *fresh;

    close_writer(s);
    int err = reopen_layer(s, &fresh, diag);
    if (err)
        return err;
    err = s->pivot.replace_backing(s->pivot.opaque, s->overlay, fresh, diag);
    if (err) {
        fresh->backing = NULL;
        node_close(fresh);
    }
    return err;
}

static int take_effect(struct stream *s, struct diag *diag)
{
    int err = name_base(s, diag);

    if (err || s->layer->backing == s->base)
        return err;
    return s->overlay ? replace_layer(s, diag)
                      : s->pivot.replace_backing(s->pivot.opaque, s->layer, s->base, diag);
}

static int stream_finish(struct job *job, void *state, bool success, struct diag *diag)
{
    struct stream *s = state;
    int err = success ? take_effect(s, diag) : 0;

    (void)job;
    close_writer(s);
    copier_free(s->copier);
    dirty_bitmap_free(s->left);
    s->copier = NULL;
    s->left = NULL;
    if (s->seat.state != SEAT_NONE)
        s->pivot.leave_seat(s->pivot.opaque, &s->seat);
    return err;
}

static void stream_free(void *state)
{
    struct stream *s = state;

    copier_free(s->copier);
    dirty_bitmap_free(s->left);
    free(s->id);
    free(s->top_name);
    free(s->base_name);
    free(s->bottom_name);
    free(s->backing_file);
    free(s->new_name);
    free(s);
}

static const struct job_ops stream_job_ops = {
    .type = "stream",
    .open = stream_open,
    .run = stream_run,
    .wait_in_flight = wait_in_flight,
    .interrupt = interrupt,
    .finish = stream_finish,
    .free = stream_free,
};

int stream_start(struct job_manager *manager, const struct stream_params *params,
                 struct diag *diag)
{
    struct stream *s = calloc(1, sizeof *s);

    if (!s)
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    s->on_error = params->on_error;
    s->pivot = params->pivot;
    if (!layer_keep_name(&s->id, params->job.id) ||
        !layer_keep_name(&s->top_name, params->top) ||
        !layer_keep_name(&s->base_name, params->base) ||
        !layer_keep_name(&s->bottom_name, params->bottom) ||
        !layer_keep_name(&s->backing_file, params->backing_file)) {
        stream_free(s);
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    }
    return job_start(manager, &stream_job_ops, s, &params->job, diag);
}
