/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-add and blockdev-del.  QMP's description of a node is checked against a type for each
 * driver, and becomes an entry of the table of nodes.  Threads: the lane's. */
#include "control_nodes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/image_info.h"
#include "common/image_info_json.h"
#include "control_chain.h"
#include "control_cmds.h"
#include "control_throttle.h"
#include "export_table.h"
#include "node_table.h"
#include "plugin_config.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

/* Limit of nested descriptions, deeper than any useful one. */
#define MAX_DEPTH 16

/* ---- tables ---- */

const char *const control_discards[] = {"ignore", "unmap", NULL};
const char *const control_detects[] = {
    [DETECT_OFF] = "off", [DETECT_ON] = "on", [DETECT_UNMAP] = "unmap", NULL};
static const char *const locking[] = {"auto", "on", "off", NULL};
static const char *const aio[] = {"threads", "native", "io_uring", NULL};

static const struct control_arg cache_args[] = {
    {"direct", BOOL, false}, {"no-flush", BOOL, false}, {0}};

/* Options of every driver.  Some have no effect on a node here; they are accepted for the sake of
 * QEMU's tools. */
#define COMMON_ARGS                                                       \
    {"driver", TAG, true}, {"node-name", STRING, false},                  \
        {"discard", WORDS(control_discards), false},                      \
        {"detect-zeroes", WORDS(control_detects), false},                 \
        {"cache", OBJECT(cache_args), false}, {"read-only", BOOL, false}, \
        {"auto-read-only", BOOL, false},                                  \
    {                                                                     \
        "force-share", BOOL, false                                        \
    }

static const struct control_arg common_args[] = {COMMON_ARGS, {0}};
static const struct control_arg reopen_args[] = {
    COMMON_ARGS, {"throttling", &control_throttling, false}, {0}};

