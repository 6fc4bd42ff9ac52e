/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports that come and go while the server runs.  The commands that change them run on the
 * lane, one after the other. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "control_chain.h"
#include "control_cmds.h"
#include "control_exports.h"
#include "export_table.h"

/* What NBD allows. */
#define MAX_NAME 4096

/* ---- block-export-add ---- */

struct opening {
    struct control_context *ctx;
    struct added_node *node;
    bool writable;
};

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

    /* One that is open for others is read by them, not from here. */
    if (added_node_is_used(opening->node))
        return diag_set(diag, EBUSY, "Node '%s' is in use", opening->node->name->text);
    return added_node_open(opening->node, &how, out, diag);
}

static char *copy_text(const char *text)
{
    return text ? strdup(text) : NULL;
}

/* Not open yet; NULL when memory is short. */
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
    exp->read_only_told = exp->never_writable; /* nobody expects otherwise */
    if (exp->id && (exp->description || !description))
        return exp;
    export_free(exp);
    return NULL;
}

static int open_and_add(struct control_context *ctx, struct served_export *exp,
                        struct added_node *node, struct diag *diag)
{
    struct opening opening = {.ctx = ctx, .node = node, .writable = !exp->never_writable};
    const struct export_request request = {
        .open = open_added, .opaque = &opening, .config = ctx->config};

    int err = export_open(exp, &request, ctx->shared, diag);
    if (err)
        return err;
    err = export_start(exp);
    if (err)
        diag_errno(diag, -err, "%s: starting its threads", export_id(exp));
    return err ? err : export_table_add(ctx->exports, exp, diag);
}

/* The caller becomes a user; NULL: there is none. */
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
    if (other)
        control_fail(error, CLASS_GENERIC, "Block export id '%s' is already in use", id);
    return !other;
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

static json_t *add_export(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    const char *name = arg_text(args, "name");

    if (!check_id(ctx, arg_text(args, "id"), error))
        return NULL;
    if (name && strlen(name) > MAX_NAME)
        return control_fail(error, CLASS_GENERIC, "export name '%.50s...' too long", name);
    CLEANUP_ADDED_NODE struct added_node *node =
        find_unexported(ctx, arg_text(args, "node-name"), error);
    if (!node)
        return NULL;
    struct served_export *exp = new_export(args);
    if (!exp)
        return control_fail(error, CLASS_GENERIC, "out of memory");
    if (open_and_add(ctx, exp, node, &error->diag) == 0)
        return json_object();
    (void)!export_close(exp);
    export_free(exp);
    return control_fail_diag(error, CLASS_GENERIC);
}

/* ---- block-export-del ---- */

static const char *const del_modes[] = {"safe", "hard", NULL};

static json_t *del_export(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    const char *id = arg_text(args, "id");
    bool hard = arg_word(args, "mode", del_modes, 0) == 1;
    CLEANUP_EXPORT struct served_export *exp = find_by_id(ctx, id);

    if (!exp)
        return control_fail(error, CLASS_GENERIC, "Export '%.200s' is not found", id);
    if (export_table_withdraw(exp, hard, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    return json_object();
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

static json_t *query_exports(struct control_context *ctx, const json_t *args,
                             struct control_error *error)
{
    json_t *list = json_array();

    (void)args;
    (void)error;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        json_array_append_new(list, describe_export(exp));
    return list;
}

/* ---- the tables ---- */

static const char *const types[] = {"nbd", NULL};

static const struct control_arg nbd_args[] = {
    {"name", STRING, false}, {"description", STRING, false}, {0}};
static const struct control_variant nbd = {"nbd", OBJECT(nbd_args)};
static const struct control_variant *const export_types[] = {&nbd, NULL};

static const struct control_arg add_args[] = {
    {"type", TAG, true},
    {"id", STRING, true},
    {"node-name", STRING, true},
    {"writable", BOOL, false},
    {0},
};

static const struct control_arg del_args[] = {
    {"id", STRING, true},
    {"mode", WORDS(del_modes), false},
    {0},
};

const struct control_command control_export_commands[] = {
    {"block-export-add", UNION(add_args, "type", export_types), NULL, add_export},
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
