/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what a commit of the metadata cache writes, in which order, and how it handles failures. */
#include <pthread.h>
#include <time.h>

#include "mcache_testing.h"

#define POOL (1u << 20)

/* Changes a page of each class: PRE and LINK in map A, LEAF in map B, so that the order of the
 * writes can be seen in the log. */
static void change_each_class(struct bench *b)
{
    store_word(b, MAP_A, 9, 0, 1, MC_LINK);
    store_word(b, MAP_B, 5, 0, 2, MC_LEAF);
    store_word(b, MAP_A, 3, 0, 3, MC_PRE);
}

static const char *commit(struct bench *b, enum mc_commit_scope what)
{
    static char calls[64];
    uint64_t from = crash_log_count(b->log);

    cr_assert_eq(mcache_commit(b->mc, what), 0);
    calls_since(b, from, calls, sizeof calls);
    return calls;
}

Test(mcache_commit, strict_group_class_by_class_with_barriers)
{
    struct bench b;

    bench_init(&b, POOL);
    change_each_class(&b);
    make_strict(&b);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aFbFaF", "PRE, LEAF, LINK");
    cr_expect_eq(crash_log_op(b.log, 0).off, MAP_PLACE(MAP_A) + 3 * PAGE_BYTES);
    cr_expect_eq(crash_log_op(b.log, 4).off, MAP_PLACE(MAP_A) + 9 * PAGE_BYTES);
    cr_expect_eq(disk_word(&b, MAP_A, 9, 0), 1);
    cr_expect_eq(disk_word(&b, MAP_B, 5, 0), 2);
    cr_expect_eq(disk_word(&b, MAP_A, 3, 0), 3);
    bench_fini(&b);
}

Test(mcache_commit, relaxed_group_has_one_barrier)
{
    struct bench b;

    bench_init(&b, POOL);
    store_word(&b, MAP_A, 9, 0, 1, MC_LINK);
    store_word(&b, MAP_B, 5, 0, 2, MC_LEAF);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "baF");
    /* The next group isn't strict any more. */
    make_strict(&b);
    store_word(&b, MAP_A, 9, 0, 5, MC_LINK);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "FaF", "data before the link");
    store_word(&b, MAP_A, 9, 0, 6, MC_LINK);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aF");
    bench_fini(&b);
}

Test(mcache_commit, strict_without_a_link_needs_one_barrier)
{
    struct bench b;

    bench_init(&b, POOL);
    store_word(&b, MAP_B, 5, 0, 2, MC_LEAF);
    make_strict(&b);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "bF");
    bench_fini(&b);
}

Test(mcache_commit, data_alone_is_one_barrier)
{
    struct bench b;

    bench_init(&b, POOL);
    mcache_note_write(b.mc);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "F");
    bench_fini(&b);
}

Test(mcache_commit, nothing_new_makes_no_call)
{
    struct bench b;

    bench_init(&b, POOL);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "");
    change_each_class(&b);
    commit(&b, MC_COMMIT);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "");
    cr_expect_not(mcache_has_dirty(b.mc));
    bench_fini(&b);
}

Test(mcache_commit, neighbours_go_in_one_write)
{
    struct bench b;

    bench_init(&b, POOL);
    store_word(&b, MAP_A, 12, 0, 1, MC_LINK);
    store_word(&b, MAP_A, 10, 0, 1, MC_LINK);
    store_word(&b, MAP_A, 11, 0, 1, MC_LINK);
    store_word(&b, MAP_A, 14, 0, 1, MC_LINK);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aaF");
    cr_expect_eq(crash_log_op(b.log, 0).len, 3 * PAGE_BYTES);
    bench_fini(&b);
}

Test(mcache_commit, an_earlier_class_wins)
{
    struct bench b;

    bench_init(&b, POOL);
    store_word(&b, MAP_A, 4, 0, 1, MC_LEAF);
    store_word(&b, MAP_A, 4, 1, 1, MC_PRE);
    store_word(&b, MAP_A, 4, 2, 1, MC_LEAF);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aFF", "as PRE, with its barrier");
    bench_fini(&b);
}

Test(mcache_commit, postponed_leaves_wait_for_everything)
{
    struct bench b;

    bench_init(&b, POOL);
    mcache_set_postpone(b.mc, true);
    change_each_class(&b);
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aF", "LINK only");
    cr_expect_eq(disk_word(&b, MAP_B, 5, 0), 0);
    cr_expect_not(mcache_has_dirty(b.mc), "no link is dirty");
    cr_expect_str_eq(commit(&b, MC_COMMIT_EVERYTHING), "aFbF", "PRE and LEAF");
    cr_expect_eq(disk_word(&b, MAP_B, 5, 0), 2);
    bench_fini(&b);
}

