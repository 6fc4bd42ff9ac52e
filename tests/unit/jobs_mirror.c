/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the mirror job in one process: sizes, granularities, limits, progress, and users that write
 * all the time. */
#include <malloc.h>

#include "jobs_testing.h"

#include "image.h" /* build_slowness */

static struct bench b;

static void finish_and_compare(void)
{
    bench_cancel(&b);
    bench_same(&b);
    bench_fini(&b);
}

/* ---- sizes ---- */

/* M-19: it is ready at once, and then waits for a verb. */
Test(mirror, a_disk_without_bytes)
{
    for (int completes = 0; completes < 2; completes++) {
        bench_init(&b, 0);
        struct mirror_params params = bench_params(&b);
        bench_must_start(&b, &params);
        struct job_event event = bench_ready(&b);
        cr_expect_eq(event.info.len, 0);
        if (completes) {
            cr_expect_eq(job_complete(b.manager, "job", &b.diag), 0);
            bench_end(&b, JOB_EVENT_COMPLETED);
            cr_expect_not_null(b.replaced);
        } else {
            bench_cancel(&b);
        }
        bench_fini(&b);
    }
}

/* M-13, M-35: the last chunk is shorter, and progress counts bytes. */
Test(mirror, a_size_that_is_no_multiple_of_the_granularity)
{
    static const uint64_t sizes[] = {1, 511, 512, 65535, 65537, 3 * MIB + 1536};

    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        bench_init(&b, sizes[i]);
        bench_fill(&b);
        struct mirror_params params = bench_params(&b);
        params.granularity = 64 * KIB;
        bench_must_start(&b, &params);
        struct job_event event = bench_ready(&b);
        cr_expect_eq(event.info.offset, sizes[i]);
        cr_expect_eq(event.info.len, sizes[i]);
        cr_expect_eq(user_write(&b, "!", sizes[i] - 1, 1), 0);
        finish_and_compare();
    }
}

/* M-29: memory doesn't grow with the number of copies. */
Test(mirror, a_million_copies, .timeout = 600)
{
    const unsigned rounds = getenv("QIMG_LONG") ? 64 : 4;
    size_t held = 0;

    bench_init(&b, 8 * MIB);
    bench_fill(&b);
    for (unsigned round = 0; round < rounds; round++) {
        struct mirror_params params = bench_params(&b);
        params.granularity = 512;
        params.buf_size = 4 * KIB; /* 512 bytes for each of eight workers */
        bench_must_start(&b, &params);
        bench_ready(&b);
        bench_cancel(&b);
        b.heard.n = b.heard.seen = 0; /* no job is left that could send events */
        bench_same(&b);
        bench_new_target(&b, 8 * MIB);
        if (round == 0)
            held = mallinfo2().uordblks;
    }
    cr_expect_leq(mallinfo2().uordblks, held + 64 * KIB);
    bench_fini(&b);
}

/* M-14 */
Test(mirror, every_granularity)
{
    for (uint64_t granularity = 512; granularity <= 64 * MIB; granularity *= 2)
        for (int mode = 0; mode < 2; mode++) {
            bench_init(&b, 2 * MIB + 512);
            bench_fill(&b);
            struct mirror_params params = bench_params(&b);
            params.granularity = granularity;
            params.copy_mode = mode ? MIRROR_WRITE_BLOCKING : MIRROR_BACKGROUND;
            bench_must_start(&b, &params);
            bench_ready(&b);
            for (uint64_t off = 300; off < 2 * MIB; off += 700 * KIB)
                cr_expect_eq(user_write(&b, "over there", off, 10), 0);
            finish_and_compare();
        }
}

/* ---- refused jobs, which leave nothing behind ---- */

