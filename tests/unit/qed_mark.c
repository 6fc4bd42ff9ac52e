/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests when NEED_CHECK is set and cleared, V-06. */
#include "block/image_info.h"
#include "crash_storage.h"
#include "qed_testing.h"

#define CLUSTER 4096u
#define EMPTY   (3 * CLUSTER)

static void start(struct bench *b, const char *backing)
{
    struct qed_header h = small_header(GIB);

    h.table_size = 2;
    bench_init(b, new_image_in_memory(h, backing));
}

static bool marked(struct bench *b)
{
    return features_of(b->mem) & QED_F_NEED_CHECK;
}

static bool marked_in_info(struct node *node)
{
    struct image_info info;

    cr_assert_eq(image_info_read(node, IMAGE_INFO_RECORDED, &info), 0);
    bool dirty = info.dirty;
    image_info_free(&info);
    return dirty;
}

static void pass(struct bench *b, uint64_t seconds)
{
    b->now += seconds * SEC;
    housekeeper_run_due(b->ctx.housekeeper);
}

Test(qed_mark, q14_cleared_by_a_clean_close)
{
    struct bench b;

    start(&b, NULL);
    bench_open_writable(&b);
    cr_expect_not(marked(&b), "activation alone sets nothing");
    write_pattern(b.node, 0, CLUSTER, 1);
    cr_expect(marked(&b));
    cr_expect(marked_in_info(b.node));
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_not(marked(&b));
    bench_fini(&b);
}

/* From entry `from` of the log on, the mark must be written first, then a barrier, then the page at
 * `table`. */
static void expect_mark_first(struct crash_log *log, uint64_t from, uint64_t table)
{
    bool set = false, durable = false, updated = false;

    for (uint64_t i = from; i < crash_log_count(log); i++) {
        struct crash_op op = crash_log_op(log, i);
        set |= op.kind == CRASH_WRITE && op.off == 16 && (op.data[0] & QED_F_NEED_CHECK);
        durable |= set && op.kind == CRASH_FLUSH;
        if (op.kind == CRASH_WRITE && op.off == table) {
            updated = true;
            cr_expect(durable);
        }
    }
    cr_expect(updated);
}

Test(qed_mark, q13_durable_before_the_first_table_update)
{
    struct qed_header h = small_header(GIB);
    struct storage *base = new_image_in_memory(h, NULL);
    struct crash_log *log = crash_log_new(base);
    struct node *node = NULL;
    struct bench b;

    bench_init(&b, base);
    cr_assert_eq(node_open(&b.ctx, &qed_driver, crash_storage_open(log), "disk.qed",
                           &b.options, &node, NULL),
                 0);
    cr_assert_eq(node_activate(node, NULL), 0);
    write_pattern(node, 0, CLUSTER, 1);
    cr_assert_eq(block_flush(node), 0);
    expect_mark_first(log, 0, h.l1_table_offset);

    /* A zero marker takes no cluster: only the mark needs a barrier.  (The image names no backing
     * file; one given by the user is open.) */
    cr_assert_eq(qed_driver.clear_mark(node), 0);
    node->backing = open_backing(&b, new_image_in_memory(small_header(MIB), NULL));
    uint64_t from = crash_log_count(log);
    cr_assert_eq(block_zero(node, 5 * CLUSTER, CLUSTER, 0), 0);
    cr_assert_eq(block_flush(node), 0);
    expect_mark_first(log, from, 2 * CLUSTER);
    cr_assert_eq(node_close(node), 0);
    crash_log_free(log);
    bench_fini(&b);
}

Test(qed_mark, q16_never_with_a_backing_file)
{
    struct bench b;

    start(&b, "base.qed");
    bench_open_writable(&b);
    b.node->backing = open_backing(&b, new_image_in_memory(small_header(MIB), NULL));
    write_pattern(b.node, 0, CLUSTER, 1);
    cr_expect_not(marked(&b));
    cr_expect_eq(block_zero(b.node, 50 * CLUSTER, CLUSTER, 0), 0);
    cr_expect_not(marked(&b));
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_not(marked(&b));
    bench_fini(&b);
}

Test(qed_mark, q19_cleared_after_five_quiet_seconds)
{
    struct bench b;

    start(&b, NULL);
    bench_open_writable(&b);
    write_pattern(b.node, 0, CLUSTER, 1);
    pass(&b, 4);
    cr_expect(marked(&b));
    write_pattern(b.node, CLUSTER, CLUSTER, 2); /* an allocation starts the delay again */
    pass(&b, 4);
    cr_expect(marked(&b));
    write_pattern(b.node, 0, CLUSTER, 3); /* a write in place doesn't */
    pass(&b, 1);
    cr_expect_not(marked(&b));
    cr_expect_not(marked_in_info(b.node));
    cr_expect_eq(size_of(b.mem), EMPTY + 4 * CLUSTER,
                 "a clean image has no leaks at its end");
    cr_expect_eq(qemu_check(b.mem), 0);

    write_pattern(b.node, 9 * CLUSTER, CLUSTER, 4);
    cr_expect(marked(&b), "set again");
    cr_expect(reads_as(b.node, 0, CLUSTER, 3));
    cr_expect(reads_as(b.node, CLUSTER, CLUSTER, 2));
    cr_expect(reads_as(b.node, 9 * CLUSTER, CLUSTER, 4));
    bench_fini(&b);
}

