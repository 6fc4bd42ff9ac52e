/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the backup job in one process: the target gets the disk as it was at the start, whatever
 * users write meanwhile (F-03); bitmaps (F-04); targets that fail (F-02); several backups of one
 * moment (F-05); and frozen points that clients can read (F-06). */
#include "base/cleanup.h"
#include "jobs/backup.h"
#include "jobs_testing.h"
#include "registry.h"

#include "image.h" /* build_slowness */

static struct bench b;
static unsigned char *at_the_point;

static void set_up(void)
{
    registry_init();
}

TestSuite(backup, .init = set_up, .timeout = 300);

static void open_bench(uint64_t size)
{
    bench_init(&b, size);
    bench_fill(&b);
}

static struct backup_params params_of(enum backup_sync sync)
{
    return (struct backup_params){
        .job = {.id = "job"},
        .source = b.node[SOURCE],
        .target = TAKE(&b.node[TARGET]),
        .sync = sync,
        .pivot = {.begin_drain = begin_drain, .end_drain = end_drain, .opaque = &b},
    };
}

static void remember_disk(void)
{
    uint64_t size = b.node[SOURCE]->size;

    at_the_point = malloc(size);
    cr_assert_eq(storage_read(b.mem[SOURCE], at_the_point, 0, size), 0);
}

static void start(const struct backup_params *params)
{
    int err = backup_start(b.manager, params, &b.diag);

    cr_assert_eq(err, 0, "%s", b.diag.text);
    struct job_event event = listen_for(&b.heard, JOB_EVENT_OPENED, 0);
    cr_assert_eq(event.err, 0, "%s", event.info.error);
}

static void expect_copy(void)
{
    uint64_t size = b.node[SOURCE]->size;
    unsigned char *copy = malloc(size);

    cr_assert_eq(storage_read(b.mem[TARGET], copy, 0, size), 0);
    for (uint64_t i = 0; i < size; i++)
        cr_assert_eq(copy[i], at_the_point[i], "at %lu", (unsigned long)i);
    free(copy);
}

static void expect_success(void)
{
    struct job_event event = bench_end(&b, JOB_EVENT_COMPLETED);

    cr_assert_str_empty(event.info.error);
    cr_expect_eq(event.info.offset, event.info.len);
}

static void close_bench(void)
{
    cr_expect_null(atomic_load(&b.node[SOURCE]->observers.list), "somebody looks on");
    free(at_the_point);
    at_the_point = NULL;
    bench_fini(&b);
}

/* ---- users ---- */

static void *write_all_the_time(void *opaque)
{
    struct rng rng;
    unsigned char buf[8192];

    rng_init(&rng, (uint64_t)(uintptr_t)opaque);
    for (unsigned i = 0; i < 3000 / build_slowness(); i++) {
        uint64_t len = rng_between(&rng, 1, sizeof buf);
        rng_fill(&rng, buf, len);
        cr_assert_eq(user_write(&b, buf, rng_below(&rng, b.node[SOURCE]->size - len), len),
                     0);
    }
    return NULL;
}

static void check_under_writes(uint64_t size, unsigned workers)
{
    pthread_t users[4];

    open_bench(size);
    struct backup_params params = params_of(BACKUP_FULL);
    params.max_workers = workers;
    /* The frozen point is the moment of the drain in start; the users begin after it. */
    remember_disk();
    fault_plan_delay_writes(&b.plan[TARGET], 2000000, 1);
    start(&params);
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&users[i], NULL, write_all_the_time, (void *)(i + 1));
    expect_success();
    for (unsigned i = 0; i < 4; i++)
        pthread_join(users[i], NULL);
    expect_copy();
    close_bench();
}

Test(backup, under_writes)
{
    check_under_writes(24 * MIB, 0);
}

Test(backup, with_one_worker_and_a_short_end)
{
    check_under_writes(3 * MIB + 1000, 1);
}

Test(backup, a_disk_without_bytes)
{
    bench_init(&b, 0);
    struct backup_params params = params_of(BACKUP_FULL);
    start(&params);
    expect_success();
    close_bench();
}

/* Once everything has been copied, the frozen point ends: later writes save nothing. */
Test(backup, forgets_what_has_arrived)
{
    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_FULL);
    params.job.manual_finalize = true;
    remember_disk();
    start(&params);
    bench_status(&b, JOB_PENDING);
    cr_expect_null(atomic_load(&b.node[SOURCE]->observers.list), "the point has ended");
    cr_expect_eq(user_write(&b, "later", 0, 5), 0);
    cr_expect_eq(job_finalize(b.manager, "job", &b.diag), 0);
    expect_success();
    expect_copy();
    close_bench();
}

/* ---- bitmaps ---- */