static void expect_refused(const struct mirror_params *params, int err, const char *said)
{
    struct node *source = params->source;
    bool had_job = job_query(b.manager, NULL, 0) != 0;
    void *observers = atomic_load(&source->observers.list);

    cr_expect_eq(bench_start(&b, params), err);
    cr_expect(strstr(b.diag.text, said), "%s", b.diag.text);
    cr_expect_eq(job_query(b.manager, NULL, 0), had_job);
    if (!observers)
        cr_expect_null(atomic_load(&source->observers.list));
    bench_new_target(&b, source->size);
}

/* M-10, M-14, M-31, M-34 */
Test(mirror, refused)
{
    bench_init(&b, MIB);
    static const uint64_t bad[] = {1, 256, 1000, 513, 128 * MIB, UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        struct mirror_params params = bench_params(&b);
        params.granularity = bad[i];
        expect_refused(&params, -EINVAL, "power of two");
    }
    static const uint64_t sizes[] = {0, MIB - 1, MIB + 1, 2 * MIB};
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        node_close(b.node[TARGET]);
        bench_new_target(&b, sizes[i]);
        struct mirror_params params = bench_params(&b);
        expect_refused(&params, -EINVAL, "size");
    }
    struct mirror_params params = bench_params(&b);
    params.sync = MIRROR_INCREMENTAL;
    params.bitmap = "nobody's";
    expect_refused(&params, -ENOENT, "nobody's");
    bench_fini(&b);
}

/* If the last step of the start fails, a bitmap that was already taken is released (M-31). */
Test(mirror, a_bad_id_gives_the_bitmap_back)
{
    static const char *const ids[] = {"1", "job"};

    bench_init(&b, MIB);
    struct dirty_bitmap *bitmap = dirty_bitmap_new("bitmap", MIB, 65536);
    cr_assert_eq(node_bitmap_add(b.node[SOURCE], bitmap, &b.diag), 0);
    struct mirror_params running = bench_params(&b);
    bench_must_start(&b, &running);
    bench_ready(&b);
    bench_new_target(&b, MIB);
    for (unsigned i = 0; i < ARRAY_LEN(ids); i++) {
        struct mirror_params params = bench_params(&b);
        params.job.id = ids[i];
        params.sync = MIRROR_INCREMENTAL;
        params.bitmap = "bitmap";
        expect_refused(&params, i ? -EEXIST : -EINVAL, ids[i]);
        cr_expect_not(dirty_bitmap_busy(bitmap));
    }
    cr_expect_eq(dirty_bitmap_acquire(bitmap, &b.diag), 0);
    struct mirror_params params = bench_params(&b);
    params.job.id = "other";
    params.sync = MIRROR_INCREMENTAL;
    params.bitmap = "bitmap";
    expect_refused(&params, -EBUSY, "in use");
    cr_expect(dirty_bitmap_busy(bitmap), "still the other's");
    dirty_bitmap_release(bitmap);
    bench_cancel(&b);
    bench_fini(&b);
}

/* ---- limits ---- */

/* M-18: neighbouring chunks are copied by one request. */
Test(mirror, neighbours_are_copied_together)
{
    bench_init(&b, 16 * MIB);
    bench_fill(&b);
    struct mirror_params params = bench_params(&b);
    params.granularity = 4 * KIB;
    bench_must_start(&b, &params);
    bench_ready(&b);
    cr_expect_eq(fault_plan_calls(&b.plan[TARGET], FAULT_WRITE), 16);
    finish_and_compare();
}

static void expect_in_flight(uint64_t size, uint64_t buf_size, uint64_t granularity,
                             unsigned most)
{
    bench_init(&b, size);
    bench_fill(&b);
    /* One write more than allowed is never in flight together with the others. */
    fault_plan_gather_writes(&b.plan[TARGET], most, 1, 5000);
    struct mirror_params params = bench_params(&b);
    params.buf_size = buf_size;
    params.granularity = granularity;
    bench_must_start(&b, &params);
    bench_ready(&b);
    cr_expect_eq(fault_plan_most_in_flight(&b.plan[TARGET]), most);
    finish_and_compare();
}

