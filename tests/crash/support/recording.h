/* SPDX-License-Identifier: BSD-3-Clause */
/* A recording: one run of requests on a subject, from opening the image until it is closed or
 * the process is killed, with the log of all changes of the file and the history of requests. */
#ifndef CRASH_RECORDING_H
#define CRASH_RECORDING_H

#include "history.h"
#include "subject.h"
#include "tap_storage.h"

struct recording {
    const struct subject *subject;
    struct crash_log *log;
    struct history history;
    uint64_t seed;
    uint64_t n_points; /* the crash points to judge are 0..n_points */
    uint64_t n_repair; /* log entries made by opening the image, which may repair it */
    bool may_fail;     /* requests may fail: such a request counts as never answered */
    bool failed;       /* a request failed although may_fail wasn't set */
};

/* Runs the subject's random workload on a copy of subject->base. */
void recording_make(struct recording *r, const struct subject *s, uint64_t seed);
void recording_free(struct recording *r);

/* For tests that send their own requests: start opens the image, the functions record_* below
 * send a request and note it in the history, and end closes the image.  With `kill` the crash
 * points end before the close.  tap may be NULL. */
void recording_start(struct recording *r, const struct subject *s, struct session *se,
                     const struct tap *tap);
void recording_end(struct recording *r, struct session *se, bool kill);

void record_write(struct recording *r, struct session *se, uint64_t sector, uint64_t n,
                  unsigned flags);
void record_zero(struct recording *r, struct session *se, uint64_t sector, uint64_t n,
                 unsigned flags);
void record_trim(struct recording *r, struct session *se, uint64_t sector, uint64_t n);
void record_flush(struct recording *r, struct session *se);
/* Grows the disk to n sectors, at most the subject's n_sectors. */
void record_grow(struct recording *r, struct session *se, uint64_t n);
/* Advances the clock and runs the timers that are due. */
void record_tick(struct recording *r, struct session *se, uint64_t ns);

#endif
