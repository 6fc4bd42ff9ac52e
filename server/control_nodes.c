/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-add and blockdev-del: what QMP says of a node, judged by a table for each driver,
 * becomes an entry of the table of nodes.  On the lane. */
#include "control_nodes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/image_info.h"
#include "common/image_info_json.h"
#include "control_cmds.h"
#include "export_table.h"
#include "node_table.h"
#include "plugin_config.h"
#include "storage/nbd_uri.h"

/* Children in children: deeper than any use of them. */
#define MAX_DEPTH 16

/* ---- tables ---- */

const char *const control_discards[] = {"ignore", "unmap", NULL};
const char *const control_detects[] = {
    [DETECT_OFF] = "off", [DETECT_ON] = "on", [DETECT_UNMAP] = "unmap", NULL};
static const char *const locking[] = {"auto", "on", "off", NULL};
static const char *const aio[] = {"threads", "native", "io_uring", NULL};
static const char *const servers[] = {"unix", "inet", NULL};

/* Of every driver.  A node that is only described has no use for some: they are taken, and
 * say what is so anyway. */
#define COMMON_ARGS                                                               \
    {"driver", ARG_STRING, true, NULL}, {"node-name", ARG_STRING, false, NULL},   \
        {"discard", ARG_WORD, false, control_discards},                           \
        {"detect-zeroes", ARG_WORD, false, control_detects},                      \
        {"cache", ARG_OBJECT, false, NULL}, {"read-only", ARG_BOOL, false, NULL}, \
        {"auto-read-only", ARG_BOOL, false, NULL},                                \
    {                                                                             \
        "force-share", ARG_BOOL, false, NULL                                      \
    }

static const struct control_arg file_args[] = {
    COMMON_ARGS,
    {"filename", ARG_STRING, true, NULL},
    {"locking", ARG_WORD, false, locking},
    {"aio", ARG_WORD, false, aio},
    {0},
};

static const struct control_arg nbd_args[] = {
    COMMON_ARGS,
    {"server", ARG_OBJECT, true, NULL},
    {"export", ARG_STRING, false, NULL},
    {"reconnect-delay", ARG_SIZE, false, NULL},
    {"open-timeout", ARG_SIZE, false, NULL},
    {0},
};

static const struct control_arg raw_args[] = {
    COMMON_ARGS,
    {"file", ARG_ANY, true, NULL},
    {0},
};

static const struct control_arg backed_args[] = {
    COMMON_ARGS,
    {"file", ARG_ANY, true, NULL},
    {"backing", ARG_ANY, false, NULL},
    {0},
};

static const struct control_arg qcow2_args[] = {
    COMMON_ARGS,
    {"file", ARG_ANY, true, NULL},
    {"backing", ARG_ANY, false, NULL},
    {"lazy-refcounts", ARG_BOOL, false, NULL},
    {"pass-discard-request", ARG_BOOL, false, NULL},
    {"pass-discard-snapshot", ARG_BOOL, false, NULL},
    {"pass-discard-other", ARG_BOOL, false, NULL},
    {"cache-size", ARG_SIZE, false, NULL},
    {"l2-cache-size", ARG_SIZE, false, NULL},
    {"refcount-cache-size", ARG_SIZE, false, NULL},
    {"cache-clean-interval", ARG_SIZE, false, NULL},
    {0},
};

static const struct control_arg cache_args[] = {
    {"direct", ARG_BOOL, false, NULL},
    {"no-flush", ARG_BOOL, false, NULL},
    {0},
};

static const struct control_arg server_args[] = {
    {"type", ARG_WORD, true, servers},
    {"path", ARG_STRING, false, NULL},
    {"host", ARG_STRING, false, NULL},
    {"port", ARG_STRING, false, NULL},
    {0},
};

