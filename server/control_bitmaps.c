/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands for the disks' dirty bitmaps.  They run on the lane, one after the other: nobody
 * else removes a bitmap, but a job may begin to use one at any time. */
#include "control_bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/dirty_bitmap.h"
#include "common/json_text.h"
#include "control_cmds.h"
#include "export_table.h"

/* ---- looking ---- */

static void describe_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    json_t *list = opaque, *object = json_object();

    json_object_set_new(object, "name", json_from_text(dirty_bitmap_name(bitmap)));
    json_object_set_new(object, "count",
                        json_integer((json_int_t)dirty_bitmap_count(bitmap)));
    json_object_set_new(object, "granularity",
                        json_integer((json_int_t)dirty_bitmap_granularity(bitmap)));
    json_object_set_new(object, "recording", json_boolean(dirty_bitmap_enabled(bitmap)));
    json_object_set_new(object, "busy", json_boolean(dirty_bitmap_busy(bitmap)));
    json_object_set_new(object, "persistent", json_false());
    json_array_append_new(list, object);
}

json_t *control_describe_bitmaps(struct node *node)
{
    json_t *list = json_array();

    node_bitmap_each(node, describe_bitmap, list);
    return list;
}

/* ---- what all commands do ---- */

/* A bitmap that nobody uses; NULL with the error said. */
static struct dirty_bitmap *find_idle_bitmap(struct node *node, const char *name,
                                             struct control_error *error)
{
    struct dirty_bitmap *bitmap = node_bitmap_find(node, name);

    if (!bitmap)
        control_fail(error, CLASS_GENERIC, "Dirty bitmap '%.200s' not found", name);
    else if (!dirty_bitmap_busy(bitmap))
        return bitmap;
    else
        control_fail(error, CLASS_GENERIC, "Bitmap '%.200s' is in use by a job", name);
    return NULL;
}

/* The same, which no job can begin to use before it is released. */
static struct dirty_bitmap *acquire_bitmap(struct node *node, const char *name,
                                           struct control_error *error)
{
    struct dirty_bitmap *bitmap = find_idle_bitmap(node, name, error);
    struct diag ignored;

    if (bitmap && dirty_bitmap_acquire(bitmap, &ignored)) {
        control_fail(error, CLASS_GENERIC, "Bitmap '%.200s' is in use by a job", name);
        return NULL;
    }
    return bitmap;
}

static json_t *reply_to_change(int err, struct control_error *error)
{
    return err ? control_fail_diag(error, CLASS_GENERIC) : json_object();
}

/* ---- the commands ---- */

static int add_bitmap(struct node *node, const json_t *args, struct diag *diag)
{
    const char *name = arg_text(args, "name");
    uint64_t granularity =
        arg_size(args, "granularity", dirty_bitmap_default_granularity(node->cluster_size));

    if (!*name)
        return diag_set(diag, EINVAL, "Bitmap name cannot be empty");
    if (!dirty_bitmap_granularity_ok(granularity))
        return diag_set(diag, EINVAL, "Granularity must be a power of two from %u to %u",
                        BITMAP_MIN_GRANULARITY, BITMAP_MAX_GRANULARITY);
    if (arg_bool(args, "persistent", false))
        return diag_set(
            diag, ENOTSUP,
            "persistent: %s: bitmaps are not kept in images yet; without it the "
            "bitmap lives as long as the server",
            node->filename);
    struct dirty_bitmap *bitmap = dirty_bitmap_new(name, node->size, granularity);
    if (!bitmap)
        return diag_errno(diag, ENOMEM, "Bitmap '%.200s'", name);
    dirty_bitmap_enable(bitmap, !arg_bool(args, "disabled", false));
    int err = node_bitmap_add(node, bitmap, diag);
    if (err)
        dirty_bitmap_free(bitmap);
    return err;
}

static json_t *bitmap_add(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_node(ctx, arg_text(args, "node"), error);
    if (!exp)
        return NULL;
    EXPORT_USE(use, export_enter(exp));

    return reply_to_change(add_bitmap(use.node, args, &error->diag), error);
}

static json_t *bitmap_remove(struct control_context *ctx, const json_t *args,
                             struct control_error *error)
{
    const char *name = arg_text(args, "name");
    CLEANUP_EXPORT struct served_export *exp =
        control_find_node(ctx, arg_text(args, "node"), error);
    if (!exp)
        return NULL;
    EXPORT_USE(use, export_enter(exp));

    if (!find_idle_bitmap(use.node, name, error))
        return NULL;
    return reply_to_change(node_bitmap_remove(use.node, name, &error->diag), error);
}

enum bitmap_change { CLEAR, ENABLE, DISABLE };

