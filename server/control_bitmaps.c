/* SPDX-License-Identifier: BSD-3-Clause */
/* Actions on dirty bitmaps, and a command for each.  They run on the lane, one after the other,
 * so no other command removes a bitmap meanwhile; but a job may start to use one at any time. */
#include "control_bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/dirty_bitmap.h"
#include "common/json_text.h"
#include "control_chain.h"
#include "control_transaction.h"
#include "export_table.h"
#include "layer_removal.h"

/* ---- looking ---- */

static const struct control_arg bitmap_info[] = {
    {"name", STRING, true},        {"count", SIZE, true},
    {"granularity", SIZE, true},   {"recording", BOOL, true},
    {"busy", BOOL, true},          {"persistent", BOOL, true},
    {"inconsistent", BOOL, false}, {0},
};

const struct control_type control_bitmap_info = {.kind = TYPE_OBJECT,
                                                 .members = bitmap_info};

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
    json_object_set_new(object, "persistent",
                        json_boolean(dirty_bitmap_persistent(bitmap)));
    if (dirty_bitmap_inconsistent(bitmap))
        json_object_set_new(object, "inconsistent", json_true());
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

/* Finds a bitmap and holds it until the transaction's end: nobody else can use it.  NULL with
 * the error set. */
static struct dirty_bitmap *hold_bitmap_as(struct transaction_action *action,
                                           struct node *node, const char *name,
                                           int (*acquire)(struct dirty_bitmap *bitmap,
                                                          struct diag *diag),
                                           struct control_error *error)
{
    struct dirty_bitmap *bitmap = node_bitmap_find(node, name);

    if (!bitmap) {
        control_fail(error, CLASS_GENERIC, "Dirty bitmap '%.200s' not found", name);
        return NULL;
    }
    if (transaction_holds(action->transaction, bitmap))
        return bitmap;
    if (acquire(bitmap, &error->diag)) {
        control_fail_diag(error, CLASS_GENERIC);
        return NULL;
    }
    if (transaction_hold(action->transaction, bitmap, release_bitmap, error))
        return bitmap;
    dirty_bitmap_release(bitmap);
    return NULL;
}

static struct dirty_bitmap *hold_bitmap(struct transaction_action *action, const char *name,
                                        struct control_error *error)
{
    return hold_bitmap_as(action, action->node, name, dirty_bitmap_acquire, error);
}

static bool say_failure(struct control_error *error)
{
    control_fail_diag(error, CLASS_GENERIC);
    return false;
}

/* A stored bitmap is marked as in use in the file before it changes.  end_change undoes that. */
static bool begin_change(struct transaction_action *action, struct dirty_bitmap *bitmap,
                         struct control_error *error)
{
    return !node_bitmap_begin_change(action->node, bitmap, &error->diag) ||
           say_failure(error);
}

/* Holds the bitmap that the argument `name` names, begins its change, and puts it into
 * action->state. */
static bool prepare_named(struct transaction_action *action, struct control_error *error)
{
    struct dirty_bitmap *bitmap =
        hold_bitmap(action, arg_text(action->args, "name"), error);

    action->state = bitmap;
    return bitmap && begin_change(action, bitmap, error);
}

static void end_change(struct transaction_action *action)
{
    node_bitmap_end_change(action->node, action->state);
}

/* ---- the image that stores them ---- */

static void look_for_kept(struct dirty_bitmap *bitmap, void *opaque)
{
    *(bool *)opaque |= dirty_bitmap_persistent(bitmap);
}

/* Must the image be made writable first?  So if it has stored bitmaps, or is to get one
 * (persistent), and isn't active. */
static bool is_waiting_for_writer(struct served_export *exp, bool persistent)
{
    EXPORT_USE(use, export_enter(exp));

    node_bitmap_each(use.node, look_for_kept, &persistent);
    return persistent && !use.node->active && node_can(use.node, DRIVER_BITMAPS);
}

static int make_writable(struct served_export *exp, bool persistent, struct diag *diag)
{
    return is_waiting_for_writer(exp, persistent) ? export_open_for_changes(exp, diag) : 0;
}

/* If the image can't be made writable, changing a stored bitmap fails later, with a message. */
static bool open_change(struct transaction_action *action, struct control_error *error)
{
    (void)error;
    struct diag ignored;

    (void)!make_writable(action->exp, false, &ignored);
    return true;
}

