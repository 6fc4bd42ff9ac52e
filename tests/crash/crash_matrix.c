/* SPDX-License-Identifier: BSD-3-Clause */
/* Crash tests with random requests, for each configuration in the matrix of formats and features.
 *
 * 1. A subject (support/subject.h) is an image of that configuration.
 * 2. A recording (support/recording.h) runs random requests on it.  A crash log
 *    (../support/crash_storage.h) records all changes of the file; a history (support/history.h)
 *    records what was asked and answered when.
 * 3. A survey (support/survey.h) computes many states that a crash during the recording could
 *    have left.
 * 4. A judge (support/judge.h) checks each state: the metadata must be sound, and each sector
 *    must hold what the history allows (B-11: dirty bitmaps must not miss a change).
 *
 * Environment:
 *   QIMG_CRASH_STATES  about how many states to judge for each configuration
 *   QIMG_CRASH_SEED    the first seed
 *   QIMG_CRASH_ONLY    a pattern of configuration names, with ksh's @(a|b)
 *   QIMG_CRASH_REPORT  a file to which a line of figures is appended for each configuration */
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "support/matrix.h"
#include "support/survey.h"

#define STATES_PER_RECORDING 84

static unsigned long from_environment(const char *name, unsigned long otherwise)
{
    const char *value = getenv(name);

    return value ? strtoul(value, NULL, 0) : otherwise;
}

static void report(const char *name, const struct survey *sv, unsigned recordings)
{
    const char *path = getenv("QIMG_CRASH_REPORT");
    const unsigned *p = sv->by_policy;
    FILE *to = path ? fopen(path, "a") : stderr;

    if (!to)
        return;
    fprintf(
        to,
        "%s recordings %u changes %" PRIu64 " flushes %" PRIu64 " marks %" PRIu64
        " growths %" PRIu64 " states %u none %u all %u subset %u torn %u all-but-one %u"
        " only-one %u marked %u in-repair %u tools %u leaky %u max-leaks %u failures %u\n",
        name, recordings, sv->changes, sv->flushes, sv->mark_writes, sv->table_growths,
        sv->judged, p[CRASH_NONE], p[CRASH_ALL], p[CRASH_SUBSET], p[CRASH_TORN],
        p[CRASH_ALL_BUT_ONE], p[CRASH_ONLY_ONE], sv->marked, sv->in_repair, sv->with_tools,
        sv->with_leaks, sv->max_leaks, sv->failures);
    if (path)
        fclose(to);
}

/* Judges about as many states as asked.  Of each three recordings the second and the third start
 * from a crash of the one before. */
static void run_configuration(const struct subject_config *config, unsigned long usual)
{
    unsigned long states =
        from_environment("QIMG_CRASH_STATES", getenv("QIMG_LONG") ? 1000 : usual);
    uint64_t seed = from_environment("QIMG_CRASH_SEED", 1);
    struct survey sv = {.states = (unsigned)MIN(states, STATES_PER_RECORDING),
                        .tools_every = 12};
    unsigned recordings = 0;

    while (sv.judged < states && sv.failures == 0) {
        struct subject s;
        subject_make(&s, config);
        for (unsigned part = 0; part < 3 && sv.judged < states; part++) {
            struct recording r;
            recording_make(&r, &s, seed++);
            survey_recording(&sv, &r);
            if (part < 2)
                survey_continue(&sv, &r, &s, seed);
            recording_free(&r);
            recordings++;
        }
        subject_remove(&s);
    }
    report(config->name, &sv, recordings);
    cr_assert_eq(sv.failures, 0, "%s: %s", config->name, sv.first_failure.why);
}

static void run_if_wanted(const struct subject_config *config, unsigned long usual)
{
    const char *only = getenv("QIMG_CRASH_ONLY");

    if (!only || fnmatch(only, config->name, FNM_EXTMATCH) == 0)
        run_configuration(config, usual);
}

static size_t *count_up_to(size_t n)
{
    static size_t indexes[128];

    cr_assert(n <= 128);
    for (size_t i = 0; i < n; i++)
        indexes[i] = i;
    return indexes;
}

ParameterizedTestParameters(crash, matrix)
{
    return cr_make_param_array(size_t, count_up_to(crash_matrix_count), crash_matrix_count);
}

ParameterizedTest(size_t *index, crash, matrix)
{
    run_if_wanted(&crash_matrix[*index], 84);
}

ParameterizedTestParameters(crash, features)
{
    return cr_make_param_array(size_t, count_up_to(crash_features_count),
                               crash_features_count);
}

ParameterizedTest(size_t *index, crash, features)
{
    run_if_wanted(&crash_features[*index], 30);
}
