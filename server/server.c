/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens, starts and closes the parts of the server, in the right order. */
#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/cleanup.h"
#include "control.h"
#include "control_cmds.h"
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

/* ---- closing ---- */

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

    atomic_store(&server->ending, true);
    service_manager_tell(SERVICE_STOPPING);
    if (atomic_load(&server->handover.done))
        handover_finish(server);
    throttle_groups_lift(&server->throttles, true);
    if (server->control)
        control_begin_close(server->control);
}

static void close_with_clients(void *opaque)
{
    struct server *server = opaque;

    export_table_abandon_servers(&server->exports);
    control_stop(server->control); /* before sealing: running jobs still use the exports */
    close_snapshot(server);
    export_table_seal(&server->exports);
    server_close(server);
}

static int hand_over(void *opaque, struct control_sockets *out, struct diag *diag)
{
    struct server *server = opaque;

    int err = handover_begin(server, &server->ending, diag);
    if (!err)
        *out = (struct control_sockets){server->handover.listening, server->handover.n};
    return err;
}

static void take_back(void *opaque)
{
    handover_undo(opaque);
}

static void end_by_command(void *opaque)
{
    (void)opaque;
    /* In this order: nbdkit may end as soon as nbdkit_shutdown was called. */
    shutdown_begin();
    nbdkit_shutdown();
}

/* ---- opening ---- */

static int open_export(struct server *server, const char *name, const char *node_name,
                       const char *file, struct diag *diag)
{
    const struct export_request request = {.file = file, .config = &server->config};

    return export_table_open(&server->exports, name, node_name, &request, &server->shared,
                             diag);
}

/* The name of an image is its node name, too; the default export, whose name is empty, gets the
 * configured one.  try_all: goes on when an image can't be opened, and returns the first error. */
static int open_named(struct server *server, bool try_all, struct diag *diag)
{
    const struct plugin_config *config = &server->config;
    struct diag ignored;
    int first = 0;

    for (size_t i = 0; i < config->n_exports && (!first || try_all); i++) {
        const struct named_image *image = &config->exports[i];
        const char *node_name = image->name[0] ? image->name : config->node_name;
        int err = open_export(server, image->name, node_name, image->file,
                              first ? &ignored : diag);
        if (!first)
            first = err;
    }
    return first;
}

static int open_folder(struct server *server, struct diag *diag)
{
    int err = image_folder_open(&server->config, &server->shared, &server->folder, diag);
    if (!err)
        export_table_set_folder(&server->exports, server->folder, server->config.linger_ms);
    return err;
}

static int open_exports(struct server *server, bool try_all, struct diag *diag)
{
    const struct plugin_config *config = &server->config;

    if (config->dir)
        return open_folder(server, diag);
    return config->file ? open_export(server, "", config->node_name, config->file, diag)
                        : open_named(server, try_all, diag);
}

/* snapshot=: makes the default export show this snapshot.  The view stays open, so that the
 * snapshot can't be deleted while no client is connected. */
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
    exp = NULL; /* the view keeps this use */
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
        .hand_over = hand_over,
        .take_back = take_back,
        .opaque = server,
    };

    return setup.path ? control_open(&setup, &server->control, diag) : 0;
}

/* Each image and each connection has several files open.  The usual soft limit is low for the
 * sake of programs that use select(). */
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
    err = open_exports(server, false, diag);
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

    handover_init(&server->handover);
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

/* ---- a server that hands over its disks and may take them back ---- */

/* The place in the parameters that names the export's file; NULL: there is none. */
static char **configured_file(struct plugin_config *config, const struct served_export *exp)
{
    if (config->file)
        return exp->name[0] ? NULL : &config->file;
    for (size_t i = 0; i < config->n_exports; i++)
        if (strcmp(config->exports[i].name, exp->name) == 0)
            return &config->exports[i].file;
    return NULL;
}

static int note_what_is_served(struct plugin_config *config, struct served_export *exp,
                               struct diag *diag)
{
    char **file = configured_file(config, exp);

    if (!file || !atomic_load(&exp->moved))
        return 0;
    char *now = export_filename(exp);
    if (!now)
        return diag_errno(diag, ENOMEM, "%s", *file);
    bool guesses = !config->format || strcmp(config->format, "auto") == 0;
    if (!guesses || config->backing || config->no_backing || config->data_file) {
        diag_set(diag, EBUSY,
                 "%s: is served by now, for which the server's parameters weren't meant",
                 now);
        free(now);
        return -EBUSY;
    }
    free(*file);
    *file = now;
    return 0;
}

int server_note_what_is_served(struct server *server, struct diag *diag)
{
    EXPORT_TABLE_EACH (exp, &server->exports) {
        int err = note_what_is_served(&server->config, exp, diag);
        if (err) {
            export_put(exp);
            return err;
        }
    }
    return 0;
}

void server_close_exports(struct server *server)
{
    close_snapshot(server);
    export_table_close_all(&server->exports);
}

int server_reopen_exports(struct server *server, struct diag *diag)
{
    export_table_open_again(&server->exports);
    if (server->folder)
        return 0;
    int err = open_exports(server, true, diag);
    if (!err)
        err = open_snapshot(server, diag);
    EXPORT_TABLE_EACH (exp, &server->exports) {
        int start_err = export_start(exp);
        if (start_err && !err)
            err = diag_errno(diag, -start_err, "%s: starting its threads", exp->name);
    }
    return err;
}
