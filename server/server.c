/* SPDX-License-Identifier: BSD-3-Clause */
/* How the parts of the server begin and end. */
#include "server.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "control.h"
#include "shutdown.h"

void server_init(struct server *server)
{
    *server = (struct server){0};
    plugin_config_init(&server->config);
    export_table_init(&server->exports);
}

/* ---- the end ---- */

void server_close(struct server *server)
{
    control_close(server->control);
    server->control = NULL;
    if (server->shared.housekeeper)
        housekeeper_stop(server->shared.housekeeper);
    export_table_close(&server->exports);
    block_shared_destroy(&server->shared);
}

void server_free(struct server *server)
{
    server_close(server);
    export_table_destroy(&server->exports);
    plugin_config_free(&server->config);
}

static void begin_end(void *opaque)
{
    struct server *server = opaque;

    if (server->control)
        control_begin_close(server->control);
}

static void close_with_clients(void *opaque)
{
    struct server *server = opaque;

    export_table_abandon_servers(&server->exports);
    control_stop(server->control); /* the jobs look at what is served */
    export_table_seal(&server->exports);
    server_close(server);
}

static void end_by_command(void *opaque)
{
    (void)opaque;
    nbdkit_shutdown();
    shutdown_begin();
}

/* ---- the beginning ---- */

static int open_exports(struct server *server, struct diag *diag)
{
    const struct export_request request = {
        .name = "",
        .node_name = server->config.node_name,
        .file = server->config.file,
        .config = &server->config,
    };

    return export_table_open(&server->exports, &request, &server->shared, diag);
}

static int open_control(struct server *server, struct diag *diag)
{
    const struct control_setup setup = {
        .path = server->config.control,
        .exports = &server->exports,
        .shut_down = end_by_command,
        .opaque = server,
    };

    return setup.path ? control_open(&setup, &server->control, diag) : 0;
}

int server_open(struct server *server, struct diag *diag)
{
    int err = block_shared_init(&server->shared, server->config.metadata_cache, NULL, NULL);
    if (err)
        return diag_errno(diag, -err, "%s", server->config.file);
    err = open_exports(server, diag);
    if (!err)
        err = open_control(server, diag);
    if (err)
        server_close(server);
    return err;
}

int server_start(struct server *server)
{
    const struct shutdown_steps steps = {
        .exports = &server->exports,
        .begin = begin_end,
        .close = close_with_clients,
        .opaque = server,
        .own_socket = server->config.control,
    };

    int err = housekeeper_start(server->shared.housekeeper);
    if (err)
        return err;
    err = export_table_start(&server->exports);
    if (err)
        return err;
    err = server->control ? control_start(server->control) : 0;
    return err ? err : shutdown_start(&steps);
}
