/* SPDX-License-Identifier: BSD-3-Clause */
/* QMP's commands for an NBD server.  Here the server runs from the beginning: nbd-server-start
 * succeeds if nbdkit listens at the given address, and nbd-server-stop removes the exports that
 * commands have added.  Threads: the lane's. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "client_sockets.h"
#include "control_bitmaps.h"
#include "control_chain.h"
#include "control_cmds.h"
#include "control_exports.h"
#include "control_nodes.h"
#include "export_table.h"
#include "named_view.h"
#include "plugin_config.h"

/* ---- where it listens ---- */

static bool listens_at_path(const char *own_socket, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof address.sun_path)
        return false;
    strcpy(address.sun_path, path);
    return client_sockets_listen_at(own_socket, (const struct sockaddr *)&address,
                                    sizeof address);
}

/* Numeric addresses only: no name is resolved. */
static bool listens_at_number(const char *own_socket, const char *host, const char *port)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *list;

    if (getaddrinfo(host, port, &hints, &list) != 0)
        return false;
    bool found = client_sockets_listen_at(own_socket, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    return found;
}

static bool listens_at(const char *own_socket, const json_t *addr)
{
    const json_t *data = json_object_get(addr, "data");
    const char *path = arg_text(data, "path"), *host = arg_text(data, "host");
    const char *port = arg_text(data, "port");

    if (path)
        return listens_at_path(own_socket, path);
    if (strcmp(host, "localhost") != 0)
        return listens_at_number(own_socket, host, port);
    return listens_at_number(own_socket, "127.0.0.1", port) ||
           listens_at_number(own_socket, "::1", port);
}

/* ---- start and stop ---- */

static json_t *nbd_server_start(struct control_context *ctx, const json_t *args,
                                struct control_error *error)
{
    const char *creds = arg_text(args, "tls-creds");

    if (ctx->nbd_started)
        return control_fail(error, CLASS_GENERIC, "NBD server already running");
    if (creds)
        return control_fail(
            error, CLASS_GENERIC,
            "No TLS credentials with id '%.200s': TLS is as nbdkit was told", creds);
    if (arg_is_given(args, "tls-authz"))
        return control_fail(error, CLASS_GENERIC,
                            "tls-authz: who is let in is as nbdkit was told");
    if (!listens_at(ctx->config->control, json_object_get(args, "addr")))
        return control_fail(error, CLASS_GENERIC,
                            "NBD server already running, and not at this address: give one "
                            "at which nbdkit listens, in numbers or as localhost");
    ctx->nbd_started = true;
    return json_object();
}

/* Connected clients can go on.  False with diag: an export that a job uses stays. */
static bool remove_added(struct control_context *ctx, struct diag *diag)
{
    bool all = true;

    NAMED_VIEW_EACH (named, ctx->exports)
        all &= named_view_withdraw(named, true, diag) == 0;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        all &= !exp->id || export_table_withdraw(exp, true, diag) == 0;
    return all;
}

static json_t *nbd_server_stop(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    (void)args;
    if (!ctx->nbd_started)
        return control_fail(error, CLASS_GENERIC,
                            "NBD server not running: none was started by a command, and "
                            "'quit' ends this one");
    if (!remove_added(ctx, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    ctx->nbd_started = false;
    return json_object();
}

/* ---- exports, by the commands that block-export-add replaced ---- */

/* The disks of the parameters are always exported, with all their bitmaps. */
static json_t *find_exported(struct served_export *exp, const json_t *args,
                             struct control_error *error)
{
    const char *device = arg_text(args, "device"), *name = arg_text(args, "name");
    const char *bitmap = arg_text(args, "bitmap");
    EXPORT_USE(use, export_enter(exp));

    if (strcmp(exp->name, name ? name : device) != 0)
        return control_fail(error, CLASS_GENERIC,
                            "device '%.200s' is exported as '%.200s', by no other name",
                            device, exp->name);
    if (bitmap && !node_bitmap_find(use.node, bitmap))
        return control_fail(error, CLASS_GENERIC, "Bitmap '%.200s' is not found", bitmap);
    return json_object();
}

static json_t *nbd_server_add(struct control_context *ctx, const json_t *args,
                              struct control_error *error)
{
    const char *device = arg_text(args, "device"), *name = arg_text(args, "name");
    const char *bitmap = arg_text(args, "bitmap");
    CLEANUP_EXPORT struct served_export *exp = control_find_layer(ctx, device, error);

    if (exp)
        return find_exported(exp, args, error);
    json_t *add =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:s*, s:[s*]}", "type", "nbd", "id",
                  name ? name : device, "node-name", device, "name", name ? name : device,
                  "writable", arg_bool(args, "writable", false), "description",
                  arg_text(args, "description"), "bitmaps", bitmap);
    if (!add)
        return control_fail(error, CLASS_GENERIC, "out of memory");
    json_t *result = control_add_export(ctx, add, error);
    json_decref(add);
    return result;
}

static json_t *nbd_server_remove(struct control_context *ctx, const json_t *args,
                                 struct control_error *error)
{
    bool hard = arg_word(args, "mode", control_export_del_modes, 0) == 1;

    return control_del_export(ctx, arg_text(args, "name"), hard, error);
}

/* ---- the table ---- */

/* SocketAddressLegacy */
static const struct control_arg inet_args[] = {{"data", OBJECT(control_inet_args), true},
                                               {0}};
static const struct control_arg unix_args[] = {{"data", OBJECT(control_unix_args), true},
                                               {0}};
static const struct control_variant inet_address = {"inet", OBJECT(inet_args)},
                                    unix_address = {"unix", OBJECT(unix_args)};
static const struct control_variant *const address_types[] = {&inet_address, &unix_address,
                                                              NULL};
static const struct control_arg address_args[] = {{"type", TAG, true}, {0}};

static const struct control_arg start_args[] = {
    {"addr", UNION(address_args, "type", address_types), true},
    {"tls-creds", STRING, false},
    {"tls-authz", STRING, false},
    {"max-connections", SIZE, false},
    {0},
};

static const struct control_arg add_args[] = {
    {"device", STRING, true},  {"name", STRING, false},   {"description", STRING, false},
    {"writable", BOOL, false}, {"bitmap", STRING, false}, {0},
};

static const struct control_arg remove_args[] = {
    {"name", STRING, true},
    {"mode", WORDS(control_export_del_modes), false},
    {0},
};

const struct control_command control_nbd_server_commands[] = {
    {"nbd-server-start", OBJECT(start_args), NULL, nbd_server_start},
    {"nbd-server-add", OBJECT(add_args), NULL, nbd_server_add},
    {"nbd-server-remove", OBJECT(remove_args), NULL, nbd_server_remove},
    {"nbd-server-stop", NULL, NULL, nbd_server_stop},
    {0},
};
