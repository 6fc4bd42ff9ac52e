/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests I/O throttling (E-20): leaky buckets with a fake clock, the order of turns, and waiting
 * threads. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/compiler.h"
#include "throttle.h"
#include "throttle_group.h"
#include "turns.h"

#define SEC UINT64_C(1000000000)
#define MS  UINT64_C(1000000)
#define KIB 1024u

static struct throttle_config limits(enum throttle_kind kind, uint64_t average)
{
    struct throttle_config config;

    throttle_config_init(&config);
    config.limit[kind].average = average;
    return config;
}

static struct throttle begin(const struct throttle_config *config)
{
    struct throttle throttle;

    throttle_set(&throttle, config, 5 * SEC);
    cr_assert_null(throttle_config_fault(config));
    return throttle;
}

/* How many operations of that size can begin, one right after the other, until that time. */
static unsigned begun(struct throttle *throttle, bool is_write, uint64_t bytes,
                      uint64_t *now, uint64_t until)
{
    unsigned n = 0;

    for (;;) {
        uint64_t wait = throttle_wait_ns(throttle, is_write, *now);
        if (*now + wait >= until)
            return n;
        *now += wait;
        if (wait)
            continue;
        throttle_account(throttle, is_write, bytes);
        n++;
    }
}

/* ---- the buckets ---- */

/* A tenth of a second's worth may begin at once, and one more when the bucket is just full. */
Test(throttle, average)
{
    struct throttle_config config = limits(THROTTLE_IOPS, 50);
    struct throttle t = begin(&config);
    uint64_t now = 5 * SEC;

    cr_expect_eq(begun(&t, true, 4 * KIB, &now, 5 * SEC + 1), 6);
    cr_expect_eq(now, 5 * SEC);
    cr_expect_eq(throttle_wait_ns(&t, true, now), 20 * MS + 1, "one of fifty");
    cr_expect_eq(throttle_wait_ns(&t, false, now), 20 * MS + 1, "reads, too");
    cr_expect_eq(throttle_wait_ns(&t, true, now + 5 * MS), 15 * MS + 1);
    unsigned n = begun(&t, true, 4 * KIB, &now, 15 * SEC);
    cr_expect_leq(n, 500);
    cr_expect_geq(n, 499);
}

Test(throttle, bytes)
{
    struct throttle_config config = limits(THROTTLE_BPS, 1 << 20);
    struct throttle t = begin(&config);
    uint64_t now = 5 * SEC;

    throttle_account(&t, false, 4 << 20);
    cr_expect_eq(throttle_wait_ns(&t, true, now), 39 * (SEC / 10) + 1);
    cr_expect_eq(throttle_wait_ns(&t, true, 8 * SEC), 9 * (SEC / 10) + 1);
    now = 9 * SEC;
    unsigned n = begun(&t, true, 64 * KIB, &now, 19 * SEC);
    cr_expect_leq(n, 162);
    cr_expect_geq(n, 159);
}

/* A limit for one direction doesn't affect the other; a limit for both counts both. */
Test(throttle, directions)
{
    struct throttle_config config = limits(THROTTLE_IOPS_READ, 10);
    struct throttle t = begin(&config);

    for (unsigned i = 0; i < 100; i++) {
        cr_expect_eq(throttle_wait_ns(&t, true, 5 * SEC), 0);
        throttle_account(&t, true, 4 * KIB);
    }
    throttle_account(&t, false, 4 * KIB);
    cr_expect_eq(throttle_wait_ns(&t, false, 5 * SEC), 0);
    throttle_account(&t, false, 4 * KIB);
    cr_expect_eq(throttle_wait_ns(&t, false, 5 * SEC), SEC / 10 + 1);
    cr_expect_eq(throttle_wait_ns(&t, true, 5 * SEC), 0);
}

/* A burst of 2,000 a second for a minute, plus what leaks meanwhile: about 3 seconds more. */
Test(throttle, burst)
{
    struct throttle_config config = limits(THROTTLE_IOPS, 100);

    config.limit[THROTTLE_IOPS].burst = 2000;
    config.limit[THROTTLE_IOPS].burst_seconds = 60;
    struct throttle t = begin(&config);
    uint64_t now = 5 * SEC;
    unsigned n = begun(&t, true, KIB, &now, 6 * SEC);
    cr_expect(n >= 2190 && n <= 2201, "%u in the first second", n);
    n = begun(&t, true, KIB, &now, 65 * SEC);
    cr_expect(n >= 117900 && n <= 118010, "%u in 59 seconds", n);
    n = begun(&t, true, KIB, &now, 75 * SEC);
    cr_expect(n >= 6000 && n <= 7100, "%u: the rest of it, and then the average", n);
    n = begun(&t, true, KIB, &now, 85 * SEC);
    cr_expect(n >= 999 && n <= 1001, "%u: the average", n);
    /* After a pause a burst is possible again. */
    now = 85 * SEC + 1200 * SEC;
    n = begun(&t, true, KIB, &now, now + 10 * SEC);
    cr_expect(n >= 20000 && n <= 20210, "%u: a burst", n);
}

