/* SPDX-License-Identifier: BSD-3-Clause */
/* Interrupted repairs: a power failure, a kill or an error of the storage ends the repair of a
 * damaged image, at every possible point.
 *
 * A second repair must then finish with a clean image whose disk and snapshot read as after an
 * undisturbed repair.  Until then the image must stay marked, so that no program writes to it and
 * trusts its refcounts.  Where the format has no mark (qcow2 version 2), the refcount of a cluster
 * in use may be too low only if it was too low before the repair. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/check.h"
#include "crash_storage.h"
#include "fault_storage.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"
#include "support/damaged.h"
#include "support/structure.h"

#define DISK      SCENARIO_DISK
#define CLUSTER   4096u
#define TORN_RUNS 6

/* ---- running it ---- */

static int run_check(const struct scenario *s, struct storage *st, enum check_repair repair,
                     struct check_result *result, struct diag *diag)
{
    const struct check_options options = {.repair = repair};

    *result = (struct check_result){0};
    return driver_find(s->format)->check(st, &options, result, diag);
}

static int check(const struct scenario *s, struct storage *st, enum check_repair repair,
                 struct check_result *result)
{
    struct diag diag = {0};
    int err = run_check(s, st, repair, result, &diag);

    cr_expect_eq(err, 0, "%s: %s", s->name, diag.text);
    return err;
}

/* ---- what can be read ---- */

/* Reads the first snapshot; 0xff where it has no data or can't be read. */
static void read_snapshot(struct storage *st, uint8_t *buf)
{
    bool found;

    memset(buf, 0xff, DISK);
    for (uint64_t off = 0; off < DISK; off += CLUSTER)
        if (structure_read_snapshot(st, buf + off, off, CLUSTER, &found) || !found)
            memset(buf + off, 0xff, CLUSTER);
}

static void read_disk(const struct scenario *s, struct storage *st, uint8_t *disk)
{
    struct block_context ctx;
    struct node_options options = {0};
    struct node *node;
    struct diag diag = {0};

    cr_assert_eq(block_context_init(&ctx, MIB, NULL, NULL), 0);
    cr_assert_eq(node_open(&ctx, driver_find(s->format), mem_storage_share(st), "disk",
                           &options, &node, &diag),
                 0, "%s: %s", s->name, diag.text);
    cr_assert_eq(block_read(node, disk, 0, DISK), 0, "%s: reading", s->name);
    node_close(node);
    block_context_destroy(&ctx);
}

/* The disk's bytes followed by the snapshot's; the caller frees them. */
static uint8_t *read_all(const struct scenario *s, struct storage *st)
{
    uint8_t *all = calloc(2, DISK);

    cr_assert(all);
    read_disk(s, st, all);
    if (s->snapshot)
        read_snapshot(st, all + DISK);
    return all;
}

/* ---- judging ---- */

static bool is_marked(const struct scenario *s, struct storage *st)
{
    bool qed = strcmp(s->format, "qed") == 0;
    uint8_t raw[8];

    cr_assert_eq(storage_read(st, raw, qed ? 16 : 72, 8), 0);
    return qed ? raw[0] & 2 : raw[7] & 3;
}

/* Can an image of that format and version be marked during its repair? */
static bool has_marks(const struct scenario *s)
{
    return !strstr(s->options, "compat=0.10");
}

/* ---- clusters whose refcount is too low ---- */

/* Clusters with fewer counted than real references: the next writer might reuse them. */
struct uncounted {
    uint64_t cluster[256];
    size_t n;
};

static void note_uncounted(void *opaque, const char *text)
{
    struct uncounted *u = opaque;
    unsigned long long cluster;

    if (sscanf(text, "ERROR cluster %llu refcount", &cluster) != 1)
        return;
    cr_assert_lt(u->n, ARRAY_LEN(u->cluster));
    u->cluster[u->n++] = cluster;
}

static void find_uncounted(const struct scenario *s, struct storage *st,
                           struct uncounted *out)
{
    const struct check_options options = {
        .repair = REPAIR_NONE, .message = note_uncounted, .opaque = out};
    struct check_result result = {0};
    struct diag diag = {0};

    out->n = 0;
    cr_assert_eq(driver_find(s->format)->check(st, &options, &result, &diag), 0, "%s: %s",
                 s->name, diag.text);
}