/* M-16, M-17: sixteen writes at once, or as many as fit into the buffer. */
Test(mirror, no_more_is_in_flight_than_allowed, .timeout = 120)
{
    expect_in_flight(32 * MIB, 0, 0, 16);
    expect_in_flight(4 * MIB, 256 * KIB, 64 * KIB, 4);
    expect_in_flight(2 * MIB, 1, 64 * KIB, 1);
}

/* M-32: with a rate limit, no more bytes are in flight than one slice allows. */
Test(mirror, a_rate_limit_bounds_what_is_in_flight)
{
    bench_init(&b, 2 * MIB);
    bench_fill(&b);
    fault_plan_delay_writes(&b.plan[TARGET], 1000000, 1);
    struct mirror_params params = bench_params(&b);
    params.granularity = 4 * KIB;
    params.job.speed = 10 * 16 * KIB; /* 16 KiB a slice */
    bench_must_start(&b, &params);
    while (bench_look(&b).offset < 32 * KIB)
        nap();
    cr_expect_eq(fault_plan_most_in_flight(&b.plan[TARGET]), 1);
    cr_expect_lt(bench_look(&b).offset, MIB, "the first slice let it all through");
    cr_expect_eq(job_set_speed(b.manager, "job", 0, &b.diag), 0);
    bench_ready(&b);
    finish_and_compare();
}

/* M-15 */
Test(mirror, a_pause_comes_with_nothing_in_flight, .timeout = 120)
{
    bench_init(&b, 32 * MIB);
    bench_fill(&b);
    fault_plan_delay_writes(&b.plan[TARGET], 30000000, 1);
    fault_plan_gather_writes(&b.plan[TARGET], 16, 1, 5000);
    struct mirror_params params = bench_params(&b);
    bench_must_start(&b, &params);
    while (fault_plan_most_in_flight(&b.plan[TARGET]) < 16)
        nap();
    cr_assert_eq(job_pause(b.manager, "job", &b.diag), 0);
    bench_status(&b, JOB_PAUSED);
    lock_acquire(&b.plan[TARGET].lock);
    unsigned in_flight = b.plan[TARGET].in_flight;
    lock_release(&b.plan[TARGET].lock);
    cr_expect_eq(in_flight, 0);
    uint64_t writes = fault_plan_calls(&b.plan[TARGET], FAULT_WRITE);
    cr_expect_lt(writes, 32);
    cr_expect_eq(user_write(&b, "meanwhile", 12345, 9), 0);
    cr_expect_eq(fault_plan_calls(&b.plan[TARGET], FAULT_WRITE), writes);
    fault_plan_delay_writes(&b.plan[TARGET], 0, 0);
    cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
    bench_ready(&b);
    finish_and_compare();
}

/* ---- write-blocking ---- */

/* Once the job is ready, the target has each change before it is answered: writes to parts of
 * chunks and to several chunks, zeroes and trims. */
Test(mirror, a_blocking_job_stays_in_sync)
{
    static unsigned char data[300 * KIB];
    struct rng rng;

    bench_init(&b, 2 * MIB + 512);
    bench_fill(&b);
    struct mirror_params params = bench_params(&b);
    params.copy_mode = MIRROR_WRITE_BLOCKING;
    bench_must_start(&b, &params);
    bench_ready(&b);
    rng_init(&rng, 7);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t size = b.serving->size, len = rng_between(&rng, 1, sizeof data);
        uint64_t off = rng_below(&rng, size - len + 1);
        if (rng_one_in(&rng, 8))
            off = size - len;
        rng_fill(&rng, data, len);
        switch (rng_below(&rng, 4)) {
        case 0:
            cr_assert_eq(block_zero(b.serving, off, len, BLOCK_MAY_UNMAP), 0);
            break;
        case 1:
            cr_assert_eq(block_discard(b.serving, off, len, 0), 0);
            break;
        default:
            cr_assert_eq(block_write(b.serving, data, off, len, 0), 0);
        }
        bench_same(&b);
    }
    finish_and_compare();
}

