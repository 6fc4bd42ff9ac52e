/* SPDX-License-Identifier: BSD-3-Clause */
/* Many crashes of one recording. */
#ifndef CRASH_SURVEY_H
#define CRASH_SURVEY_H

#include "judge.h"
#include "recording.h"

#define SURVEY_POLICIES 6

struct survey {
    /* Asked for. */
    unsigned states;      /* about as many */
    unsigned tools_every; /* 0: never */
    bool stop_at_failure;
    bool (*ignore_flush)(void *opaque, uint64_t nth);
    void *opaque;
    bool ignore_fua;
    bool quiet;         /* failures are expected */
    const char *wanted; /* NULL, or a word: other failures aren't counted */
    /* Added up, over any number of recordings. */
    unsigned judged, by_policy[SURVEY_POLICIES], marked, with_tools, with_leaks, failures;
    unsigned max_leaks, in_repair;
    uint64_t flushes, changes, table_growths, mark_writes;
    struct verdict first_failure;
};

void survey_recording(struct survey *sv, const struct recording *r);

/* As survey_recording, at every point of [from, until]. */
void survey_range(struct survey *sv, const struct recording *r, uint64_t from,
                  uint64_t until);

/* A crash of the recording at a random point, with its contents and the next version in the
 * subject: what a recording after a crash starts from, with its repair when it is marked.
 * The recording must not be used any more. */
void survey_continue(struct survey *sv, struct recording *r, struct subject *s,
                     uint64_t seed);

#endif
