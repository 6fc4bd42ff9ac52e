/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes of a disk that is served: its size, and options that were chosen when it was opened.
 * Threads: the lane's. */
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "control_chain.h"
#include "control_cmds.h"
#include "control_nodes.h"
#include "control_throttle.h"
#include "export_table.h"

/* ---- its size ---- */

#define SECTOR 512u

static json_t *block_resize(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    const char *device = arg_text(args, "device"), *node = arg_text(args, "node-name");
    uint64_t size = arg_size(args, "size", 0);

    if (!device == !node)
        return control_fail(error, CLASS_GENERIC,
                            device ? "'device' and 'node-name' are the same: give one"
                                   : "Parameter 'device' is missing");
    CLEANUP_EXPORT struct served_export *exp = device
                                                   ? control_find_device(ctx, device, error)
                                                   : control_find_node(ctx, node, error);
    if (!exp)
        return NULL;
    if (size % SECTOR != 0)
        return control_fail(error, CLASS_GENERIC,
                            "size: %" PRIu64 " is no multiple of %u bytes", size, SECTOR);
    return export_resize(exp, size, &error->diag) == 0
               ? json_object()
               : control_fail_diag(error, CLASS_GENERIC);
}

/* ---- its options ---- */

/* The disk's node name may also be a lower layer's name; then the layer isn't meant. */
static bool is_on_top(struct served_export *exp, const char *name)
{
    CHAIN_USE(chain, exp);

    return control_find_in_chain(exp, chain.use.node, name) == chain.use.node;
}

/* The export whose top node has the name; NULL with the error set. */
static struct served_export *find_served(struct control_context *ctx, const json_t *options,
                                         struct control_error *error)
{
    const char *name = arg_text(options, "node-name");
    struct served_export *exp;

    if (!name) {
        control_fail(error, CLASS_GENERIC, "node-name not specified");
        return NULL;
    }
    exp = control_find_node(ctx, name, error);
    if (exp && !is_on_top(exp, name)) {
        export_put(exp);
        exp = NULL;
    }
    if (!exp)
        control_fail(error, CLASS_GENERIC,
                     "Failed to find node with node-name='%.200s' that is served", name);
    return exp;
}

/* Options that can't be changed must have their present values. */
static bool is_same_image(const struct node *node, const json_t *options,
                          struct control_error *error)
{
    const json_t *file = json_object_get(options, "file");
    const char *filename = arg_text(file, "filename"),
               *driver = arg_text(options, "driver");

    if (strcmp(driver, node_format(node)) != 0)
        control_fail(error, CLASS_GENERIC, "Cannot change the option 'driver'");
    else if (filename && !node_is_called(node, filename))
        control_fail(error, CLASS_GENERIC, "Cannot change the option 'file'");
    else
        return true;
    return false;
}

static bool is_same_disk(struct served_export *exp, const json_t *options,
                         struct control_error *error)
{
    CHAIN_USE(chain, exp);
    const struct node *node = chain.use.node;

    if (!is_same_image(node, options, error))
        return false;
    if (!arg_bool(options, "read-only", false) || !node->can_write)
        return true;
    control_fail(error, CLASS_GENERIC, "Cannot change the option 'read-only'");
    return false;
}

/* Tools reopen a layer below the top for writing before they have its bitmaps removed.  Here
 * layers are always read-only, and the commands that write to one open it for that themselves.
 * So there is nothing to do, except check the options.  *known: it is a layer. */
static bool judge_layer(struct control_context *ctx, const json_t *options, bool *known,
                        struct control_error *error)
{
    const char *name = arg_text(options, "node-name");
    struct control_error ignored;
    CLEANUP_EXPORT struct served_export *exp =
        name ? control_find_node_of_chain(ctx, name, &ignored) : NULL;

    *known = false;
    if (!exp)
        return true;
    CHAIN_USE(chain, exp);
    const struct node *layer = control_find_in_chain(exp, chain.use.node, name);
    *known = layer && layer != chain.use.node;
    return !*known || is_same_image(layer, options, error);
}

static const struct cache_mode *cache_now(struct served_export *exp)
{
    CHAIN_USE(chain, exp);

    return chain.use.node->options.cache;
}

/* As in QEMU, an option that isn't given gets its default, not its present value. */
static bool read_choices(struct served_export *exp, const json_t *options,
                         struct export_choices *out, struct control_error *error)
{
    const json_t *cache = json_object_get(options, "cache");
    const struct cache_mode *now = cache_now(exp);
    bool no_flush = arg_bool(cache, "no-flush", false);

    *out = (struct export_choices){
        .cache = cache_mode_of(arg_bool(cache, "direct", false), no_flush,
                               now->write_through && !no_flush),
        .discard_ignore = arg_word(options, "discard", control_discards, 0) == 0,
        .detect_zeroes = (enum detect_zeroes)arg_word(options, "detect-zeroes",
                                                      control_detects, DETECT_OFF),
    };
    if (!out->cache)
        control_fail(error, CLASS_GENERIC,
                     "cache: no-flush doesn't go with direct: there is no such mode");
    return out->cache;
}

/* Limits are the disk's, not the node's: if none are given they don't change. */
static bool reopen_one(struct control_context *ctx, const json_t *options,
                       struct control_error *error)
{
    const json_t *throttling = json_object_get(options, "throttling");
    struct export_choices choices;
    struct throttle_choice limits;
    bool is_layer = false;

    if (!throttling && !judge_layer(ctx, options, &is_layer, error))
        return false;
    if (is_layer)
        return true;
    if (throttling && !control_read_throttling(throttling, &limits, error))
        return false;
    CLEANUP_EXPORT struct served_export *exp = find_served(ctx, options, error);
    if (!exp || !is_same_disk(exp, options, error) ||
        !read_choices(exp, options, &choices, error))
        return false;
    if (export_set_choices(exp, &choices, &error->diag)) {
        control_fail_diag(error, CLASS_GENERIC);
        return false;
    }
    atomic_store(&exp->has_choices, true);
    return !throttling || control_set_limits(ctx, exp, &limits, exp->node_name, error);
}

static json_t *blockdev_reopen(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    const json_t *list = json_object_get(args, "options");

    for (size_t i = 0; i < json_array_size(list); i++)
        if (!reopen_one(ctx, json_array_get(list, i), error))
            return NULL;
    return json_object();
}

/* ---- the table ---- */

static const struct control_arg resize_args[] = {
    {"device", STRING, false},
    {"node-name", STRING, false},
    {"size", SIZE, true},
    {0},
};

static const struct control_arg reopen_args[] = {
    {"options", LIST_OF(&control_reopen_options), true}, {0}};

const struct control_command control_disk_commands[] = {
    {"block_resize", OBJECT(resize_args), NULL, block_resize},
    {"blockdev-reopen", OBJECT(reopen_args), NULL, blockdev_reopen},
    {0},
};
