/* SPDX-License-Identifier: BSD-3-Clause */
/* query-block and query-named-block-nodes: what the disks consist of. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/image_info_json.h"
#include "common/json_text.h"
#include "control_bitmaps.h"
#include "control_chain.h"
#include "control_image_types.h"
#include "control_nodes.h"
#include "control_query.h"
#include "control_throttle.h"
#include "export_table.h"

static void add_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *describe_layer(struct node *node)
{
    CLEANUP_IMAGE_INFO struct image_info info = {0};

    return image_info_read(node, IMAGE_INFO_OPENED, &info) == 0 ? image_info_json(&info)
                                                                : json_object();
}

/* ImageInfo of the node; nested: with those of its backing files inside. */
static json_t *describe_image(struct node *node, bool nested)
{
    json_t *image = describe_layer(node);

    if (nested && node->backing)
        json_object_set_new(image, "backing-image", describe_image(node->backing, true));
    return image;
}

static json_t *describe_cache(const struct cache_mode *mode)
{
    return json_pack("{s:b,s:b,s:b,s:s}", "writeback", !mode->write_through, "direct",
                     mode->direct, "no-flush", mode->no_flush, "mode", mode->name);
}

/* A layer has no limits and no write threshold, but QMP requires these members. */
static void add_absent_features(json_t *device)
{
    static const char *const zero[] = {"bps",     "bps_rd",  "bps_wr",         "iops",
                                       "iops_rd", "iops_wr", "write_threshold"};

    for (size_t i = 0; i < ARRAY_LEN(zero); i++)
        add_number(device, zero[i], 0);
    json_object_set_new(device, "encrypted", json_false());
}

/* BlockDeviceInfo. */
static json_t *describe_node(struct node *node, const char *name, bool nested)
{
    json_t *device = json_object();

    json_object_set_new(device, "node-name", json_from_text(name));
    json_object_set_new(device, "file", json_from_text(node->filename));
    json_object_set_new(device, "drv", json_string(node_format(node)));
    json_object_set_new(device, "ro", json_boolean(!node->can_write));
    if (node->backing)
        json_object_set_new(device, "backing_file",
                            json_from_text(node->backing->filename));
    add_number(device, "backing_file_depth", node_depth_below(node));
    json_object_set_new(device, "detect_zeroes",
                        json_string(control_detects[node->options.detect_zeroes]));
    add_absent_features(device);
    json_object_set_new(device, "image", describe_image(node, nested));
    json_object_set_new(device, "cache", describe_cache(node->options.cache));
    json_t *bitmaps = control_describe_bitmaps(node);
    if (json_array_size(bitmaps) > 0)
        json_object_set(device, "dirty-bitmaps", bitmaps);
    json_decref(bitmaps);
    return device;
}

/* BlockInfo. */
static json_t *describe_export(struct served_export *exp)
{
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node;
    json_t *inserted = describe_node(top, control_name_node(exp, top, top).text, true);

    control_add_limits(exp, inserted);
    return json_pack("{s:o,s:s,s:b,s:b,s:o}", "device", json_from_text(exp->node_name),
                     "type", "unknown", "removable", 0, "locked", 0, "inserted", inserted);
}

static json_t *query_block(struct control_context *ctx, const json_t *args,
                           struct control_error *error)
{
    json_t *list = json_array();

    (void)args;
    (void)error;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        json_array_append_new(list, describe_export(exp));
    return list;
}

static void add_nodes_of(struct served_export *exp, bool nested, json_t *nodes)
{
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node;

    for (struct node *node = top; node; node = node->backing)
        json_array_append_new(
            nodes, describe_node(node, control_name_node(exp, top, node).text, nested));
}