static struct dirty_bitmap *add_bitmap(void)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new("map", b.node[SOURCE]->size, 64 * KIB);

    cr_assert_eq(node_bitmap_add(b.node[SOURCE], bitmap, &b.diag), 0, "%s", b.diag.text);
    return bitmap;
}

static void drop_bitmap(void)
{
    cr_expect_eq(node_bitmap_remove(b.node[SOURCE], "map", &b.diag), 0, "%s", b.diag.text);
}

static void expect_dirty(const struct dirty_bitmap *bitmap, uint64_t where)
{
    for (uint64_t chunk = 0; chunk < 16; chunk++)
        cr_expect_eq(dirty_bitmap_get(bitmap, chunk * 64 * KIB), where >> chunk & 1,
                     "chunk %lu", (unsigned long)chunk);
}

/* Chunks 1 and 3 are dirty at the frozen point; chunks 1 and 5 are written after it.  dirty_then:
 * a bit for each chunk that must be dirty at the end. */
static void check_bitmap(enum backup_sync sync, enum backup_bitmap_mode mode, bool fails,
                         uint64_t dirty_then)
{
    open_bench(MIB);
    struct dirty_bitmap *bitmap = add_bitmap();
    struct backup_params params = params_of(sync);
    params.bitmap = "map";
    params.bitmap_mode = mode;
    params.max_workers = 1;
    params.max_chunk = 64 * KIB;
    params.job.manual_finalize = true;
    cr_expect_eq(user_write(&b, "three", 3 * 64 * KIB, 5), 0);
    cr_expect_eq(user_write(&b, "one", 64 * KIB, 3), 0);
    remember_disk();
    if (fails) /* the first write to the target (chunk 1) succeeds, all others fail */
        fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 2, EIO, FAULT_FROM_THEN_ON);
    fault_plan_delay_writes(&b.plan[TARGET], 50000000, 1);
    start(&params);
    cr_expect(dirty_bitmap_busy(bitmap));
    cr_expect_eq(user_write(&b, "more", 64 * KIB, 4), 0);
    cr_expect_eq(user_write(&b, "five", 5 * 64 * KIB, 4), 0);
    if (fails) {
        struct job_event event = bench_end(&b, JOB_EVENT_COMPLETED);
        cr_expect(*event.info.error);
    } else {
        bench_status(&b, JOB_PENDING);
        expect_dirty(bitmap, 1 << 1 | 1 << 3 | 1 << 5);
        cr_expect_eq(job_finalize(b.manager, "job", &b.diag), 0);
        expect_success();
    }
    cr_expect_not(dirty_bitmap_busy(bitmap));
    expect_dirty(bitmap, dirty_then);
    drop_bitmap();
    close_bench();
}

Test(backup, a_bitmap_on_success)
{
    check_bitmap(BACKUP_BITMAP, BACKUP_ON_SUCCESS, false, 1 << 1 | 1 << 5);
    check_bitmap(BACKUP_BITMAP, BACKUP_ON_SUCCESS, true, 1 << 1 | 1 << 3 | 1 << 5);
    check_bitmap(BACKUP_FULL, BACKUP_ON_SUCCESS, false, 1 << 1 | 1 << 5);
    check_bitmap(BACKUP_FULL, BACKUP_ON_SUCCESS, true, 1 << 1 | 1 << 3 | 1 << 5);
}

Test(backup, a_bitmap_never)
{
    check_bitmap(BACKUP_BITMAP, BACKUP_NEVER, false, 1 << 1 | 1 << 3 | 1 << 5);
    check_bitmap(BACKUP_BITMAP, BACKUP_NEVER, true, 1 << 1 | 1 << 3 | 1 << 5);
}

/* When the job fails, what it copied may not be durable: it stays dirty, to be copied again. */
Test(backup, a_bitmap_always)
{
    check_bitmap(BACKUP_BITMAP, BACKUP_ALWAYS, false, 1 << 1 | 1 << 5);
    check_bitmap(BACKUP_BITMAP, BACKUP_ALWAYS, true, 1 << 1 | 1 << 3 | 1 << 5);
}

/* Only chunks that are dirty in the bitmap are copied; nothing is saved for the others. */
Test(backup, copies_what_the_bitmap_says)
{
    unsigned char byte;

    open_bench(MIB);
    add_bitmap();
    struct backup_params params = params_of(BACKUP_BITMAP);
    params.bitmap = "map";
    cr_expect_eq(user_write(&b, "three", 3 * 64 * KIB, 5), 0);
    start(&params);
    expect_success();
    cr_expect_eq(storage_read(b.mem[TARGET], &byte, 4 * 64 * KIB - 1, 1), 0);
    cr_expect_neq(byte, 0);
    cr_expect_eq(storage_read(b.mem[TARGET], &byte, 3 * 64 * KIB - 1, 1), 0);
    cr_expect_eq(byte, 0);
    cr_expect_eq(storage_read(b.mem[TARGET], &byte, 4 * 64 * KIB, 1), 0);
    cr_expect_eq(byte, 0);
    drop_bitmap();
    close_bench();
}