/* ---- add ---- */

/* If this fails, a crash leaves the removed bitmap in the image, marked as in use
 * (inconsistent). */
static void forget_in_image(struct node *node)
{
    struct diag diag = {0};

    if (node_bitmaps_keep(node, &diag))
        log_error("%s: a bitmap that was removed is still there, as inconsistent",
                  diag.text);
}

static void look_for_unkept(struct dirty_bitmap *bitmap, void *opaque)
{
    *(bool *)opaque |= !dirty_bitmap_persistent(bitmap);
}

/* After a removal: has the chain still bitmaps that are in memory only? */
static void note_memory(struct served_export *exp)
{
    CHAIN_USE(chain, exp);
    bool any = false;

    for (struct node *node = chain.use.node; node; node = node->backing)
        node_bitmap_each(node, look_for_unkept, &any);
    atomic_store(&exp->has_memory, any);
}

struct addition {
    bool made, persistent;
    struct dirty_bitmap *bitmap; /* held; set from prepare on */
};

static int make_bitmap(struct node *node, const json_t *args, struct diag *diag)
{
    const struct bitmap_params params = {
        .name = arg_text(args, "name"),
        .granularity = arg_size(args, "granularity", 0),
        .persistent = arg_bool(args, "persistent", false),
        .disabled = true,
    };
    struct dirty_bitmap *bitmap;
    struct diag ignored;

    int err = node_bitmap_create(node, &params, &bitmap, diag);
    if (err || !params.persistent)
        return err;
    err = node_bitmaps_keep(node, diag);
    if (err)
        (void)!node_bitmap_remove(node, params.name, &ignored);
    return err;
}

static struct node *node_meant(const struct transaction_action *action,
                               const struct export_use *use)
{
    return action->made ? action->made : use->node;
}

/* The bitmap is created before clients have to wait, disabled; commit enables it.  Space for it
 * in the image is allocated here: between prepare and commit other actions may rely on the
 * image's free space. */
static bool open_add(struct transaction_action *action, struct control_error *error)
{
    struct addition *addition = calloc(1, sizeof *addition);

    action->state = addition;
    if (!addition) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    addition->persistent = arg_bool(action->args, "persistent", false);
    if (addition->persistent && !action->made &&
        make_writable(action->exp, true, &error->diag))
        return say_failure(error);
    EXPORT_ACTION(use, action->exp);
    addition->made = !make_bitmap(node_meant(action, &use), action->args, &error->diag);
    return addition->made || say_failure(error);
}

static bool prepare_add(struct transaction_action *action, struct control_error *error)
{
    struct addition *addition = action->state;

    addition->bitmap = hold_bitmap(action, arg_text(action->args, "name"), error);
    return addition->bitmap;
}

static void commit_add(struct transaction_action *action)
{
    struct addition *addition = action->state;

    dirty_bitmap_enable(addition->bitmap, !arg_bool(action->args, "disabled", false));
    if (!addition->persistent && !action->made)
        atomic_store(&action->exp->has_memory, true);
}

static void finish_add(struct transaction_action *action, bool committed)
{
    struct addition *addition = action->state;
    struct diag ignored;

    if (!committed && addition && addition->made) {
        EXPORT_ACTION(use, action->exp);
        struct node *node = node_meant(action, &use);
        (void)!node_bitmap_remove(node, arg_text(action->args, "name"), &ignored);
        if (addition->persistent)
            forget_in_image(node);
        note_memory(action->exp);
    }
    free(addition);
}

/* ---- remove ---- */

struct removal {
    struct layer_removal *layer; /* NULL: it is a bitmap of the disk's top node */
    struct dirty_bitmap *bitmap; /* held from prepare to commit or abort */
    bool persistent;
};

/* The previous removal from a layer on the same disk. */
static struct layer_removal *find_earlier(const struct transaction_action *action)
{
    while ((action = transaction_previous(action))) {
        const struct removal *earlier = action->state;
        if (earlier->layer)
            return earlier->layer;
    }
    return NULL;
}

