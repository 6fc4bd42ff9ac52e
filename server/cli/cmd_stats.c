/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg stats`: a server's statistics as a table. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/plain_text.h"
#include "cli.h"
#include "qmp_client.h"
#include "size.h"
#include "stats_query.h"

/* Seconds between two tables. */
#define PERIOD_S 1

enum { OPT_CONTROL = CLI_LONG_ONLY, OPT_ONCE };

static const struct cli_option options[] = {
    {OPT_CONTROL, "control", "PATH", "the server's control socket; must be given"},
    {OPT_ONCE, "once", NULL, "print one table, of all since the server's start"},
    {0},
};

struct stats_args {
    const char *control;
    bool once;
};

/* ---- the table ---- */

static json_t *find_disk(const json_t *disks, const char *name)
{
    size_t i;
    json_t *disk;

    json_array_foreach (disks, i, disk)
        if (strcmp(stats_name(disk), name) == 0)
            return disk;
    return NULL;
}

/* The increase since `before` (NULL: since the start).  An export that was reopened counts
 * from 0 again. */
static uint64_t count_since(const json_t *disk, const json_t *before,
                            const struct stats_op *op, const char *pattern)
{
    uint64_t now = stats_of_op(disk, op, pattern);
    uint64_t then = before ? stats_of_op(before, op, pattern) : 0;

    return now >= then ? now - then : now;
}

static void print_disk(const json_t *disk, const json_t *before)
{
    CLEANUP_FREE char *name = plain_text_copy(stats_name(disk));
    uint64_t failed = 0;
    char bytes[32];

    printf("%-24s", name ? name : "");
    for (unsigned i = 0; i < 2; i++) {
        size_format(count_since(disk, before, &stats_ops[i], "%s_bytes"), bytes,
                    sizeof bytes);
        printf(" %10" PRIu64 " %10s",
               count_since(disk, before, &stats_ops[i], "%s_operations"), bytes);
    }
    for (unsigned i = 2; i < STATS_OPS; i++)
        printf(" %8" PRIu64, count_since(disk, before, &stats_ops[i], "%s_operations"));
    for (unsigned i = 0; i < STATS_OPS; i++)
        failed += stats_of_op(disk, &stats_ops[i], "failed_%s_operations");
    printf(" %6" PRIu64 " %6" PRIu64 "\n", stats_of_work(disk, "in-flight"), failed);
}

static void print_table(const json_t *disks, const json_t *before)
{
    size_t i;
    json_t *disk;

    printf("%-24s %10s %10s %10s %10s %8s %8s %6s %6s\n", "DISK",
           before ? "READS/s" : "READS", before ? "BYTES/s" : "BYTES",
           before ? "WRITES/s" : "WRITES", before ? "BYTES/s" : "BYTES", "TRIMS", "FLUSHES",
           "ACTIVE", "FAILED");
    json_array_foreach (disks, i, disk)
        print_disk(disk, before ? find_disk(before, stats_name(disk)) : NULL);
}

/* ---- the command ---- */

static int take_option(void *opaque, int option)
{
    struct stats_args *args = opaque;

    if (option == OPT_CONTROL)
        args->control = optarg;
    else
        args->once = true;
    return CLI_OK;
}

/* Until the server ends, or a signal kills the command. */
static int show_for_ever(struct qmp *qmp, json_t *before)
{
    int code = CLI_OK;

    while (code == CLI_OK) {
        json_t *disks = NULL;
        sleep(PERIOD_S);
        code = qmp_command(qmp, "query-blockstats", NULL, &disks);
        if (code != CLI_OK)
            break;
        json_array_clear(qmp->events); /* events aren't used here */
        fputs("\033[H\033[2J", stdout);
        print_table(disks, before);
        code = cli_finish(CLI_OK, CLI_FAILED);
        json_decref(before);
        before = disks;
    }
    json_decref(before);
    return code;
}

static int show_stats(struct qmp *qmp, bool once)
{
    json_t *disks = NULL;

    int code = qmp_command(qmp, "query-blockstats", NULL, &disks);
    if (code != CLI_OK)
        return code;
    print_table(disks, NULL);
    code = cli_finish(CLI_OK, CLI_FAILED);
    if (!once && code == CLI_OK)
        return show_for_ever(qmp, disks);
    json_decref(disks);
    return code;
}

static int run_stats(const struct cli_command *self, int argc, char **argv)
{
    struct stats_args args = {0};
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
    code = show_stats(&qmp, args.once || !isatty(STDOUT_FILENO));
    qmp_close(&qmp);
    return code;
}

const struct cli_command stats_command = {
    .name = "stats",
    .operands = "",
    .summary = "Show what a server does, as a table.",
    .options = options,
    .run = run_stats,
};
