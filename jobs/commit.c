/* SPDX-License-Identifier: BSD-3-Clause */
/* The commit job: mirror's engine copies from a layer of the chain into one below it.
 *
 * The base is opened a second time, for writing.  The chain goes on reading the first instance:
 * committed data is found in the layers above the base, so the base isn't asked for it.  (Where
 * the base has larger clusters it is asked for the data around; the copy doesn't change that.)
 * The first instance holds the lock against other processes all the time: they may not even read
 * the base while it is a mixture of two states.
 *
 *      active commit        intermediate commit
 *
 *      active  = top        active (= overlay, if it lies right above top)
 *        |                    |
 *        v  copied           overlay   names base as its backing file at the end
 *      base                   |
 *                            top
 *                             |  copied
 *                            base
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/open_policy.h"
#include "block/chain.h"
#include "jobs/commit.h"
#include "jobs/layers.h"
#include "jobs/manager.h"
#include "jobs/mirror_internal.h"

/* The layer below top that `name` means; NULL as name: the lowest.  *depth: how deep it lies
 * below top.  NULL: none. */
static struct node *find_base(struct node *top, const char *name, unsigned *depth)
{
    struct node *found = NULL, *above = top;

    for (unsigned d = 1; above->backing; above = above->backing, d++)
        if (!name || layer_is_called(name, above, above->backing)) {
            found = above->backing;
            *depth = d;
        }
    return found;
}

static int find_layers(struct commit_layers *layers, struct node *active, struct node **top,
                       struct diag *diag)
{
    unsigned depth = 0;

    *top =
        layers->top_name ? layer_find(active, layers->top_name, &layers->overlay) : active;
    if (!*top)
        return diag_set(diag, EINVAL, "top '%s': is not part of the chain of %s",
                        layers->top_name, active->filename);
    if (layers->backing_file && !layers->overlay)
        return diag_set(diag, EINVAL,
                        "'backing-file' specified, but 'top' is the active layer");
    if (!(*top)->backing)
        return diag_set(diag, EINVAL,
                        "%s: has no backing file that it could be committed to",
                        (*top)->filename);
    layers->base = find_base(*top, layers->base_name, &depth);
    if (!layers->base)
        return diag_set(diag, EINVAL, "base '%s': is not a backing file of %s",
                        layers->base_name ? layers->base_name : "", (*top)->filename);
    layers->depth = depth - 1;
    return 0;
}

/* ---- what a commit needs besides mirror's part ---- */

/* Prepares the overlay for the change of its backing name: chooses that, locks the overlay for
 * writing, and opens it for that unless it is the active layer. */
static int open_overlay(struct commit_layers *layers, const struct node *active,
                        const struct node *top, struct diag *diag)
{
    struct node *overlay = layers->overlay;
    struct chain_options options = {
        .format = node_format(overlay),
        .protocol = node_protocol(overlay),
        .no_backing = true,
        .keys_of = active,
        .node = active->options,
    };

    layers->new_name = layers->backing_file
                           ? strdup(layers->backing_file)
                           : layer_name_for(layers->overlay, top, layers->base);
    if (!layers->new_name)
        return diag_errno(diag, ENOMEM, "%s", overlay->filename);
    int err = reference_check_recorded(overlay->filename, layers->new_name, diag);
    if (err)
        return err;
    if (overlay != active)
        err = node_end_writing(overlay, diag);
    if (!err)
        err = node_lock_for_writing(overlay, diag);
    if (err)
        return err;
    layers->overlay_locked = true;
    options.node.lock_off |= !node_locks_apart(overlay);
    return overlay == active ? 0
                             : chain_open(active->ctx, node_location(overlay), &options,
                                          &layers->overlay_rw, diag);
}

static int check_sizes(const struct commit_layers *layers, const struct node *top,
                       const struct node *target, struct diag *diag)
{
    if (layers->overlay && layers->overlay->size > top->size && target->size > top->size)
        return diag_set(
            diag, EINVAL,
            "%s: what it has behind the %" PRIu64 " bytes of %s would show in %s",
            target->filename, top->size, top->filename, layers->overlay->filename);
    /* The job grows the base, and doesn't shrink it if it fails later. */
    if (target->size < top->size && target->backing && target->backing->size > target->size)
        return diag_set(diag, EINVAL,
                        "%s: can't be grown: what %s has behind its %" PRIu64
                        " bytes would show",
                        target->filename, target->backing->filename, target->size);
    return 0;
}