static const struct node_driver {
    const char *name;
    const struct control_arg *args;
    bool is_format;
} drivers[] = {
    {"file", file_args, false}, {"nbd", nbd_args, false},
    {"raw", raw_args, true},    {"qcow2", qcow2_args, true},
    {"qed", backed_args, true}, {"host_device", file_args, false},
};

static const struct node_driver *find_node_driver(const char *name,
                                                  struct control_error *error)
{
    for (size_t i = 0; i < ARRAY_LEN(drivers); i++)
        if (strcmp(drivers[i].name, name) == 0)
            return &drivers[i];
    control_fail(error, CLASS_GENERIC,
                 "Parameter 'driver' does not accept value '%.200s': file, nbd, raw, qcow2 "
                 "and qed are there",
                 name);
    return NULL;
}

bool control_node_args_fit(const json_t *args, struct control_error *error)
{
    const char *name = arg_text(args, "driver");

    if (!json_is_object(args) || !name) {
        control_fail(error, CLASS_GENERIC, "Parameter 'driver' is missing");
        return false;
    }
    const struct node_driver *driver = find_node_driver(name, error);
    const json_t *cache = json_object_get(args, "cache");
    return driver && control_args_fit(driver->name, driver->args, args, error) &&
           (!cache || control_args_fit("cache", cache_args, cache, error));
}

/* ---- options of every driver ---- */

static const struct cache_mode *cache_of(const json_t *cache)
{
    if (arg_bool(cache, "no-flush", false))
        return cache_mode_find("volatile");
    return cache_mode_find(arg_bool(cache, "direct", false) ? "none" : "writeback");
}

static bool read_options(struct control_context *ctx, const json_t *args,
                         struct added_node *node, struct control_error *error)
{
    const json_t *cache = json_object_get(args, "cache");
    const struct node_options *defaults = &ctx->config->node;

    if (cache && !control_args_fit("cache", cache_args, cache, error))
        return false;
    node->read_only = arg_bool(args, "read-only", false);
    node->auto_read_only = arg_bool(args, "auto-read-only", false);
    node->options = (struct node_options){
        .cache = cache_of(cache),
        .discard_ignore = arg_word(args, "discard", control_discards, 0) == 0,
        .detect_zeroes = (enum detect_zeroes)arg_word(args, "detect-zeroes",
                                                      control_detects, DETECT_OFF),
        .need_check_delay_ns = defaults->need_check_delay_ns,
        .lazy_refcounts = !arg_is_given(args, "lazy-refcounts")     ? 0
                          : arg_bool(args, "lazy-refcounts", false) ? 1
                                                                    : -1,
        .lock_off = defaults->lock_off || arg_word(args, "locking", locking, 0) == 2,
    };
    return true;
}

/* ---- protocols ---- */

static bool read_file(const json_t *args, struct added_node *node,
                      struct control_error *error)
{
    const char *name = arg_text(args, "filename");

    /* The server's own folder is no user's. */
    if (name[0] != '/') {
        control_fail(error, CLASS_GENERIC,
                     "filename: '%.200s' must be the absolute path of a file", name);
        return false;
    }
    node->target = strdup(name);
    if (!node->target)
        control_fail(error, CLASS_GENERIC, "out of memory");
    return node->target;
}

static bool read_server(const json_t *server, struct nbd_uri *uri,
                        struct control_error *error)
{
    bool is_unix = arg_word(server, "type", servers, 0) == 0;
    const char *path = arg_text(server, "path"), *host = arg_text(server, "host");
    const char *port = arg_text(server, "port");

    if (is_unix ? !path || host || port : path || !host || !port) {
        control_fail(error, CLASS_GENERIC, "server: type '%s' takes %s",
                     is_unix ? "unix" : "inet", is_unix ? "path" : "host and port");
        return false;
    }
    if (port && (!*port || strlen(port) >= sizeof uri->port ||
                 port[strspn(port, "0123456789")] != '\0')) {
        control_fail(error, CLASS_GENERIC,
                     "server: port '%.20s' must be a number from 1 to 65535", port);
        return false;
    }
    uri->socket = is_unix ? strdup(path) : NULL;
    uri->host = is_unix ? NULL : strdup(host);
    snprintf(uri->port, sizeof uri->port, "%s", port ? port : "");
    return true;
}