/* Two users write to the same place at once.  The "early" write began before the job started to
 * forward writes, the "late" one after.  Disk and target must end with the same of the two. */
static struct {
    struct observer observer;
    unsigned char early[64 * KIB], late[64 * KIB];
    pthread_t thread;
    _Atomic bool is_inside, may_go_on;
} pair;

static void note_nothing(struct observer *observer, uint64_t off, uint64_t len)
{
    (void)observer;
    (void)off;
    (void)len;
}

static void *hold_the_early(struct observer *observer, const struct change *change)
{
    (void)observer;
    if (change->buf == pair.early) {
        atomic_store(&pair.is_inside, true);
        while (!atomic_load(&pair.may_go_on))
            nap();
    }
    return NULL;
}

/* Called when the late write is on the disk and before it is forwarded: lets the early one end. */
static void let_the_early_end(struct observer *observer, const struct change *change,
                              void *token, int err)
{
    (void)observer;
    (void)token;
    (void)err;
    if (change->buf != pair.late)
        return;
    atomic_store(&pair.may_go_on, true);
    cr_assert_eq(pthread_join(pair.thread, NULL), 0);
}

static void *write_the_early(void *opaque)
{
    (void)opaque;
    cr_expect_eq(user_write(&b, pair.early, 128 * KIB, sizeof pair.early), 0);
    return NULL;
}

Test(mirror, a_write_that_began_before_the_job_was_blocking, .timeout = 120)
{
    bench_init(&b, MIB);
    bench_fill(&b);
    struct mirror_params params = bench_params(&b);
    bench_must_start(&b, &params);
    bench_ready(&b);
    pair.observer = (struct observer){
        .wrote = note_nothing, .before = hold_the_early, .after = let_the_early_end};
    cr_assert_eq(observer_add(&b.serving->observers, &pair.observer), 0);
    memset(pair.early, 5, sizeof pair.early);
    memset(pair.late, 9, sizeof pair.late);
    cr_assert_eq(pthread_create(&pair.thread, NULL, write_the_early, NULL), 0);
    while (!atomic_load(&pair.is_inside))
        nap();
    cr_assert_eq(job_change(b.manager, "job", "mirror", true, &b.diag), 0, "%s",
                 b.diag.text);
    cr_expect_eq(user_write(&b, pair.late, 128 * KIB, sizeof pair.late), 0);
    observer_remove(&b.serving->observers, &pair.observer);
    while (bench_look(&b).offset != bench_look(&b).len)
        nap();
    finish_and_compare();
}

/* Starts a job in write-blocking mode that stops when the target fails, and waits until it is
 * ready. */
static void start_blocking(void)
{
    bench_init(&b, MIB);
    bench_fill(&b);
    struct mirror_params params = bench_params(&b);
    params.copy_mode = MIRROR_WRITE_BLOCKING;
    params.on_target_error = JOB_STOP;
    bench_must_start(&b, &params);
    bench_ready(&b);
}

/* A write that failed on the disk isn't forwarded; its chunk is copied later.  After an error of
 * the target users' writes succeed and are only marked. */
Test(mirror, failures_under_a_blocking_job)
{
    start_blocking();
    uint64_t writes = fault_plan_calls(&b.plan[TARGET], FAULT_WRITE);
    fault_plan_fail(&b.plan[SOURCE], FAULT_WRITE, 1, EIO, FAULT_ONCE);
    fault_plan_fail(&b.plan[TARGET], FAULT_WRITE, 1, EIO, FAULT_FROM_THEN_ON);
    cr_expect_eq(user_write(&b, "x", 0, 1), -EIO);
    bench_status(&b, JOB_STANDBY); /* the chunk's content is unknown: the job copies it */
    uint64_t tried = fault_plan_calls(&b.plan[TARGET], FAULT_WRITE);
    cr_expect_gt(tried, writes);
    cr_expect_eq(user_write(&b, "y", 300 * KIB, 1), 0, "only marked: the target failed");
    cr_expect_eq(fault_plan_calls(&b.plan[TARGET], FAULT_WRITE), tried);
    fault_plan_heal(&b.plan[TARGET]);
    cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
    bench_status(&b, JOB_READY);
    while (bench_look(&b).offset != bench_look(&b).len)
        nap();
    finish_and_compare();
}

