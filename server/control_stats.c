/* SPDX-License-Identifier: BSD-3-Clause */
/* query-blockstats: what clients have done. */
#include <stdio.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "control_chain.h"
#include "control_stats.h"
#include "export_table.h"

static void add_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* QMP has no counters for zero requests: they count as writes. */
static void read_totals(const struct served_export *exp, enum export_op op,
                        struct export_op_totals *out)
{
    struct export_op_totals zero;

    export_stats_read(&exp->stats, op, out);
    if (op != EXPORT_WRITE)
        return;
    export_stats_read(&exp->stats, EXPORT_ZERO, &zero);
    out->done += zero.done;
    out->bytes += zero.bytes;
    out->failed += zero.failed;
    out->total_ns += zero.total_ns;
    for (unsigned i = 0; i < EXPORT_BINS; i++)
        out->bin[i] += zero.bin[i];
}

/* BlockLatencyHistogramInfo. */
static json_t *describe_times(const struct export_op_totals *totals)
{
    json_t *boundaries = json_array(), *bins = json_array();

    for (unsigned i = 0; i < EXPORT_BINS; i++) {
        if (i > 0)
            json_array_append_new(
                boundaries,
                json_integer((json_int_t)((uint64_t)EXPORT_FIRST_BIN_NS << (i - 1))));
        json_array_append_new(bins, json_integer((json_int_t)totals->bin[i]));
    }
    return json_pack("{s:o,s:o}", "boundaries", boundaries, "bins", bins);
}

static void add_named(json_t *stats, const char *op, const char *what, uint64_t value)
{
    char key[64];

    snprintf(key, sizeof key, what, op);
    add_number(stats, key, value);
}

/* Adds the members for one kind of operation. */
static void add_totals(json_t *stats, const char *op, const struct export_op_totals *totals)
{
    add_named(stats, op, "%s_bytes", totals->bytes);
    add_named(stats, op, "%s_operations", totals->done);
    add_named(stats, op, "%s_total_time_ns", totals->total_ns);
    add_named(stats, op, "%s_merged", 0);
    add_named(stats, op, "failed_%s_operations", totals->failed);
    add_named(stats, op, "invalid_%s_operations", 0);
}

static void add_flushes(json_t *stats, const struct export_op_totals *totals)
{
    add_number(stats, "flush_operations", totals->done);
    add_number(stats, "flush_total_time_ns", totals->total_ns);
    add_number(stats, "failed_flush_operations", totals->failed);
    add_number(stats, "invalid_flush_operations", 0);
}

/* BlockDeviceStats.  exp NULL: for a lower layer, which clients don't use directly. */
static json_t *describe_operations(const struct served_export *exp)
{
    static const struct {
        enum export_op op;
        const char *name, *histogram;
    } ops[] = {
        {EXPORT_READ, "rd", "rd_latency_histogram"},
        {EXPORT_WRITE, "wr", "wr_latency_histogram"},
        {EXPORT_TRIM, "unmap", NULL},
        {EXPORT_FLUSH, "flush", "flush_latency_histogram"},
    };
    json_t *stats = json_object();

    for (size_t i = 0; i < ARRAY_LEN(ops); i++) {
        struct export_op_totals totals = {0};
        if (exp)
            read_totals(exp, ops[i].op, &totals);
        if (ops[i].op == EXPORT_FLUSH)
            add_flushes(stats, &totals);
        else
            add_totals(stats, ops[i].name, &totals);
        if (exp && ops[i].histogram)
            json_object_set_new(stats, ops[i].histogram, describe_times(&totals));
    }
    add_totals(stats, "zone_append", &(struct export_op_totals){0});
    add_number(stats, "wr_highest_offset", exp ? export_stats_write_end(&exp->stats) : 0);
    json_object_set_new(stats, "account_invalid", json_false());
    json_object_set_new(stats, "account_failed", json_true());
    json_object_set_new(stats, "timed_stats", json_array());
    return stats;
}