/* Printed and parsed again, so that one place judges what it may be. */
static bool read_nbd(const json_t *args, struct added_node *node,
                     struct control_error *error)
{
    const json_t *server = json_object_get(args, "server");
    const char *name = arg_text(args, "export");
    CLEANUP_NBD_URI struct nbd_uri uri = {0}, parsed = {0};

    if (!control_args_fit("server", server_args, server, error) ||
        !read_server(server, &uri, error))
        return false;
    uri.export_name = strdup(name ? name : "");
    CLEANUP_FREE char *text =
        uri.export_name && (uri.socket || uri.host) ? nbd_uri_print(&uri) : NULL;
    if (!text) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    if (nbd_uri_parse(text, NBD_URI_USER, &parsed, &error->diag)) {
        control_fail_diag(error, CLASS_GENERIC);
        return false;
    }
    node->target = TAKE(&text);
    return true;
}

/* ---- children ---- */

static struct added_node *read_node(struct control_context *ctx, const json_t *args,
                                    unsigned depth, struct control_error *error);

/* A node by its name, or one that is described there; held by the caller. */
static struct added_node *read_child(struct control_context *ctx, const char *what,
                                     const json_t *value, unsigned depth,
                                     struct control_error *error)
{
    const char *name = json_string_value(value);

    if (json_is_object(value))
        return read_node(ctx, value, depth + 1, error);
    if (!name) {
        control_fail(error, CLASS_GENERIC,
                     "Invalid parameter '%s', expected: a node's name or an object", what);
        return NULL;
    }
    struct added_node *child = node_table_find(&ctx->nodes, name);
    if (!child)
        control_fail(error, CLASS_GENERIC, "Cannot find device='' nor node-name='%.200s'",
                     name);
    return child;
}

static bool read_format(struct control_context *ctx, const json_t *args, unsigned depth,
                        struct added_node *node, struct control_error *error)
{
    const json_t *backing = json_object_get(args, "backing");

    node->file = read_child(ctx, "file", json_object_get(args, "file"), depth, error);
    if (!node->file)
        return false;
    if (node->file->file) {
        control_fail(error, CLASS_GENERIC,
                     "file: a format over a format: it has to be a file or an NBD export");
        return false;
    }
    node->as_image_says = !backing && strcmp(node->driver, "raw") != 0;
    if (!backing || json_is_null(backing))
        return true;
    node->below = read_child(ctx, "backing", backing, depth, error);
    return node->below;
}

/* Its name, where it is given or has to be. */
static bool read_name(struct control_context *ctx, const json_t *args, unsigned depth,
                      struct added_node *node, struct control_error *error)
{
    const char *name = arg_text(args, "node-name");

    if (!name) {
        if (depth == 0)
            control_fail(error, CLASS_GENERIC,
                         "'node-name' must be specified for the root node");
        return depth > 0;
    }
    if (control_name_is_taken(ctx, name)) {
        control_fail(error, CLASS_GENERIC, "Duplicate nodes with node-name='%.200s'", name);
        return false;
    }
    node->name = node_table_give_name(&ctx->nodes, name, &error->diag);
    if (!node->name)
        control_fail_diag(error, CLASS_GENERIC);
    return node->name;
}

static bool fill_node(struct control_context *ctx, const json_t *args, unsigned depth,
                      struct added_node *node, struct control_error *error)
{
    const char *name = arg_text(args, "driver");
    const struct node_driver *driver = NULL;

