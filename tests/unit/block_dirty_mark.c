/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the dirty mark, with a fake clock, V-06, L-08. */
#include <pthread.h>
#include <time.h>

#include "block/dirty_mark.h"
#include "block_testing.h"

#define DELAY (5 * SEC)
#define BIT   100u /* offset of the byte in the file that stands for the bit */

/* The mcache hooks get one owner; a test uses one mark at a time. */
static struct dirty_mark *the_mark;
static int bit_writes, fail_bit;

static int write_bit(struct node *node, bool on)
{
    uint8_t byte = on;

    bit_writes++;
    return fail_bit ? -fail_bit : storage_write(node->file, &byte, BIT, 1, 0);
}

static void on_frozen(void *owner)
{
    (void)owner;
    dirty_mark_frozen(the_mark);
}

static void on_durable(void *owner)
{
    (void)owner;
    dirty_mark_durable(the_mark);
}

static void mark_init(struct toy_bench *b, struct dirty_mark *mark,
                      const struct node_options *options, bool enabled)
{
    static const struct mcache_hooks hooks = {.frozen = on_frozen, .durable = on_durable};
    struct node_options defaults = {.need_check_delay_ns = DELAY};

    toy_init(b, CLUSTERS * CLUSTER, options ? options : &defaults);
    mcache_free(b->node->mc);
    b->node->mc = mcache_new(b->ctx.pool, &b->ctx.gate, b->node->file, &hooks, b);
    the_mark = mark;
    bit_writes = fail_bit = 0;
    dirty_mark_init(mark, b->node, write_bit, enabled, false);
}

static void mark_fini(struct toy_bench *b, struct dirty_mark *mark)
{
    dirty_mark_destroy(mark);
    toy_fini(b);
}

static bool bit_in_file(struct toy_bench *b)
{
    uint8_t byte;

    cr_assert_eq(storage_read(b->node->file, &byte, BIT, 1), 0);
    return byte;
}

static void begin(struct dirty_mark *mark)
{
    cr_assert_eq(dirty_mark_begin(mark), 0);
}

static void end(struct toy_bench *b, struct dirty_mark *mark)
{
    {
        LOCK_GUARD(mcache_meta(b->node->mc));
        dirty_mark_end(mark);
    }
    node_wrote(b->node);
}

static void allocate(struct toy_bench *b, struct dirty_mark *mark)
{
    begin(mark);
    end(b, mark);
}

static void pass(struct toy_bench *b, uint64_t ns)
{
    b->now += ns;
    housekeeper_run_due(b->ctx.housekeeper);
}

static bool needs_barrier(struct toy_bench *b, struct dirty_mark *mark)
{
    LOCK_GUARD(mcache_meta(b->node->mc));
    return dirty_mark_needs_barrier(mark);
}

Test(block_dirty_mark, q13_in_the_file_before_the_allocation)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    begin(&mark);
    cr_expect(bit_in_file(&b));
    cr_expect_eq(mark.state, MARK_SET);
    end(&b, &mark);
    allocate(&b, &mark);
    cr_expect_eq(bit_writes, 1, "once for a busy period");
    mark_fini(&b, &mark);
}

/* Until the mark is durable, every group is strict. */
Test(block_dirty_mark, q13_durable_with_the_first_group)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    cr_expect(needs_barrier(&b, &mark));
    cr_assert_eq(mcache_commit(b.node->mc, MC_COMMIT), 0);
    cr_expect_eq(mark.state, MARK_DURABLE);
    cr_expect_not(needs_barrier(&b, &mark));
    mark_fini(&b, &mark);
}

/* The end of a group that was frozen before the bit was written doesn't make the bit durable. */
static void begin_in_the_barrier(void *opaque, enum crash_kind kind, uint64_t off,
                                 uint64_t len)
{
    struct dirty_mark *mark = opaque;

    (void)off;
    (void)len;
    if (kind == CRASH_FLUSH && mark->in_flight == 0)
        begin(mark);
}