static bool open_remove(struct transaction_action *action, struct control_error *error)
{
    const char *node = arg_text(action->args, "node");
    const char *name = arg_text(action->args, "name");
    struct removal *removal = calloc(1, sizeof *removal);

    action->state = removal;
    if (!removal) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    if (!layer_removal_is_one(action->exp, node, name))
        return open_change(action, error);
    return !layer_removal_open(action->exp, node, name, find_earlier(action),
                               action->ctx->give_up, &removal->layer, &error->diag) ||
           say_failure(error);
}

static bool prepare_remove(struct transaction_action *action, struct control_error *error)
{
    struct removal *removal = action->state;

    if (removal->layer)
        return !layer_removal_prepare(removal->layer, &error->diag) || say_failure(error);
    struct dirty_bitmap *bitmap =
        hold_bitmap_as(action, action->node, arg_text(action->args, "name"),
                       dirty_bitmap_acquire_to_remove, error);
    if (!bitmap || !begin_change(action, bitmap, error))
        return false;
    /* The removal holds it from here on; no later action may use it. */
    transaction_forget(action->transaction, bitmap);
    removal->bitmap = bitmap;
    return true;
}

static void abort_remove(struct transaction_action *action)
{
    struct removal *removal = action->state;
    struct control_error ignored;

    if (removal->layer) {
        layer_removal_abort(removal->layer);
        return;
    }
    node_bitmap_end_change(action->node, removal->bitmap);
    if (!transaction_hold(action->transaction, removal->bitmap, release_bitmap, &ignored))
        dirty_bitmap_release(removal->bitmap);
}

static void commit_remove(struct transaction_action *action)
{
    struct removal *removal = action->state;

    if (removal->layer) {
        layer_removal_commit(removal->layer);
        return;
    }
    removal->persistent = dirty_bitmap_persistent(removal->bitmap);
    node_bitmap_end_change(action->node, removal->bitmap);
    node_bitmap_drop(action->node, removal->bitmap);
}

static void finish_remove(struct transaction_action *action, bool committed)
{
    struct removal *removal = action->state;

    if (removal && removal->layer)
        layer_removal_finish(removal->layer);
    if (committed) {
        EXPORT_ACTION(use, action->exp);
        if (removal->persistent && node_can(use.node, DRIVER_BITMAPS) && use.node->active)
            forget_in_image(use.node);
        note_memory(action->exp);
    }
    free(removal);
}

/* ---- clear, enable, disable ---- */

static void commit_clear(struct transaction_action *action)
{
    dirty_bitmap_clear(action->state, 0, dirty_bitmap_size(action->state));
    end_change(action);
}

static void commit_enable(struct transaction_action *action)
{
    dirty_bitmap_enable(action->state, true);
    end_change(action);
}

static void commit_disable(struct transaction_action *action)
{
    dirty_bitmap_enable(action->state, false);
    end_change(action);
}

/* ---- merge ---- */

struct merge {
    struct dirty_bitmap *target;
    size_t n_sources;
    struct dirty_bitmap *source[];
};

/* Bitmaps are merged within one chain: from any layer, or from a node that another action makes
 * for the disk, into one of the active layer or of that node. */
static struct node *find_source_node(struct transaction_action *action,
                                     const char *node_name, struct control_error *error)
{
    struct node *made = action->made;

    if (made && made->name && strcmp(made->name->text, node_name) == 0)
        return made;
    struct node *node = control_find_in_chain(action->exp, action->served, node_name);
    if (node)
        return node;
    CLEANUP_EXPORT struct served_export *other =
        control_find_node(action->ctx, node_name, error);
    if (other)
        control_fail(error, CLASS_GENERIC,
                     "Node '%.200s': its bitmaps can't be merged into one of '%.200s'",
                     node_name, action->exp->node_name);
    return NULL;
}

/* item: an element of `bitmaps`, a name or an object with node and name. */
static struct dirty_bitmap *hold_source(struct transaction_action *action,
                                        const json_t *item, struct control_error *error)
{
    const char *name = json_string_value(item), *node_name = NULL;

    if (json_is_object(item)) {
        name = arg_text(item, "name");
        node_name = arg_text(item, "node");
    }
    struct node *node =
        node_name ? find_source_node(action, node_name, error) : action->node;
    return node ? hold_bitmap_as(action, node, name, dirty_bitmap_acquire, error) : NULL;
}

