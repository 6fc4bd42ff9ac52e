/* SPDX-License-Identifier: BSD-3-Clause */
/* A run of requests on a subject, recorded: from the start to a close or a kill. */
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
    uint64_t n_points; /* crash points to look at: 0..n_points */
    uint64_t n_repair; /* changes and flushes of the opening: its repair */
    bool may_fail;     /* requests; such a one was sent and never answered */
    bool failed;       /* a request was refused that should not have been */
};

/* Starts from subject->base. */
void recording_make(struct recording *r, const struct subject *s, uint64_t seed);
void recording_free(struct recording *r);

/* For runs that a test writes out: the requests below note themselves.  tap may be NULL. */
void recording_start(struct recording *r, const struct subject *s, struct session *se,
                     const struct tap *tap);
void recording_end(struct recording *r, struct session *se, bool kill);

void record_write(struct recording *r, struct session *se, uint64_t sector, uint64_t n,
                  unsigned flags);
void record_zero(struct recording *r, struct session *se, uint64_t sector, uint64_t n,
                 unsigned flags);
void record_trim(struct recording *r, struct session *se, uint64_t sector, uint64_t n);
void record_flush(struct recording *r, struct session *se);
/* Grows the disk to n sectors, which must be the subject's or fewer. */
void record_grow(struct recording *r, struct session *se, uint64_t n);
/* Lets time pass, and what is due happen. */
void record_tick(struct recording *r, struct session *se, uint64_t ns);

#endif