Test(mcache_commit, hooks_of_a_group)
{
    struct bench b;

    bench_init(&b, POOL);
    change_each_class(&b);
    commit(&b, MC_COMMIT);
    cr_expect_eq(b.frozen, 1);
    cr_expect_eq(b.durable, 1);
    bench_fini(&b);
}

/* ---- during a commit ---- */

struct during {
    struct bench *b;
    bool done, dirty_seen;
};

static void store_while_writing(void *opaque, enum crash_kind kind, uint64_t off,
                                uint64_t len)
{
    struct during *d = opaque;

    (void)off;
    (void)len;
    if (kind != CRASH_FLUSH || d->done)
        return;
    d->done = true; /* this flush is the barrier before LINK */
    d->dirty_seen = mcache_has_dirty(d->b->mc);
    store_word(d->b, MAP_A, 9, 0, 1000, MC_LINK);
}

Test(mcache_commit, a_frozen_group_doesnt_change)
{
    struct bench b;
    struct during d = {.b = &b};

    bench_init(&b, POOL);
    store_word(&b, MAP_A, 9, 0, 1, MC_LINK);
    make_strict(&b);
    crash_log_set_hook(b.log, store_while_writing, &d);
    cr_assert_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    crash_log_set_hook(b.log, NULL, NULL);
    cr_expect(d.done);
    cr_expect(d.dirty_seen, "what is being written isn't durable yet");
    cr_expect_eq(disk_word(&b, MAP_A, 9, 0), 1);
    cr_expect(mcache_has_dirty(b.mc), "what came meanwhile is in the next group");
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aF");
    cr_expect_eq(disk_word(&b, MAP_A, 9, 0), 1000);
    bench_fini(&b);
}

struct crowd {
    struct bench *b;
    _Atomic unsigned asked;
    _Atomic int err;
};

#define CROWD 8u

/* Delays the first barrier until all other threads have asked for a commit. */
static void wait_for_the_crowd(void *opaque, enum crash_kind kind, uint64_t off,
                               uint64_t len)
{
    struct crowd *c = opaque;
    const struct timespec pause = {.tv_nsec = 20000000};

    (void)off;
    (void)len;
    if (kind != CRASH_FLUSH)
        return;
    while (atomic_load(&c->asked) < CROWD)
        nanosleep(&pause, NULL);
    nanosleep(&pause, NULL);
}

static void *ask_for_commit(void *opaque)
{
    struct crowd *c = opaque;

    mcache_note_write(c->b->mc);
    atomic_fetch_add(&c->asked, 1);
    int err = mcache_commit(c->b->mc, MC_COMMIT);
    if (err)
        atomic_store(&c->err, err);
    return NULL;
}

Test(mcache_commit, concurrent_commits_share_barriers, .timeout = 60)
{
    struct bench b;
    struct crowd c = {.b = &b};
    pthread_t threads[CROWD];

    bench_init(&b, POOL);
    crash_log_set_hook(b.log, wait_for_the_crowd, &c);
    for (unsigned i = 0; i < CROWD; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, ask_for_commit, &c), 0);
    for (unsigned i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    cr_expect_eq(c.err, 0);
    /* One commit was running; a second one serves all that asked meanwhile. */
    cr_expect_leq(fault_plan_calls(&b.plan, FAULT_FLUSH), 3);
    bench_fini(&b);
}

/* ---- failures ---- */

Test(mcache_commit, a_failed_page_write_is_tried_again)
{
    struct bench b;

    bench_init(&b, POOL);
    for (int kind = 0; kind < 3; kind++) { /* PRE, LEAF, LINK */
        change_each_class(&b);
        store_word(&b, MAP_A, 9, 1, 70 + (uint64_t)kind, MC_LINK);
        make_strict(&b);
        unsigned durable = b.durable;
        fault_plan_fail(&b.plan, FAULT_WRITE, (uint64_t)kind + 1, ENOSPC, FAULT_ONCE);
        cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -ENOSPC);
        cr_expect_eq(b.durable, durable, "nothing is said to be durable");
        b.frozen = b.durable;
        cr_expect(mcache_has_dirty(b.mc));
        cr_expect_eq(mcache_health(b.mc), 0, "not poisoned");
        cr_expect_str_eq(commit(&b, MC_COMMIT), "aFbFaF", "all of it again, still strict");
        cr_expect_eq(disk_word(&b, MAP_A, 9, 1), 70 + (uint64_t)kind);
        cr_expect_not(mcache_has_dirty(b.mc));
    }
    bench_fini(&b);
}

