/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what errors of a mirror lead to, for each side (source, target) and each policy (M-07,
 * M-08). */
#include "base/clock.h"
#include "jobs_testing.h"

#define SIZE (4 * MIB)

static struct bench b;

static void start(int side, enum job_on_error policy)
{
    struct mirror_params params = bench_params(&b);

    params.granularity = 64 * KIB;
    if (side == SOURCE)
        params.on_source_error = policy;
    else
        params.on_target_error = policy;
    bench_must_start(&b, &params);
}

static void setup(void)
{
    bench_init(&b, SIZE);
    bench_fill(&b);
}

static void teardown(void)
{
    bench_fini(&b);
}

TestSuite(errors, .init = setup, .fini = teardown, .timeout = 120);

/* Replaces the bench by a fresh one, for the next case of a test. */
static void again(void)
{
    teardown();
    setup();
}

static void fail(int side, int err, enum fault_how how)
{
    fault_plan_fail(&b.plan[side], side == SOURCE ? FAULT_READ : FAULT_WRITE, 3, err, how);
}

static struct job_event expect_error(int side, const char *action)
{
    struct job_event event = listen_for(&b.heard, JOB_EVENT_ERROR, 0);

    cr_expect_eq(event.write_error, side == TARGET);
    cr_expect_str_eq(event.action, action);
    return event;
}

static void expect_failed(const char *reason)
{
    struct job_event event = bench_end(&b, JOB_EVENT_COMPLETED);

    cr_expect(strstr(event.info.error, reason), "%s", event.info.error);
    cr_expect_eq(heard_of(&b.heard, JOB_EVENT_ERROR), 1);
    cr_expect_eq(heard_of(&b.heard, JOB_EVENT_READY), 0);
    cr_expect_eq(user_write(&b, "on", 0, 2), 0, "users don't notice");
}

static void expect_copy(void)
{
    bench_ready(&b);
    bench_cancel(&b);
    bench_same(&b);
}

Test(errors, reported)
{
    for (int side = SOURCE; side <= TARGET; side++) {
        fail(side, EIO, FAULT_FROM_THEN_ON);
        start(side, JOB_REPORT);
        expect_error(side, "report");
        expect_failed("Input/output error");
        again();
    }
}

Test(errors, ignored)
{
    for (int side = SOURCE; side <= TARGET; side++) {
        fail(side, EIO, FAULT_ONCE);
        start(side, JOB_IGNORE);
        expect_error(side, "ignore");
        cr_expect_str_eq(bench_look(&b).io_status, "ok");
        expect_copy();
        again();
    }
}

/* The failed write may have written half of its data. */
Test(errors, ignored_when_torn)
{
    fail(TARGET, EIO, FAULT_ONCE_TORN);
    start(TARGET, JOB_IGNORE);
    expect_error(TARGET, "ignore");
    expect_copy();
}

/* M-08: the job doesn't try a failing range again and again as fast as it can. */
Test(errors, ignored_for_long)
{
    fail(TARGET, EIO, FAULT_FROM_THEN_ON);
    start(TARGET, JOB_IGNORE);
    for (unsigned i = 0; i < 3; i++)
        expect_error(TARGET, "ignore");
    /* For each error event at most the requests in flight are tried once more. */
    uint64_t calls = fault_plan_calls(&b.plan[TARGET], FAULT_WRITE);
    cr_expect_leq(calls, (heard_of(&b.heard, JOB_EVENT_ERROR) + 1) * 16);
    fault_plan_heal(&b.plan[TARGET]);
    expect_copy();
}

/* Users that go on writing don't make the job try faster. */
Test(errors, ignored_under_writes)
{
    struct mirror_params params = bench_params(&b);

    params.granularity = 64 * KIB;
    params.on_target_error = JOB_IGNORE;
    bench_must_start(&b, &params);
    bench_ready(&b);
    fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 1, EIO, FAULT_FROM_THEN_ON);
    uint64_t began = clock_ns();
    for (uint64_t i = 0; heard_of(&b.heard, JOB_EVENT_ERROR) < 5; i++)
        cr_assert_eq(user_write(&b, "x", i % SIZE, 1), 0);
    cr_expect_geq(clock_ns() - began, 4 * JOB_SLICE_NS);
    fault_plan_heal(&b.plan[TARGET]);
    bench_cancel(&b);
    bench_same(&b);
}

/* All requests in flight fail, and the job stops only once. */
Test(errors, stopped)
{
    for (int side = SOURCE; side <= TARGET; side++) {
        fail(side, EIO, FAULT_FROM_THEN_ON);
        start(side, JOB_STOP);
        expect_error(side, "stop");
        bench_status(&b, JOB_PAUSED);
        struct job_info info = bench_look(&b);
        cr_expect_str_eq(info.io_status, "failed");
        cr_expect(info.paused);
        fault_plan_heal(&b.plan[side]);
        cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
        cr_expect_str_eq(bench_look(&b).io_status, "ok");
        expect_copy();
        cr_expect_eq(heard_of(&b.heard, JOB_EVENT_ERROR), 1);
        again();
    }
}