/* Without a length, a burst of one second at any rate. */
Test(throttle, burst_of_a_second)
{
    struct throttle_config config = limits(THROTTLE_IOPS, 100);

    config.limit[THROTTLE_IOPS].burst = 500;
    struct throttle t = begin(&config);
    uint64_t now = 5 * SEC;
    cr_expect_eq(begun(&t, false, KIB, &now, 5 * SEC + 1), 501);
    unsigned n = begun(&t, false, KIB, &now, 6 * SEC);
    cr_expect(n >= 99 && n <= 100, "%u", n);
}

Test(throttle, large_operations_count_as_several)
{
    struct throttle_config config = limits(THROTTLE_IOPS, 10);

    config.op_size = 4 * KIB;
    struct throttle t = begin(&config);
    throttle_account(&t, true, 6 * KIB);
    cr_expect_eq(throttle_wait_ns(&t, true, 5 * SEC), SEC / 20 + 1, "one and a half");
    throttle_set(&t, &config, 5 * SEC);
    throttle_account(&t, true, 8 * KIB);
    cr_expect_eq(throttle_wait_ns(&t, true, 5 * SEC), SEC / 10 + 1, "two");
    throttle_set(&t, &config, 5 * SEC);
    throttle_account(&t, true, 512);
    cr_expect_eq(throttle_wait_ns(&t, true, 5 * SEC), 0, "one");
}

/* With several limits the longest wait counts; no wait is longer than an hour. */
Test(throttle, several)
{
    struct throttle_config config = limits(THROTTLE_BPS, 1);

    config.limit[THROTTLE_IOPS_WRITE].average = 10;
    struct throttle t = begin(&config);
    throttle_account(&t, true, UINT32_MAX);
    cr_expect_eq(throttle_wait_ns(&t, true, 5 * SEC), 3600 * SEC + 1);
    cr_expect_eq(throttle_wait_ns(&t, true, 4 * SEC), 3600 * SEC + 1,
                 "a clock that goes back");
}

Test(throttle, faults)
{
    static const struct {
        enum throttle_kind kind, other;
        struct throttle_limit limit, of_other;
        uint64_t op_size;
        const char *words;
    } cases[] = {
        {THROTTLE_BPS, THROTTLE_BPS_READ, {1, 0, 1}, {1, 0, 1}, 0, "at the same time"},
        {THROTTLE_IOPS, THROTTLE_IOPS_WRITE, {1, 0, 1}, {1, 0, 1}, 0, "at the same time"},
        {THROTTLE_IOPS, THROTTLE_IOPS_READ, {1, 2, 1}, {0, 2, 1}, 0, "at the same time"},
        {THROTTLE_BPS, THROTTLE_IOPS, {1, 0, 1}, {0, 0, 1}, 4096, "requires an iops value"},
        {THROTTLE_BPS,
         THROTTLE_IOPS,
         {THROTTLE_MAX_VALUE + 1, 0, 1},
         {0, 0, 1},
         0,
         "within"},
        {THROTTLE_BPS, THROTTLE_IOPS, {UINT64_MAX, 0, 1}, {0, 0, 1}, 0, "within"},
        {THROTTLE_BPS, THROTTLE_IOPS, {1, 0, 0}, {0, 0, 1}, 0, "cannot be 0"},
        {THROTTLE_BPS, THROTTLE_IOPS, {1, 0, 2}, {0, 0, 1}, 0, "without burst rate"},
        {THROTTLE_BPS, THROTTLE_IOPS, {1, THROTTLE_MAX_VALUE, 2}, {0, 0, 1}, 0, "too high"},
        {THROTTLE_BPS, THROTTLE_IOPS, {0, 1, 1}, {0, 0, 1}, 0, "require corresponding"},
        {THROTTLE_IOPS_READ, THROTTLE_BPS, {9, 8, 1}, {0, 0, 1}, 0, "cannot be lower"},
        {THROTTLE_BPS_READ, THROTTLE_BPS_WRITE, {1, 0, 1}, {1, 0, 1}, 0, NULL},
        {THROTTLE_BPS, THROTTLE_IOPS, {1, 1, 1}, {5, 9, 9}, 512, NULL},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct throttle_config config = limits(THROTTLE_BPS, 0);
        config.limit[cases[i].kind] = cases[i].limit;
        config.limit[cases[i].other] = cases[i].of_other;
        config.op_size = cases[i].op_size;
        const char *fault = throttle_config_fault(&config);
        if (cases[i].words)
            cr_expect(fault && strstr(fault, cases[i].words), "%zu: %s", i, fault);
        else
            cr_expect_null(fault, "%zu: %s", i, fault);
    }
}