Test(backup, a_bitmap_that_isnt_there)
{
    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_BITMAP);
    params.bitmap = "map";
    cr_assert_eq(backup_start(b.manager, &params, &b.diag), 0);
    struct job_event event = listen_for(&b.heard, JOB_EVENT_OPENED, 0);
    cr_expect_eq(event.err, -ENOENT);
    cr_expect_eq(job_query(b.manager, NULL, 0), 0);
    close_bench();
}

/* ---- the seat (jobs/disk_seat.h) ---- */

static struct node *take_seat(void *opaque, struct disk_seat *seat)
{
    seat->state = SEAT_TAKEN;
    return ((struct bench *)opaque)->node[SOURCE];
}

/* At the end of another job, which may come at any moment, the server asks each seat whether it can
 * follow the disk to another node: so the state must be right at any time. */
static void set_seat(void *opaque, struct disk_seat *seat, enum disk_seat_state state)
{
    (void)opaque;
    cr_expect(state != SEAT_FOLLOWS || seat->prepare, "it can't be moved");
    cr_expect_neq(seat->state, SEAT_IDLE, "it used nothing any more");
    seat->state = state;
}

static void leave_seat(void *opaque, struct disk_seat *seat)
{
    (void)opaque;
    cr_expect_eq(seat->state, SEAT_IDLE);
    seat->state = SEAT_NONE;
}

static void seat_it(struct backup_params *params)
{
    params->source = NULL;
    params->pivot.take_seat = take_seat;
    params->pivot.set_seat = set_seat;
    params->pivot.leave_seat = leave_seat;
}

/* A job that couldn't begin still has to close its target, which may take long.  It must not be
 * moved when the disk is switched to another node meanwhile. */
Test(backup, one_that_never_began_doesnt_follow)
{
    struct backup *held;

    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_BITMAP);
    params.bitmap = "map";
    seat_it(&params);
    cr_assert_eq(backup_start(b.manager, &params, &b.diag), 0);
    struct job_event event = listen_for(&b.heard, JOB_EVENT_OPENED, 0);
    cr_expect_eq(event.err, -ENOENT);

    bench_new_target(&b, MIB);
    params = params_of(BACKUP_FULL);
    seat_it(&params);
    cr_assert_eq(backup_start_held(b.manager, &params, &held, &b.diag), 0);
    cr_assert_eq(backup_wait_until_open(held, &b.diag), 0, "%s", b.diag.text);
    backup_decide(held, false);
    event = listen_for(&b.heard, JOB_EVENT_OPENED, 0);
    cr_expect_eq(event.err, -ECANCELED);
    while (job_query(b.manager, NULL, 0) > 0)
        nap();
    close_bench();
}

/* ---- targets that fail ---- */

/* A failed flush may have lost what was copied: it is copied again, with its old content. */
Test(backup, the_targets_flush_fails)
{
    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_FULL);
    params.on_target_error = JOB_IGNORE;
    remember_disk();
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    start(&params);
    cr_expect_eq(user_write(&b, "changed", 0, 7), 0);
    expect_success();
    cr_expect_geq(fault_plan_bytes_written(&b.plan[TARGET]), 2 * MIB);
    expect_copy();
    close_bench();
}

Test(backup, the_target_is_full_for_a_while)
{
    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_FULL);
    params.on_target_error = JOB_ENOSPC;
    remember_disk();
    fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 1, ENOSPC, FAULT_FROM_THEN_ON);
    start(&params);
    bench_status(&b, JOB_PAUSED);
    for (uint64_t off = 0; off < MIB; off += 64 * KIB)
        cr_expect_eq(user_write(&b, "users go on", off, 11), 0);
    fault_plan_heal(&b.plan[TARGET]);
    cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
    expect_success();
    expect_copy();
    close_bench();
}

Test(backup, cancelled)
{
    open_bench(4 * MIB);
    struct backup_params params = params_of(BACKUP_FULL);
    fault_plan_delay_writes(&b.plan[TARGET], 100000000, 1);
    start(&params);
    cr_expect_eq(user_write(&b, "abc", 5, 3), 0);
    cr_expect_eq(job_cancel(b.manager, "job", false, &b.diag), 0);
    bench_end(&b, JOB_EVENT_CANCELLED);
    close_bench();
}