Test(errors, stopped_for_space_only)
{
    for (int side = SOURCE; side <= TARGET; side++) {
        fail(side, ENOSPC, FAULT_FROM_THEN_ON);
        start(side, JOB_ENOSPC);
        expect_error(side, "stop");
        bench_status(&b, JOB_PAUSED);
        cr_expect_str_eq(bench_look(&b).io_status, "nospace");
        fault_plan_heal(&b.plan[side]);
        cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
        expect_copy();
        again();
        fail(side, EIO, FAULT_FROM_THEN_ON);
        start(side, JOB_ENOSPC);
        expect_error(side, "report");
        expect_failed("Input/output error");
        again();
    }
}

/* The target's storage is full, and later it isn't. */
Test(errors, a_full_target)
{
    mem_storage_limit(b.mem[TARGET], MIB);
    start(TARGET, JOB_ENOSPC);
    expect_error(TARGET, "stop");
    bench_status(&b, JOB_PAUSED);
    mem_storage_limit(b.mem[TARGET], UINT64_MAX);
    cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
    expect_copy();
}

/* A failed flush may have lost everything that was written since the last one.  With the policy
 * "ignore" it is all copied again. */
Test(errors, a_flush_fails)
{
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    start(TARGET, JOB_IGNORE);
    expect_error(TARGET, "ignore");
    bench_ready(&b);
    cr_expect_geq(fault_plan_bytes_written(&b.plan[TARGET]), 2 * SIZE);
    bench_cancel(&b);
    bench_same(&b);
}

Test(errors, a_flush_fails_for_good)
{
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_FROM_THEN_ON);
    start(TARGET, JOB_REPORT);
    expect_error(TARGET, "report");
    expect_failed("Input/output error");
}

/* ---- flushes that others ask for ---- */

#define CHUNK (64 * KIB)

/* Writes a chunk, waits until the target has it (unflushed), and resets the counters. */
static void write_unflushed(void)
{
    static char data[CHUNK];

    fault_plan_reset_counters(&b.plan[TARGET]);
    memset(data, 0xee, sizeof data);
    cr_assert_eq(user_write(&b, data, 0, sizeof data), 0);
    while (fault_plan_bytes_written(&b.plan[TARGET]) < CHUNK ||
           bench_look(&b).offset != bench_look(&b).len)
        nap();
    fault_plan_reset_counters(&b.plan[TARGET]);
}

static void complete_with(uint64_t sent_again, unsigned n_errors)
{
    cr_assert_eq(job_complete(b.manager, "job", &b.diag), 0);
    struct job_event event = bench_end(&b, JOB_EVENT_COMPLETED);
    cr_expect_str_empty(event.info.error);
    cr_expect_eq(heard_of(&b.heard, JOB_EVENT_ERROR), n_errors);
    cr_expect_geq(fault_plan_bytes_written(&b.plan[TARGET]), sent_again, "it is lost");
    bench_same(&b);
}

/* A flush that the job didn't make itself fails, that of the metadata's write-back for example.
 * The job's next flush reports nothing of what that one has lost (M-05). */
Test(errors, anothers_flush_fails)
{
    struct node *target = b.node[TARGET];

    start(TARGET, JOB_REPORT);
    bench_ready(&b);
    write_unflushed();
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_flush(target), -EIO);
    complete_with(CHUNK, 0);
}

static void start_blocking(void)
{
    struct mirror_params params = bench_params(&b);

    params.granularity = CHUNK;
    params.copy_mode = MIRROR_WRITE_BLOCKING;
    params.on_target_error = JOB_IGNORE;
    bench_must_start(&b, &params);
    bench_ready(&b);
}

/* The user's write succeeds; what the target didn't get, the job copies again. */
Test(errors, a_users_write_fails_on_the_target)
{
    static char data[3 * CHUNK];

    memset(data, 0xcc, sizeof data);
    for (unsigned kind = 0; kind < 4; kind++) {
        start_blocking();
        if (kind < 3)
            fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 1, EIO,
                            kind == 2 ? FAULT_ONCE_TORN : FAULT_ONCE);
        else
            fault_plan_fail(&b.plan[TARGET], FAULT_ZERO, 1, EIO, FAULT_ONCE);
        if (kind == 0) /* whole chunks; else also parts of chunks */
            cr_expect_eq(user_write(&b, data, CHUNK, 2 * CHUNK), 0);
        else if (kind < 3)
            cr_expect_eq(user_write(&b, data, CHUNK + CHUNK / 2, 2 * CHUNK), 0);
        else
            cr_expect_eq(block_zero(b.serving, CHUNK, 2 * CHUNK, BLOCK_MAY_UNMAP), 0);
        expect_error(TARGET, "ignore");
        bench_cancel(&b);
        bench_same(&b);
        again();
    }
}

