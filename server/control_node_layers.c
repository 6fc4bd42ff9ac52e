/* SPDX-License-Identifier: BSD-3-Clause */
/* What lies below an added node.  That can be another added node, and also what is served: the top
 * of a disk, or a layer below it, which is described as it is open now. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "control_chain.h"
#include "control_node_reading.h"
#include "export_table.h"

/* Is it the name of the disk's top node?  (The disk's own name can belong to a lower layer.) */
static bool is_top(struct served_export *exp, const char *name)
{
    CHAIN_USE(chain, exp);
    const struct node *top = chain.use.node;

    return strcmp(control_name_node(exp, top, top).text, name) == 0;
}

/* The node name of the disk whose top node has that name; NULL: none, or, with *failed and the
 * error set, no memory. */
static char *find_disk(const struct reading *how, const char *name, bool *failed)
{
    CLEANUP_EXPORT struct served_export *exp =
        name ? control_look_for_disk(how->ctx, name) : NULL;
    bool found = exp && is_top(exp, name);
    char *copy = found ? strdup(exp->node_name) : NULL;

    *failed = found && !copy;
    if (*failed)
        control_fail(how->error, CLASS_GENERIC, "out of memory");
    return copy;
}

/* A read-only node, as which a layer of a disk is described; held by the caller.  NULL with the
 * error set. */
static struct added_node *new_layer(const struct reading *how, const char *driver)
{
    json_t *args = json_pack("{s:b}", "read-only", 1);
    struct added_node *node = calloc(1, sizeof *node);

    if (node && args) {
        atomic_init(&node->holders, 1);
        node->driver = driver;
        (void)node_read_options(how, args,
                                node); /* can't fail: the cache mode is the default */
    } else {
        control_fail(how->error, CLASS_GENERIC, "out of memory");
        free(TAKE(&node));
    }
    json_decref(args);
    return node;
}

/* Describes the layer's file as the node's child. */
static bool copy_file(const struct reading *how, const struct node *layer,
                      struct added_node *node)
{
    node->file = new_layer(how, node_protocol(layer)->name);
    if (!node->file)
        return false;
    added_node_add_parent(node->file);
    node->file->target = strdup(node_location(layer));
    if (!node->file->target)
        control_fail(how->error, CLASS_GENERIC, "out of memory");
    return node->file->target;
}

static struct added_node *copy_layer(const struct reading *how, const struct node *layer);

/* Describes what lies below the layer in the chain, which may differ from what its image names.
 * If that has a format for which there is no driver here, the image's backing name is followed
 * instead. */
static bool copy_below(const struct reading *how, const struct node *layer,
                       struct added_node *node)
{
    const struct node *below = layer->backing;

    node->as_image_says = below && !node_find_driver(node_format(below));
    if (!below || node->as_image_says)
        return true;
    node->below = copy_layer(how, below);
    if (node->below)
        added_node_add_parent(node->below);
    return node->below;
}

/* Describes the layer as it is opened now; held by the caller.  NULL with the error set. */
static struct added_node *copy_layer(const struct reading *how, const struct node *layer)
{
    CLEANUP_ADDED_NODE struct added_node *node =
        new_layer(how, node_find_driver(node_format(layer))->name);

    return node && copy_file(how, layer, node) && copy_below(how, layer, node) ? TAKE(&node)
                                                                               : NULL;
}

/* A description of the layer of that name below the top of a disk; held by the caller.  NULL: no
 * layer has the name, or, with *failed and the error set, describing it failed. */
static struct added_node *find_layer(const struct reading *how, const char *name,
                                     bool *failed)
{
    struct control_error ignored;
    CLEANUP_EXPORT struct served_export *exp = control_find_layer(how->ctx, name, &ignored);

    if (!exp)
        return NULL;
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node;
    const struct node *layer = control_find_in_chain(exp, top, name);
    if (!layer || layer == top || !node_find_driver(node_format(layer)))
        return NULL;
    struct added_node *node = copy_layer(how, layer);
    *failed = !node;
    return node;
}

/* A backing node by name can also be a layer of a disk that blockdev-add hasn't added: then it is
 * described now. */
static struct added_node *read_layer(const struct reading *how, const json_t *backing)
{
    const char *name = json_string_value(backing);
    struct added_node *known = name ? node_table_find(&how->ctx->nodes, name) : NULL;
    bool failed = false;
    struct added_node *layer = name && !known ? find_layer(how, name, &failed) : NULL;

    added_node_put(known);
    if (!layer)
        return failed ? NULL : node_read_child(how, backing);
    added_node_add_parent(layer);
    return layer;
}

/* The backing node can also be the top of a served disk.  That goes on being changed, so only a
 * backup of the disk can use this node: its frozen point is the backing node. */
bool node_read_backing(const struct reading *how, const json_t *backing,
                       struct added_node *node)
{
    bool failed;

    node->disk = find_disk(how, json_string_value(backing), &failed);
    if (!node->disk && !failed)
        node->below = read_layer(how, backing);
    return node->disk || node->below;
}