/* Opens the base again, above the layers that lie below it in the chain, which needn't be those
 * that its image names. */
static int open_base_again(struct node *base, struct block_context *ctx,
                           struct chain_options *options, struct node **out,
                           struct diag *diag)
{
    CLEANUP_REFERENCE struct reference below = {0};

    int err = chain_describe_below(base, &below);
    if (err)
        return diag_errno(diag, -err, "%s", base->filename);
    options->format = node_format(base);
    options->protocol = node_protocol(base);
    options->named = &below;
    return chain_open(ctx, node_location(base), options, out, diag);
}

/* Opens the base again, writable, and grown to top's size if it is smaller. */
static int open_base(const struct commit_layers *layers, struct node *active,
                     const struct node *top, const _Atomic bool *give_up, struct node **out,
                     struct diag *diag)
{
    struct chain_options options = {
        .give_up = give_up,
        .keys_of = active,
        .node = active->options,
    };

    options.node.lock_off |= !node_locks_apart(layers->base);
    int err = open_base_again(layers->base, active->ctx, &options, out, diag);
    if (err)
        return err;
    (*out)->name = node_name_get(layers->base->name);
    node_note_writer(active, layers->base);
    err = check_sizes(layers, top, *out, diag);
    if (!err)
        err = node_activate(*out, diag);
    if (!err && (*out)->size < top->size)
        err = node_grow(*out, top->size, diag);
    if (err)
        node_close(*out);
    return err;
}

/* Restores the locks, and closes an overlay that was opened for writing; at the end of every
 * job, even one that didn't begin. */
static void release_layers(struct mirror *m)
{
    struct commit_layers *layers = &m->layers;
    const struct mirror_pivot *pivot = &m->params.pivot;

    if (layers->base_locked)
        pivot->downgrade_lock(pivot->opaque, layers->base);
    if (layers->overlay_locked)
        pivot->downgrade_lock(pivot->opaque, layers->overlay);
    layers->base_locked = layers->overlay_locked = false;
    node_close(layers->overlay_rw);
    layers->overlay_rw = NULL;
    free(layers->new_name);
    layers->new_name = NULL;
}

/* ---- the end ---- */

/* Writes the base's name into the overlay, and replaces the layers from top to base in the chain
 * by the base, freshly opened. */
static int replace_committed_layers(struct mirror *m, struct diag *diag)
{
    struct commit_layers *layers = &m->layers;
    struct node *overlay = layers->overlay, *below;
    struct chain_options options = {
        .give_up = &m->give_up,
        .read_only = true,
        .keys_of = overlay,
        .node = overlay->options,
    };

    (void)!node_lock_for_reading(layers->base, diag);
    layers->base_locked = false;
    int err = open_base_again(layers->base, overlay->ctx, &options, &below, diag);
    if (err)
        return err;
    below->name = node_name_get(layers->base->name);
    err = chain_start(below);
    if (err)
        diag_errno(diag, -err, "%s", below->filename);
    else
        err = m->pivot.check_layers(m->pivot.opaque, diag);
    if (!err)
        err = node_set_backing(layers->overlay_rw ? layers->overlay_rw : overlay,
                               layers->new_name, node_format(below), diag);
    if (!err)
        err = m->pivot.replace_backing(m->pivot.opaque, overlay, below, diag);
    if (err)
        node_close(below);
    return err;
}

static int commit_finish(struct job *job, void *state, bool success, struct diag *diag)
{
    struct mirror *m = state;
    int err = mirror_finish(job, state, success, diag);

    if (m->replaced) /* the target is served, and the committed layers are gone */
        m->layers.base_locked = false;
    else if (!err && success && m->layers.overlay)
        err = replace_committed_layers(m, diag);
    release_layers(m);
    mirror_leave_seat(m);
    return err;
}

static void free_names(struct commit_layers *layers)
{
    free(layers->top_name);
    free(layers->base_name);
    free(layers->backing_file);
}

static void commit_free(void *state)
{
    struct mirror *m = state;

    release_layers(m);
    free_names(&m->layers);
    mirror_free(state);
}

/* ---- the start ---- */