/* A user's flush flushes both sides.  If only the target's flush fails, the user's flush still
 * succeeds, and the job handles the error. */
Test(mirror, a_flush_under_a_blocking_job)
{
    start_blocking();
    cr_assert_eq(user_write(&b, "x", 0, 1), 0);
    uint64_t flushes = fault_plan_calls(&b.plan[TARGET], FAULT_FLUSH);
    cr_assert_eq(block_flush(b.serving), 0);
    cr_expect_eq(fault_plan_calls(&b.plan[TARGET], FAULT_FLUSH), flushes + 1);
    cr_assert_eq(user_write(&b, "y", 0, 1), 0);
    fault_plan_fail(&b.plan[TARGET], FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_flush(b.serving), 0);
    bench_status(&b, JOB_STANDBY);
    cr_expect_eq(job_resume(b.manager, "job", &b.diag), 0);
    bench_status(&b, JOB_READY);
    while (bench_look(&b).offset != bench_look(&b).len)
        nap();
    finish_and_compare();
}

/* ---- users all the time ---- */

struct user {
    pthread_t thread;
    uint64_t base, size, seed;
    unsigned char *model;
    _Atomic unsigned *stop;
    _Atomic unsigned count;
};

static void *write_all_the_time(void *opaque)
{
    struct user *u = opaque;
    static _Thread_local unsigned char data[100 * KIB];
    struct rng rng;

    rng_init(&rng, u->seed);
    while (!atomic_load(u->stop)) {
        uint64_t len = rng_between(&rng, 1, rng_one_in(&rng, 4) ? sizeof data : 4096);
        uint64_t off = rng_below(&rng, u->size - len + 1);
        rng_fill(&rng, data, len);
        memcpy(u->model + off, data, len);
        cr_assert_eq(user_write(&b, data, u->base + off, len), 0);
        atomic_fetch_add(&u->count, 1);
    }
    return NULL;
}

#define USERS 4u

struct crowd {
    struct user user[USERS];
    _Atomic unsigned stop;
};

static void crowd_come(struct crowd *c, uint64_t seed)
{
    uint64_t each = b.serving->size / USERS;

    atomic_store(&c->stop, 0);
    for (unsigned i = 0; i < USERS; i++) {
        struct user *u = &c->user[i];
        *u = (struct user){.base = i * each, .size = each, .seed = seed + i};
        u->stop = &c->stop;
        u->model = malloc(each);
        cr_assert_eq(block_read(b.serving, u->model, u->base, each), 0);
        cr_assert_eq(pthread_create(&u->thread, NULL, write_all_the_time, u), 0);
    }
}

static void crowd_do_some(struct crowd *c)
{
    for (unsigned i = 0; i < USERS; i++) {
        unsigned until = atomic_load(&c->user[i].count) + 50 / build_slowness();
        while (atomic_load(&c->user[i].count) < until)
            nap();
    }
}

/* Stops the users, who check then that the disk holds what they wrote. */
static void crowd_leave(struct crowd *c)
{
    atomic_store(&c->stop, 1);
    for (unsigned i = 0; i < USERS; i++) {
        struct user *u = &c->user[i];
        pthread_join(u->thread, NULL);
        unsigned char *found = malloc(u->size);
        cr_assert_eq(block_read(b.serving, found, u->base, u->size), 0);
        cr_assert_arr_eq(found, u->model, u->size);
        free(found);
        free(u->model);
    }
}

