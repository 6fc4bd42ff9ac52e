/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg metrics`: what a server does, in the text of OpenMetrics. */
#include <getopt.h>
#include <stdio.h>

#include <jansson.h>

#include "cli.h"
#include "metrics_text.h"
#include "qmp_client.h"

enum { OPT_CONTROL = CLI_LONG_ONLY };

static const struct cli_option options[] = {
    {OPT_CONTROL, "control", "PATH", "the server's control socket; must be given"},
    {0},
};

struct metrics_args {
    const char *control;
};

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
        metrics_print(stdout, disks, jobs);
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
