/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports that commands add and remove: added nodes, and the points of backups, which are served
 * as named views.  The commands that change them run on the lane, one after the other. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/cache_mode.h"
#include "block/frozen_point.h"
#include "common/json_text.h"
#include "control_bitmaps.h"
#include "control_chain.h"
#include "control_cmds.h"
#include "control_exports.h"
#include "export_table.h"
#include "named_view.h"

/* Bytes; NBD's limit. */
#define MAX_NAME 4096

/* ---- block-export-add ---- */

struct opening {
    struct control_context *ctx;
    struct added_node *node;
    bool writable, write_through;
};

/* Where flushes do nothing, that stays. */
static int write_through(struct node *node, struct diag *diag)
{
    const struct cache_mode *now = node->options.cache;
    const struct cache_mode *mode = cache_mode_of(now->direct, now->no_flush, true);

    return mode ? node_set_cache(node, mode, diag) : 0;
}

static int open_added(void *opaque, struct block_context *block, struct node **out,
                      struct diag *diag)
{
    const struct opening *opening = opaque;
    const struct node_opening how = {
        .ctx = block,
        .references = opening->ctx->config->references,
        .give_up = opening->ctx->give_up,
        .as_target = opening->writable,
    };

    /* A node that is open belongs to the chain or job that opened it, and isn't opened again. */
    if (added_node_is_used(opening->node))
        return diag_set(diag, EBUSY, "Node '%s' is in use", opening->node->name->text);
    int err = added_node_open(opening->node, &how, out, diag);
    if (err || !opening->write_through)
        return err;
    err = write_through(*out, diag);
    if (err)
        (void)!node_close(TAKE(out));
    return err;
}

static char *copy_text(const char *text)
{
    return text ? strdup(text) : NULL;
}

/* An export that isn't open yet; NULL when memory is short. */
static struct served_export *new_export(const json_t *args)
{
    const char *node_name = arg_text(args, "node-name"), *name = arg_text(args, "name");
    const char *description = arg_text(args, "description");
    struct served_export *exp = export_new(name ? name : node_name, node_name);

    if (!exp)
        return NULL;
    exp->id = copy_text(arg_text(args, "id"));
    exp->description = copy_text(description);
    exp->never_writable = !arg_bool(args, "writable", false);
    exp->read_only_told = exp->never_writable; /* nobody expects it to be writable */
    if (exp->id && (exp->description || !description))
        return exp;
    export_free(exp);
    return NULL;
}

/* item: an element of `bitmaps`, a name or an object whose node can only be this one. */
static const char *bitmap_name(const json_t *item)
{
    return json_is_object(item) ? arg_text(item, "name") : json_string_value(item);
}

/* All bitmaps of the node are served in any case; those that are named must exist. */
static int check_bitmaps(struct served_export *exp, const json_t *args, struct diag *diag)
{
    const json_t *bitmaps = json_object_get(args, "bitmaps");
    EXPORT_USE(use, export_enter(exp));

    for (size_t i = 0; i < json_array_size(bitmaps); i++) {
        const char *name = bitmap_name(json_array_get(bitmaps, i));
        if (!node_bitmap_find(use.node, name))
            return diag_set(diag, ENOENT, "Bitmap '%.200s' is not found", name);
    }
    return 0;
}

static int open_and_add(struct control_context *ctx, struct served_export *exp,
                        struct added_node *node, const json_t *args, struct diag *diag)
{
    struct opening opening = {.ctx = ctx,
                              .node = node,
                              .writable = !exp->never_writable,
                              .write_through = arg_bool(args, "writethrough", false)};
    const struct export_request request = {
        .open = open_added, .opaque = &opening, .config = ctx->config};

    int err = export_open(exp, &request, ctx->shared, diag);
    if (!err)
        err = check_bitmaps(exp, args, diag);
    if (err)
        return err;
    err = export_start(exp);
    if (err)
        diag_errno(diag, -err, "%s: starting its threads", export_id(exp));
    return err ? err : export_table_add(ctx->exports, exp, diag);
}

/* The caller becomes a user; NULL: none. */
static struct served_export *find_by_id(struct control_context *ctx, const char *id)
{
    EXPORT_TABLE_EACH (exp, ctx->exports)
        if (strcmp(export_id(exp), id) == 0)
            return exp;
    return NULL;
}

static bool check_id(struct control_context *ctx, const char *id,
                     struct control_error *error)
{
    if (!node_name_is_well_formed(id)) {
        control_fail(error, CLASS_GENERIC, "Invalid block export id");
        return false;
    }
    CLEANUP_EXPORT struct served_export *other = find_by_id(ctx, id);
    CLEANUP_NAMED_VIEW struct named_view *named = named_view_find_id(ctx->exports, id);
    if (other || named)
        control_fail(error, CLASS_GENERIC, "Block export id '%s' is already in use", id);
    return !other && !named;
}

