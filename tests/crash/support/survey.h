/* SPDX-License-Identifier: BSD-3-Clause */
/* A survey: chooses crash points of a recording, materialises there the states that a crash could
 * have left, with each policy of crash_storage.h, judges them and adds up the results. */
#ifndef CRASH_SURVEY_H
#define CRASH_SURVEY_H

#include "judge.h"
#include "recording.h"

#define SURVEY_POLICIES 6

struct survey {
    /* Set by the caller. */
    unsigned states;      /* about how many to judge in a recording */
    unsigned tools_every; /* every nth state is judged with JUDGE_TOOLS; 0: none */
    bool stop_at_failure;
    bool (*ignore_flush)(void *opaque, uint64_t nth);
    void *opaque;
    bool ignore_fua;
    bool quiet;         /* failures are expected: don't print them */
    const char *wanted; /* count only failures with this word; NULL: all */
    /* The results, added up over any number of recordings. */
    unsigned judged, by_policy[SURVEY_POLICIES], marked, with_tools, with_leaks, failures;
    unsigned max_leaks, in_repair;
    uint64_t flushes, changes, table_growths, mark_writes;
    struct verdict first_failure;
};

void survey_recording(struct survey *sv, const struct recording *r);

/* The same, but at every crash point of [from, until]. */
void survey_range(struct survey *sv, const struct recording *r, uint64_t from,
                  uint64_t until);

/* Sets the subject to a crash of the recording at a random point: its files, the versions of its
 * sectors and the next version.  The next recording then starts after a crash, with a repair if
 * the image is marked.  The recording must not be used any more, except to free it. */
void survey_continue(struct survey *sv, struct recording *r, struct subject *s,
                     uint64_t seed);

#endif