static bool has_cluster(const struct uncounted *u, uint64_t cluster)
{
    for (size_t i = 0; i < u->n; i++)
        if (u->cluster[i] == cluster)
            return true;
    return false;
}

/* ---- judging one state ---- */

struct disturbance {
    const struct scenario *s;
    struct storage *damaged;
    struct uncounted uncounted; /* of the damaged image */
    const uint8_t *expected;
    const char *what;
    uint64_t point;
};

static void judge_mark(const struct disturbance *d, struct storage *state)
{
    struct check_result result;
    uint64_t where;

    if (!has_marks(d->s) || is_marked(d->s, state) ||
        mem_storage_equal(state, d->damaged, &where))
        return;
    if (check(d->s, state, REPAIR_NONE, &result) == 0)
        cr_expect_eq(result.corruptions, 0, "%s: %s at %llu: neither marked nor clean",
                     d->s->name, d->what, (unsigned long long)d->point);
}

/* An image without a mark may be written to by other programs as it is, so that the interrupted
 * repair must not have lost the refcount of a cluster in use. */
static void judge_counts(const struct disturbance *d, struct storage *state)
{
    struct uncounted now;

    if (has_marks(d->s))
        return;
    find_uncounted(d->s, state, &now);
    for (size_t i = 0; i < now.n; i++)
        cr_expect(has_cluster(&d->uncounted, now.cluster[i]),
                  "%s: %s at %llu: cluster %llu lost its count", d->s->name, d->what,
                  (unsigned long long)d->point, (unsigned long long)now.cluster[i]);
}

static void judge(const struct disturbance *d, struct storage *state)
{
    const struct scenario *s = d->s;
    unsigned long long point = d->point;
    struct check_result result;

    judge_mark(d, state);
    judge_counts(d, state);
    if (check(s, state, REPAIR_ALL, &result))
        return;
    cr_expect_eq(result.corruptions + result.check_errors, 0, "%s: %s at %llu: %llu errors",
                 s->name, d->what, point, (unsigned long long)result.corruptions);
    if (check(s, state, REPAIR_NONE, &result))
        return;
    cr_expect_eq(result.corruptions, 0, "%s: %s at %llu: not clean", s->name, d->what,
                 point);
    cr_expect_not(is_marked(s, state), "%s: %s at %llu: still marked", s->name, d->what,
                  point);
    CLEANUP_FREE uint8_t *all = read_all(s, state);
    cr_expect(memcmp(all, d->expected, DISK) == 0, "%s: %s at %llu: other contents",
              s->name, d->what, point);
    cr_expect(memcmp(all + DISK, d->expected + DISK, DISK) == 0,
              "%s: %s at %llu: another snapshot", s->name, d->what, point);
}

/* The contents after an undisturbed repair; the caller frees them. */
static uint8_t *repaired_contents(const struct scenario *s, struct storage *damaged)
{
    CLEANUP_STORAGE struct storage *copy = mem_storage_clone(damaged);
    struct check_result result;

    cr_assert_eq(check(s, copy, REPAIR_ALL, &result), 0);
    cr_expect_eq(result.corruptions, 0, "%s: not repaired", s->name);
    cr_expect_gt(result.corruptions_fixed + result.leaks_fixed, 0, "%s: nothing wrong",
                 s->name);
    return read_all(s, copy);
}

/* Each test runs in its own process, where pointers of this one may not be valid: the parameters
 * are indexes. */
static int *scenario_numbers(void)
{
    static int numbers[64];

    cr_assert_leq(scenario_count, ARRAY_LEN(numbers));
    for (size_t i = 0; i < scenario_count; i++)
        numbers[i] = (int)i;
    return numbers;
}

static const struct scenario *begin(int number)
{
    const struct scenario *s = &scenarios[number];

    registry_init();
    if (s->snapshot && !have_qemu())
        cr_skip_test("qemu-img makes the snapshot");
    return s;
}

/* ---- a power failure, or a kill ---- */

static void judge_point(struct disturbance *d, struct crash_log *log)
{
    struct crash_choice choices[2 + 2 * TORN_RUNS] = {{.policy = CRASH_NONE},
                                                      {.policy = CRASH_ALL}};
    unsigned n = 2;

    for (uint64_t i = 0; i < TORN_RUNS; i++) {
        uint64_t seed = d->point * 100 + i;
        choices[n++] = (struct crash_choice){.policy = CRASH_SUBSET, .seed = seed};
        choices[n++] = (struct crash_choice){.policy = CRASH_TORN, .seed = seed};
    }
    for (unsigned i = 0; i < n; i++) {
        static const char *const names[] = {[CRASH_NONE] = "nothing pending",
                                            [CRASH_ALL] = "a kill",
                                            [CRASH_SUBSET] = "a subset",
                                            [CRASH_TORN] = "torn writes"};
        struct storage *state = crash_materialise(log, d->point, &choices[i]);
        d->what = names[choices[i].policy];
        judge(d, state);
        storage_close(state);
    }
}