Test(errors, a_users_flush_fails_on_the_target)
{
    start_blocking();
    write_unflushed();
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_flush(b.serving), 0);
    expect_error(TARGET, "ignore");
    complete_with(CHUNK, 1);
}

/* A durable write may flush the whole disk cache.  If it fails, earlier writes may be lost, too,
 * and that is reported only once. */
Test(errors, a_users_durable_write_fails_on_the_target)
{
    char data[512] = "durable";

    start_blocking();
    write_unflushed();
    fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_write(b.serving, data, 5 * CHUNK, sizeof data, BLOCK_FUA), 0);
    expect_error(TARGET, "ignore");
    complete_with(2 * CHUNK, 1);
}

static void *write_slowly(void *opaque)
{
    static char data[CHUNK];

    memset(data, 0xdd, sizeof data);
    cr_expect_eq(user_write(&b, data, 8 * CHUNK, sizeof data), 0);
    return opaque;
}

/* The target has a user's write and loses it by a failed flush, before the user's thread could note
 * that the write is unflushed (M-05). */
Test(errors, a_flush_fails_before_a_write_is_noted)
{
    struct node *target = b.node[TARGET];
    pthread_t thread;

    start_blocking();
    write_unflushed();
    fault_plan_delay_reply(&b.plan[TARGET], 1000000000);
    cr_assert_eq(pthread_create(&thread, NULL, write_slowly, NULL), 0);
    for (char byte = 0; byte != (char)0xdd; nap())
        cr_assert_eq(storage_read(b.mem[TARGET], &byte, 8 * CHUNK, 1), 0);
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_flush(target), -EIO);
    /* Waits until the job has copied the other chunk again, and flushed. */
    while (fault_plan_bytes_written(&b.plan[TARGET]) < 2 * CHUNK ||
           fault_plan_calls(&b.plan[TARGET], FAULT_FLUSH) < 2)
        nap();
    pthread_join(thread, NULL);
    complete_with(3 * CHUNK, 0);
}

/* M-05: if the last flush of the copy fails, the job fails. */
Test(errors, the_last_flush_fails)
{
    start(TARGET, JOB_REPORT);
    bench_ready(&b);
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_FROM_THEN_ON);
    cr_expect_eq(user_write(&b, "last", MIB, 4), 0);
    cr_expect_eq(job_complete(b.manager, "job", &b.diag), 0);
    struct job_event event = bench_end(&b, JOB_EVENT_COMPLETED);
    cr_expect(strstr(event.info.error, "Input/output error"));
    cr_expect_null(b.replaced, "users stay where they are");
    cr_expect_eq(user_write(&b, "on", 0, 2), 0, "and aren't held back");
}

static void drain_and_cancel(void *opaque)
{
    begin_drain(opaque);
    if (bench_look(&b).state == JOB_PENDING)
        cr_expect_eq(job_cancel(b.manager, "job", true, &b.diag), 0, "%s", b.diag.text);
}

/* A forced cancel while users are already drained for the switch: they stay on the old disk. */
Test(errors, a_forced_cancel_at_the_last_moment)
{
    struct mirror_params params = bench_params(&b);

    params.job.manual_finalize = true;
    params.pivot.begin_drain = drain_and_cancel;
    bench_must_start(&b, &params);
    bench_ready(&b);
    cr_assert_eq(job_complete(b.manager, "job", &b.diag), 0);
    bench_status(&b, JOB_PENDING);
    cr_assert_eq(job_finalize(b.manager, "job", &b.diag), 0, "%s", b.diag.text);
    bench_end(&b, JOB_EVENT_CANCELLED);
    cr_expect_null(b.replaced);
    cr_expect_eq(user_write(&b, "on", 0, 2), 0, "and aren't held back");
}

/* After a failed write the disk's content is unknown there: it must be copied. */
Test(errors, a_users_write_is_torn)
{
    start(TARGET, JOB_REPORT);
    bench_ready(&b);
    fault_plan_fail(&b.plan[SOURCE], FAULT_WRITE, 1, EIO, FAULT_ONCE_TORN);
    char data[4096];
    memset(data, 0xee, sizeof data);
    cr_expect_eq(user_write(&b, data, MIB, sizeof data), -EIO);
    bench_cancel(&b);
    bench_same(&b);
}

/* If the error comes after a soft cancel, the job stops again and doesn't try as fast as it can. */
Test(errors, after_a_soft_cancel)
{
    start(TARGET, JOB_STOP);
    bench_ready(&b);
    fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 1, EIO, FAULT_FROM_THEN_ON);
    cr_expect_eq(user_write(&b, "x", 0, 1), 0);
    bench_status(&b, JOB_STANDBY);
    cr_expect_eq(job_cancel(b.manager, "job", false, &b.diag), 0);
    bench_status(&b, JOB_STANDBY);
    cr_expect_eq(heard_of(&b.heard, JOB_EVENT_ERROR), 2);
    fault_plan_heal(&b.plan[TARGET]);
    cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
    bench_end(&b, JOB_EVENT_COMPLETED);
    bench_same(&b);
}
