/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens nodes that blockdev-add has added. */
#include "node_table.h"

#include <errno.h>
#include <string.h>

#include "block/frozen_point.h"
#include "storage/nbd.h"

/* A mirror has at most 16 operations in flight; more connections don't make it faster. */
#define NBD_CONNECTIONS 4
/* The client that started the job waits for the first connection. */
#define CONNECT_MS 5000

int node_open_remote_target(struct block_context *ctx, const char *uri,
                            const _Atomic bool *give_up, struct chain_options *options,
                            struct node **out, struct diag *diag)
{
    const struct nbd_open how = {
        .connections = NBD_CONNECTIONS, .connect_ms = CONNECT_MS, .give_up = give_up};

    options->node.lock_off = true;
    int err = chain_open_nbd(ctx, uri, &how, options, out, diag);
    if (err != -ELOOP)
        return err;
    return diag_set(diag, EINVAL,
                    "target: %s: is an export of this server: a disk can't be mirrored to "
                    "itself",
                    uri);
}

static int check_lazy(struct node *node, struct diag *diag)
{
    if (node->options.lazy_refcounts <= 0 || !node_why_not_lazy(node))
        return 0;
    int err = diag_set(diag, ENOTSUP, "%s: lazy-refcounts: %s", node->filename,
                       node_why_not_lazy(node));
    node_close(node);
    return err;
}

static int open_layer(const struct added_node *node, const struct node_opening *how,
                      struct node **out, struct diag *diag)
{
    const struct added_node *file = node->file ? node->file : node;
    const struct storage_protocol *protocol = storage_protocol_called(file->driver);
    bool remote = protocol == &storage_protocol_nbd;
    struct chain_options options = {
        .format = node->file ? node->driver : "raw",
        .protocol = protocol,
        .read_only = node->read_only || file->read_only || !how->as_target,
        .fallback_read_only = node->auto_read_only || file->auto_read_only,
        .no_backing = !node->as_image_says || how->alone,
        .references = how->references,
        .give_up = how->give_up,
        .node = node->options,
    };

    int err = remote && how->as_target
                  ? node_open_remote_target(how->ctx, file->target, how->give_up, &options,
                                            out, diag)
                  : chain_open(how->ctx, file->target, &options, out, diag);
    return err ? err : check_lazy(*out, diag);
}

/* The disk changes while it is served.  Only a backup of it has a frozen point that can be
 * a backing file. */
static int put_on_disk(const struct added_node *node, const struct node_opening *how,
                       struct node *top, struct diag *diag)
{
    if (!how->disk || strcmp(how->disk_name, node->disk) != 0)
        return diag_set(diag, EBUSY,
                        "Node '%s' lies on '%s', which is being served: it can only be the "
                        "target of a backup of that disk",
                        node->name ? node->name->text : "", node->disk);
    struct node *below;
    int err = frozen_backing_open(how->ctx, how->disk, &below, diag);
    if (!err)
        top->backing = below;
    return err;
}

/* Backing files are only read, and others may have them as backing files, too. */
static int open_below(const struct added_node *node, const struct node_opening *how,
                      struct node *top, struct diag *diag)
{
    struct node_opening below = *how;
    struct node *opened;

    if ((!node->below && !node->disk) || how->alone)
        return 0;
    below.as_target = false;
    if (!node_can(top, DRIVER_BACKING))
        return diag_set(diag, EINVAL, "%s: %s images have no backing file", top->filename,
                        node_format(top));
    if (node->disk)
        return put_on_disk(node, how, top, diag);
    int err = added_node_open(node->below, &below, &opened, diag);
    if (!err)
        top->backing = opened;
    return err;
}

int added_node_open(struct added_node *node, const struct node_opening *how,
                    struct node **out, struct diag *diag)
{
    const struct added_node *meant = added_node_meant(node);
    struct node *top;

    int err = how->as_target ? added_node_check_idle(node, diag) : 0;
    if (!err)
        err = open_layer(meant, how, &top, diag);
    if (err)
        return err;
    err = open_below(meant, how, top, diag);
    if (err) {
        node_close(top);
        return err;
    }
    top->name = node_name_get(node->name);
    *out = top;
    return 0;
}
