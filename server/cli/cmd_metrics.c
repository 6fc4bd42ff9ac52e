/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg metrics`: what a server does, in the text of OpenMetrics. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "base/compiler.h"
#include "cli.h"
#include "qmp_client.h"
#include "stats_query.h"

enum { OPT_CONTROL = CLI_LONG_ONLY };

static const struct cli_option options[] = {
    {OPT_CONTROL, "control", "PATH", "the server's control socket; must be given"},
    {0},
};

struct metrics_args {
    const char *control;
};

/* ---- the text ---- */

/* In quotes, as OpenMetrics wants it: names of exports are anybody's. */
static void print_quoted(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '\n') {
            fputs("\\n", stdout);
            continue;
        }
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar(*text);
    }
    putchar('"');
}

static void print_family(const char *name, const char *type, const char *help)
{
    printf("# TYPE qimg_%s %s\n# HELP qimg_%s %s\n", name, type, name, help);
}

/* qimg_NAME{export="...",op="..."}, without a value. */
static void print_sample(const char *name, const json_t *disk, const char *op)
{
    printf("qimg_%s{export=", name);
    print_quoted(stats_name(disk));
    if (op)
        printf(",op=\"%s\"", op);
    putchar('}');
}

/* One counter of each operation of each disk. */
static void print_op_counter(const json_t *disks, const char *name, const char *help,
                             const char *pattern)
{
    char sample[64];
    size_t i;
    json_t *disk;

    print_family(name, "counter", help);
    snprintf(sample, sizeof sample, "%s_total", name);
    json_array_foreach (disks, i, disk)
        for (unsigned op = 0; op < STATS_OPS; op++) {
            print_sample(sample, disk, stats_ops[op].word);
            printf(" %" PRIu64 "\n", stats_of_op(disk, &stats_ops[op], pattern));
        }
}

/* The bins of one operation, each with those before, and their sum. */
static void print_histogram(const json_t *disk, const struct stats_op *op)
{
    const json_t *stats = json_object_get(disk, "stats");
    const json_t *histogram = json_object_get(stats, op->timing);
    const json_t *ends = json_object_get(histogram, "boundaries");
    const json_t *bins = json_object_get(histogram, "bins");
    json_int_t sum = 0;

    for (size_t i = 0; i < json_array_size(bins); i++) {
        sum += json_integer_value(json_array_get(bins, i));
        printf("qimg_operation_seconds_bucket{export=");
        print_quoted(stats_name(disk));
        printf(",op=\"%s\",le=", op->word);
        if (i < json_array_size(ends))
            printf("\"%.9g\"", (double)json_integer_value(json_array_get(ends, i)) / 1e9);
        else
            printf("\"+Inf\"");
        printf("} %" PRId64 "\n", (int64_t)sum);
    }
    print_sample("operation_seconds_count", disk, op->word);
    printf(" %" PRId64 "\n", (int64_t)sum);
    print_sample("operation_seconds_sum", disk, op->word);
    printf(" %.9f\n", (double)stats_of_op(disk, op, "%s_total_time_ns") / 1e9);
}

static void print_histograms(const json_t *disks)
{
    size_t i;
    json_t *disk;

    print_family("operation_seconds", "histogram",
                 "How long operations took; one in sixteen is timed.");
    json_array_foreach (disks, i, disk)
        for (unsigned op = 0; op < STATS_OPS; op++)
            if (stats_ops[op].timing)
                print_histogram(disk, &stats_ops[op]);
}

static const struct {
    const char *member, *name, *help;
    bool counts; /* else it goes up and down */
} work[] = {
    {"in-flight", "in_flight_operations", "Clients' operations under way.", false},
    {"table-loads", "table_loads", "Pages of tables read, that weren't cached.", true},
    {"commits", "commits", "Commits of tables and data.", true},
    {"shared-commits", "shared_commits", "Flushes that another's commit was good for.",
     true},
    {"dirty-bytes", "dirty_table_bytes", "Bytes of tables to be written.", false},
    {"allocated", "allocated_bytes", "Bytes that the file takes.", false},
};

static void print_work(const json_t *disks)
{
    for (size_t w = 0; w < ARRAY_LEN(work); w++) {
        char sample[64];
        size_t i;
        json_t *disk;
        print_family(work[w].name, work[w].counts ? "counter" : "gauge", work[w].help);
        snprintf(sample, sizeof sample, "%s%s", work[w].name,
                 work[w].counts ? "_total" : "");
        json_array_foreach (disks, i, disk) {
            print_sample(sample, disk, NULL);
            printf(" %" PRIu64 "\n", stats_of_work(disk, work[w].member));
        }
    }
}

static void print_job_gauge(const json_t *jobs, const char *name, const char *member,
                            const char *help)
{
    size_t i;
    json_t *job;

    print_family(name, "gauge", help);
    json_array_foreach (jobs, i, job) {
        const char *id = json_string_value(json_object_get(job, "device"));
        const char *type = json_string_value(json_object_get(job, "type"));
        printf("qimg_%s{job=", name);
        print_quoted(id ? id : "");
        printf(",type=");
        print_quoted(type ? type : "");
        printf("} %" PRId64 "\n",
               (int64_t)json_integer_value(json_object_get(job, member)));
    }
}

static void print_all(const json_t *disks, const json_t *jobs)
{
    print_op_counter(disks, "operations", "Operations of clients.", "%s_operations");
    print_op_counter(disks, "bytes", "Bytes of clients' operations.", "%s_bytes");
    print_op_counter(disks, "failed_operations", "Operations of clients that failed.",
                     "failed_%s_operations");
    print_histograms(disks);
    print_work(disks);
    print_job_gauge(jobs, "job_done_bytes", "offset", "What a job has done.");
    print_job_gauge(jobs, "job_total_bytes", "len", "What it has to do, as known so far.");
    puts("# EOF");
}

/* ---- the command ---- */

static int take_option(void *opaque, int option)
{
    struct metrics_args *args = opaque;

    if (option == OPT_CONTROL)
        args->control = optarg;
    return CLI_OK;
}

static int print_metrics(struct qmp *qmp)
{
    json_t *disks = NULL, *jobs = NULL;

    int code = qmp_command(qmp, "query-blockstats", NULL, &disks);
    if (code == CLI_OK)
        code = qmp_command(qmp, "query-block-jobs", NULL, &jobs);
    if (code == CLI_OK)
        print_all(disks, jobs);
    json_decref(disks);
    json_decref(jobs);
    return code;
}

static int run_metrics(const struct cli_command *self, int argc, char **argv)
{
    struct metrics_args args = {0};
    struct qmp qmp;

    int code = cli_take_options(self, argc, argv, take_option, &args);
    if (code != CLI_GO_ON)
        return code;
    if (optind < argc)
        return cli_usage_error("unexpected argument '%s'", argv[optind]);
    if (!args.control)
        return cli_usage_error("--control=PATH is needed");
    code = qmp_open(&qmp, args.control);
    if (code != CLI_OK)
        return code;
    code = print_metrics(&qmp);
    qmp_close(&qmp);
    return cli_finish(code);
}

const struct cli_command metrics_command = {
    .name = "metrics",
    .operands = "",
    .summary = "print what a server does, as OpenMetrics text",
    .options = options,
    .run = run_metrics,
};
