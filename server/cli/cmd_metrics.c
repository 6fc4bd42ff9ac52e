/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg metrics`: a server's statistics as OpenMetrics text. */
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

#include "cli.h"
#include "interrupt.h"
#include "listen_address.h"
#include "metrics_http.h"
#include "metrics_text.h"
#include "qmp_client.h"

/* Time for the server's answers to one scrape; Prometheus gives up after 10 s. */
#define ANSWER_MS 5000u

enum { OPT_CONTROL = CLI_LONG_ONLY, OPT_LISTEN };

static const struct cli_option options[] = {
    {OPT_CONTROL, "control", "PATH", "the server's control socket; must be given"},
    {OPT_LISTEN, "listen", "ADDR", "answer GET /metrics there, until a signal comes"},
    {0},
};

struct metrics_args {
    const char *control, *listen;
};

static int take_option(void *opaque, int option)
{
    struct metrics_args *args = opaque;

    if (option == OPT_CONTROL)
        args->control = optarg;
    else
        args->listen = optarg;
    return CLI_OK;
}

static int write_metrics(struct qmp *qmp, FILE *out)
{
    json_t *disks = NULL, *jobs = NULL;

    int code = qmp_command(qmp, "query-blockstats", NULL, &disks);
    if (code == CLI_OK)
        code = qmp_command(qmp, "query-block-jobs", NULL, &jobs);
    if (code == CLI_OK)
        metrics_print(out, disks, jobs);
    json_decref(disks);
    json_decref(jobs);
    return code;
}

/* ---- once ---- */

static int print_metrics(const char *control)
{
    struct qmp qmp;

    int code = qmp_open(&qmp, control);
    if (code != CLI_OK)
        return code;
    code = write_metrics(&qmp, stdout);
    qmp_close(&qmp);
    return cli_finish(code, CLI_FAILED);
}

/* ---- --listen ---- */

/* Connects for each scrape, so that a restarted server is found. */
static int ask_server(void *control, char **text, size_t *length)
{
    struct qmp qmp;

    *text = NULL;
    int code = qmp_open_within(&qmp, control, ANSWER_MS);
    if (code != CLI_OK)
        return code;
    FILE *out = open_memstream(text, length);
    code = out ? write_metrics(&qmp, out) : CLI_FAILED;
    qmp_close(&qmp);
    if (!out || fclose(out) != 0)
        code = cli_error("out of memory");
    if (code != CLI_OK)
        free(*text);
    return code;
}

static int answer_scrapes(const struct metrics_args *args)
{
    struct listening listening;

    int code = listen_at(args->listen, &listening);
    if (code != CLI_OK)
        return code;
    interrupt_catch();
    listening_print(&listening, METRICS_PAGE);
    code = cli_finish(CLI_OK, CLI_FAILED);
    if (code == CLI_OK)
        code =
            metrics_http_serve(listening.fd, ask_server, (void *)(uintptr_t)args->control);
    listening_remove(&listening);
    return code;
}

static int run_metrics(const struct cli_command *self, int argc, char **argv)
{
    struct metrics_args args = {0};

    int code = cli_take_options(self, argc, argv, take_option, &args);
    if (code != CLI_GO_ON)
        return code;
    if (optind < argc)
        return cli_usage_error("unexpected argument '%s'", argv[optind]);
    if (!args.control)
        return cli_usage_error("--control=PATH is needed");
    return args.listen ? answer_scrapes(&args) : print_metrics(args.control);
}

const struct cli_command metrics_command = {
    .name = "metrics",
    .operands = "",
    .summary = "Print what a server does, as OpenMetrics text.",
    .options = options,
    .run = run_metrics,
};
