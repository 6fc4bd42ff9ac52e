/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening what a disk is mirrored to. */
#include "control_target.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "node_table.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

static int open_nbd(const struct target_request *request, struct node **out,
                    struct diag *diag)
{
    struct chain_options options = {.format = request->format};

    return node_open_remote_target(request->source->ctx, request->target, request->give_up,
                                   &options, out, diag);
}

static int make_file(const struct target_request *request, struct diag *diag)
{
    const struct driver *driver = driver_find(request->format);
    const struct node *below = request->with_backing ? request->source->backing : NULL;
    const struct create_request create = {
        .filename = request->target,
        .protocol = storage_protocol_of(request->target),
        .size = request->source->size,
        .exact_size = true,
        .backing_file = below ? below->filename : NULL,
        .backing_format = below ? node_format(below) : NULL,
    };

    if (!driver)
        return diag_set(diag, ENOTSUP, "%s: unknown format '%s'", request->target,
                        request->format);
    if (below && !driver_can(driver, DRIVER_BACKING))
        return diag_set(diag, EINVAL, "%s: %s images have no backing file", request->target,
                        driver->name);
    return create_image(driver, &create, diag);
}

/* "json:..." and the like are no names of what could be made. */
static int check_name(const struct target_request *request, struct diag *diag)
{
    const char *target = request->target;

    if (target[strcspn(target, ":/")] != ':' || rbd_name_is_one(target))
        return 0;
    return diag_set(
        diag, ENOTSUP,
        "target: %s: only NBD URIs, RBD names and local files can be targets; a file of "
        "that name would be ./%s",
        target, target);
}

/* As chain_has_file, of what can only be compared once it is open. */
static int check_not_source(const struct target_request *request, struct node **target,
                            struct diag *diag)
{
    for (const struct node *node = request->source; node; node = node->backing)
        if (storage_is_same(node->file, (*target)->file)) {
            node_close(TAKE(target));
            return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored",
                            request->target);
        }
    return 0;
}

/* A file, or an image on Ceph RBD. */
static int open_file(const struct target_request *request, struct node **out,
                     struct diag *diag)
{
    const struct cache_mode *how = request->source->options.cache;
    /* What can't be changed once the file is open is as the source's; the rest is when the
     * target takes its place: a copy needn't be durable chunk by chunk. */
    const struct chain_options options = {
        .format = request->format,
        .protocol = storage_protocol_of(request->target),
        .give_up = request->give_up,
        .node = {.cache = cache_mode_find(how->direct ? "none" : "writeback"),
                 .need_check_delay_ns = request->source->options.need_check_delay_ns},
    };

    int err = check_name(request, diag);
    if (err)
        return err;
    /* Making a file over one of the chain would destroy what is to be copied. */
    if (chain_has_file(request->source, request->target))
        return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored",
                        request->target);
    err = request->existing ? 0 : make_file(request, diag);
    if (!err)
        err = chain_open(request->source->ctx, request->target, &options, out, diag);
    return err ? err : check_not_source(request, out, diag);
}

static int open_added(const struct target_request *request, struct node **out,
                      struct diag *diag)
{
    const char *file = added_node_target(request->added);
    const struct node_opening how = {.ctx = request->source->ctx,
                                     .references = request->references,
                                     .give_up = request->give_up,
                                     .as_target = true};

    if (!nbd_uri_is_one(file) && chain_has_file(request->source, file))
        return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored",
                        file);
    return added_node_open(request->added, &how, out, diag);
}

static int open_by_name(const struct target_request *request, struct node **out,
                        struct diag *diag)
{
    return nbd_uri_is_one(request->target) ? open_nbd(request, out, diag)
                                           : open_file(request, out, diag);
}

static int prepare_target(struct node *node, struct diag *diag)
{
    int err = node_activate(node, diag);
    if (err)
        return err;
    err = chain_start(node);
    return err ? diag_errno(diag, -err, "%s: starting its threads", node->filename) : 0;
}

int control_open_target(const struct target_request *request, struct node **out,
                        struct diag *diag)
{
    struct node *node;

    int err = request->added ? open_added(request, &node, diag)
                             : open_by_name(request, &node, diag);
    if (err)
        return err;
    err = prepare_target(node, diag);
    if (err)
        node_close(node);
    else
        *out = node;
    return err;
}
