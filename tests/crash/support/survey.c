/* SPDX-License-Identifier: BSD-3-Clause */
/* Chooses crash points and policies, and judges the states; see survey.h. */
#include "survey.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem_storage.h"
#include "rng.h"

/* About how many crash points are judged within the repair at the start of a recording. */
#define REPAIR_POINTS 6

static const char *const policy_names[SURVEY_POLICIES] = {
    [CRASH_NONE] = "none",           [CRASH_ALL] = "all",
    [CRASH_SUBSET] = "subset",       [CRASH_ONLY_ONE] = "only",
    [CRASH_ALL_BUT_ONE] = "all but", [CRASH_TORN] = "torn",
};

static void report(const struct survey *sv, const struct recording *r, uint64_t point,
                   const struct crash_choice *choice, const struct verdict *v)
{
    if (sv->quiet || sv->failures > 3)
        return;
    fprintf(stderr,
            "crash tests: %s, seed %" PRIu64 ", point %" PRIu64 " of %" PRIu64
            ", policy %s (seed %" PRIu64 ", one %" PRIu64 "): %s\n",
            r->subject->config->name, r->seed, point, r->n_points,
            policy_names[choice->policy], choice->seed, choice->one, v->why);
    if (v->sector >= 0)
        history_print(&r->history, (uint64_t)v->sector, stderr);
    if (getenv("QIMG_CRASH_LOG"))
        crash_log_print(r->log, stderr, point > 80 ? point - 80 : 0, point + 5);
}

static struct files materialise(const struct recording *r, uint64_t point,
                                const struct crash_choice *choice)
{
    struct storage *files[CRASH_FILES];

    crash_materialise_files(r->log, point, choice, files);
    return (struct files){.image = files[0], .data = files[1]};
}

static void judge_choice(struct survey *sv, const struct recording *r, uint64_t point,
                         const struct crash_choice *choice, const struct oracle *oracle)
{
    struct files state = materialise(r, point, choice);
    enum judge_depth depth = JUDGE_QUICK;
    struct verdict v;

    if (sv->tools_every && sv->judged % sv->tools_every == 0)
        depth = JUDGE_TOOLS;
    else if (sv->judged % 4 == 1)
        depth = JUDGE_REUSE;
    judge_state(r->subject, oracle, state, depth, &v);
    sv->judged++;
    sv->by_policy[choice->policy]++;
    sv->marked += v.marked;
    sv->with_tools += depth == JUDGE_TOOLS;
    sv->with_leaks += v.leaks != 0;
    sv->max_leaks = v.leaks > sv->max_leaks ? v.leaks : sv->max_leaks;
    if (v.failed && (!sv->wanted || strstr(v.why, sv->wanted))) {
        if (sv->failures++ == 0)
            sv->first_failure = v;
        report(sv, r, point, choice, &v);
    }
    files_close(&state);
}

/* Judges the states of all policies at one point, without policies that would give the same
 * state. */
static void judge_point(struct survey *sv, const struct recording *r, uint64_t point,
                        struct rng *rng)
{
    static const enum crash_policy policies[] = {
        CRASH_NONE,        CRASH_ALL,      CRASH_TORN, CRASH_SUBSET,
        CRASH_ALL_BUT_ONE, CRASH_ONLY_ONE, CRASH_TORN};
    struct oracle oracle = oracle_at(&r->history, point);
    struct crash_choice choice = {.ignore_flush = sv->ignore_flush,
                                  .opaque = sv->opaque,
                                  .ignore_fua = sv->ignore_fua};
    uint64_t pending = crash_pending(r->log, point, &choice);
    bool killed = r->subject->config->killed_only;
    size_t n = pending == 0 || killed ? 1 : pending == 1 ? 4 : ARRAY_LEN(policies);

    for (size_t i = 0; i < n; i++) {
        if (sv->stop_at_failure && sv->failures)
            return;
        choice.policy = killed ? CRASH_ALL : policies[i];
        choice.seed = rng_next(rng);
        choice.one = pending ? rng_below(rng, pending) : 0;
        judge_choice(sv, r, point, &choice, &oracle);
    }
}