/* Progress never goes back, and is complete when the job is ready (M-03, M-13). */
static void expect_progress(void)
{
    uint64_t last = 0;

    pthread_mutex_lock(&b.heard.mutex);
    for (unsigned i = 0; i < b.heard.n; i++) {
        const struct job_info *info = &b.heard.events[i].info;
        cr_assert_geq(info->offset, last);
        cr_assert_leq(info->offset, info->len);
        if (b.heard.events[i].kind == JOB_EVENT_READY ||
            b.heard.events[i].kind == JOB_EVENT_COMPLETED)
            cr_assert_eq(info->offset, info->len);
        last = info->offset;
    }
    pthread_mutex_unlock(&b.heard.mutex);
}

static void under_load(enum mirror_copy_mode mode, uint64_t granularity, uint64_t seed)
{
    static struct crowd crowd;

    bench_init(&b, 4 * MIB);
    bench_fill(&b);
    crowd_come(&crowd, seed);
    struct mirror_params params = bench_params(&b);
    params.copy_mode = mode;
    params.granularity = granularity;
    bench_must_start(&b, &params);
    bench_ready(&b);
    crowd_do_some(&crowd);
    cr_assert_eq(job_complete(b.manager, "job", &b.diag), 0);
    bench_end(&b, JOB_EVENT_COMPLETED);
    cr_assert_not_null(b.replaced);
    struct storage *then = mem_storage_clone(b.mem[SOURCE]);
    crowd_do_some(&crowd);
    crowd_leave(&crowd);
    cr_expect(mem_storage_equal(then, b.mem[SOURCE], NULL), "the old disk was written to");
    storage_close(then);
    expect_progress();
    bench_fini(&b);
}

/* M-02, M-03, M-06 */
Test(mirror, under_load, .timeout = 300)
{
    uint64_t seed = env_number("QIMG_SEED", 1);

    for (unsigned i = 0; i < 6; i++) {
        uint64_t granularity = UINT64_C(512) << (2 * i);
        under_load(MIRROR_BACKGROUND, granularity, seed + i);
        under_load(MIRROR_WRITE_BLOCKING, granularity, seed + i);
    }
}

/* M-60: the job records users' changes from before it becomes visible.  What they make dirty before
 * the job's first look at the disk stays dirty. */
Test(mirror, a_write_before_the_first_look, .timeout = 120)
{
    static uint8_t data[3000];

    for (unsigned i = 0; i < 200; i++) {
        bench_init(&b, 4 * MIB);
        struct mirror_params params = bench_params(&b);
        params.sync = i % 3 ? MIRROR_FULL : MIRROR_NONE;
        params.copy_mode = i % 2 ? MIRROR_WRITE_BLOCKING : MIRROR_BACKGROUND;
        bench_must_start(&b, &params);
        for (unsigned n = 0; n < 8; n++) {
            memset(data, (int)(i + n + 1), sizeof data);
            cr_assert_eq(
                user_write(&b, data, (i * 31 + n * 7) % 64 * 64 * KIB, sizeof data), 0);
        }
        bench_ready(&b);
        bench_cancel(&b);
        bench_same(&b);
        bench_fini(&b);
    }
}

/* M-10 */
Test(mirror, cancelled_under_load, .timeout = 300)
{
    static struct crowd crowd;

    for (unsigned i = 0; i < 6; i++) {
        bench_init(&b, 4 * MIB);
        bench_fill(&b);
        crowd_come(&crowd, i);
        struct mirror_params params = bench_params(&b);
        params.copy_mode = i % 2 ? MIRROR_WRITE_BLOCKING : MIRROR_BACKGROUND;
        bench_must_start(&b, &params);
        if (i >= 2)
            bench_ready(&b);
        crowd_do_some(&crowd);
        /* A forced cancel comes under load; a soft one after the users have stopped. */
        if (i < 4) {
            cr_assert_eq(job_cancel(b.manager, "job", true, &b.diag), 0);
            bench_end(&b, JOB_EVENT_CANCELLED);
            crowd_leave(&crowd);
        } else {
            crowd_leave(&crowd);
            bench_cancel(&b);
            bench_same(&b);
        }
        bench_fini(&b);
    }
}
