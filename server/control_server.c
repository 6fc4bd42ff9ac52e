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
    (void)ctx;
    (void)args;
    (void)error;
    return control_list_commands();
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

const struct control_command control_server_commands[] = {
    {"query-version", NULL, query_version},
    {"query-commands", NULL, query_commands},
    {"query-status", NULL, query_status},
    {"quit", NULL, quit_server},
    {0},
};
