/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages of checks, and the repair before the first write to an image that wasn't closed. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/log.h"
#include "block/check.h"
#include "block/node.h"

/* The interval between log messages about the progress of a repair at open. */
#define LOGGED_EVERY_NS   (5 * 1000000000ull)
#define MAX_MESSAGE_BYTES 512

void check_message(const struct check_options *options, const char *fmt, ...)
{
    char text[MAX_MESSAGE_BYTES];
    va_list ap;

    if (!options->message)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    options->message(options->opaque, text);
}

/* ---- the repair at open ---- */

struct open_repair {
    struct node *node;
    uint64_t logged_ns;
};

static void log_finding(void *opaque, const char *text)
{
    struct open_repair *repair = opaque;

    log_debug("%s: %s", repair->node->filename, text);
}

static void log_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct open_repair *repair = opaque;
    uint64_t now = housekeeper_now(repair->node->ctx->housekeeper);

    if (now - repair->logged_ns < LOGGED_EVERY_NS || total == 0)
        return;
    repair->logged_ns = now;
    log_warning("%s: was not closed cleanly: checking and repairing it: %.0f%%",
                repair->node->filename, 100.0 * (double)done / (double)total);
}

int check_before_writing(struct node *node, struct diag *diag)
{
    struct open_repair repair = {.node = node,
                                 .logged_ns = housekeeper_now(node->ctx->housekeeper)};
    struct check_options options = {
        .repair = REPAIR_ALL,
        .keep_mappings = true,
        .progress = log_progress,
        .message = log_finding,
        .opaque = &repair,
    };
    struct check_result result = {0};

    int err = node->driver->check(node->file, &options, &result, diag);
    if (err)
        return err;
    if (!check_is_safe(&result))
        return diag_set(
            diag, EROFS,
            "%s: was not closed cleanly, and has %" PRIu64 " errors that can't be "
            "repaired without losing data: it can only be read (see qimg check)",
            node->filename, result.corruptions + result.check_errors);
    log_warning("%s: was not closed cleanly: repaired %" PRIu64 " errors and %" PRIu64
                " leaked clusters",
                node->filename, result.corruptions_fixed, result.leaks_fixed);
    return 0;
}