/* Counters that QMP doesn't have. */
static json_t *describe_work(struct served_export *exp, struct node *node)
{
    struct mcache_counters tables;
    uint64_t allocated = 0;
    json_t *work = json_object();

    node_count(node, &tables);
    if (exp)
        /* minus the use for this query */
        add_number(work, "in-flight", gate_count(&exp->gate) - 1);
    add_number(work, "table-loads", tables.loads);
    add_number(work, "commits", tables.commits);
    add_number(work, "shared-commits", tables.shared_commits);
    add_number(work, "dirty-bytes", tables.dirty_bytes);
    if (node_allocated(node, &allocated) == 0)
        add_number(work, "allocated", allocated);
    return work;
}

/* BlockStats of a node of the export's chain, with those of its backing files inside. */
static json_t *describe_node(struct served_export *exp, struct node *top, struct node *node)
{
    struct served_export *used = node == top ? exp : NULL;
    json_t *object = json_object();

    if (used)
        json_object_set_new(object, "device", json_from_text(exp->node_name));
    json_object_set_new(object, "node-name",
                        json_from_text(control_name_node(exp, top, node).text));
    json_object_set_new(object, "stats", describe_operations(used));
    json_object_set_new(object, "x-qimg", describe_work(used, node));
    if (node->backing)
        json_object_set_new(object, "backing", describe_node(exp, top, node->backing));
    return object;
}

static json_t *describe_export(struct served_export *exp)
{
    CHAIN_USE(chain, exp);

    return describe_node(exp, chain.use.node, chain.use.node);
}

static json_t *query_stats(struct control_context *ctx, const json_t *args,
                           struct control_error *error)
{
    json_t *list = json_array();

    (void)args;
    (void)error;
    EXPORT_TABLE_EACH (exp, ctx->exports)
        json_array_append_new(list, describe_export(exp));
    return list;
}

static const struct control_arg stats_args[] = {{"query-nodes", BOOL, false}, {0}};

static const struct control_arg histogram[] = {
    {"boundaries", LIST_OF(SIZE), true}, {"bins", LIST_OF(SIZE), true}, {0}};

/* BlockDeviceStats, as made by add_totals and add_flushes. */
#define TOTALS(op)                                                     \
    {op "_bytes", SIZE, true}, {op "_operations", SIZE, true},         \
        {op "_total_time_ns", SIZE, true}, {op "_merged", SIZE, true}, \
        {"failed_" op "_operations", SIZE, true},                      \
    {                                                                  \
        "invalid_" op "_operations", SIZE, true                        \
    }

static const struct control_arg operations[] = {
    TOTALS("rd"),
    TOTALS("wr"),
    TOTALS("unmap"),
    TOTALS("zone_append"),
    {"flush_operations", SIZE, true},
    {"flush_total_time_ns", SIZE, true},
    {"failed_flush_operations", SIZE, true},
    {"invalid_flush_operations", SIZE, true},
    {"rd_latency_histogram", OBJECT(histogram), false},
    {"wr_latency_histogram", OBJECT(histogram), false},
    {"flush_latency_histogram", OBJECT(histogram), false},
    {"wr_highest_offset", SIZE, true},
    {"account_invalid", BOOL, true},
    {"account_failed", BOOL, true},
    {"timed_stats", LIST_OF(ANY), true}, /* always empty */
    {0},
};

static const struct control_arg work[] = {
    {"in-flight", SIZE, false},
    {"table-loads", SIZE, true},
    {"commits", SIZE, true},
    {"shared-commits", SIZE, true},
    {"dirty-bytes", SIZE, true},
    {"allocated", SIZE, false},
    {0},
};

static const struct control_type node_stats;

static const struct control_arg node_members[] = {
    {"device", STRING, false},           {"node-name", STRING, true},
    {"stats", OBJECT(operations), true}, {"x-qimg", OBJECT(work), true},
    {"backing", &node_stats, false},     {0},
};

static const struct control_type node_stats = {.kind = TYPE_OBJECT,
                                               .members = node_members};

const struct control_command control_stats_commands[] = {
    {"query-blockstats", OBJECT(stats_args), LIST_OF(&node_stats), query_stats},
    {0},
};