Test(qed_mark, q20_a_failed_clearing_is_tried_again)
{
    static const enum fault_kind kinds[] = {FAULT_WRITE, FAULT_TRUNCATE};

    log_set_sink(log_to_buffer);
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct bench b;
        start(&b, NULL);
        bench_open_writable(&b);
        write_pattern(b.node, 0, CLUSTER, 1);
        cr_assert_eq(block_flush(b.node), 0);
        fault_plan_fail(&b.plan, kinds[i], 1, EIO, FAULT_ONCE);
        pass(&b, 5);
        cr_expect_eq(fault_plan_injected(&b.plan), 1);
        cr_expect(marked(&b), "stays set");
        write_pattern(b.node, CLUSTER, CLUSTER, 1);
        pass(&b, 5);
        cr_expect_not(marked(&b));
        cr_expect_eq(qemu_check(b.mem), 0);
        bench_fini(&b);
    }
}

Test(qed_mark, q20_settle_clears_at_once)
{
    struct bench b;

    start(&b, NULL);
    bench_open_writable(&b);
    cr_expect_eq(qed_driver.clear_mark(b.node), 0, "nothing to do");
    write_pattern(b.node, 0, CLUSTER, 1);
    cr_expect_eq(qed_driver.clear_mark(b.node), 0);
    cr_expect_not(marked(&b));
    bench_fini(&b);
}

Test(qed_mark, q14_a_close_that_can_not_write_leaves_the_mark)
{
    struct bench b;

    log_set_sink(log_to_buffer);
    start(&b, NULL);
    bench_open_writable(&b);
    write_pattern(b.node, 0, CLUSTER, 1);
    fault_plan_fail(&b.plan, FAULT_FLUSH, 1, EIO, FAULT_FROM_THEN_ON);
    cr_expect_eq(bench_close(&b), -EIO);
    cr_expect(marked(&b));
    bench_fini(&b);
}

static void marked_image(struct bench *b)
{
    struct qed_header h = small_header(MIB);

    h.features = QED_F_NEED_CHECK;
    bench_init(b, new_image_in_memory(h, NULL));
}

Test(qed_mark, q15_an_image_with_the_mark_is_checked_before_it_is_writable)
{
    struct diag diag = {0};
    struct bench b;

    marked_image(&b);
    bench_open(&b);
    cr_expect(reads_as(b.node, 0, MIB, 0));
    cr_expect(marked_in_info(b.node));
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    cr_expect_eq(node_activate(b.node, &diag), 0);
    cr_expect_not(marked(&b));
    cr_expect_not(marked_in_info(b.node));
    write_pattern(b.node, 0, CLUSTER, 1);
    cr_expect(marked(&b));
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_not(marked(&b));
    bench_fini(&b);
}

Test(qed_mark, q15_or_only_readable_when_it_must_not_be_repaired)
{
    struct diag diag = {0};
    struct bench b;

    marked_image(&b);
    b.options.repair_off = true;
    bench_open(&b);
    cr_expect(reads_as(b.node, 0, MIB, 0));
    cr_expect_eq(node_activate(b.node, &diag), -EROFS);
    cr_expect_str_eq(diag.text,
                     "disk.qed: features: NEED_CHECK is set: the image must be repaired "
                     "(repair=auto, or qimg check -r all) before it can be written");
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    cr_expect(marked(&b));
    bench_fini(&b);
}

Test(qed_mark, q04_block_devices_are_for_reading_only)
{
    struct diag diag = {0};
    struct bench b;

    start(&b, NULL);
    b.is_device = true;
    bench_open(&b);
    cr_expect_not(b.node->can_write);
    cr_expect(reads_as(b.node, 0, MIB, 0));
    cr_expect_eq(node_activate(b.node, &diag), -EROFS);
    cr_expect_str_eq(
        diag.text, "disk.qed: can't be opened for writing: a QED image on a block device: "
                   "the format grows by extending its file");
    bench_fini(&b);
}

/* ---- volatile sessions ---- */

static void start_volatile(struct bench *b)
{
    start(b, NULL);
    b->options.cache = cache_mode_find("volatile");
    bench_open(b);
    b->node->file->no_flush = true;
    cr_assert_eq(node_activate(b->node, NULL), 0);
    write_pattern(b->node, 0, CLUSTER, 1);
}

Test(qed_mark, v06_stays_through_a_volatile_session)
{
    struct bench b;

    start_volatile(&b);
    pass(&b, 100);
    cr_expect(marked(&b), "the timer's flush would be void");
    cr_expect_eq(qed_driver.clear_mark(b.node), 0);
    cr_expect(marked(&b));
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 0);
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_geq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1, "a real sync at the end");
    cr_expect_not(marked(&b));
    bench_fini(&b);
}

Test(qed_mark, v06_final_sync_can_be_skipped)
{
    struct bench b;

    start_volatile(&b);
    b.node->options.keep_marks = true;
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 0);
    cr_expect(marked(&b));
    bench_fini(&b);
}