/* A commit after a failed one must not report success because an older one succeeded. */
Test(mcache_commit, a_failure_is_not_forgotten_by_the_next_commit)
{
    struct bench b;

    bench_init(&b, POOL);
    store_word(&b, MAP_A, 1, 0, 1, MC_LINK);
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, EIO, FAULT_FROM_THEN_ON);
    cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -EIO);
    cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -EIO);
    fault_plan_heal(&b.plan);
    b.frozen = b.durable;
    cr_expect_str_eq(commit(&b, MC_COMMIT), "aF");
    bench_fini(&b);
}

Test(mcache_commit, a_failed_barrier_poisons)
{
    for (uint64_t nth = 1; nth <= 3; nth++) {
        struct bench b;
        bench_init(&b, POOL);
        change_each_class(&b);
        make_strict(&b);
        fault_plan_fail(&b.plan, FAULT_FLUSH, nth, ENOSPC, FAULT_ONCE);
        cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -ENOSPC);
        cr_expect_eq(mcache_health(b.mc), -EIO);
        cr_expect_eq(mcache_failures(b.mc), 1);
        uint64_t calls = crash_log_count(b.log);
        cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -EIO);
        cr_expect_eq(mcache_commit(b.mc, MC_COMMIT_EVERYTHING), -EIO);
        cr_expect_eq(crash_log_count(b.log), calls, "nothing more is written");
        cr_expect_eq(b.durable, 0);
        bench_fini(&b);
    }
}

/* A failed barrier is then like a failed write of a page: the next commit writes the whole group
 * again. */
Test(mcache_commit, a_failed_barrier_of_a_store_that_keeps_its_writes)
{
    for (uint64_t nth = 1; nth <= 3; nth++) {
        struct bench b;
        bench_init(&b, POOL);
        b.st->keeps_writes = true;
        change_each_class(&b);
        make_strict(&b);
        fault_plan_fail(&b.plan, FAULT_FLUSH, nth, ENOSPC, FAULT_ONCE);
        cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -ENOSPC);
        cr_expect_eq(mcache_health(b.mc), 0);
        cr_expect_eq(mcache_failures(b.mc), 1);
        cr_expect_eq(b.durable, 0);
        b.frozen = b.durable;
        cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), 0);
        cr_expect_eq(b.durable, 1);
        bench_fini(&b);
    }
}

/* A writer that set "forgiving" must learn of each failed barrier, whichever thread asked for the
 * commit. */
Test(mcache_commit, a_forgiven_barrier_is_counted)
{
    struct bench b;

    bench_init(&b, POOL);
    mcache_set_forgiving(b.mc, true);
    mcache_note_write(b.mc);
    fault_plan_fail(&b.plan, FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -EIO);
    cr_expect_eq(mcache_health(b.mc), 0);
    b.frozen = b.durable;
    cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    cr_expect_eq(mcache_failures(b.mc), 1);
    bench_fini(&b);
}

Test(mcache_commit, writers_relieve_a_full_cache)
{
    struct bench b;

    bench_init(&b, 32 * 1024);
    for (uint64_t i = 0; i < 14; i++)
        store_word(&b, MAP_A, i, 0, 1, MC_LINK);
    mcache_relieve(b.mc);
    cr_expect_eq(crash_log_count(b.log), 0, "less than a quarter is dirty");
    for (uint64_t i = 14; i < 20; i++)
        store_word(&b, MAP_A, i, 0, 1, MC_LINK);
    mcache_relieve(b.mc);
    cr_expect_gt(crash_log_count(b.log), 0);
    cr_expect_not(mcache_has_dirty(b.mc));
    bench_fini(&b);
}

/* ---- data in another file ---- */

/* The data is flushed before each flush of the metadata, and by every barrier. */
Test(mcache_commit, barriers_cover_the_data_store_first)
{
    struct bench b;
    struct fault_plan plan;

    bench_init(&b, POOL);
    fault_plan_init(&plan);
    struct storage *data = fault_storage_new(mem_storage_new(0), &plan);
    mcache_add_data_store(b.mc, data);
    change_each_class(&b);
    make_strict(&b);
    cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    cr_expect_eq(fault_plan_calls(&plan, FAULT_FLUSH), 3,
                 "after PRE, before LINK, at the end");
    fault_plan_fail(&plan, FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    uint64_t calls = crash_log_count(b.log);
    mcache_note_write(b.mc);
    cr_expect_eq(mcache_commit(b.mc, MC_COMMIT), -EIO);
    cr_expect_eq(crash_log_count(b.log), calls, "the metadata waits for its data");
    cr_expect_eq(mcache_health(b.mc), -EIO);
    b.frozen = b.durable;
    bench_fini(&b);
    storage_close(data);
    fault_plan_destroy(&plan);
}