/* ---- turns ---- */

/* Two disks.  The first has a client with three requests and a client with one. */
Test(turns, go_round)
{
    struct turns root, disk[2], client[3], request[6];
    static const unsigned whose[] = {0, 0, 0, 1, 2, 2}, expected[] = {0, 4, 3, 5, 1, 2};

    turns_init(&root, NULL);
    for (unsigned i = 0; i < 2; i++)
        turns_init(&disk[i], &root);
    for (unsigned i = 0; i < 3; i++)
        turns_init(&client[i], &disk[i == 2]);
    cr_assert_null(turns_next(&root));
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 6; i++) {
            turns_init(&request[i], &client[whose[i]]);
            turns_add(&request[i]);
        }
        for (unsigned i = 0; i < 6; i++) {
            cr_assert_eq(turns_next(&root), &request[expected[i]], "turn %u", i);
            turns_take(&request[expected[i]]);
        }
        cr_assert_null(turns_next(&root));
    }
}

Test(turns, who_leaves_is_no_more_in_the_way)
{
    struct turns root, client[2], request[3];

    turns_init(&root, NULL);
    for (unsigned i = 0; i < 2; i++)
        turns_init(&client[i], &root);
    for (unsigned i = 0; i < 3; i++) {
        turns_init(&request[i], &client[i / 2]);
        turns_add(&request[i]);
    }
    turns_remove(&request[0]);
    cr_assert_eq(turns_next(&root), &request[1]);
    turns_remove(&request[1]);
    cr_assert(!turns_waits(&client[0]));
    cr_assert_eq(turns_next(&root), &request[2]);
    turns_remove(&request[2]);
    cr_assert_null(turns_next(&root));
}

/* ---- groups ---- */

struct disk {
    struct throttle_member member;
    struct throttle_flow flow;
    _Atomic unsigned gone_on;
};

static _Atomic bool everybody_left;

static bool has_left(void)
{
    return everybody_left;
}

static void *wait_once(void *opaque)
{
    struct disk *disk = opaque;

    if (!throttle_wait(&disk->member, &disk->flow, true, 1 << 20, has_left))
        return NULL;
    atomic_fetch_add(&disk->gone_on, 1);
    return NULL;
}

struct fixture {
    struct throttle_groups groups;
    struct disk disk[2];
    pthread_t thread[8];
};

/* A limit of one byte a second: after the first request all others wait. */
static void set(struct fixture *f, unsigned disk, const char *group)
{
    const struct throttle_config config = limits(THROTTLE_BPS, 1);

    cr_assert_eq(throttle_join(&f->groups, &f->disk[disk].member, group, "own", &config),
                 0);
}

static unsigned all_gone_on(struct fixture *f)
{
    return atomic_load(&f->disk[0].gone_on) + atomic_load(&f->disk[1].gone_on);
}

static unsigned all_waiting(struct fixture *f)
{
    unsigned n = 0;
    LOCK_GUARD(&f->groups.lock);

    for (unsigned i = 0; i < 2; i++)
        LIST_FOR_EACH (pos, &f->disk[i].flow.turns[1].queue)
            n++;
    return n;
}

/* Starts eight threads, of which one goes on and all others wait. */
static void start(struct fixture *f)
{
    throttle_groups_init(&f->groups);
    for (unsigned i = 0; i < 2; i++) {
        f->disk[i] = (struct disk){.gone_on = 0};
        throttle_member_init(&f->disk[i].member);
        throttle_flow_init(&f->disk[i].flow, &f->disk[i].member);
        set(f, i, "shared");
    }
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(pthread_create(&f->thread[i], NULL, wait_once, &f->disk[i % 2]), 0);
    while (all_gone_on(f) == 0 || all_waiting(f) < 7)
        usleep(1000);
}

