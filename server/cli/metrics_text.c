/* SPDX-License-Identifier: BSD-3-Clause */
/* The metric families and their samples. */
#include "metrics_text.h"

#include <inttypes.h>
#include <stdbool.h>

#include "base/compiler.h"
#include "stats_query.h"

/* Quotes a label's value as OpenMetrics requires; export names can be anything. */
static void print_quoted(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '\n') {
            fputs("\\n", out);
            continue;
        }
        if (*text == '"' || *text == '\\')
            fputc('\\', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void print_family(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# TYPE qimg_%s %s\n# HELP qimg_%s %s\n", name, type, name, help);
}

/* Prints qimg_NAME{export="...",op="..."}, without a value. */
static void print_sample(FILE *out, const char *name, const json_t *disk, const char *op)
{
    fprintf(out, "qimg_%s{export=", name);
    print_quoted(out, stats_name(disk));
    if (op)
        fprintf(out, ",op=\"%s\"", op);
    fputc('}', out);
}

/* Prints a counter for each operation of each disk. */
static void print_op_counter(FILE *out, const json_t *disks, const char *name,
                             const char *help, const char *pattern)
{
    char sample[64];
    size_t i;
    json_t *disk;

    print_family(out, name, "counter", help);
    snprintf(sample, sizeof sample, "%s_total", name);
    json_array_foreach (disks, i, disk)
        for (unsigned op = 0; op < STATS_OPS; op++) {
            print_sample(out, sample, disk, stats_ops[op].word);
            fprintf(out, " %" PRIu64 "\n", stats_of_op(disk, &stats_ops[op], pattern));
        }
}

/* Prints the histogram of one operation, whose buckets are cumulative, its count and its
 * sum. */
static void print_histogram(FILE *out, const json_t *disk, const struct stats_op *op)
{
    const json_t *stats = json_object_get(disk, "stats");
    const json_t *histogram = json_object_get(stats, op->timing);
    const json_t *ends = json_object_get(histogram, "boundaries");
    const json_t *bins = json_object_get(histogram, "bins");
    json_int_t sum = 0;

    for (size_t i = 0; i < json_array_size(bins); i++) {
        sum += json_integer_value(json_array_get(bins, i));
        fprintf(out, "qimg_operation_seconds_bucket{export=");
        print_quoted(out, stats_name(disk));
        fprintf(out, ",op=\"%s\",le=", op->word);
        if (i < json_array_size(ends))
            fprintf(out, "\"%.9g\"",
                    (double)json_integer_value(json_array_get(ends, i)) / 1e9);
        else
            fprintf(out, "\"+Inf\"");
        fprintf(out, "} %" PRId64 "\n", (int64_t)sum);
    }
    print_sample(out, "operation_seconds_count", disk, op->word);
    fprintf(out, " %" PRId64 "\n", (int64_t)sum);
    print_sample(out, "operation_seconds_sum", disk, op->word);
    fprintf(out, " %.9f\n", (double)stats_of_op(disk, op, "%s_total_time_ns") / 1e9);
}

static void print_histograms(FILE *out, const json_t *disks)
{
    size_t i;
    json_t *disk;

    print_family(out, "operation_seconds", "histogram",
                 "How long operations took; one in sixteen is timed.");
    json_array_foreach (disks, i, disk)
        for (unsigned op = 0; op < STATS_OPS; op++)
            if (stats_ops[op].timing)
                print_histogram(out, disk, &stats_ops[op]);
}

static const struct {
    const char *member, *name, *help;
    bool counts; /* a counter; else a gauge */
} work[] = {
    {"in-flight", "in_flight_operations", "Clients' operations under way.", false},
    {"table-loads", "table_loads", "Pages of tables read, that weren't cached.", true},
    {"commits", "commits", "Commits of tables and data.", true},
    {"shared-commits", "shared_commits", "Flushes that another's commit was good for.",
     true},
    {"dirty-bytes", "dirty_table_bytes", "Bytes of tables to be written.", false},
    {"allocated", "allocated_bytes", "Bytes that the file takes.", false},
};

static void print_work(FILE *out, const json_t *disks)
{
    for (size_t w = 0; w < ARRAY_LEN(work); w++) {
        char sample[64];
        size_t i;
        json_t *disk;
        print_family(out, work[w].name, work[w].counts ? "counter" : "gauge", work[w].help);
        snprintf(sample, sizeof sample, "%s%s", work[w].name,
                 work[w].counts ? "_total" : "");
        json_array_foreach (disks, i, disk) {
            print_sample(out, sample, disk, NULL);
            fprintf(out, " %" PRIu64 "\n", stats_of_work(disk, work[w].member));
        }
    }
}

static void print_job_gauge(FILE *out, const json_t *jobs, const char *name,
                            const char *member, const char *help)
{
    size_t i;
    json_t *job;

    print_family(out, name, "gauge", help);
    json_array_foreach (jobs, i, job) {
        const char *id = json_string_value(json_object_get(job, "device"));
        const char *type = json_string_value(json_object_get(job, "type"));
        fprintf(out, "qimg_%s{job=", name);
        print_quoted(out, id ? id : "");
        fprintf(out, ",type=");
        print_quoted(out, type ? type : "");
        fprintf(out, "} %" PRId64 "\n",
                (int64_t)json_integer_value(json_object_get(job, member)));
    }
}

void metrics_print(FILE *out, const json_t *disks, const json_t *jobs)
{
    print_op_counter(out, disks, "operations", "Operations of clients.", "%s_operations");
    print_op_counter(out, disks, "bytes", "Bytes of clients' operations.", "%s_bytes");
    print_op_counter(out, disks, "failed_operations", "Operations of clients that failed.",
                     "failed_%s_operations");
    print_histograms(out, disks);
    print_work(out, disks);
    print_job_gauge(out, jobs, "job_done_bytes", "offset", "What a job has done.");
    print_job_gauge(out, jobs, "job_total_bytes", "len",
                    "What it has to do, as known so far.");
    fputs("# EOF\n", out);
}
