/* SPDX-License-Identifier: BSD-3-Clause */
/* QMP's events.  Threads: any.  Layer: server. */
#ifndef SERVER_CONTROL_EVENTS_H
#define SERVER_CONTROL_EVENTS_H

#include <jansson.h>

#include "control_types.h"
#include "jobs/job.h"

/* All events and the types of their data; ends with a NULL name. */
extern const struct control_event_kind {
    const char *name;
    const struct control_type *data;
} control_events[];

/* The complete message: name, data (taken over) and the present time. */
json_t *control_event_message(const char *name, json_t *data);

/* The event of QMP that reports a job's event: returns its name, and its data, a new
 * reference. */
const char *control_job_event(const struct job_event *event, json_t **data);

#endif