static bool open_merge(struct transaction_action *action, struct control_error *error)
{
    size_t n = json_array_size(json_object_get(action->args, "bitmaps"));

    (void)open_change(action, error);
    action->state = calloc(1, sizeof(struct merge) + n * sizeof(struct dirty_bitmap *));
    if (!action->state)
        control_fail(error, CLASS_GENERIC, "out of memory");
    return action->state;
}

/* Finds all sources before any is merged. */
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
    return begin_change(action, merge->target, error);
}

static void commit_merge(struct transaction_action *action)
{
    struct merge *merge = action->state;

    for (size_t i = 0; i < merge->n_sources; i++)
        if (merge->source[i] != merge->target)
            dirty_bitmap_merge(merge->target, merge->source[i]);
    node_bitmap_end_change(action->node, merge->target);
}

static void abort_merge(struct transaction_action *action)
{
    struct merge *merge = action->state;

    node_bitmap_end_change(action->node, merge->target);
}

static void finish_merge(struct transaction_action *action, bool committed)
{
    (void)committed;
    free(action->state);
}

/* ---- the table ---- */

static const struct control_arg add_args[] = {
    {"node", STRING, true},      {"name", STRING, true},    {"granularity", SIZE, false},
    {"persistent", BOOL, false}, {"disabled", BOOL, false}, {0},
};

static const struct control_arg name_args[] = {
    {"node", STRING, true},
    {"name", STRING, true},
    {0},
};

/* A name at the same node, or a node and a name. */
static const struct control_type *const bitmap_names[] = {STRING, OBJECT(name_args), NULL};
const struct control_type control_bitmap_source = {.kind = TYPE_ALTERNATE,
                                                   .choices = bitmap_names};

static const struct control_arg merge_args[] = {
    {"node", STRING, true},
    {"target", STRING, true},
    {"bitmaps", LIST_OF(&control_bitmap_source), true},
    {0},
};

const struct transaction_kind bitmap_add_kind = {
    .variant = {"block-dirty-bitmap-add", ACTION(add_args)},
    .export_arg = "node",
    .takes_made = true,
    .open = open_add,
    .prepare = prepare_add,
    .commit = commit_add,
    .finish = finish_add,
};

const struct transaction_kind bitmap_remove_kind = {
    .variant = {"block-dirty-bitmap-remove", ACTION(name_args)},
    .export_arg = "node",
    .takes_layers = true,
    .open = open_remove,
    .prepare = prepare_remove,
    .commit = commit_remove,
    .abort = abort_remove,
    .finish = finish_remove,
};

const struct transaction_kind bitmap_clear_kind = {
    .variant = {"block-dirty-bitmap-clear", ACTION(name_args)},
    .export_arg = "node",
    .open = open_change,
    .prepare = prepare_named,
    .commit = commit_clear,
    .abort = end_change,
};

const struct transaction_kind bitmap_enable_kind = {
    .variant = {"block-dirty-bitmap-enable", ACTION(name_args)},
    .export_arg = "node",
    .open = open_change,
    .prepare = prepare_named,
    .commit = commit_enable,
    .abort = end_change,
};

const struct transaction_kind bitmap_disable_kind = {
    .variant = {"block-dirty-bitmap-disable", ACTION(name_args)},
    .export_arg = "node",
    .open = open_change,
    .prepare = prepare_named,
    .commit = commit_disable,
    .abort = end_change,
};

const struct transaction_kind bitmap_merge_kind = {
    .variant = {"block-dirty-bitmap-merge", ACTION(merge_args)},
    .export_arg = "node",
    .takes_made = true,
    .open = open_merge,
    .prepare = prepare_merge,
    .commit = commit_merge,
    .abort = abort_merge,
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
    {"block-dirty-bitmap-add", OBJECT(add_args), NULL, run_add},
    {"block-dirty-bitmap-remove", OBJECT(name_args), NULL, run_remove},
    {"block-dirty-bitmap-clear", OBJECT(name_args), NULL, run_clear},
    {"block-dirty-bitmap-enable", OBJECT(name_args), NULL, run_enable},
    {"block-dirty-bitmap-disable", OBJECT(name_args), NULL, run_disable},
    {"block-dirty-bitmap-merge", OBJECT(merge_args), NULL, run_merge},
    {0},
};