    if (!name)
        control_fail(error, CLASS_GENERIC, "Parameter 'driver' is missing");
    else if (depth > MAX_DEPTH)
        control_fail(error, CLASS_GENERIC, "Nodes are nested too deeply");
    else
        driver = find_node_driver(name, error);
    if (!driver || !control_args_fit(driver->name, driver->args, args, error))
        return false;
    node->driver = driver->args == file_args ? "file" : driver->name;
    if (!read_options(ctx, args, node, error) || !read_name(ctx, args, depth, node, error))
        return false;
    if (driver->is_format)
        return read_format(ctx, args, depth, node, error);
    return driver->args == nbd_args ? read_nbd(args, node, error)
                                    : read_file(args, node, error);
}

/* With one holder: the caller. */
static struct added_node *read_node(struct control_context *ctx, const json_t *args,
                                    unsigned depth, struct control_error *error)
{
    struct added_node *node = calloc(1, sizeof *node);

    if (!node) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return NULL;
    }
    atomic_init(&node->holders, 1);
    if (fill_node(ctx, args, depth, node, error))
        return node;
    added_node_put(node);
    return NULL;
}

/* ---- the commands ---- */

bool control_name_is_taken(struct control_context *ctx, const char *name)
{
    struct served_export *exp = export_table_find_node(ctx->exports, name);

    export_put(exp);
    return exp;
}

/* Opens it once, as it will be. */
static int try_node(struct control_context *ctx, struct added_node *node, struct diag *diag)
{
    const struct node_opening how = {
        .ctx = &ctx->trial, .references = ctx->config->references, .give_up = ctx->give_up};
    CLEANUP_IMAGE_INFO struct image_info info = {0};
    struct node *opened;

    int err = added_node_open(node, &how, &opened, diag);
    if (err)
        return err;
    if (image_info_read(opened, IMAGE_INFO_OPENED, &info) == 0)
        node->image = image_info_json(&info);
    return node_close(opened);
}

static json_t *blockdev_add(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    CLEANUP_ADDED_NODE struct added_node *node = read_node(ctx, args, 0, error);

    if (!node)
        return NULL;
    if (try_node(ctx, node, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    node_table_add(&ctx->nodes, TAKE(&node));
    return json_object();
}

static json_t *blockdev_del(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    const char *name = arg_text(args, "node-name");

    if (control_name_is_taken(ctx, name))
        return control_fail(error, CLASS_GENERIC, "Node %s is in use", name);
    if (node_table_remove(&ctx->nodes, name, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    return json_object();
}

/* ---- the table ---- */

/* Of all drivers together; each driver's own table says which are its. */
static const struct control_arg add_args[] = {
    COMMON_ARGS,
    {"filename", ARG_STRING, false, NULL},
    {"locking", ARG_WORD, false, locking},
    {"aio", ARG_WORD, false, aio},
    {"server", ARG_OBJECT, false, NULL},
    {"export", ARG_STRING, false, NULL},
    {"reconnect-delay", ARG_SIZE, false, NULL},
    {"open-timeout", ARG_SIZE, false, NULL},
    {"file", ARG_ANY, false, NULL},
    {"backing", ARG_ANY, false, NULL},
    {"lazy-refcounts", ARG_BOOL, false, NULL},
    {"pass-discard-request", ARG_BOOL, false, NULL},
    {"pass-discard-snapshot", ARG_BOOL, false, NULL},
    {"pass-discard-other", ARG_BOOL, false, NULL},
    {"cache-size", ARG_SIZE, false, NULL},
    {"l2-cache-size", ARG_SIZE, false, NULL},
    {"refcount-cache-size", ARG_SIZE, false, NULL},
    {"cache-clean-interval", ARG_SIZE, false, NULL},
    {0},
};

static const struct control_arg del_args[] = {{"node-name", ARG_STRING, true, NULL}, {0}};

const struct control_command control_node_commands[] = {
    {"blockdev-add", add_args, blockdev_add},
    {"blockdev-del", del_args, blockdev_del},
    {0},
};
