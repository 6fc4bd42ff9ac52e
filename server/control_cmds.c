/* SPDX-License-Identifier: BSD-3-Clause */
/* Taking a request apart, judging its arguments, running its command. */
#include "control_cmds.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "control_exports.h"
#include "control_lane.h"
#include "control_stats.h"
#include "control_throttle.h"
#include "export_table.h"

/* Slow ones go to the lane, on whose thread they run: all those for bitmaps, so that none
 * has a bitmap in its hands that another removes, and whatever drains. */
static const struct {
    const struct control_command *commands;
    bool slow;
} tables[] = {
    {control_server_commands, false},     {control_query_commands, false},
    {control_node_commands, true},        {control_export_commands, true},
    {control_export_queries, false},      {control_stats_commands, false},
    {control_start_commands, false},      {control_backup_commands, false},
    {control_job_commands, false},        {control_bitmap_commands, true},
    {control_transaction_commands, true}, {control_snapshot_commands, true},
    {control_overlay_commands, true},     {control_throttle_commands, false},
    {control_disk_commands, true},
};

#define NEGOTIATE "qmp_capabilities"

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

/* By its name, or by that of the node on top; the caller becomes a user. */
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

static void list_command(json_t *list, const char *name)
{
    json_array_append_new(list, json_pack("{s:s}", "name", name));
}

json_t *control_list_commands(void)
{
    json_t *list = json_array();

    list_command(list, NEGOTIATE);
    for (size_t t = 0; t < ARRAY_LEN(tables); t++)
        for (const struct control_command *c = tables[t].commands; c->name; c++)
            list_command(list, c->name);
    return list;
}

/* ---- arguments ---- */

static const struct control_arg *find_arg(const struct control_arg *table, const char *name)
{
    for (const struct control_arg *arg = table; arg && arg->name; arg++)
        if (strcmp(arg->name, name) == 0)
            return arg;
    return NULL;
}

static bool is_one_of(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (strcmp(*words, text) == 0)
            return true;
    return false;
}

static bool has_type(const struct control_arg *arg, const json_t *value)
{
    switch (arg->type) {
    case ARG_BOOL:
        return json_is_boolean(value);
    case ARG_SIZE:
        return json_is_integer(value) && json_integer_value(value) >= 0;
    case ARG_LIST:
        return json_is_array(value);
    case ARG_OBJECT:
        return json_is_object(value);
    case ARG_ANY:
        return true;
    case ARG_WORD:
        return json_is_string(value) && is_one_of(json_string_value(value), arg->words);
    default:
        return json_is_string(value);
    }
}

/* "a, b, c" */
static void append_word(char *text, size_t size, const char *item)
{
    size_t used = strlen(text);

    snprintf(text + used, size - used, "%s%s", used ? ", " : "", item);
}

static void say_type(const struct control_arg *arg, char *text, size_t size)
{
    static const char *const names[] = {
        [ARG_STRING] = "a string",           [ARG_BOOL] = "a boolean",
        [ARG_SIZE] = "an integer from 0 on", [ARG_LIST] = "an array",
        [ARG_OBJECT] = "an object",
    };

    *text = '\0';
    if (arg->type != ARG_WORD)
        append_word(text, size, names[arg->type]);
    for (size_t i = 0; arg->type == ARG_WORD && arg->words[i]; i++)
        append_word(text, size, arg->words[i]);
}

static void say_args(const struct control_arg *table, char *text, size_t size)
{
    *text = '\0';
    for (const struct control_arg *arg = table; arg && arg->name; arg++)
        append_word(text, size, arg->name);
    if (!*text)
        append_word(text, size, "no parameters");
}

bool control_args_fit(const char *what, const struct control_arg *table, const json_t *args,
                      struct control_error *error)
{
    char text[512];
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)(uintptr_t)args, name, value) {
        const struct control_arg *arg = find_arg(table, name);
        if (!arg) {
            say_args(table, text, sizeof text);
            control_fail(error, CLASS_GENERIC, "Parameter '%s' is unexpected; %s takes %s",
                         name, what, text);
            return false;
        }
        if (!has_type(arg, value)) {
            say_type(arg, text, sizeof text);
            control_fail(error, CLASS_GENERIC, "Invalid parameter '%s', expected: %s", name,
                         text);
            return false;
        }
    }
    for (const struct control_arg *arg = table; arg && arg->name; arg++)
        if (arg->mandatory && !arg_is_given(args, arg->name)) {
            control_fail(error, CLASS_GENERIC, "Parameter '%s' is missing", arg->name);
            return false;
        }
    return true;
}

bool arg_is_given(const json_t *args, const char *name)
{
    return json_object_get(args, name);
}

const char *arg_text(const json_t *args, const char *name)
{
    return json_string_value(json_object_get(args, name));
}

bool arg_bool(const json_t *args, const char *name, bool otherwise)
{
    return arg_is_given(args, name) ? json_is_true(json_object_get(args, name)) : otherwise;
}

uint64_t arg_size(const json_t *args, const char *name, uint64_t otherwise)
{
    return arg_is_given(args, name)
               ? (uint64_t)json_integer_value(json_object_get(args, name))
               : otherwise;
}

unsigned arg_word(const json_t *args, const char *name, const char *const *words,
                  unsigned otherwise)
{
    const char *text = arg_text(args, name);

    for (unsigned i = 0; text && words[i]; i++)
        if (strcmp(words[i], text) == 0)
            return i;
    return otherwise;
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

/* The first command of a session; there are no capabilities that it could enable. */
static json_t *negotiate_session(const json_t *args, bool *negotiated,
                                 struct control_error *error)
{
    static const struct control_arg takes[] = {{"enable", ARG_LIST, false, NULL}, {0}};

    if (!control_args_fit(NEGOTIATE, takes, args, error))
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
    if (!control_args_fit(command->name, command->args, args, error))
        return NULL;
    return slow && ctx->lane ? run_slowly(ctx, command, args, error)
                             : command->run(ctx, args, error);
}

/* Looks at the request's own members. */
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
