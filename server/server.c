/* SPDX-License-Identifier: BSD-3-Clause */
/* How the parts of the server begin and end. */
#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/cleanup.h"
#include "control.h"
#include "image_folder.h"
#include "service_manager.h"
#include "shutdown.h"
#include "view.h"

void server_init(struct server *server)
{
    *server = (struct server){0};
    plugin_config_init(&server->config);
    export_table_init(&server->exports);
    throttle_groups_init(&server->throttles);
}

/* ---- the end ---- */

static void close_snapshot(struct server *server)
{
    struct served_export *exp = server->snapshot ? server->snapshot->exp : NULL;

    view_close(TAKE(&server->snapshot));
    export_put(exp);
}

void server_close(struct server *server)
{
    control_close(server->control);
    server->control = NULL;
    close_snapshot(server);
    if (server->shared.housekeeper)
        housekeeper_stop(server->shared.housekeeper);
    export_table_close(&server->exports);
    image_folder_close(TAKE(&server->folder));
    block_shared_destroy(&server->shared);
}

void server_free(struct server *server)
{
    server_close(server);
    export_table_destroy(&server->exports);
    throttle_groups_destroy(&server->throttles);
    plugin_config_free(&server->config);
}

static void begin_end(void *opaque)
{
    struct server *server = opaque;

    service_manager_tell(SERVICE_STOPPING);
    throttle_groups_lift(&server->throttles, true);
    if (server->control)
        control_begin_close(server->control);
}

static void close_with_clients(void *opaque)
{
    struct server *server = opaque;

    export_table_abandon_servers(&server->exports);
    control_stop(server->control); /* the jobs look at what is served */
    close_snapshot(server);
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

static int open_export(struct server *server, const char *name, const char *node_name,
                       const char *file, struct diag *diag)
{
    const struct export_request request = {.file = file, .config = &server->config};

    return export_table_open(&server->exports, name, node_name, &request, &server->shared,
                             diag);
}

/* A name is its node name as well; the default export has none that commands could say. */
static int open_named(struct server *server, struct diag *diag)
{
    const struct plugin_config *config = &server->config;

    for (size_t i = 0; i < config->n_exports; i++) {
        const struct named_image *image = &config->exports[i];
        const char *node_name = image->name[0] ? image->name : config->node_name;
        int err = open_export(server, image->name, node_name, image->file, diag);
        if (err)
            return err;
    }
    return 0;
}

static int open_folder(struct server *server, struct diag *diag)
{
    int err = image_folder_open(&server->config, &server->shared, &server->folder, diag);
    if (!err)
        export_table_set_folder(&server->exports, server->folder, server->config.linger_ms);
    return err;
}

static int open_exports(struct server *server, struct diag *diag)
{
    const struct plugin_config *config = &server->config;

    if (config->dir)
        return open_folder(server, diag);
    return config->file ? open_export(server, "", config->node_name, config->file, diag)
                        : open_named(server, diag);
}

/* snapshot=: what the default export is from here on.  It is kept open, so that nobody removes
 * it while no client is there. */
static int open_snapshot(struct server *server, struct diag *diag)
{
    const char *name = server->config.snapshot;
    CLEANUP_FREE char *view_name = NULL;

    if (!name)
        return 0;
    if (asprintf(&view_name, "%s/%s", view_of_snapshot.name, name) < 0) {
        view_name = NULL;
        return diag_errno(diag, ENOMEM, "snapshot=%s", name);
    }
    CLEANUP_EXPORT struct served_export *exp =
        export_table_find(&server->exports, "", diag);
    if (!exp)
        return -diag->err;
    int err = view_open(exp, view_name, &server->snapshot, diag);
    if (err)
        return err;
    exp->default_view = TAKE(&view_name);
    exp = NULL; /* the view's */
    return 0;
}

static int open_control(struct server *server, struct diag *diag)
{
    const struct control_setup setup = {
        .path = server->config.control,
        .exports = &server->exports,
        .throttles = &server->throttles,
        .shared = &server->shared,
        .config = &server->config,
        .shut_down = end_by_command,
        .opaque = server,
    };

    return setup.path ? control_open(&setup, &server->control, diag) : 0;
}

/* Each image and each connection has some files open, and the usual limit is made for programs
 * that can't handle many. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

int server_open(struct server *server, struct diag *diag)
{
    if (!server->config.file)
        raise_file_limit();
    int err = block_shared_init(&server->shared, server->config.metadata_cache, NULL, NULL);
    if (err)
        return diag_errno(diag, -err, "%s", plugin_config_subject(&server->config));
    err = open_exports(server, diag);
    if (!err)
        err = open_snapshot(server, diag);
    if (!err)
        err = open_control(server, diag);
    if (err)
        server_close(server);
    return err;
}

void server_rest(struct server *server)
{
    export_table_rest(&server->exports);
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
    if (!err)
        err = shutdown_start(&steps);
    if (!err)
        service_manager_tell(SERVICE_READY);
    return err;
}
