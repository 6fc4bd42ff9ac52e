/* SPDX-License-Identifier: BSD-3-Clause */
/* The description of a node is checked against a type for each driver, and becomes an entry of the
 * table of nodes: the options that all have, children, formats and filters. */
#include "control_node_reading.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "control_throttle.h"
#include "plugin_config.h"

/* Limit of nested descriptions, deeper than any useful one. */
#define MAX_DEPTH 16

/* ---- types ---- */

const char *const control_discards[] = {"ignore", "unmap", NULL};
const char *const control_detects[] = {
    [DETECT_OFF] = "off", [DETECT_ON] = "on", [DETECT_UNMAP] = "unmap", NULL};

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

bool node_read_options(const struct reading *how, const json_t *args,
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
        .lock_off = defaults->lock_off || arg_word(args, "locking", node_locking, 0) == 2,
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

/* ---- children ---- */

struct added_node *node_find_child(const struct reading *how, const json_t *value)
{
    const struct reading below = {how->ctx, how->depth + 1, how->error};
    const char *name = json_string_value(value);
    struct added_node *child =
        name ? node_table_find(&how->ctx->nodes, name) : node_read(&below, value);

    if (name && !child)
        control_fail(how->error, CLASS_GENERIC,
                     "Cannot find device='' nor node-name='%.200s'", name);
    return child;
}

struct added_node *node_read_child(const struct reading *how, const json_t *value)
{
    struct added_node *child = node_find_child(how, value);

    if (child)
        added_node_add_parent(child);
    return child;
}

/* ---- formats and filters ---- */

static bool read_format(const struct reading *how, const json_t *args,
                        struct added_node *node)
{
    const json_t *backing = json_object_get(args, "backing");

    node->file = node_read_child(how, json_object_get(args, "file"));
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
    return !backing || json_is_null(backing) || node_read_backing(how, backing, node);
}

/* Proxmox's filter "zeroinit": it has the properties of the node below. */
static bool read_zeroinit(const struct reading *how, const json_t *args,
                          struct added_node *node)
{
    node->filtered = node_read_child(how, json_object_get(args, "file"));
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

static const struct node_driver raw_driver = {
    {"raw", OBJECT(raw_args)}, "raw", read_format};
static const struct node_driver qcow2_driver = {
    {"qcow2", OBJECT(qcow2_args)}, "qcow2", read_format};
static const struct node_driver qed_driver = {
    {"qed", OBJECT(backed_args)}, "qed", read_format};

static const struct node_driver zeroinit_driver = {
    {"zeroinit", OBJECT(filter_args)}, "zeroinit", read_zeroinit};

static const struct control_variant *const drivers[] = {
    &node_file_driver.variant, &node_device_driver.variant, &node_nbd_driver.variant,
    &node_rbd_driver.variant,  &raw_driver.variant,         &qcow2_driver.variant,
    &qed_driver.variant,       &zeroinit_driver.variant,    NULL,
};

const struct control_type control_node_reference = {.kind = TYPE_ALTERNATE,
                                                    .choices = children};
const struct control_type control_node_options = {
    .kind = TYPE_OBJECT, .members = common_args, .tag = "driver", .variants = drivers};
const struct control_type control_reopen_options = {
    .kind = TYPE_OBJECT, .members = reopen_args, .tag = "driver", .variants = drivers};

const struct node_driver *node_find_driver(const char *name)
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
    const struct node_driver *driver = node_find_driver(arg_text(args, "driver"));

    if (how->depth > MAX_DEPTH) {
        control_fail(how->error, CLASS_GENERIC, "Nodes are nested too deeply");
        return false;
    }
    node->driver = driver->name;
    return node_read_options(how, args, node) && read_name(how, args, node) &&
           driver->read(how, args, node);
}

struct added_node *node_read(const struct reading *how, const json_t *args)
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
