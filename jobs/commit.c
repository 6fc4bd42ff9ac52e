/* The commit job: mirror's engine, from the active layer into a base of its chain.
 *
 * The base is opened a second time, for writing.  The chain goes on reading the first
 * instance: what is committed is found in the layers above, so what the base says there
 * isn't asked for. */
#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "jobs/commit.h"
#include "jobs/mirror_internal.h"

/* The layer of that file name, or the bottom one; NULL: there is none below the active
 * layer. */
static struct node *find_base(struct node *active, const char *name, unsigned *depth)
{
    struct node *layer = active->backing, *found = NULL;

    for (unsigned d = 1; layer; layer = layer->backing, d++)
        if (!name || strcmp(layer->filename, name) == 0) {
            found = layer;
            *depth = d;
        }
    return found;
}

/* The base as a node of its own, writable and large enough. */
static int open_base(struct node *active, struct node *base, struct node **out,
                     struct diag *diag)
{
    struct chain_options options = {
        .format = base->driver->name,
        .node = active->options,
    };

    /* Our own chain's lock on the file keeps other processes out; it would keep us out too.
     */
    options.node.lock_off = true;
    int err = chain_open(active->ctx, base->filename, &options, out, diag);
    if (err)
        return err;
    err = node_activate(*out, diag);
    if (!err && (*out)->size < active->size) {
        if ((*out)->driver->grow)
            err = (*out)->driver->grow(*out, active->size, diag);
        else
            err = diag_set(diag, ENOTSUP, "%s: can't be grown to the %s of its overlay",
                           base->filename, "size");
    }
    if (!err && (*out)->size > active->size)
        err = diag_set(diag, EINVAL, "%s: is larger than the overlay: the disk would grow",
                       base->filename);
    if (err)
        node_close(*out);
    return err;
}

int commit_start(struct job_manager *manager, const struct commit_params *params,
                 struct diag *diag)
{
    struct node *active = params->active, *target;
    unsigned depth = 0;

    if (params->top && strcmp(params->top, active->filename) != 0)
        return diag_set(diag, EINVAL, "top '%s': only the active layer %s can be committed",
                        params->top, active->filename);
    struct node *base = find_base(active, params->base, &depth);
    if (!base)
        return diag_set(diag, EINVAL, "base '%s': is not a backing file of %s",
                        params->base ? params->base : "", active->filename);
    int err = open_base(active, base, &target, diag);
    if (err)
        return err;
    const struct mirror_params mirror = {
        .job = params->job,
        .source = active,
        .target = target,
        .sync = MIRROR_TOP,
        .on_source_error = params->on_error,
        .on_target_error = params->on_error,
        .unmap = true,
        .pivot = params->pivot,
    };
    return mirror_launch(manager, &mirror, &commit_job_ops, depth - 1, diag);
}
