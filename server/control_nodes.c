/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-add and blockdev-del, and nodes that other commands overwrite.  Threads: the lane's. */
#include "control_nodes.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/image_info.h"
#include "common/image_info_json.h"
#include "control_node_reading.h"
#include "export_table.h"
#include "plugin_config.h"

bool control_name_is_taken(struct control_context *ctx, const char *name)
{
    struct served_export *exp = export_table_find_node(ctx->exports, name);

    export_put(exp);
    return exp;
}

static bool may_be_overwritten(const struct added_node *node, struct control_error *error)
{
    if (node->file || node->filtered)
        control_fail(error, CLASS_GENERIC,
                     "file: a format over a format: it has to be a file or an RBD image");
    else if (node->read_only)
        control_fail(error, CLASS_GENERIC, "Block node is read-only");
    else if (added_node_check_idle(node, &error->diag))
        control_fail_diag(error, CLASS_GENERIC);
    else
        return true;
    return false;
}

struct added_node *control_take_node(struct control_context *ctx, const json_t *reference,
                                     struct control_error *error)
{
    const struct reading how = {ctx, 0, error};
    const char *name = json_string_value(reference);

    if (name && control_name_is_taken(ctx, name)) {
        control_fail(error, CLASS_GENERIC, "Node '%.200s' is busy: node is in use", name);
        return NULL;
    }
    CLEANUP_ADDED_NODE struct added_node *node = node_find_child(&how, reference);
    if (!node || !may_be_overwritten(node, error))
        return NULL;
    added_node_add_parent(node);
    return TAKE(&node);
}

/* Opens the node once, to see that it can be, and to describe its image. */
static int try_node(struct control_context *ctx, struct added_node *node, struct diag *diag)
{
    const struct node_opening how = {.ctx = &ctx->trial,
                                     .references = ctx->config->references,
                                     .give_up = ctx->give_up,
                                     .alone = added_node_meant(node)->disk};
    CLEANUP_IMAGE_INFO struct image_info info = {0};
    struct node *opened;

    int err = added_node_open(node, &how, &opened, diag);
    if (err)
        return err;
    if (image_info_read(opened, IMAGE_INFO_OPENED, &info) == 0)
        node->image = image_info_json(&info);
    node->depth_below = node_depth_below(opened);
    return node_close(opened);
}

static json_t *blockdev_add(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    const struct reading how = {ctx, 0, error};
    CLEANUP_ADDED_NODE struct added_node *node = node_read(&how, args);

    if (!node)
        return NULL;
    if (try_node(ctx, node, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    node_table_add(&ctx->nodes, TAKE(&node));
    return json_object();
}

static json_t *blockdev_del(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    const char *name = arg_text(args, "node-name");

    if (control_name_is_taken(ctx, name))
        return control_fail(error, CLASS_GENERIC, "Node %s is in use", name);
    if (node_table_remove(&ctx->nodes, name, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    return json_object();
}

/* ---- the table ---- */

static const struct control_arg del_args[] = {{"node-name", STRING, true}, {0}};

const struct control_command control_node_commands[] = {
    {"blockdev-add", &control_node_options, NULL, blockdev_add},
    {"blockdev-del", OBJECT(del_args), NULL, blockdev_del},
    {0},
};