/* Old content is saved on the target itself, which is full. */
static void check_full_store(bool give_up)
{
    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_NONE);
    params.give_up = give_up;
    fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 2, ENOSPC, FAULT_FROM_THEN_ON);
    start(&params);
    cr_expect_eq(user_write(&b, "abc", 5, 3), 0);
    cr_expect_eq(user_write(&b, "abc", 700000, 3), give_up ? 0 : -ENOSPC);
    if (give_up) {
        struct job_event event = bench_end(&b, JOB_EVENT_COMPLETED);
        cr_expect(strstr(event.info.error, "the point was given up"), "%s",
                  event.info.error);
    } else {
        cr_expect_eq(job_cancel(b.manager, "job", false, &b.diag), 0);
        bench_end(&b, JOB_EVENT_CANCELLED);
    }
    close_bench();
}

Test(backup, old_content_cant_be_saved)
{
    check_full_store(false);
    check_full_store(true);
}

/* ---- sync=none ---- */

/* The frozen point can be read while the job runs; the target gets the old content of whatever is
 * about to be changed. */
Test(backup, shows_its_point)
{
    unsigned char buf[20], old[20];
    struct frozen_point *shown;

    open_bench(MIB);
    add_bitmap();
    struct backup_params params = params_of(BACKUP_NONE);
    cr_expect_null(frozen_find(b.node[SOURCE], "job"));
    params.bitmap = "map";
    cr_expect_eq(user_write(&b, "before", 3 * 64 * KIB, 6), 0);
    cr_expect_eq(block_read(b.node[SOURCE], old, 70000, sizeof old), 0);
    start(&params);
    shown = frozen_find(b.node[SOURCE], "job");
    cr_assert_not_null(shown);
    cr_expect_null(frozen_find(b.node[SOURCE], "other"));
    cr_expect_eq(user_write(&b, "new content here....", 70000, 20), 0);
    cr_expect_eq(block_read(frozen_node(shown), buf, 70000, sizeof buf), 0);
    cr_expect_eq(memcmp(buf, old, sizeof buf), 0);
    expect_dirty(frozen_changed(shown), 1 << 3);
    cr_expect_eq(storage_read(b.mem[TARGET], buf, 70000, sizeof buf), 0);
    cr_expect_eq(memcmp(buf, old, sizeof buf), 0, "saved on the target");
    cr_expect_eq(job_cancel(b.manager, "job", false, &b.diag), 0);
    bench_end(&b, JOB_EVENT_CANCELLED);
    cr_expect_eq(block_read(frozen_node(shown), buf, 0, 1), -EIO);
    cr_expect_null(frozen_find(b.node[SOURCE], "job"));
    frozen_put(shown);
    drop_bitmap();
    close_bench();
}

/* ---- started, but held until others are ready, too ---- */

static void check_held(bool go)
{
    struct backup *held;

    open_bench(MIB);
    struct dirty_bitmap *bitmap = add_bitmap();
    struct backup_params params = params_of(BACKUP_FULL);
    params.bitmap = "map";
    cr_assert_eq(backup_start_held(b.manager, &params, &held, &b.diag), 0, "%s",
                 b.diag.text);
    cr_assert_eq(backup_wait_until_open(held, &b.diag), 0, "%s", b.diag.text);
    cr_expect_eq(user_write(&b, "before the point", 0, 16), 0);
    remember_disk();
    begin_drain(&b);
    cr_expect_eq(dirty_bitmap_acquire(bitmap, &b.diag), 0);
    cr_expect_eq(backup_freeze(held, bitmap, &b.diag), 0, "%s", b.diag.text);
    if (!go) {
        backup_thaw(held, bitmap);
        cr_expect(dirty_bitmap_busy(bitmap));
        dirty_bitmap_release(bitmap);
        drop_bitmap();
    }
    end_drain(&b);
    cr_expect_eq(user_write(&b, "behind", 64 * KIB, 6), 0);
    backup_decide(held, go);
    struct job_event event = listen_for(&b.heard, JOB_EVENT_OPENED, 0);
    cr_expect_eq(event.err, go ? 0 : -ECANCELED);
    if (go) {
        expect_success();
        expect_copy();
        expect_dirty(bitmap, 1 << 1);
        drop_bitmap();
    }
    while (job_query(b.manager, NULL, 0) > 0)
        nap();
    close_bench();
}

Test(backup, waits_for_its_point)
{
    check_held(true);
    check_held(false);
}

Test(backup, held_in_vain)
{
    struct backup *held;

    open_bench(MIB);
    struct backup_params params = params_of(BACKUP_FULL);
    params.compress = true; /* not possible with a raw target */
    cr_expect_eq(backup_start_held(b.manager, &params, &held, &b.diag), 0);
    cr_expect_eq(backup_wait_until_open(held, &b.diag), -ENOTSUP);
    cr_expect(strstr(b.diag.text, "compress"), "%s", b.diag.text);
    backup_decide(held, false);
    while (job_query(b.manager, NULL, 0) > 0)
        nap();
    close_bench();
}