ParameterizedTestParameters(repair, can_be_cut_short)
{
    return cr_make_param_array(int, scenario_numbers(), scenario_count);
}

ParameterizedTest(int *number, repair, can_be_cut_short, .timeout = 300)
{
    const struct scenario *s = begin(*number);
    CLEANUP_STORAGE struct storage *damaged = scenario_make(s);
    CLEANUP_FREE uint8_t *expected = repaired_contents(s, damaged);
    struct disturbance d = {.s = s, .damaged = damaged, .expected = expected};
    find_uncounted(s, damaged, &d.uncounted);
    struct crash_log *log = crash_log_new(damaged);
    struct storage *st = crash_storage_open(log);
    struct check_result result;

    cr_assert_eq(check(s, st, REPAIR_ALL, &result), 0);
    storage_close(st);
    /* When the repair ends, all its changes must be durable. */
    uint64_t end = crash_log_count(log), where;
    struct storage *durable =
        crash_materialise(log, end, &(struct crash_choice){.policy = CRASH_NONE});
    struct storage *live = crash_log_live(log);
    cr_expect(mem_storage_equal(durable, live, &where), "%s: not durable at %llu", s->name,
              (unsigned long long)where);
    storage_close(live);
    storage_close(durable);
    for (d.point = 0; d.point <= end; d.point++)
        judge_point(&d, log);
    crash_log_free(log);
}

/* ---- errors of the storage ---- */

/* Runs a repair in which call number d->point of the kind fails, and judges what is left.  False
 * when there was no such call. */
static bool fails_once(struct disturbance *d, enum fault_kind kind, enum fault_how how)
{
    CLEANUP_STORAGE struct storage *copy = mem_storage_clone(d->damaged);
    struct fault_plan plan;
    struct check_result result;
    struct diag diag = {0};

    fault_plan_init(&plan);
    struct storage *st = fault_storage_new(mem_storage_share(copy), &plan);
    fault_plan_fail(&plan, kind, d->point, EIO, how);
    int err = run_check(d->s, st, REPAIR_ALL, &result, &diag);
    bool injected = fault_plan_injected(&plan) > 0;
    storage_close(st);
    fault_plan_destroy(&plan);
    cr_expect(!injected || err || result.check_errors || kind == FAULT_READ,
              "%s: %s %llu: an error was not told", d->s->name, d->what,
              (unsigned long long)d->point);
    if (injected)
        judge(d, copy);
    return injected;
}

ParameterizedTestParameters(repair, can_fail_anywhere)
{
    return cr_make_param_array(int, scenario_numbers(), scenario_count);
}

ParameterizedTest(int *number, repair, can_fail_anywhere, .timeout = 300)
{
    static const struct {
        const char *name;
        enum fault_kind kind;
        enum fault_how how;
    } faults[] = {
        {"failed read", FAULT_READ, FAULT_ONCE},
        {"failed change", FAULT_CHANGE, FAULT_ONCE},
        {"torn change", FAULT_CHANGE, FAULT_ONCE_TORN},
        {"change done and reported as failed", FAULT_CHANGE, FAULT_ONCE_AFTER},
        {"failures from change", FAULT_CHANGE, FAULT_FROM_THEN_ON},
    };
    const struct scenario *s = begin(*number);
    CLEANUP_STORAGE struct storage *damaged = scenario_make(s);
    CLEANUP_FREE uint8_t *expected = repaired_contents(s, damaged);
    struct disturbance d = {.s = s, .damaged = damaged, .expected = expected};
    find_uncounted(s, damaged, &d.uncounted);

    for (size_t i = 0; i < ARRAY_LEN(faults); i++) {
        d.what = faults[i].name;
        for (d.point = 1; fails_once(&d, faults[i].kind, faults[i].how); d.point++)
            ;
        cr_expect_gt(d.point, 1, "%s: no %s", s->name, d.what);
    }
}
