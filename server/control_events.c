/* SPDX-License-Identifier: BSD-3-Clause */
/* QMP's events. */
#include "control_events.h"

#include "common/json_text.h"
#include "control_cmds.h"
#include "control_jobs.h"

#include <string.h>
#include <time.h>

/* ---- the kinds ---- */

static const char *const operations[] = {"read", "write", NULL};
static const char *const actions[] = {"ignore", "report", "stop", NULL};
static const char *const reasons[] = {"host-qmp-quit", "host-signal", NULL};

static const struct control_arg status_data[] = {
    {"id", STRING, true}, {"status", WORDS(job_state_names), true}, {0}};

#define PROGRESS                                                        \
    {"device", STRING, true}, {"type", WORDS(control_job_types), true}, \
        {"len", SIZE, true}, {"offset", SIZE, true},                    \
    {                                                                   \
        "speed", SIZE, true                                             \
    }

static const struct control_arg progress_members[] = {PROGRESS, {0}};
static const struct control_arg completion_members[] = {
    PROGRESS, {"error", STRING, false}, {0}};

static const struct control_arg pending_data[] = {
    {"type", WORDS(control_job_types), true}, {"id", STRING, true}, {0}};

static const struct control_arg error_data[] = {
    {"device", STRING, true},
    {"operation", WORDS(operations), true},
    {"action", WORDS(actions), true},
    {0},
};

static const struct control_arg corruption_data[] = {
    {"device", STRING, true},
    {"node-name", STRING, true},
    {"msg", STRING, true},
    {"fatal", BOOL, true},
    {0},
};

static const struct control_arg deletion_data[] = {{"id", STRING, true}, {0}};

static const struct control_arg shutdown_data[] = {
    {"guest", BOOL, true}, {"reason", WORDS(reasons), true}, {0}};

const struct control_event_kind control_events[] = {
    {"JOB_STATUS_CHANGE", OBJECT(status_data)},
    {"BLOCK_JOB_READY", OBJECT(progress_members)},
    {"BLOCK_JOB_COMPLETED", OBJECT(completion_members)},
    {"BLOCK_JOB_CANCELLED", OBJECT(progress_members)},
    {"BLOCK_JOB_ERROR", OBJECT(error_data)},
    {"BLOCK_JOB_PENDING", OBJECT(pending_data)},
    {"BLOCK_IMAGE_CORRUPTED", OBJECT(corruption_data)},
    {"BLOCK_EXPORT_DELETED", OBJECT(deletion_data)},
    {"SHUTDOWN", OBJECT(shutdown_data)},
    {0},
};

/* NULL: the name isn't in the table (a bug). */
static const struct control_type *data_of(const char *name)
{
    const struct control_event_kind *kind = control_events;

    while (kind->name && strcmp(kind->name, name) != 0)
        kind++;
    return kind->data;
}

/* ---- messages ---- */

json_t *control_event_message(const char *name, json_t *data)
{
    struct timespec now;

    control_must_fit(name, data_of(name), data);
    clock_gettime(CLOCK_REALTIME, &now);
    return json_pack("{s:s,s:o,s:{s:I,s:I}}", "event", name, "data", data, "timestamp",
                     "seconds", (json_int_t)now.tv_sec, "microseconds",
                     (json_int_t)(now.tv_nsec / 1000));
}

static json_t *progress_data(const struct job_info *info)
{
    return json_pack("{s:s,s:s,s:I,s:I,s:I}", "device", info->id, "type", info->type, "len",
                     (json_int_t)info->len, "offset", (json_int_t)info->offset, "speed",
                     (json_int_t)info->speed);
}

static json_t *completion_data(const struct job_info *info)
{
    json_t *data = progress_data(info);

    if (info->error[0])
        json_object_set_new(data, "error", json_from_text(info->error));
    return data;
}

const char *control_job_event(const struct job_event *event, json_t **data)
{
    const struct job_info *info = &event->info;

    switch (event->kind) {
    case JOB_EVENT_READY:
        *data = progress_data(info);
        return "BLOCK_JOB_READY";
    case JOB_EVENT_COMPLETED:
        *data = completion_data(info);
        return "BLOCK_JOB_COMPLETED";
    case JOB_EVENT_CANCELLED:
        *data = progress_data(info);
        return "BLOCK_JOB_CANCELLED";
    case JOB_EVENT_PENDING:
        *data = json_pack("{s:s,s:s}", "type", info->type, "id", info->id);
        return "BLOCK_JOB_PENDING";
    case JOB_EVENT_ERROR:
        *data = json_pack("{s:s,s:s,s:s}", "device", info->id, "operation",
                          event->write_error ? "write" : "read", "action", event->action);
        return "BLOCK_JOB_ERROR";
    default:
        *data =
            json_pack("{s:s,s:s}", "id", info->id, "status", job_state_name(info->state));
        return "JOB_STATUS_CHANGE";
    }
}