static const struct control_arg file_args[] = {
    {"filename", STRING, true},
    {"locking", WORDS(locking), false},
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

/* A child: a node's name, or its description. */
static const struct control_type *const children[] = {STRING, &control_node_options, NULL};
static const struct control_type *const children_or_none[] = {STRING, &control_node_options,
                                                              &control_null, NULL};
static const struct control_type one_child = {.kind = TYPE_ALTERNATE, .choices = children},
                                 child_or_none = {.kind = TYPE_ALTERNATE,
                                                  .choices = children_or_none};

static const struct control_arg filter_args[] = {{"file", &one_child, true}, {0}};

static const struct control_arg raw_args[] = {{"file", &one_child, true}, {0}};

static const struct control_arg backed_args[] = {
    {"file", &one_child, true}, {"backing", &child_or_none, false}, {0}};

static const struct control_arg qcow2_args[] = {
    {"file", &one_child, true},
    {"backing", &child_or_none, false},
    {"lazy-refcounts", BOOL, false},
    {"pass-discard-request", BOOL, false},
    {"pass-discard-snapshot", BOOL, false},
    {"pass-discard-other", BOOL, false},
    {"cache-size", SIZE, false},
    {"l2-cache-size", SIZE, false},
    {"refcount-cache-size", SIZE, false},
    {"cache-clean-interval", SIZE, false},
    {0},
};

/* The context in which a description is read. */
struct reading {
    struct control_context *ctx;
    unsigned depth; /* how deep the description is nested */
    struct control_error *error;
};

struct node_driver {
    struct control_variant variant;
    const char *name; /* the node's `driver` */
    bool (*read)(const struct reading *how, const json_t *args, struct added_node *node);
};

/* ---- options of every driver ---- */

static const struct cache_mode *find_cache(bool direct, bool no_flush,
                                           struct control_error *error)
{
    const struct cache_mode *mode = cache_mode_of(direct, no_flush, false);

    if (!mode)
        control_fail(error, CLASS_GENERIC,
                     "cache: no-flush doesn't go with direct: there is no such mode");
    return mode;
}

static bool read_options(const struct reading *how, const json_t *args,
                         struct added_node *node)
{
    const json_t *cache = json_object_get(args, "cache");
    const struct node_options *defaults = &how->ctx->config->node;

    node->read_only = arg_bool(args, "read-only", false);
    node->auto_read_only = arg_bool(args, "auto-read-only", false);
    node->discard_is_said = arg_is_given(args, "discard");
    node->options = (struct node_options){
        .cache = find_cache(arg_bool(cache, "direct", false),
                            arg_bool(cache, "no-flush", false), how->error),
        .discard_ignore = arg_word(args, "discard", control_discards, 0) == 0,
        .detect_zeroes = (enum detect_zeroes)arg_word(args, "detect-zeroes",
                                                      control_detects, DETECT_OFF),
        .need_check_delay_ns = defaults->need_check_delay_ns,
        .lazy_refcounts = !arg_is_given(args, "lazy-refcounts")     ? 0
                          : arg_bool(args, "lazy-refcounts", false) ? 1
                                                                    : -1,
        .lock_off = defaults->lock_off || arg_word(args, "locking", locking, 0) == 2,
    };
    return node->options.cache;
}

/* A format node and its file node are opened as one, so each option holds if either of them has
 * it. */
static bool join_options(struct added_node *node, struct control_error *error)
{
    struct node_options *own = &node->options;
    const struct node_options *file = &node->file->options;

    if (own->detect_zeroes == DETECT_OFF)
        own->detect_zeroes = file->detect_zeroes;
    own->lock_off |= file->lock_off;
    own->discard_ignore |= node->file->discard_is_said && file->discard_ignore;
    own->cache = find_cache(own->cache->direct || file->cache->direct,
                            own->cache->no_flush || file->cache->no_flush, error);
    return own->cache;
}

/* ---- protocols ---- */

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

/* ---- children ---- */

static struct added_node *read_node(const struct reading *how, const json_t *args);
static const struct node_driver *find_driver(const char *name);

/* The caller holds the result. */
static struct added_node *find_child(const struct reading *how, const json_t *value)
{
    const struct reading below = {how->ctx, how->depth + 1, how->error};
    const char *name = json_string_value(value);
    struct added_node *child =
        name ? node_table_find(&how->ctx->nodes, name) : read_node(&below, value);

    if (name && !child)
        control_fail(how->error, CLASS_GENERIC,
                     "Cannot find device='' nor node-name='%.200s'", name);
    return child;
}

/* As find_child; the child also counts the caller's node as its parent. */
static struct added_node *read_child(const struct reading *how, const json_t *value)
{
    struct added_node *child = find_child(how, value);

    if (child)
        added_node_add_parent(child);
    return child;
}

/* Is it the name of the disk's top node?  (The disk's own name can belong to a lower layer.) */
static bool is_top(struct served_export *exp, const char *name)
{
    CHAIN_USE(chain, exp);
    const struct node *top = chain.use.node;

    return strcmp(control_name_node(exp, top, top).text, name) == 0;
}

/* The node name of the disk whose top node has that name; NULL: none, or, with *failed and the
 * error set, no memory. */
static char *find_disk(const struct reading *how, const char *name, bool *failed)
{
    CLEANUP_EXPORT struct served_export *exp =
        name ? control_look_for_disk(how->ctx, name) : NULL;
    bool found = exp && is_top(exp, name);
    char *copy = found ? strdup(exp->node_name) : NULL;

    *failed = found && !copy;
    if (*failed)
        control_fail(how->error, CLASS_GENERIC, "out of memory");
    return copy;
}

/* A read-only node, as which a layer of a disk is described; held by the caller.  NULL with the
 * error set. */
static struct added_node *new_layer(const struct reading *how, const char *driver)
{
    json_t *args = json_pack("{s:b}", "read-only", 1);
    struct added_node *node = calloc(1, sizeof *node);

    if (node && args) {
        atomic_init(&node->holders, 1);
        node->driver = driver;
        (void)read_options(how, args, node); /* can't fail: the cache mode is the default */
    } else {
        control_fail(how->error, CLASS_GENERIC, "out of memory");
        free(TAKE(&node));
    }
    json_decref(args);
    return node;
}

/* Describes the layer's file as the node's child. */
static bool copy_file(const struct reading *how, const struct node *layer,
                      struct added_node *node)
{
    node->file = new_layer(how, node_protocol(layer)->name);
    if (!node->file)
        return false;
    added_node_add_parent(node->file);
    node->file->target = strdup(node_location(layer));
    if (!node->file->target)
        control_fail(how->error, CLASS_GENERIC, "out of memory");
    return node->file->target;
}

static struct added_node *copy_layer(const struct reading *how, const struct node *layer);

/* Describes what lies below the layer in the chain, which may differ from what its image names.
 * If that has a format for which there is no driver here, the image's backing name is followed
 * instead. */
static bool copy_below(const struct reading *how, const struct node *layer,
                       struct added_node *node)
{
    const struct node *below = layer->backing;

    node->as_image_says = below && !find_driver(node_format(below));
    if (!below || node->as_image_says)
        return true;
    node->below = copy_layer(how, below);
    if (node->below)
        added_node_add_parent(node->below);
    return node->below;
}

/* Describes the layer as it is opened now; held by the caller.  NULL with the error set. */
static struct added_node *copy_layer(const struct reading *how, const struct node *layer)
{
    CLEANUP_ADDED_NODE struct added_node *node =
        new_layer(how, find_driver(node_format(layer))->name);

    return node && copy_file(how, layer, node) && copy_below(how, layer, node) ? TAKE(&node)
                                                                               : NULL;
}

/* A description of the layer of that name below the top of a disk; held by the caller.  NULL: no
 * layer has the name, or, with *failed and the error set, describing it failed. */
static struct added_node *find_layer(const struct reading *how, const char *name,
                                     bool *failed)
{
    struct control_error ignored;
    CLEANUP_EXPORT struct served_export *exp = control_find_layer(how->ctx, name, &ignored);

    if (!exp)
        return NULL;
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node;
    const struct node *layer = control_find_in_chain(exp, top, name);
    if (!layer || layer == top || !find_driver(node_format(layer)))
        return NULL;
    struct added_node *node = copy_layer(how, layer);
    *failed = !node;
    return node;
}

/* A backing node by name can also be a layer of a disk that blockdev-add hasn't added: then it is
 * described now. */
static struct added_node *read_layer(const struct reading *how, const json_t *backing)
{
    const char *name = json_string_value(backing);
    struct added_node *known = name ? node_table_find(&how->ctx->nodes, name) : NULL;
    bool failed = false;
    struct added_node *layer = name && !known ? find_layer(how, name, &failed) : NULL;

    added_node_put(known);
    if (!layer)
        return failed ? NULL : read_child(how, backing);
    added_node_add_parent(layer);
    return layer;
}

/* The backing node can also be the top of a served disk.  That goes on being changed, so only a
 * backup of the disk can use this node: its frozen point is the backing node. */
static bool read_backing(const struct reading *how, const json_t *backing,
                         struct added_node *node)
{
    bool failed;

    node->disk = find_disk(how, json_string_value(backing), &failed);
    if (!node->disk && !failed)
        node->below = read_layer(how, backing);
    return node->disk || node->below;
}

static bool read_format(const struct reading *how, const json_t *args,
                        struct added_node *node)
{
    const json_t *backing = json_object_get(args, "backing");

    node->file = read_child(how, json_object_get(args, "file"));
    if (!node->file)
        return false;
    if (node->file->file || node->file->filtered) {
        control_fail(how->error, CLASS_GENERIC,
                     "file: a format over a format: it has to be a file, an NBD export or "
                     "an RBD image");
        return false;
    }
    if (!join_options(node, how->error))
        return false;
    node->as_image_says = !backing && strcmp(node->driver, "raw") != 0;
    return !backing || json_is_null(backing) || read_backing(how, backing, node);
}

/* Proxmox's filter "zeroinit": it has the properties of the node below. */
static bool read_zeroinit(const struct reading *how, const json_t *args,
                          struct added_node *node)
{
    node->filtered = read_child(how, json_object_get(args, "file"));
    if (!node->filtered)
        return false;
    if (node->filtered->filtered) {
        control_fail(how->error, CLASS_GENERIC, "file: a filter over a filter");
        return false;
    }
    node->read_only = node->filtered->read_only;
    node->options = node->filtered->options;
    return true;
}

/* ---- drivers ---- */

static const struct node_driver file_driver = {
    {"file", OBJECT(file_args)}, "file", read_file};
static const struct node_driver device_driver = {
    {"host_device", OBJECT(file_args)}, "file", read_file};
static const struct node_driver nbd_driver = {{"nbd", OBJECT(nbd_args)}, "nbd", read_nbd};
static const struct node_driver rbd_driver = {{"rbd", OBJECT(rbd_args)}, "rbd", read_rbd};
static const struct node_driver raw_driver = {
    {"raw", OBJECT(raw_args)}, "raw", read_format};
static const struct node_driver qcow2_driver = {
    {"qcow2", OBJECT(qcow2_args)}, "qcow2", read_format};
static const struct node_driver qed_driver = {
    {"qed", OBJECT(backed_args)}, "qed", read_format};

static const struct node_driver zeroinit_driver = {
    {"zeroinit", OBJECT(filter_args)}, "zeroinit", read_zeroinit};

static const struct control_variant *const drivers[] = {
    &file_driver.variant, &device_driver.variant,   &nbd_driver.variant,
    &rbd_driver.variant,  &raw_driver.variant,      &qcow2_driver.variant,
    &qed_driver.variant,  &zeroinit_driver.variant, NULL,
};

const struct control_type control_node_reference = {.kind = TYPE_ALTERNATE,
                                                    .choices = children};
const struct control_type control_node_options = {
    .kind = TYPE_OBJECT, .members = common_args, .tag = "driver", .variants = drivers};
const struct control_type control_reopen_options = {
    .kind = TYPE_OBJECT, .members = reopen_args, .tag = "driver", .variants = drivers};

/* NULL: unknown driver, which is impossible for a value that fits control_node_options. */
static const struct node_driver *find_driver(const char *name)
{
    const struct control_variant *const *driver = drivers;

    while (*driver && strcmp((*driver)->name, name) != 0)
        driver++;
    return *driver ? CONTAINER_OF(*driver, const struct node_driver, variant) : NULL;
}

/* Reads the node's name, which is mandatory for the outermost node. */
static bool read_name(const struct reading *how, const json_t *args,
                      struct added_node *node)
{
    struct control_error *error = how->error;
    const char *name = arg_text(args, "node-name");

    if (!name) {
        if (how->depth == 0)
            control_fail(error, CLASS_GENERIC,
                         "'node-name' must be specified for the root node");
        return how->depth > 0;
    }
    if (control_name_is_taken(how->ctx, name)) {
        control_fail(error, CLASS_GENERIC, "Duplicate nodes with node-name='%.200s'", name);
        return false;
    }
    node->name = node_table_give_name(&how->ctx->nodes, name, &error->diag);
    if (!node->name)
        control_fail_diag(error, CLASS_GENERIC);
    return node->name;
}

static bool fill_node(const struct reading *how, const json_t *args,
                      struct added_node *node)
{
    const struct node_driver *driver = find_driver(arg_text(args, "driver"));

    if (how->depth > MAX_DEPTH) {
        control_fail(how->error, CLASS_GENERIC, "Nodes are nested too deeply");
        return false;
    }
    node->driver = driver->name;
    return read_options(how, args, node) && read_name(how, args, node) &&
           driver->read(how, args, node);
}

/* The caller holds the result.  NULL with the error set. */
static struct added_node *read_node(const struct reading *how, const json_t *args)
{
    struct added_node *node = calloc(1, sizeof *node);

    if (!node) {
        control_fail(how->error, CLASS_GENERIC, "out of memory");
        return NULL;
    }
    atomic_init(&node->holders, 1);
    if (fill_node(how, args, node))
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

static bool may_be_overwritten(const struct added_node *node, struct control_error *error)
{
    if (node->file || node->filtered)
        control_fail(error, CLASS_GENERIC,
                     "file: a format over a format: it has to be a file or an RBD image");
    else if (node->read_only)
        control_fail(error, CLASS_GENERIC, "Block node is read-only");
    else if (added_node_check_idle(node, &error->diag))
        control_fail_diag(error, CLASS_GENERIC);
    else
        return true;
    return false;
}

struct added_node *control_take_node(struct control_context *ctx, const json_t *reference,
                                     struct control_error *error)
{
    const struct reading how = {ctx, 0, error};
    const char *name = json_string_value(reference);

    if (name && control_name_is_taken(ctx, name)) {
        control_fail(error, CLASS_GENERIC, "Node '%.200s' is busy: node is in use", name);
        return NULL;
    }
    CLEANUP_ADDED_NODE struct added_node *node = find_child(&how, reference);
    if (!node || !may_be_overwritten(node, error))
        return NULL;
    added_node_add_parent(node);
    return TAKE(&node);
}

/* Opens the node once, to see that it can be, and to describe its image. */
static int try_node(struct control_context *ctx, struct added_node *node, struct diag *diag)
{
    const struct node_opening how = {.ctx = &ctx->trial,
                                     .references = ctx->config->references,
                                     .give_up = ctx->give_up,
                                     .alone = added_node_meant(node)->disk};
    CLEANUP_IMAGE_INFO struct image_info info = {0};
    struct node *opened;

    int err = added_node_open(node, &how, &opened, diag);
    if (err)
        return err;
    if (image_info_read(opened, IMAGE_INFO_OPENED, &info) == 0)
        node->image = image_info_json(&info);
    node->depth_below = node_depth_below(opened);
    return node_close(opened);
}

static json_t *blockdev_add(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    const struct reading how = {ctx, 0, error};
    CLEANUP_ADDED_NODE struct added_node *node = read_node(&how, args);

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

static const struct control_arg del_args[] = {{"node-name", STRING, true}, {0}};

const struct control_command control_node_commands[] = {
    {"blockdev-add", &control_node_options, NULL, blockdev_add},
    {"blockdev-del", OBJECT(del_args), NULL, blockdev_del},
    {0},
};
