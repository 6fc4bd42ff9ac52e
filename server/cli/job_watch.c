/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg job watch`: shows progress until the job's end. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "interrupt.h"
#include "common/json_text.h"
#include "job_watch.h"
#include "size.h"

/* How often the server is asked for the job's state. */
#define BAR_INTERVAL_MS  200
#define LINE_INTERVAL_MS 1000
/* The rate shown is averaged over about the last seconds. */
#define RATE_MEMORY_S 3.0

struct watch {
    struct qmp *qmp;
    const char *id;
    struct job_watching how;
    bool told;   /* the job was told to cancel */
    bool bar;    /* stdout is a terminal, and a bar is shown */
    bool seen;   /* the job was found at least once */
    bool hinted; /* the hint about a ready job was printed */
    unsigned looked_in_vain;
    json_t *concluded; /* state of a job that waits to be dismissed; owned */
    double rate;       /* bytes per second, averaged */
    double last_time;
    json_int_t last_offset;
    char last_line[256];
};

static double now_s(void)
{
    return (double)clock_ns() / 1e9;
}

static json_int_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static double fraction_of(const json_t *job)
{
    json_int_t len = number_of(job, "len"), offset = number_of(job, "offset");

    return len > 0 ? (double)offset / (double)len
                   : json_is_true(json_object_get(job, "ready"));
}

/* "45.2%, 1.2 GiB left" */
static void format_progress(const json_t *job, char *text, size_t size)
{
    char left[32];

    size_format((uint64_t)(number_of(job, "len") - number_of(job, "offset")), left,
                sizeof left);
    /* Rounded down, so that 100% isn't shown too early. */
    snprintf(text, size, "%5.1f%%, %s left", (double)(int)(fraction_of(job) * 1000) / 10,
             left);
}

/* By the server's message; a job's state has no other sign of a cancel. */
static bool was_cancelled(const json_t *job)
{
    return strcmp(text_of(job, "error"), "Operation canceled") == 0;
}

void job_print(const json_t *raw)
{
    json_auto_t *job = json_plain_copy(raw);
    char progress[64];

    format_progress(job, progress, sizeof progress);
    printf("%-16s %-8s %-10s %s", text_of(job, "device"), text_of(job, "type"),
           text_of(job, "status"), progress);
    if (was_cancelled(job))
        printf(", cancelled");
    else if (*text_of(job, "error"))
        printf(", failed: %s", text_of(job, "error"));
}

static void update_rate(struct watch *w, const json_t *job)
{
    double now = now_s(), passed = now - w->last_time;
    json_int_t offset = number_of(job, "offset");

    if (w->last_time > 0 && passed > 0) {
        double rate = (double)(offset - w->last_offset) / passed;
        double weight = passed < RATE_MEMORY_S ? passed / RATE_MEMORY_S : 1;
        w->rate = w->rate > 0 ? w->rate + (rate - w->rate) * weight : rate;
    }
    w->last_time = now;
    w->last_offset = offset;
}

static unsigned terminal_width(void)
{
    struct winsize size;

    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

/* Draws "[=====>    ]  45.2%, 1.2 GiB left, 120 MiB/s, running" over the previous line.  If
 * the terminal is too narrow for a bar, draws only the words, cut off if necessary, so that
 * no line wraps. */
static void draw_bar(const char *words, double fraction)
{
    unsigned width = terminal_width(), taken = (unsigned)strlen(words) + 4;
    if (width < taken + 10) {
        printf("\r%.*s\033[K", (int)width - 1, words);
        fflush(stdout);
        return;
    }
    unsigned inside = MIN(width - taken, 60);
    unsigned filled = (unsigned)(fraction * inside);

    printf("\r[");
    for (unsigned i = 0; i < inside; i++)
        putchar(i < filled ? '=' : i == filled ? '>' : ' ');
    printf("] %s\033[K", words);
    fflush(stdout);
}

static void show_to_people(struct watch *w, const json_t *job)
{
    char progress[64], rate[32], words[256];

    format_progress(job, progress, sizeof progress);
    size_format((uint64_t)w->rate, rate, sizeof rate);
    snprintf(words, sizeof words, "%s, %s/s, %s", progress, rate, text_of(job, "status"));
    if (w->bar) {
        draw_bar(words, fraction_of(job));
        return;
    }
    if (strcmp(words, w->last_line) == 0)
        return;
    strcpy(w->last_line, words);
    printf("%s: %s\n", w->id, words);
    fflush(stdout);
}

/* Printed once: a ready job doesn't end by itself. */
static void give_hint(struct watch *w, const json_t *job)
{
    if (w->hinted || strcmp(text_of(job, "status"), "ready") != 0)
        return;
    w->hinted = true;
    printf(
        "%s%s: ready: 'complete %s' serves the disk from %s, 'cancel %s' leaves it where "
        "it is%s\n",
        w->bar ? "\r\033[K" : "", w->id, w->id,
        strcmp(text_of(job, "type"), "commit") == 0 ? "the base" : "the target", w->id,
        strcmp(text_of(job, "type"), "commit") == 0 ? "" : ", and a copy");
}

static void show_job(struct watch *w, const json_t *job)
{
    update_rate(w, job);
    if (w->how.quiet)
        return;
    if (w->how.output != OUTPUT_JSON) {
        give_hint(w, job);
        show_to_people(w, job);
        return;
    }
    CLEANUP_FREE char *text = json_dumps(job, JSON_COMPACT);
    printf("%s\n", text ? text : "");
    fflush(stdout);
}

static void end_bar(const struct watch *w)
{
    if (w->bar && w->seen)
        putchar('\n');
}

/* Reports the job's end; returns the exit code. */
static int tell_end(const struct watch *w, const json_t *end, bool cancelled)
{
    end_bar(w);
    if (cancelled || was_cancelled(end))
        return cli_error("%s: cancelled", w->id);
    if (*text_of(end, "error"))
        return cli_error("%s: failed: %s", w->id, text_of(end, "error"));
    if (w->how.output != OUTPUT_JSON && !w->how.quiet)
        printf("%s: completed\n", w->id);
    return CLI_OK;
}

/* Asks the server for the job's state and shows it. */
static int look_at_job(struct watch *w)
{
    json_t *jobs, *job, *found = NULL;
    size_t i;
    int code = qmp_command(w->qmp, "query-block-jobs", NULL, &jobs);

    if (code != CLI_OK)
        return code;
    json_array_foreach (jobs, i, job) {
        if (strcmp(text_of(job, "device"), w->id) == 0)
            found = job;
    }
    if (found) {
        w->seen = true;
        show_job(w, found);
        if (strcmp(text_of(found, "status"), "concluded") == 0)
            w->concluded = json_incref(found);
    } else {
        w->looked_in_vain++;
    }
    json_decref(jobs);
    return CLI_OK;
}

static bool is_end(const struct watch *w, const json_t *event, bool *cancelled)
{
    const char *name = text_of(event, "event");

    *cancelled = strcmp(name, "BLOCK_JOB_CANCELLED") == 0;
    return (*cancelled || strcmp(name, "BLOCK_JOB_COMPLETED") == 0) &&
           strcmp(text_of(json_object_get(event, "data"), "device"), w->id) == 0;
}

/* Waits for events for a while.  *ended: the job has ended, with exit code *result. */
static int listen_awhile(struct watch *w, bool *ended, int *result)
{
    double end =
        now_s() +
        (w->bar || w->concluded || w->looked_in_vain ? BAR_INTERVAL_MS : LINE_INTERVAL_MS) /
            1e3;
    json_t *event;
    bool cancelled;

    *ended = false;
    for (double left; !*ended && (left = end - now_s()) > 0;) {
        int code = qmp_event(w->qmp, (int)(left * 1e3) + 1, &event);
        if (code != CLI_OK) {
            end_bar(w);
            return code;
        }
        *ended = event && is_end(w, event, &cancelled);
        if (*ended) {
            const json_t *data = json_object_get(event, "data");
            if (w->how.output == OUTPUT_JSON)
                show_job(w, data);
            *result = tell_end(w, data, cancelled);
        }
        json_decref(event);
    }
    return CLI_OK;
}

/* No end event was seen: the job ended before this connection was opened. */
static int conclude_from_state(const struct watch *w)
{
    const json_t *job = w->concluded;

    if (!job)
        return cli_error(w->seen ? "%s: is gone" : "there is no job '%s'", w->id);
    return tell_end(w, job, false);
}

/* If the command doesn't own the job, it dies here of the signal. */
static int deal_with_interrupt(struct watch *w)
{
    json_t *value = NULL, *refusal = NULL;

    if (!w->how.is_owner) {
        end_bar(w);
        fflush(stdout);
        fprintf(stderr, "%s: goes on; 'cancel %s' would end it\n", w->id, w->id);
        interrupt_die();
    }
    if (w->told)
        return CLI_OK;
    w->told = true;
    /* The job may just have ended; a refusal doesn't matter. */
    int code =
        qmp_try(w->qmp, "block-job-cancel",
                json_pack("{s:s,s:b}", "device", w->id, "force", 1), &value, &refusal);
    json_decref(value);
    json_decref(refusal);
    return code;
}

/* One look at the job.  *ended: the job has ended, with exit code *result. */
static int look_once(struct watch *w, bool *ended, int *result)
{
    int code = look_at_job(w);
    if (code == CLI_OK)
        code = listen_awhile(w, ended, result);
    if (code == CLI_OK && interrupt_came && !*ended)
        code = deal_with_interrupt(w);
    if (code == CLI_OK && !*ended && (w->concluded || w->looked_in_vain)) {
        *ended = true;
        *result = conclude_from_state(w);
    }
    return code;
}

int job_watch(struct qmp *qmp, const char *id, const struct job_watching *how)
{
    struct watch w = {.qmp = qmp, .id = id, .how = *how};
    bool ended = false;
    int code = CLI_OK, result = CLI_FAILED;

    w.bar = how->output == OUTPUT_HUMAN && !how->quiet && isatty(STDOUT_FILENO);
    interrupt_catch();
    while (code == CLI_OK && !ended)
        code = look_once(&w, &ended, &result);
    json_decref(w.concluded);
    return code == CLI_OK ? result : code;
}
