/* SPDX-License-Identifier: BSD-3-Clause */
/* Events as QMP has them. */
#include "control_events.h"

#include "common/json_text.h"
#include "control_cmds.h"

#include <time.h>

json_t *control_event_message(const char *name, json_t *data)
{
    struct timespec now;

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