static int compare_points(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Half of the points lie just before a flush completes, where the most changes are pending. */
static uint64_t choose_point(const struct recording *r, const uint64_t *flushes, size_t n,
                             struct rng *rng)
{
    if (n == 0 || rng_one_in(rng, 2))
        return rng_below(rng, r->n_points + 1);
    return flushes[rng_below(rng, n)] + rng_below(rng, 4) / 3;
}

/* Counts writes of header fields for the report: the mark, and the refcount table's offset. */
static void count_header_write(struct survey *sv, const struct recording *r,
                               const struct crash_op *op)
{
    bool qed = strcmp(r->subject->config->format, "qed") == 0;

    if (op->kind != CRASH_WRITE)
        return;
    sv->mark_writes += op->off == (qed ? 16 : 72);
    sv->table_growths += !qed && op->off == 48;
}

static size_t find_flushes(struct survey *sv, const struct recording *r, uint64_t **out)
{
    size_t n = 0;

    *out = calloc(r->n_points + 1, sizeof **out);
    if (!*out)
        abort();
    for (uint64_t i = 0; i < r->n_points; i++) {
        struct crash_op op = crash_log_op(r->log, i);
        if (op.kind == CRASH_FLUSH)
            (*out)[n++] = i;
        else if (op.kind != CRASH_MARK)
            sv->changes++;
        count_header_write(sv, r, &op);
    }
    sv->flushes += n;
    return n;
}

/* A recording that starts from a marked image begins with a repair.  Random points would seldom
 * hit that short part of the log, so some points are chosen there. */
static void survey_repair(struct survey *sv, const struct recording *r, struct rng *rng)
{
    uint64_t step = r->n_repair / REPAIR_POINTS + 1;
    unsigned before = sv->judged;

    for (uint64_t point = rng_below(rng, step); point < r->n_repair; point += step)
        judge_point(sv, r, point, rng);
    sv->in_repair += sv->judged - before;
}

void survey_recording(struct survey *sv, const struct recording *r)
{
    size_t n = r->subject->config->killed_only ? sv->states : sv->states / 6 + 1;
    uint64_t *points = calloc(n, sizeof *points), *flushes;
    struct rng rng;

    if (!points)
        abort();
    rng_init(&rng, r->seed ^ 0x5eed);
    size_t n_flushes = find_flushes(sv, r, &flushes);
    for (size_t i = 0; i < n; i++)
        points[i] = choose_point(r, flushes, n_flushes, &rng);
    qsort(points, n, sizeof *points, compare_points);
    survey_repair(sv, r, &rng);
    for (size_t i = 0; i < n && !(sv->stop_at_failure && sv->failures); i++)
        judge_point(sv, r, points[i], &rng);
    if (r->failed)
        sv->failures++;
    free(points);
    free(flushes);
}

void survey_range(struct survey *sv, const struct recording *r, uint64_t from,
                  uint64_t until)
{
    struct rng rng;

    rng_init(&rng, from);
    for (uint64_t point = from; point <= until && point <= r->n_points; point++)
        judge_point(sv, r, point, &rng);
    if (r->failed)
        sv->failures++;
}

void survey_continue(struct survey *sv, struct recording *r, struct subject *s,
                     uint64_t seed)
{
    bool killed = s->config->killed_only;
    struct crash_choice choice = {.policy = killed ? CRASH_ALL : CRASH_TORN, .seed = seed};
    struct verdict v;
    struct rng rng;

    rng_init(&rng, seed);
    uint64_t point = rng_below(&rng, r->n_points + 1);
    struct oracle oracle = oracle_at(&r->history, point);
    struct files state = materialise(r, point, &choice);
    judge_state(s, &oracle, state, JUDGE_TOOLS, &v);
    if (v.failed) {
        sv->failures++;
        report(sv, r, point, &choice, &v);
    }
    judge_read_versions(s, state, s->initial);
    if (s->config->data == DATA_RAW && !s->config->encrypt) {
        if (!s->raw && !(s->raw = calloc(s->n_sectors, sizeof *s->raw)))
            abort();
        judge_read_raw(s, state, s->raw);
    }
    files_close(&s->base);
    s->base = state;
    s->next_version += (uint32_t)r->history.n_requests;
}