Test(block_dirty_mark, q13_an_older_group_makes_it_not_durable)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    node_wrote(b.node);
    crash_log_set_hook(b.log, begin_in_the_barrier, &mark);
    cr_assert_eq(mcache_commit(b.node->mc, MC_COMMIT), 0);
    crash_log_set_hook(b.log, NULL, NULL);
    cr_expect_eq(mark.in_flight, 1);
    cr_expect_eq(mark.state, MARK_SET);
    end(&b, &mark);
    cr_assert_eq(mcache_commit(b.node->mc, MC_COMMIT), 0);
    cr_expect_eq(mark.state, MARK_DURABLE);
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, q19_cleared_five_seconds_after_the_last)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    pass(&b, 3 * SEC);
    allocate(&b, &mark);
    pass(&b, 4 * SEC);
    cr_expect(bit_in_file(&b), "four seconds after the last");
    pass(&b, SEC - 1);
    cr_expect(bit_in_file(&b), "a nanosecond too early");
    pass(&b, 1);
    cr_expect_not(bit_in_file(&b));
    cr_expect_eq(mark.state, MARK_CLEAR);
    allocate(&b, &mark);
    cr_expect(bit_in_file(&b), "a new busy period");
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, q20_the_timer_does_nothing_during_an_allocation)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    begin(&mark);
    pass(&b, 100 * SEC);
    cr_expect(bit_in_file(&b));
    cr_expect_eq(dirty_mark_clear(&mark, false), -EBUSY);
    end(&b, &mark);
    pass(&b, DELAY);
    cr_expect_not(bit_in_file(&b), "armed again by its end");
    mark_fini(&b, &mark);
}

/* The order at the end: all changes that the bit covers, a barrier, the clearing of the bit, and
 * another barrier. */
Test(block_dirty_mark, q19_flush_clear_flush)
{
    struct toy_bench b;
    struct dirty_mark mark;
    char order[16] = "";

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    uint64_t from = crash_log_count(b.log);
    pass(&b, DELAY);
    for (uint64_t i = from; i < crash_log_count(b.log); i++) {
        struct crash_op op = crash_log_op(b.log, i);
        strcat(order, op.kind == CRASH_FLUSH ? "F" : op.kind == CRASH_WRITE ? "w" : "?");
    }
    cr_expect_str_eq(order, "FwF");
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, q20_a_failure_keeps_it_and_it_is_tried_again)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    fail_bit = EIO;
    pass(&b, DELAY);
    cr_expect_eq(mark.state, MARK_UNKNOWN, "the file may have it or not");
    fail_bit = 0;
    allocate(&b, &mark);
    cr_expect(bit_in_file(&b));
    cr_expect_eq(mark.state, MARK_SET, "written anew");
    pass(&b, DELAY);
    cr_expect_not(bit_in_file(&b));
    cr_expect_eq(mark.state, MARK_CLEAR);
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, q20_a_failed_commit_leaves_the_bit_alone)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    cr_assert_eq(mcache_commit(b.node->mc, MC_COMMIT), 0);
    mcache_note_write(b.node->mc);
    fault_plan_fail(&b.plan, FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    int writes = bit_writes;
    pass(&b, DELAY);
    cr_expect(bit_in_file(&b));
    cr_expect_eq(bit_writes, writes);
    cr_expect_eq(mark.state, MARK_DURABLE);
    mark_fini(&b, &mark);
}

/* With a storage that keeps its writes after a failed flush (keeps_writes) the image doesn't have
 * to be opened again. */
Test(block_dirty_mark, q20_a_barrier_that_fails_is_tried_again)
{
    for (int keeps = 0; keeps <= 1; keeps++) {
        struct toy_bench b;
        struct dirty_mark mark;

        mark_init(&b, &mark, NULL, true);
        b.node->file->keeps_writes = keeps;
        allocate(&b, &mark);
        fault_plan_fail(&b.plan, FAULT_FLUSH, 2, ETIMEDOUT,
                        FAULT_ONCE); /* the barrier after the bit */
        pass(&b, DELAY);
        cr_expect_eq(fault_plan_injected(&b.plan), 1);
        cr_expect_eq(mark.state, MARK_UNKNOWN);
        cr_expect_eq(mcache_health(b.node->mc), keeps ? 0 : -EIO);
        if (keeps) {
            allocate(&b, &mark);
            cr_expect(bit_in_file(&b));
            cr_expect(needs_barrier(&b, &mark), "groups are strict until it is durable");
            pass(&b, DELAY);
            cr_expect_not(bit_in_file(&b));
            cr_expect_eq(mark.state, MARK_CLEAR);
        }
        mark_fini(&b, &mark);
    }
}