static void end(struct fixture *f)
{
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(pthread_join(f->thread[i], NULL), 0);
    for (unsigned i = 0; i < 2; i++)
        throttle_leave(&f->disk[i].member);
    cr_assert(list_empty(&f->groups.list));
    throttle_groups_destroy(&f->groups);
}

Test(throttle_group, without_limits_nobody_waits)
{
    struct fixture f;

    start(&f);
    throttle_leave(&f.disk[0].member);
    while (atomic_load(&f.disk[0].gone_on) < 4)
        usleep(1000);
    cr_expect_leq(atomic_load(&f.disk[1].gone_on), 1);
    cr_expect(!throttle_is_limited(&f.disk[0].member));
    cr_expect(throttle_is_limited(&f.disk[1].member));
    throttle_leave(&f.disk[1].member);
    end(&f);
}

Test(throttle_group, is_lifted)
{
    struct fixture f;

    start(&f);
    cr_expect_eq(all_gone_on(&f), 1);
    throttle_groups_lift(&f.groups, true);
    end(&f);
}

/* A higher limit takes effect for requests that already wait. */
Test(throttle_group, is_changed)
{
    struct fixture f;
    const struct throttle_config config = limits(THROTTLE_BPS, 1u << 30);

    start(&f);
    cr_assert_eq(throttle_join(&f.groups, &f.disk[0].member, NULL, "own", &config), 0);
    end(&f);
}

/* When a disk moves to another group, its waiting requests move with it. */
Test(throttle_group, moves)
{
    struct fixture f;
    const struct throttle_config config = limits(THROTTLE_BPS, 1u << 30);
    struct throttle_config seen;
    char *name;

    start(&f);
    cr_assert_eq(throttle_join(&f.groups, &f.disk[1].member, "other", "own", &config), 0);
    cr_assert(throttle_look(&f.disk[1].member, &seen, &name));
    cr_expect_str_eq(name, "other");
    cr_expect_eq(seen.limit[THROTTLE_BPS].average, 1u << 30);
    free(name);
    while (atomic_load(&f.disk[1].gone_on) < 4)
        usleep(1000);
    cr_expect_leq(atomic_load(&f.disk[0].gone_on), 1);
    /* Sets the old limit again; without a name the disk stays in its group. */
    set(&f, 1, NULL);
    cr_assert(throttle_look(&f.disk[1].member, &seen, &name));
    cr_expect_str_eq(name, "other");
    free(name);
    throttle_leave(&f.disk[0].member);
    end(&f);
}

/* ---- clients that have disconnected meanwhile ---- */

Test(throttle_group, who_left_has_no_turn)
{
    struct fixture f;
    const struct throttle_config config = limits(THROTTLE_BPS, 1u << 30);

    start(&f);
    everybody_left = true;
    cr_assert_eq(throttle_join(&f.groups, &f.disk[0].member, NULL, "own", &config), 0);
    end(&f);
    cr_expect_eq(all_gone_on(&f), 1);
    everybody_left = false;
}

Test(throttle_group, who_left_does_not_go_on_without_limits)
{
    struct fixture f;

    start(&f);
    everybody_left = true;
    for (unsigned i = 0; i < 2; i++)
        throttle_leave(&f.disk[i].member);
    end(&f);
    cr_expect_eq(all_gone_on(&f), 1);
    everybody_left = false;
}

/* A disconnected client's request ends soon, although its turn would only come much later. */
Test(throttle_group, who_left_waits_no_longer, .timeout = 60)
{
    struct fixture f;

    start(&f);
    everybody_left = true;
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(pthread_join(f.thread[i], NULL), 0);
    cr_expect_eq(all_gone_on(&f), 1);
    everybody_left = false;
    for (unsigned i = 0; i < 2; i++)
        throttle_leave(&f.disk[i].member);
    cr_assert(list_empty(&f.groups.list));
    throttle_groups_destroy(&f.groups);
}

/* At the server's end all clients appear to be disconnected, but waiting requests are still carried
 * out. */
Test(throttle_group, who_waits_at_the_end_goes_on)
{
    struct fixture f;

    start(&f);
    everybody_left = true;
    throttle_groups_lift(&f.groups, true);
    end(&f);
    cr_expect_eq(all_gone_on(&f), 8);
    everybody_left = false;
}
