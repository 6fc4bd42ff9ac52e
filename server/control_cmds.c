/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses requests, checks their arguments and runs their commands. */
#include "control_cmds.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "control_exports.h"
#include "control_handover.h"
#include "control_lane.h"
#include "control_schema.h"
#include "control_stats.h"
#include "control_throttle.h"
#include "export_table.h"

/* Commands of slow tables run on the lane, because they drain or wait.  All commands on
 * bitmaps do, so that none removes a bitmap that another one is using. */
static const struct {
    const struct control_command *commands;
    bool slow;
} tables[] = {
    {control_server_commands, false},     {control_schema_commands, false},
    {control_query_commands, false},      {control_node_commands, true},
    {control_create_commands, false},     {control_export_commands, true},
    {control_export_queries, false},      {control_stats_commands, false},
    {control_start_commands, false},      {control_backup_commands, false},
    {control_job_commands, false},        {control_bitmap_commands, true},
    {control_transaction_commands, true}, {control_snapshot_commands, true},
    {control_overlay_commands, true},     {control_throttle_commands, false},
    {control_disk_commands, true},        {control_nbd_server_commands, true},
    {control_handover_commands, false},
};

#define NEGOTIATE "qmp_capabilities"

static const struct control_arg negotiation_args[] = {{"enable", STRINGS, false}, {0}};

/* In no table: it is only allowed as the first command of a session. */
static const struct control_command negotiation = {NEGOTIATE, OBJECT(negotiation_args),
                                                   NULL, NULL};

/* ---- errors ---- */

json_t *control_fail(struct control_error *error, const char *class, const char *fmt, ...)
{
    va_list ap;

    error->class = class;
    error->diag.err = 0;
    va_start(ap, fmt);
    vsnprintf(error->diag.text, sizeof error->diag.text, fmt, ap);
    va_end(ap);
    return NULL;
}

json_t *control_fail_diag(struct control_error *error, const char *class)
{
    error->class = class;
    return NULL;
}

struct served_export *control_look_for_disk(struct control_context *ctx, const char *name)
{
    struct served_export *found = export_table_find_node(ctx->exports, name);

    if (found)
        return found;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        if (export_is_called(exp, name))
            return exp;
    return NULL;
}

struct served_export *control_find_device(struct control_context *ctx, const char *name,
                                          struct control_error *error)
{
    struct served_export *exp = control_look_for_disk(ctx, name);

    if (!exp)
        control_fail(error, CLASS_DEVICE, "Cannot find device '%.200s'", name);
    return exp;
}

struct served_export *control_find_node(struct control_context *ctx, const char *name,
                                        struct control_error *error)
{
    struct served_export *exp = control_look_for_disk(ctx, name);

    if (!exp)
        control_fail(error, CLASS_GENERIC, "Node '%.200s' not found", name);
    return exp;
}

static json_t *error_reply(const struct control_error *error)
{
    json_t *object = json_object();

    json_object_set_new(object, "class", json_string(error->class));
    json_object_set_new(object, "desc", json_from_text(error->diag.text));
    if (error->diag.err)
        json_object_set_new(object, "errno", json_integer(error->diag.err));
    json_t *reply = json_object();
    json_object_set_new(reply, "error", object);
    return reply;
}

json_t *control_refusal(const char *desc)
{
    struct control_error error;

    control_fail(&error, CLASS_GENERIC, "%s", desc);
    return error_reply(&error);
}

/* ---- the table ---- */

static const struct control_command *find_command(const char *name, bool *slow)
{
    for (size_t t = 0; t < ARRAY_LEN(tables); t++)
        for (const struct control_command *c = tables[t].commands; c->name; c++)
            if (strcmp(c->name, name) == 0) {
                *slow = tables[t].slow;
                return c;
            }
    return NULL;
}

/* The command at row i of table t, or the first one behind it. */
static const struct control_command *command_at(size_t t, size_t i)
{
    for (; t < ARRAY_LEN(tables); t++, i = 0)
        if (tables[t].commands[i].name)
            return &tables[t].commands[i];
    return NULL;
}

const struct control_command *control_next_command(const struct control_command *command)
{
    if (!command)
        return &negotiation;
    if (command == &negotiation)
        return command_at(0, 0);
    for (size_t t = 0; t < ARRAY_LEN(tables); t++)
        for (size_t i = 0; tables[t].commands[i].name; i++)
            if (&tables[t].commands[i] == command)
                return command_at(t, i + 1);
    return NULL;
}

json_t *control_run(const struct control_command *command, struct control_context *ctx,
                    const json_t *args, struct control_error *error)
{
    json_t *result = command->run(ctx, args, error);

    if (result)
        control_must_fit(command->name, command->returns, result);
    return result;
}