/* A node that isn't open: as it was when it was added. */
static json_t *describe_unused(const struct added_node *node)
{
    json_t *device = json_object();

    json_object_set_new(device, "node-name", json_from_text(node->name->text));
    json_object_set_new(device, "file", json_from_text(added_node_target(node)));
    json_object_set_new(device, "drv", json_string(node->driver));
    json_object_set_new(device, "ro", json_boolean(node->read_only));
    add_number(device, "backing_file_depth", node->depth_below);
    json_object_set_new(device, "detect_zeroes",
                        json_string(control_detects[node->options.detect_zeroes]));
    add_absent_features(device);
    json_object_set(device, "image", node->image);
    json_object_set_new(device, "cache", describe_cache(node->options.cache));
    return device;
}

/* Open nodes are listed with their chains, or belong to a job. */
static void add_unused_nodes(struct control_context *ctx, json_t *nodes)
{
    for (struct added_node *node = node_table_next(&ctx->nodes, NULL); node;
         node = node_table_next(&ctx->nodes, node))
        if (!added_node_is_used(node))
            json_array_append_new(nodes, describe_unused(node));
}

static json_t *query_nodes(struct control_context *ctx, const json_t *args,
                           struct control_error *error)
{
    bool nested = !arg_bool(args, "flat", false);
    json_t *nodes = json_array();

    (void)error;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        add_nodes_of(exp, nested, nodes);
    add_unused_nodes(ctx, nodes);
    return nodes;
}

json_t *control_find_corruption(struct served_export *exp, bool fatal)
{
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node;

    for (struct node *node = top; node; node = node->backing) {
        if (!node_is_corrupt(node, fatal))
            continue;
        json_t *data = json_pack(
            "{s:o,s:o,s:b}", "device", json_from_text(exp->node_name), "node-name",
            json_from_text(control_name_node(exp, top, node).text), "fatal", fatal);
        CLEANUP_FREE char *msg = NULL;
        if (asprintf(&msg, "%s: an entry of its tables can't be right; it must be checked",
                     node->filename) < 0)
            msg = NULL;
        json_object_set_new(data, "msg",
                            json_from_text(msg ? msg : "the image is corrupt"));
        return data;
    }
    return NULL;
}

static const struct control_arg nodes_args[] = {{"flat", BOOL, false}, {0}};

static const struct control_arg cache_info[] = {
    {"writeback", BOOL, true},
    {"direct", BOOL, true},
    {"no-flush", BOOL, true},
    {"mode", STRING, true},
    {0},
};

static const struct control_arg device_info[] = {
    {"node-name", STRING, true},
    {"file", STRING, true},
    {"drv", STRING, true},
    {"ro", BOOL, true},
    {"backing_file", STRING, false},
    {"backing_file_depth", SIZE, true},
    {"detect_zeroes", WORDS(control_detects), true},
    {"bps", SIZE, true},
    {"bps_rd", SIZE, true},
    {"bps_wr", SIZE, true},
    {"iops", SIZE, true},
    {"iops_rd", SIZE, true},
    {"iops_wr", SIZE, true},
    LIMIT_INFO("bps"),
    LIMIT_INFO("bps_rd"),
    LIMIT_INFO("bps_wr"),
    LIMIT_INFO("iops"),
    LIMIT_INFO("iops_rd"),
    LIMIT_INFO("iops_wr"),
    {"iops_size", SIZE, false},
    {"group", STRING, false},
    {"write_threshold", SIZE, true},
    {"encrypted", BOOL, true},
    {"image", &control_image_info, true},
    {"cache", OBJECT(cache_info), true},
    {"dirty-bitmaps", LIST_OF(&control_bitmap_info), false},
    {0},
};

static const struct control_arg block_info[] = {
    {"device", STRING, true},
    {"type", STRING, true},
    {"removable", BOOL, true},
    {"locked", BOOL, true},
    {"inserted", OBJECT(device_info), true},
    {0},
};

const struct control_command control_query_commands[] = {
    {"query-block", NULL, LIST_OF(OBJECT(block_info)), query_block},
    {"query-named-block-nodes", OBJECT(nodes_args), LIST_OF(OBJECT(device_info)),
     query_nodes},
    {0},
};
