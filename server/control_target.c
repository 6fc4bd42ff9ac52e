/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the target of a job. */
#include "control_target.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "block/open_policy.h"
#include "node_table.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

static struct block_context *context_of(const struct target_request *request)
{
    return request->own ? request->own : request->source->ctx;
}

static int open_nbd(const struct target_request *request, struct node **out,
                    struct diag *diag)
{
    struct chain_options options = {.format = request->format};

    return node_open_remote_target(context_of(request), request->target, request->give_up,
                                   &options, out, diag);
}

/* What lies below the disk, and how an image on top of it refers to that.  Zeros if nothing lies
 * below. */
struct below {
    struct reference chain;
    char *file;
    const char *format;
};

static void free_below(struct below *below)
{
    reference_free(&below->chain);
    free(below->file);
}

/* Another job may take images below the disk out of the chain, but not while somebody is inside
 * the gate.  0 or -ENOMEM. */
static int look_below(struct node *source, struct below *out)
{
    gate_ticket ticket = gate_enter(&source->ctx->gate);
    const struct node *below = source->backing;

    int err = chain_describe_below(source, &out->chain);
    out->format = below ? node_format(below) : NULL;
    out->file = below ? strdup(below->filename) : NULL;
    gate_leave(&source->ctx->gate, ticket);
    return err || !below || out->file ? err : -ENOMEM;
}

static bool is_part_of(struct node *source, const char *file)
{
    gate_ticket ticket = gate_enter(&source->ctx->gate);
    bool found = chain_has_file(source, file);

    gate_leave(&source->ctx->gate, ticket);
    return found;
}

static int make_file(const struct target_request *request, const char *format,
                     const struct below *below, struct diag *diag)
{
    const struct driver *driver = driver_find(format);
    const struct create_request create = {
        .filename = request->target,
        .protocol = storage_protocol_of(request->target),
        .size = request->source->size,
        .exact_size = true,
        .backing_file = below->file,
        .backing_format = below->format,
    };

    if (!driver)
        return diag_set(diag, ENOTSUP, "%s: unknown format '%s'", request->shown, format);
    if (below->file && !driver_can(driver, DRIVER_BACKING))
        return diag_set(diag, EINVAL, "%s: %s images have no backing file", request->shown,
                        driver->name);
    return create_image(driver, &create, diag);
}

/* A name like "json:..." can't be a new file's. */
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

static bool has_same_file(struct node *source, const struct node *target)
{
    gate_ticket ticket = gate_enter(&source->ctx->gate);
    bool found = chain_has_store(source, target->file) ||
                 (target->data_file && chain_has_store(source, target->data_file));

    gate_leave(&source->ctx->gate, ticket);
    return found;
}

/* As is_part_of, but for a store whose identity is known only once it is open. */
static int check_not_source(const struct target_request *request, const char *name,
                            struct node **target, struct diag *diag)
{
    if (!has_same_file(request->source, *target))
        return 0;
    node_close(TAKE(target));
    return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored", name);
}

/* Opens (and creates) a file or an image on Ceph RBD. */
static int open_file(const struct target_request *request, struct node **out,
                     struct diag *diag)
{
    const struct cache_mode *how = request->source->options.cache;
    CLEANUP(free_below) struct below below = {0};
    bool with_backing = request->with_backing && !request->existing;
    const char *format = request->format     ? request->format
                         : request->existing ? NULL
                                             : node_format(request->source);
    /* These options can't be changed once the file is open, so they are the source's.  The others
     * are set when the target replaces the source; until then a copy needn't be durable write by
     * write. */
    const struct chain_options options = {
        .format = format,
        .protocol = storage_protocol_of(request->target),
        .give_up = request->give_up,
        .references = request->references,
        .named = with_backing ? &below.chain : NULL,
        .node = {.cache = cache_mode_find(how->direct ? "none" : "writeback"),
                 .need_check_delay_ns = request->source->options.need_check_delay_ns},
    };

    int err = check_name(request, diag);
    if (err)
        return err;
    /* Creating a file with the name of an image of the chain would destroy the source. */
    if (is_part_of(request->source, request->target))
        return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored",
                        request->shown);
    if (with_backing && look_below(request->source, &below))
        return diag_errno(diag, ENOMEM, "%s", request->shown);
    err = request->existing ? 0 : make_file(request, format, &below, diag);
    if (!err)
        err = chain_open(context_of(request), request->target, &options, out, diag);
    return err ? err : check_not_source(request, request->shown, out, diag);
}

static int open_added(const struct target_request *request, struct node **out,
                      struct diag *diag)
{
    const char *file = added_node_target(request->added);
    const struct node_opening how = {.ctx = context_of(request),
                                     .references = request->references,
                                     .give_up = request->give_up,
                                     .disk = request->disk_name ? request->source : NULL,
                                     .disk_name = request->disk_name,
                                     .as_target = true};

    if (!nbd_uri_is_one(file) && is_part_of(request->source, file))
        return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored",
                        file);
    int err = added_node_open(request->added, &how, out, diag);
    return err ? err : check_not_source(request, file, out, diag);
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

static int make_context(struct target_request *request)
{
    const struct block_context *ctx = request->source->ctx;
    const struct block_shared shared = {
        .pool = ctx->pool, .clusters = ctx->clusters, .housekeeper = ctx->housekeeper};
    void *memory;

    if (posix_memalign(&memory, _Alignof(struct block_context),
                       sizeof(struct block_context)) != 0)
        return -ENOMEM;
    request->own = memory;
    block_context_init_shared(request->own, &shared);
    return 0;
}

void control_target_request_free(struct target_request *request)
{
    if (request->own)
        block_context_destroy(request->own);
    free(request->own);
    added_node_put(request->added);
    free(request->target);
    free(request->shown);
    free(request);
}

int control_open_target(struct target_request *request, struct node **out,
                        struct diag *diag)
{
    struct node *node;

    if (request->target)
        request->shown =
            storage_shown_name(storage_protocol_of(request->target), request->target);
    if ((request->target && !request->shown) || (request->apart && make_context(request)))
        return diag_errno(diag, ENOMEM, "target");
    int err = request->added ? open_added(request, &node, diag)
                             : open_by_name(request, &node, diag);
    if (err)
        return err;
    err = prepare_target(node, diag);
    if (err)
        node_close(node);
    else
        *out = node;
    /* The open node has the name from here on, and keeps the added node in use. */
    added_node_put(request->added);
    request->added = NULL;
    return err;
}