/* Both are opened again for writing, which is only done with local files. */
static int check_local(const struct commit_layers *layers, struct diag *diag)
{
    const struct node *written[] = {layers->base, layers->overlay};

    for (size_t i = 0; i < ARRAY_LEN(written); i++)
        if (written[i] && node_is_remote(written[i]))
            return diag_set(diag, ENOTSUP,
                            "%s: is an NBD export: a commit writes to local files only",
                            written[i]->filename);
    return 0;
}

/* Snapshots of these layers would change, as they share the base's data. */
static int check_snapshots(const struct commit_layers *layers, struct node *top,
                           struct diag *diag)
{
    int err = 0;

    for (struct node *layer = top; !err && layer != layers->base; layer = layer->backing)
        err = node_check_no_snapshots(layer, diag);
    return err;
}

/* On failure release_layers undoes what was done. */
static int open_layers(struct mirror *m, struct node *active, struct node **top,
                       struct node **target, struct diag *diag)
{
    struct commit_layers *layers = &m->layers;

    int err = find_layers(layers, active, top, diag);
    if (!err)
        err = check_local(layers, diag);
    if (!err)
        err = check_snapshots(layers, *top, diag);
    if (!err)
        err = node_end_writing(layers->base, diag);
    if (err)
        return err;
    err = node_lock_for_writing(layers->base, diag);
    layers->base_locked = !err;
    if (!err && layers->overlay)
        err = open_overlay(layers, active, *top, diag);
    return err ? err : open_base(layers, active, *top, &m->give_up, target, diag);
}

/* The data of all layers between is written to the base.  Their bitmaps record that at the new
 * node, too, so that they are complete when the base is served. */
static int let_bitmaps_follow(const struct mirror *m, struct node *target,
                              struct diag *diag)
{
    const struct commit_layers *layers = &m->layers;
    struct node *layer = m->params.source;
    int err = 0;

    if (layers->overlay)
        return 0;
    while (!err && layer != layers->base) {
        layer = layer->backing;
        err = node_bitmaps_follow(layer, target);
    }
    return err ? diag_errno(diag, -err, "%s: its bitmaps", layer->filename) : 0;
}

/* On the job's thread, since images of the chain may lie on servers that don't answer. */
static int commit_open(struct job *job, void *state, struct diag *diag)
{
    struct mirror *m = state;
    struct mirror_params *p = &m->params;
    struct node *active = p->pivot.take_seat(p->pivot.opaque, &m->seat);

    (void)job;
    int err = p->pivot.check_changes(p->pivot.opaque, diag);
    if (!err)
        err = p->pivot.check_layers(p->pivot.opaque, diag);
    if (!err)
        err = open_layers(m, active, &p->source, &p->target, diag);
    if (err)
        return err;
    if (m->layers.overlay)
        /* Users can't write to layers below the active one, so there is nothing to drain. */
        p->pivot.begin_drain = p->pivot.end_drain = mirror_drain_nobody;
    err = chain_start(p->target);
    if (err)
        diag_errno(diag, -err, "%s", p->target->filename);
    else
        err = let_bitmaps_follow(m, p->target, diag);
    if (err) {
        node_close(p->target);
        return err;
    }
    err = mirror_prepare(m, diag);
    if (!err)
        mirror_follow(m);
    return err;
}

static const struct job_ops commit_job_ops = {
    .type = "commit",
    .open = commit_open,
    .run = mirror_run,
    .wait_in_flight = mirror_wait_in_flight,
    .interrupt = mirror_interrupt,
    .finish = commit_finish,
    .free = commit_free,
};

int commit_start(struct job_manager *manager, const struct commit_params *params,
                 struct diag *diag)
{
    struct mirror *m = calloc(1, sizeof *m);

    if (!m)
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    if (!layer_keep_name(&m->layers.top_name, params->top) ||
        !layer_keep_name(&m->layers.base_name, params->base) ||
        !layer_keep_name(&m->layers.backing_file, params->backing_file)) {
        free_names(&m->layers);
        free(m);
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    }
    const struct mirror_params mirror = {
        .job = params->job,
        .sync = MIRROR_TOP,
        .on_source_error = params->on_error,
        .on_target_error = params->on_error,
        .unmap = true,
        .pivot = params->pivot,
    };
    return mirror_launch(manager, m, &mirror, &commit_job_ops, diag);
}
