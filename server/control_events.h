/* SPDX-License-Identifier: BSD-3-Clause */
/* Events as QMP has them.  Threads: any.  Layer: server. */
#ifndef SERVER_CONTROL_EVENTS_H
#define SERVER_CONTROL_EVENTS_H

#include <jansson.h>

#include "control_types.h"
#include "jobs/job.h"

/* Each that there is, and its data; a NULL name at the end. */
extern const struct control_event_kind {
    const char *name;
    const struct control_type *data;
} control_events[];

/* The whole message: name, data (taken over) and the time of the call. */
json_t *control_event_message(const char *name, json_t *data);

/* The name and the data of a job's event. */
const char *control_job_event(const struct job_event *event, json_t **data);

#endif