Test(block_dirty_mark, begin_fails_when_the_bit_cant_be_written)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, true);
    fail_bit = ENOSPC;
    cr_expect_eq(dirty_mark_begin(&mark), -ENOSPC);
    cr_expect_eq(mark.in_flight, 0);
    fail_bit = 0;
    allocate(&b, &mark);
    cr_expect(bit_in_file(&b));
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, v06_never_by_the_timer_when_flushes_are_void)
{
    struct toy_bench b;
    struct dirty_mark mark;
    struct node_options options = {.need_check_delay_ns = DELAY,
                                   .cache = cache_mode_find("volatile")};

    mark_init(&b, &mark, &options, true);
    b.node->file->no_flush = true;
    allocate(&b, &mark);
    pass(&b, 100 * SEC);
    cr_expect(bit_in_file(&b));
    uint64_t flushes = fault_plan_calls(&b.plan, FAULT_FLUSH);
    cr_expect_eq(flushes, 0);
    cr_expect_eq(dirty_mark_finish(&mark), 0);
    cr_expect_not(bit_in_file(&b));
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 2, "a real sync before and after");
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, v06_final_sync_waived)
{
    struct toy_bench b;
    struct dirty_mark mark;
    struct node_options options = {.need_check_delay_ns = DELAY,
                                   .cache = cache_mode_find("volatile"),
                                   .keep_marks = true};

    mark_init(&b, &mark, &options, true);
    b.node->file->no_flush = true;
    allocate(&b, &mark);
    cr_expect_eq(dirty_mark_finish(&mark), 0);
    cr_expect(bit_in_file(&b));
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 0);
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, without_a_delay_only_the_end_clears)
{
    struct toy_bench b;
    struct dirty_mark mark;
    struct node_options options = {0};

    mark_init(&b, &mark, &options, true);
    allocate(&b, &mark);
    pass(&b, 1000 * SEC);
    cr_expect(bit_in_file(&b));
    cr_expect_eq(dirty_mark_finish(&mark), 0);
    cr_expect_not(bit_in_file(&b));
    mark_fini(&b, &mark);
}

Test(block_dirty_mark, not_enabled_does_nothing)
{
    struct toy_bench b;
    struct dirty_mark mark;

    mark_init(&b, &mark, NULL, false);
    allocate(&b, &mark);
    cr_expect_not(needs_barrier(&b, &mark));
    pass(&b, DELAY);
    cr_expect_eq(dirty_mark_finish(&mark), 0);
    cr_expect_eq(bit_writes, 0);
    mark_fini(&b, &mark);
}

/* while the mark is being cleared, new allocations wait; then they set it again. */
struct racer {
    struct dirty_mark *mark;
    struct toy_bench *b;
    pthread_t thread;
    _Atomic bool started, begun;
};

static void *begin_in_thread(void *opaque)
{
    struct racer *r = opaque;

    atomic_store(&r->started, true);
    begin(r->mark);
    atomic_store(&r->begun, true);
    return NULL;
}

static void start_racer_in_the_barrier(void *opaque, enum crash_kind kind, uint64_t off,
                                       uint64_t len)
{
    struct racer *r = opaque;
    const struct timespec pause = {.tv_nsec = 20000000};

    (void)off;
    (void)len;
    if (kind != CRASH_FLUSH || atomic_load(&r->started))
        return;
    cr_assert_eq(pthread_create(&r->thread, NULL, begin_in_thread, r), 0);
    while (!atomic_load(&r->started))
        nanosleep(&pause, NULL);
    nanosleep(&pause, NULL);
    cr_expect_not(atomic_load(&r->begun), "held back while the mark is cleared");
}

Test(block_dirty_mark, q19_allocations_wait_while_it_is_cleared, .timeout = 60)
{
    struct toy_bench b;
    struct dirty_mark mark;
    struct racer r = {.mark = &mark, .b = &b};

    mark_init(&b, &mark, NULL, true);
    allocate(&b, &mark);
    crash_log_set_hook(b.log, start_racer_in_the_barrier, &r);
    cr_expect_eq(dirty_mark_clear(&mark, true), 0);
    pthread_join(r.thread, NULL);
    crash_log_set_hook(b.log, NULL, NULL);
    cr_expect(bit_in_file(&b), "set again for the one that waited");
    cr_expect_eq(mark.state, MARK_SET);
    end(&b, &mark);
    mark_fini(&b, &mark);
}
