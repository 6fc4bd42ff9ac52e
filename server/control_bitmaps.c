/* SPDX-License-Identifier: BSD-3-Clause */
/* Actions on the disks' dirty bitmaps, and a command for each.  They run on the lane, one after
 * the other: nobody else removes a bitmap, but a job may begin to use one at any time. */
#include "control_bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/dirty_bitmap.h"
#include "common/json_text.h"
#include "control_transaction.h"
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

/* ---- what all actions do ---- */

static void release_bitmap(void *bitmap)
{
    dirty_bitmap_release(bitmap);
}

/* The bitmap, which nobody but this transaction uses until its end; NULL with the error said.
 */
static struct dirty_bitmap *hold_bitmap(struct transaction_action *action, const char *name,
                                        struct control_error *error)
{
    struct dirty_bitmap *bitmap = node_bitmap_find(action->node, name);
    struct diag ignored;

    if (!bitmap) {
        control_fail(error, CLASS_GENERIC, "Dirty bitmap '%.200s' not found", name);
        return NULL;
    }
    if (transaction_holds(action->transaction, bitmap))
        return bitmap;
    if (dirty_bitmap_acquire(bitmap, &ignored)) {
        control_fail(error, CLASS_GENERIC, "Bitmap '%.200s' is in use by a job", name);
        return NULL;
    }
    if (transaction_hold(action->transaction, bitmap, release_bitmap, error))
        return bitmap;
    dirty_bitmap_release(bitmap);
    return NULL;
}

/* action->state: the bitmap that `name` names. */
static bool prepare_named(struct transaction_action *action, struct control_error *error)
{
    action->state = hold_bitmap(action, arg_text(action->args, "name"), error);
    return action->state;
}

/* ---- add ---- */

static int add_bitmap(struct node *node, const json_t *args, struct dirty_bitmap **added,
                      struct diag *diag)
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
    else
        *added = bitmap;
    return err;
}

/* It is there at once, for later actions of the transaction. */
static bool prepare_add(struct transaction_action *action, struct control_error *error)
{
    struct dirty_bitmap *bitmap = NULL;

    if (add_bitmap(action->node, action->args, &bitmap, &error->diag)) {
        control_fail_diag(error, CLASS_GENERIC);
        return false;
    }
    /* No job knows of it. */
    action->state = hold_bitmap(action, dirty_bitmap_name(bitmap), error);
    return action->state;
}

static void drop_held(struct transaction_action *action)
{
    transaction_forget(action->transaction, action->state);
    node_bitmap_drop(action->node, action->state);
}

/* ---- clear, enable, disable ---- */

static void commit_clear(struct transaction_action *action)
{
    dirty_bitmap_clear(action->state, 0, dirty_bitmap_size(action->state));
}

static void commit_enable(struct transaction_action *action)
{
    dirty_bitmap_enable(action->state, true);
}

static void commit_disable(struct transaction_action *action)
{
    dirty_bitmap_enable(action->state, false);
}

/* ---- merge ---- */

struct merge {
    struct dirty_bitmap *target;
    size_t n_sources;
    struct dirty_bitmap *source[];
};

/* Bitmaps are merged within one node. */
static bool is_node_of(struct transaction_action *action, const char *node_name,
                       struct control_error *error)
{
    if (strcmp(node_name, action->exp->node_name) == 0)
        return true;
    CLEANUP_EXPORT struct served_export *other =
        control_find_node(action->ctx, node_name, error);
    if (other)
        control_fail(error, CLASS_GENERIC,
                     "Node '%.200s': its bitmaps can't be merged into one of '%.200s'",
                     node_name, action->exp->node_name);
    return false;
}

/* One of `bitmaps`: a name, or an object with node and name. */
static struct dirty_bitmap *hold_source(struct transaction_action *action,
                                        const json_t *item, struct control_error *error)
{
    const char *name = json_string_value(item), *node_name = action->exp->node_name;

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
    return is_node_of(action, node_name, error) ? hold_bitmap(action, name, error) : NULL;
}

static bool open_merge(struct transaction_action *action, struct control_error *error)
{
    size_t n = json_array_size(json_object_get(action->args, "bitmaps"));

    action->state = calloc(1, sizeof(struct merge) + n * sizeof(struct dirty_bitmap *));
    if (!action->state)
        control_fail(error, CLASS_GENERIC, "out of memory");
    return action->state;
}

/* All are found before any is merged. */
static bool prepare_merge(struct transaction_action *action, struct control_error *error)
{
    const json_t *items = json_object_get(action->args, "bitmaps");
    struct merge *merge = action->state;

    merge->target = hold_bitmap(action, arg_text(action->args, "target"), error);
    if (!merge->target)
        return false;
    for (size_t i = 0; i < json_array_size(items); i++) {
        merge->source[i] = hold_source(action, json_array_get(items, i), error);
        if (!merge->source[i])
            return false;
        merge->n_sources++;
    }
    return true;
}

static void commit_merge(struct transaction_action *action)
{
    struct merge *merge = action->state;

    for (size_t i = 0; i < merge->n_sources; i++)
        if (merge->source[i] != merge->target)
            dirty_bitmap_merge(merge->target, merge->source[i]);
}

static void finish_merge(struct transaction_action *action, bool committed)
{
    (void)committed;
    free(action->state);
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

const struct transaction_kind bitmap_add_kind = {
    .name = "block-dirty-bitmap-add",
    .args = add_args,
    .export_arg = "node",
    .prepare = prepare_add,
    .abort = drop_held,
};

const struct transaction_kind bitmap_remove_kind = {
    .name = "block-dirty-bitmap-remove",
    .args = name_args,
    .export_arg = "node",
    .prepare = prepare_named,
    .commit = drop_held,
};

const struct transaction_kind bitmap_clear_kind = {
    .name = "block-dirty-bitmap-clear",
    .args = name_args,
    .export_arg = "node",
    .prepare = prepare_named,
    .commit = commit_clear,
};

const struct transaction_kind bitmap_enable_kind = {
    .name = "block-dirty-bitmap-enable",
    .args = name_args,
    .export_arg = "node",
    .prepare = prepare_named,
    .commit = commit_enable,
};

const struct transaction_kind bitmap_disable_kind = {
    .name = "block-dirty-bitmap-disable",
    .args = name_args,
    .export_arg = "node",
    .prepare = prepare_named,
    .commit = commit_disable,
};

const struct transaction_kind bitmap_merge_kind = {
    .name = "block-dirty-bitmap-merge",
    .args = merge_args,
    .export_arg = "node",
    .open = open_merge,
    .prepare = prepare_merge,
    .commit = commit_merge,
    .finish = finish_merge,
};

#define RUN_AS_COMMAND(verb)                                                   \
    static json_t *run_##verb(struct control_context *ctx, const json_t *args, \
                              struct control_error *error)                     \
    {                                                                          \
        return control_run_action(ctx, &bitmap_##verb##_kind, args, error);    \
    }

RUN_AS_COMMAND(add)
RUN_AS_COMMAND(remove)
RUN_AS_COMMAND(clear)
RUN_AS_COMMAND(enable)
RUN_AS_COMMAND(disable)
RUN_AS_COMMAND(merge)

const struct control_command control_bitmap_commands[] = {
    {"block-dirty-bitmap-add", add_args, run_add},
    {"block-dirty-bitmap-remove", name_args, run_remove},
    {"block-dirty-bitmap-clear", name_args, run_clear},
    {"block-dirty-bitmap-enable", name_args, run_enable},
    {"block-dirty-bitmap-disable", name_args, run_disable},
    {"block-dirty-bitmap-merge", merge_args, run_merge},
    {0},
};
