/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes of protocols: what leads to a file, an NBD export or an RBD image becomes the name of
 * it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "control_node_reading.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

/* ---- types ---- */

const char *const node_locking[] = {"auto", "on", "off", NULL};
static const char *const aio[] = {"threads", "native", "io_uring", NULL};

static const struct control_arg file_args[] = {
    {"filename", STRING, true},
    {"locking", WORDS(node_locking), false},
    {"aio", WORDS(aio), false},
    {0},
};

const struct control_arg control_inet_args[] = {
    {"host", STRING, true}, {"port", STRING, true}, {0}};
const struct control_arg control_unix_args[] = {{"path", STRING, true}, {0}};

static const struct control_variant inet_server = {"inet", OBJECT(control_inet_args)},
                                    unix_server = {"unix", OBJECT(control_unix_args)};
static const struct control_variant *const servers[] = {&inet_server, &unix_server, NULL};
static const struct control_arg server_args[] = {{"type", TAG, true}, {0}};

static const struct control_arg nbd_args[] = {
    {"server", UNION(server_args, "type", servers), true},
    {"export", STRING, false},
    {"reconnect-delay", SIZE, false},
    {"open-timeout", SIZE, false},
    {0},
};

static const char *const auth_modes[] = {"cephx", "none", NULL};

static const struct control_arg rbd_args[] = {
    {"pool", STRING, true},
    {"namespace", STRING, false},
    {"image", STRING, true},
    {"snapshot", STRING, false},
    {"conf", STRING, false},
    {"user", STRING, false},
    {"auth-client-required", LIST_OF(WORDS(auth_modes)), false},
    {"server", LIST_OF(OBJECT(control_inet_args)), false},
    {0},
};

/* ---- files ---- */

static bool read_file(const struct reading *how, const json_t *args,
                      struct added_node *node)
{
    const char *name = arg_text(args, "filename");

    /* Relative names would be relative to the server's working directory, which clients don't
     * know. */
    if (name[0] != '/') {
        control_fail(how->error, CLASS_GENERIC,
                     "filename: '%.200s' must be the absolute path of a file", name);
        return false;
    }
    node->target = strdup(name);
    if (!node->target)
        control_fail(how->error, CLASS_GENERIC, "out of memory");
    return node->target;
}

/* ---- NBD exports ---- */

static bool read_server(const json_t *server, struct nbd_uri *uri,
                        struct control_error *error)
{
    const char *path = arg_text(server, "path"), *host = arg_text(server, "host");
    const char *port = arg_text(server, "port");

    if (port && (!*port || strlen(port) >= sizeof uri->port ||
                 port[strspn(port, "0123456789")] != '\0')) {
        control_fail(error, CLASS_GENERIC,
                     "server: port '%.20s' must be a number from 1 to 65535", port);
        return false;
    }
    uri->socket = path ? strdup(path) : NULL;
    uri->host = host ? strdup(host) : NULL;
    snprintf(uri->port, sizeof uri->port, "%s", port ? port : "");
    return true;
}

/* Prints the URI and parses it again, so that all rules for URIs are in one place. */
static bool read_nbd(const struct reading *how, const json_t *args, struct added_node *node)
{
    const char *name = arg_text(args, "export");
    CLEANUP_NBD_URI struct nbd_uri uri = {0}, parsed = {0};

    if (!read_server(json_object_get(args, "server"), &uri, how->error))
        return false;
    uri.export_name = strdup(name ? name : "");
    CLEANUP_FREE char *text =
        uri.export_name && (uri.socket || uri.host) ? nbd_uri_print(&uri) : NULL;
    if (!text) {
        control_fail(how->error, CLASS_GENERIC, "out of memory");
        return false;
    }
    if (nbd_uri_parse(text, NBD_URI_USER, &parsed, &how->error->diag)) {
        control_fail_diag(how->error, CLASS_GENERIC);
        return false;
    }
    node->target = TAKE(&text);
    return true;
}

/* ---- RBD images ---- */

static char *copy_argument(const json_t *args, const char *key)
{
    const char *text = arg_text(args, key);

    return text ? strdup(text) : NULL;
}

/* Reads the lists of monitors and of authentication modes. */
static bool read_rbd_lists(const json_t *args, struct rbd_name *name,
                           struct control_error *error)
{
    const json_t *value;
    size_t i;
    int err = 0;

    json_array_foreach (json_object_get(args, "server"), i, value) {
        if (!err)
            err = rbd_name_add_monitor(name, arg_text(value, "host"),
                                       arg_text(value, "port"));
    }
    json_array_foreach (json_object_get(args, "auth-client-required"), i, value) {
        if (!err)
            err = rbd_name_append(name, "auth_client_required", json_string_value(value));
    }
    if (err)
        control_fail(error, CLASS_GENERIC, "%s",
                     err == -E2BIG ? "too many options" : "out of memory");
    return !err;
}

/* Prints the name and parses it again, as read_nbd does. */
static bool read_rbd(const struct reading *how, const json_t *args, struct added_node *node)
{
    struct control_error *error = how->error;
    CLEANUP_RBD_NAME struct rbd_name name = {
        .pool = copy_argument(args, "pool"),
        .space = copy_argument(args, "namespace"),
        .image = copy_argument(args, "image"),
        .snapshot = copy_argument(args, "snapshot"),
        .id = copy_argument(args, "user"),
        .conf = copy_argument(args, "conf"),
    };
    CLEANUP_RBD_NAME struct rbd_name parsed = {0};

    if (!read_rbd_lists(args, &name, error))
        return false;
    CLEANUP_FREE char *text = name.pool && name.image ? rbd_name_print(&name) : NULL;
    if (!text) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    /* relative to a folder that clients don't know */
    if (name.conf && name.conf[0] != '/') {
        control_fail(error, CLASS_GENERIC, "conf: '%.200s' must be an absolute path",
                     name.conf);
        return false;
    }
    if (rbd_name_parse(text, RBD_NAME_USER, &parsed, &error->diag)) {
        control_fail_diag(error, CLASS_GENERIC);
        return false;
    }
    node->target = TAKE(&text);
    return true;
}

/* ---- the drivers ---- */

const struct node_driver node_file_driver = {
    {"file", OBJECT(file_args)}, "file", read_file};
const struct node_driver node_device_driver = {
    {"host_device", OBJECT(file_args)}, "file", read_file};
const struct node_driver node_nbd_driver = {{"nbd", OBJECT(nbd_args)}, "nbd", read_nbd};
const struct node_driver node_rbd_driver = {{"rbd", OBJECT(rbd_args)}, "rbd", read_rbd};