static json_t *change_bitmap(struct control_context *ctx, const json_t *args,
                             struct control_error *error, enum bitmap_change change)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_node(ctx, arg_text(args, "node"), error);
    if (!exp)
        return NULL;
    EXPORT_USE(use, export_enter(exp));

    struct dirty_bitmap *bitmap = acquire_bitmap(use.node, arg_text(args, "name"), error);
    if (!bitmap)
        return NULL;
    if (change == CLEAR)
        dirty_bitmap_clear(bitmap, 0, dirty_bitmap_size(bitmap));
    else
        dirty_bitmap_enable(bitmap, change == ENABLE);
    dirty_bitmap_release(bitmap);
    return json_object();
}

static json_t *bitmap_clear(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    return change_bitmap(ctx, args, error, CLEAR);
}

static json_t *bitmap_enable(struct control_context *ctx, const json_t *args,
                             struct control_error *error)
{
    return change_bitmap(ctx, args, error, ENABLE);
}

static json_t *bitmap_disable(struct control_context *ctx, const json_t *args,
                              struct control_error *error)
{
    return change_bitmap(ctx, args, error, DISABLE);
}

/* Bitmaps are merged within one node. */
static bool is_node_of(struct control_context *ctx, const struct served_export *exp,
                       const char *node_name, struct control_error *error)
{
    if (strcmp(node_name, exp->node_name) == 0)
        return true;
    CLEANUP_EXPORT struct served_export *other = control_find_node(ctx, node_name, error);
    if (other)
        control_fail(error, CLASS_GENERIC,
                     "Node '%.200s': its bitmaps can't be merged into one of '%.200s'",
                     node_name, exp->node_name);
    return false;
}

/* One of `bitmaps`: a name, or an object with node and name. */
static struct dirty_bitmap *find_source(struct control_context *ctx,
                                        const struct export_use *use, const json_t *item,
                                        struct control_error *error)
{
    const char *name = json_string_value(item), *node_name = use->exp->node_name;

    if (json_object_size(item) == 2) {
        name = arg_text(item, "name");
        node_name = arg_text(item, "node");
    }
    if (!name || !node_name) {
        control_fail(error, CLASS_GENERIC,
                     "Invalid parameter 'bitmaps', expected: names, or objects with 'node' "
                     "and 'name'");
        return NULL;
    }
    return is_node_of(ctx, use->exp, node_name, error)
               ? find_idle_bitmap(use->node, name, error)
               : NULL;
}

/* All of `items`, before any is merged: an array to be freed; NULL with the error said. */
static struct dirty_bitmap **find_sources(struct control_context *ctx,
                                          const struct export_use *use, const json_t *items,
                                          struct control_error *error)
{
    size_t n = json_array_size(items);
    CLEANUP_FREE struct dirty_bitmap **sources = calloc(n + 1, sizeof(void *));

    if (!sources) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        sources[i] = find_source(ctx, use, json_array_get(items, i), error);
        if (!sources[i])
            return NULL;
    }
    return TAKE(&sources);
}

static json_t *bitmap_merge(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    const char *name = arg_text(args, "target");
    CLEANUP_EXPORT struct served_export *exp =
        control_find_node(ctx, arg_text(args, "node"), error);
    if (!exp)
        return NULL;
    EXPORT_USE(use, export_enter(exp));

    struct dirty_bitmap *target = find_idle_bitmap(use.node, name, error);
    if (!target)
        return NULL;
    CLEANUP_FREE struct dirty_bitmap **sources =
        find_sources(ctx, &use, json_object_get(args, "bitmaps"), error);
    if (!sources || !acquire_bitmap(use.node, name, error))
        return NULL;
    for (size_t i = 0; sources[i]; i++)
        if (sources[i] != target)
            dirty_bitmap_merge(target, sources[i]);
    dirty_bitmap_release(target);
    return json_object();
}

/* ---- the table ---- */

static const struct control_arg add_args[] = {
    {"node", ARG_STRING, true, NULL},       {"name", ARG_STRING, true, NULL},
    {"granularity", ARG_SIZE, false, NULL}, {"persistent", ARG_BOOL, false, NULL},
    {"disabled", ARG_BOOL, false, NULL},    {0},
};

static const struct control_arg name_args[] = {
    {"node", ARG_STRING, true, NULL},
    {"name", ARG_STRING, true, NULL},
    {0},
};

static const struct control_arg merge_args[] = {
    {"node", ARG_STRING, true, NULL},
    {"target", ARG_STRING, true, NULL},
    {"bitmaps", ARG_LIST, true, NULL},
    {0},
};

const struct control_command control_bitmap_commands[] = {
    {"block-dirty-bitmap-add", add_args, bitmap_add},
    {"block-dirty-bitmap-remove", name_args, bitmap_remove},
    {"block-dirty-bitmap-clear", name_args, bitmap_clear},
    {"block-dirty-bitmap-enable", name_args, bitmap_enable},
    {"block-dirty-bitmap-disable", name_args, bitmap_disable},
    {"block-dirty-bitmap-merge", merge_args, bitmap_merge},
    {0},
};