static struct added_node *find_unexported(struct control_context *ctx, const char *name,
                                          struct control_error *error)
{
    struct added_node *node = node_table_find(&ctx->nodes, name);
    struct control_error ignored;

    if (node)
        return node;
    CLEANUP_EXPORT struct served_export *exp = control_find_node(ctx, name, &ignored);
    if (exp)
        control_fail(error, CLASS_GENERIC, "Node '%.200s' is exported already, as '%.200s'",
                     name, exp->name);
    else
        control_fail(error, CLASS_GENERIC, "Cannot find device='' nor node-name='%.200s'",
                     name);
    return NULL;
}

static bool judge_add(struct control_context *ctx, const json_t *args,
                      struct control_error *error)
{
    const char *name = arg_text(args, "name");

    if (!check_id(ctx, arg_text(args, "id"), error))
        return false;
    if (name && strlen(name) > MAX_NAME)
        control_fail(error, CLASS_GENERIC, "export name '%.50s...' too long", name);
    else if (arg_bool(args, "allocation-depth", false))
        control_fail(
            error, CLASS_GENERIC,
            "allocation-depth: clients can't be told how deep what they read lies");
    else
        return true;
    return false;
}

/* ---- the point of a backup job ---- */

/* A backup job whose target has a given name. */
struct served_point {
    struct served_export *exp; /* the caller is a user; NULL: none */
    char *job;                 /* owned */
};

static struct served_point find_point(struct control_context *ctx, const char *node_name)
{
    EXPORT_TABLE_EACH (exp, ctx->exports) {
        EXPORT_USE(use, export_enter(exp));
        char *job = frozen_find_by_store(use.node, node_name);
        if (job)
            return (struct served_point){exp, job};
    }
    return (struct served_point){0};
}

static void served_point_end(struct served_point *found)
{
    export_put(found->exp);
    free(found->job);
}

/* Has the target a bitmap of that name that can be served?  False with diag. */
static bool has_bitmap(struct frozen_point *point, const char *name, struct diag *diag)
{
    struct dirty_bitmap *copy = frozen_copy_bitmap(point, name, diag);

    dirty_bitmap_free(copy);
    return copy;
}

/* The names in `items`, after checking that the target has these bitmaps.  NULL with diag. */
static json_t *list_bitmaps(const struct served_point *found, const json_t *items,
                            struct diag *diag)
{
    EXPORT_USE(use, export_enter(found->exp));
    struct frozen_point *point = frozen_find(use.node, found->job);
    json_t *names = json_array();
    bool all = point;

    if (!point)
        diag_set(diag, ENOENT, "backup '%.200s': has ended just now", found->job);
    for (size_t i = 0; all && i < json_array_size(items); i++) {
        const char *name = bitmap_name(json_array_get(items, i));
        all = has_bitmap(point, name, diag);
        json_array_append_new(names, json_string(name));
    }
    frozen_put(point);
    if (all)
        return names;
    json_decref(names);
    return NULL;
}

static int add_view(struct control_context *ctx, const struct served_point *found,
                    const json_t *args, struct diag *diag)
{
    const char *node_name = arg_text(args, "node-name"), *name = arg_text(args, "name");
    CLEANUP_FREE char *view_name = NULL;

    if (arg_bool(args, "writable", false))
        return diag_set(
            diag, EINVAL,
            "Node '%.200s' has what a running backup saves: it can only be read",
            node_name);
    json_t *bitmaps = list_bitmaps(found, json_object_get(args, "bitmaps"), diag);
    if (!bitmaps)
        return -diag->err;
    int err = asprintf(&view_name, "backup/%s", found->job) < 0 ? -ENOMEM : 0;
    const struct named_view_params params = {
        .id = arg_text(args, "id"),
        .name = name ? name : node_name,
        .node_name = node_name,
        .description = arg_text(args, "description"),
        .exp_name = found->exp->name,
        .view_name = view_name,
        .bitmaps = bitmaps,
    };
    if (err)
        view_name = NULL;
    err = err ? diag_errno(diag, -err, "export")
              : named_view_add(ctx->exports, &params, diag);
    json_decref(bitmaps);
    return err;
}

/* ---- the command ---- */