/* ---- the protocol ---- */

json_t *control_greeting(void)
{
    bool slow;
    const struct control_command *version = find_command("query-version", &slow);
    struct control_error error;

    return json_pack("{s:{s:o,s:[]}}", "QMP", "version", version->run(NULL, NULL, &error),
                     "capabilities");
}

/* The first command of a session.  There are no capabilities to enable. */
static json_t *negotiate_session(const json_t *args, bool *negotiated,
                                 struct control_error *error)
{
    if (!control_fits(NEGOTIATE, negotiation.args, args, error))
        return NULL;
    if (json_array_size(json_object_get(args, "enable")) > 0)
        return control_fail(error, CLASS_GENERIC, "There is no capability to enable");
    *negotiated = true;
    return json_object();
}

uint64_t control_ticket(struct control_context *ctx)
{
    return ++ctx->last_ticket;
}

json_t *control_await(struct control_context *ctx, uint64_t ticket)
{
    if (ctx->lane)
        ctx->awaited = ticket;
    return json_object();
}

static json_t *run_slowly(struct control_context *ctx,
                          const struct control_command *command, const json_t *args,
                          struct control_error *error)
{
    uint64_t ticket = control_ticket(ctx);

    int err = control_lane_submit(ctx->lane, command, args, ticket);
    if (!err)
        return control_await(ctx, ticket);
    diag_errno(&error->diag, -err, "%s", command->name);
    return control_fail_diag(error, CLASS_GENERIC);
}

static json_t *run_command(struct control_context *ctx, bool *negotiated, const char *name,
                           const json_t *args, struct control_error *error)
{
    bool slow = false;
    const struct control_command *command = find_command(name, &slow);
    bool negotiates = strcmp(name, NEGOTIATE) == 0;

    if (!*negotiated && !negotiates)
        return control_fail(error, CLASS_COMMAND,
                            "Expecting capabilities negotiation with '" NEGOTIATE "'");
    if (!*negotiated)
        return negotiate_session(args, negotiated, error);
    if (negotiates)
        return control_fail(error, CLASS_COMMAND,
                            "Capabilities negotiation is already complete");
    if (!command)
        return control_fail(error, CLASS_COMMAND, "The command %.200s has not been found",
                            name);
    if (ctx->quit_came)
        return control_fail(error, CLASS_GENERIC, "The server is shutting down");
    if (ctx->handover_ticket && strcmp(name, "quit") != 0)
        return control_fail(error, CLASS_GENERIC, "The server hands over to another one");
    if (!control_fits(command->name, command->args, args, error))
        return NULL;
    return slow && ctx->lane ? run_slowly(ctx, command, args, error)
                             : control_run(command, ctx, args, error);
}

/* Checks the request's own members. */
static json_t *run_request(struct control_context *ctx, bool *negotiated,
                           const json_t *request, struct control_error *error)
{
    const json_t *args = json_object_get(request, "arguments");
    const char *name, *member = arg_text(request, "execute");
    json_t *value;

    json_object_foreach ((json_t *)(uintptr_t)request, name, value)
        if (strcmp(name, "execute") != 0 && strcmp(name, "arguments") != 0 &&
            strcmp(name, "id") != 0)
            return control_fail(error, CLASS_GENERIC,
                                "QMP input member '%.200s' is unexpected", name);
    if (!arg_is_given(request, "execute"))
        return control_fail(error, CLASS_GENERIC, "QMP input lacks member 'execute'");
    if (!member)
        return control_fail(error, CLASS_GENERIC,
                            "QMP input member 'execute' must be a string");
    if (args && !json_is_object(args))
        return control_fail(error, CLASS_GENERIC,
                            "QMP input member 'arguments' must be an object");
    json_t *none = args ? NULL : json_object();
    json_t *result = run_command(ctx, negotiated, member, args ? args : none, error);
    json_decref(none);
    return result;
}

json_t *control_reply(json_t *result, const struct control_error *error, json_t *id)
{
    json_t *reply = result ? json_pack("{s:o}", "return", result) : error_reply(error);

    if (id)
        json_object_set(reply, "id", id);
    return reply;
}

json_t *control_execute(struct control_context *ctx, bool *negotiated,
                        const json_t *request)
{
    struct control_error error = {.class = CLASS_GENERIC};

    ctx->awaited = 0;
    if (!request)
        return control_refusal("JSON parse error");
    if (!json_is_object(request))
        return control_refusal("QMP input must be a JSON object");
    json_t *result = run_request(ctx, negotiated, request, &error);
    if (!ctx->awaited)
        return control_reply(result, &error, json_object_get(request, "id"));
    json_decref(result);
    return NULL;
}
