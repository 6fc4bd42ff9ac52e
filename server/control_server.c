/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about the server itself. */
#include <stdio.h>

#include "control_cmds.h"

static json_t *query_version(struct control_context *ctx, const json_t *args,
                             struct control_error *error)
{
    int major = 0, minor = 0, micro = 0;

    (void)ctx;
    (void)args;
    (void)error;
    sscanf(QIMG_VERSION, "%d.%d.%d", &major, &minor, &micro);
    return json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "major", major, "minor", minor,
                     "micro", micro, "package", "qimg-" QIMG_VERSION);
}

static json_t *query_commands(struct control_context *ctx, const json_t *args,
                              struct control_error *error)
{
    const struct control_command *command = NULL;
    json_t *list = json_array();

    (void)ctx;
    (void)args;
    (void)error;
    while ((command = control_next_command(command)))
        json_array_append_new(list, json_pack("{s:s}", "name", command->name));
    return list;
}

static json_t *query_status(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    (void)ctx;
    (void)args;
    (void)error;
    return json_pack("{s:s,s:b,s:b}", "status", "running", "running", 1, "singlestep", 0);
}

static json_t *quit_server(struct control_context *ctx, const json_t *args,
                           struct control_error *error)
{
    (void)args;
    (void)error;
    ctx->quit_came = true;
    ctx->shut_down(ctx->opaque);
    return json_object();
}

static const struct control_arg version_numbers[] = {
    {"major", SIZE, true}, {"minor", SIZE, true}, {"micro", SIZE, true}, {0}};

static const struct control_arg version_info[] = {
    {"qemu", OBJECT(version_numbers), true}, {"package", STRING, true}, {0}};

static const struct control_arg command_info[] = {{"name", STRING, true}, {0}};

static const char *const run_states[] = {"running", NULL};

static const struct control_arg status_info[] = {
    {"status", WORDS(run_states), true},
    {"running", BOOL, true},
    {"singlestep", BOOL, true},
    {0},
};

const struct control_command control_server_commands[] = {
    {"query-version", NULL, OBJECT(version_info), query_version},
    {"query-commands", NULL, LIST_OF(OBJECT(command_info)), query_commands},
    {"query-status", NULL, OBJECT(status_info), query_status},
    {"quit", NULL, NULL, quit_server},
    {0},
};