static json_t *add_node(struct control_context *ctx, const json_t *args,
                        struct control_error *error)
{
    CLEANUP_ADDED_NODE struct added_node *node =
        find_unexported(ctx, arg_text(args, "node-name"), error);
    if (!node)
        return NULL;
    struct served_export *exp = new_export(args);
    if (!exp)
        return control_fail(error, CLASS_GENERIC, "out of memory");
    if (open_and_add(ctx, exp, node, args, &error->diag) == 0)
        return json_object();
    (void)!export_close(exp);
    export_free(exp);
    return control_fail_diag(error, CLASS_GENERIC);
}

json_t *control_add_export(struct control_context *ctx, const json_t *args,
                           struct control_error *error)
{
    if (!judge_add(ctx, args, error))
        return NULL;
    struct served_point found CLEANUP(served_point_end) =
        find_point(ctx, arg_text(args, "node-name"));
    if (!found.exp)
        return add_node(ctx, args, error);
    if (add_view(ctx, &found, args, &error->diag) == 0)
        return json_object();
    return control_fail_diag(error, CLASS_GENERIC);
}

/* ---- block-export-del ---- */

const char *const control_export_del_modes[] = {"safe", "hard", NULL};

json_t *control_del_export(struct control_context *ctx, const char *id, bool hard,
                           struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp = find_by_id(ctx, id);
    CLEANUP_NAMED_VIEW struct named_view *named = named_view_find_id(ctx->exports, id);

    if (!exp && !named)
        return control_fail(error, CLASS_GENERIC, "Export '%.200s' is not found", id);
    int err = named ? named_view_withdraw(named, hard, &error->diag)
                    : export_table_withdraw(exp, hard, &error->diag);
    return err ? control_fail_diag(error, CLASS_GENERIC) : json_object();
}

static json_t *del_export(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    bool hard = arg_word(args, "mode", control_export_del_modes, 0) == 1;

    return control_del_export(ctx, arg_text(args, "id"), hard, error);
}

/* ---- query-block-exports ---- */

static json_t *describe_export(struct served_export *exp)
{
    json_t *object = json_object();
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node;

    json_object_set_new(object, "node-name",
                        json_from_text(control_name_node(exp, top, top).text));
    json_object_set_new(object, "shutting-down", json_false());
    json_object_set_new(object, "type", json_string("nbd"));
    json_object_set_new(object, "id", json_from_text(export_id(exp)));
    json_object_set_new(object, "name", json_from_text(exp->name));
    return object;
}

static json_t *describe_view(const struct named_view *named)
{
    json_t *object = json_object();

    json_object_set_new(object, "node-name", json_from_text(named->node_name));
    json_object_set_new(object, "shutting-down", json_false());
    json_object_set_new(object, "type", json_string("nbd"));
    json_object_set_new(object, "id", json_from_text(named->id));
    json_object_set_new(object, "name", json_from_text(named->name));
    return object;
}

static json_t *query_exports(struct control_context *ctx, const json_t *args,
                             struct control_error *error)
{
    json_t *list = json_array();

    (void)args;
    (void)error;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        json_array_append_new(list, describe_export(exp));
    NAMED_VIEW_EACH (named, ctx->exports)
        json_array_append_new(list, describe_view(named));
    return list;
}

/* ---- the tables ---- */

static const char *const types[] = {"nbd", NULL};

static const struct control_arg nbd_args[] = {
    {"name", STRING, false},
    {"description", STRING, false},
    {"bitmaps", LIST_OF(&control_bitmap_source), false},
    {"allocation-depth", BOOL, false},
    {0},
};
static const struct control_variant nbd = {"nbd", OBJECT(nbd_args)};
static const struct control_variant *const export_types[] = {&nbd, NULL};

static const struct control_arg add_args[] = {
    {"type", TAG, true},
    {"id", STRING, true},
    {"node-name", STRING, true},
    {"writable", BOOL, false},
    {"writethrough", BOOL, false},
    {"fixed-iothread", BOOL, false},
    {0},
};

static const struct control_arg del_args[] = {
    {"id", STRING, true},
    {"mode", WORDS(control_export_del_modes), false},
    {0},
};

const struct control_command control_export_commands[] = {
    {"block-export-add", UNION(add_args, "type", export_types), NULL, control_add_export},
    {"block-export-del", OBJECT(del_args), NULL, del_export},
    {0},
};

static const struct control_arg export_info[] = {
    {"id", STRING, true},        {"type", WORDS(types), true},
    {"node-name", STRING, true}, {"shutting-down", BOOL, true},
    {"name", STRING, true},      {0},
};

const struct control_command control_export_queries[] = {
    {"query-block-exports", NULL, LIST_OF(OBJECT(export_info)), query_exports},
    {0},
};
