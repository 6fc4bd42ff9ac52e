/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests allocating writes of QED. */
#include <pthread.h>

#include "qed_testing.h"

#define CLUSTER 4096u
#define TABLE   (2 * CLUSTER)
#define SPAN    (UINT64_C(1) * CLUSTER * (TABLE / 8)) /* bytes that an L2 table maps */
#define EMPTY   (CLUSTER + TABLE)                     /* bytes of an empty image */
#define WRITERS 8

static void start(struct bench *b)
{
    struct qed_header h = small_header(GIB);

    h.table_size = 2;
    bench_init(b, new_image_in_memory(h, NULL));
    bench_open_writable(b);
}

static uint64_t host_of(struct node *node, uint64_t off)
{
    struct extent e = map_at(node, off, 1);

    cr_assert_eq(e.kind, EXTENT_DATA);
    return e.host_offset;
}

Test(qed_alloc, q08_clusters_come_from_the_end_of_the_file_and_are_filled)
{
    struct bench b;

    start(&b);
    write_pattern(b.node, 10 * CLUSTER + 100, 50, 'x');
    cr_expect(reads_as(b.node, 10 * CLUSTER, 100, 0));
    cr_expect(reads_as(b.node, 10 * CLUSTER + 100, 50, 'x'));
    cr_expect(reads_as(b.node, 10 * CLUSTER + 150, CLUSTER - 150, 0));
    cr_expect_eq(host_of(b.node, 10 * CLUSTER), EMPTY + TABLE, "behind the new L2 table");
    write_pattern(b.node, 10 * CLUSTER, CLUSTER, 'y');
    cr_expect_eq(host_of(b.node, 10 * CLUSTER), EMPTY + TABLE, "in place");
    cr_assert_eq(bench_close(&b), 0);

    cr_expect_eq(size_of(b.mem), EMPTY + TABLE + CLUSTER,
                 "what was grown ahead is given back");
    cr_expect_eq(get_word(b.mem, CLUSTER), EMPTY);
    cr_expect_eq(get_word(b.mem, EMPTY + 8 * 10), EMPTY + TABLE);
    bench_open_writable(&b);
    cr_expect(reads_as(b.node, 10 * CLUSTER, CLUSTER, 'y'));
    cr_expect(reads_as(b.node, 11 * CLUSTER, SPAN, 0));
    bench_finish(&b);
}

Test(qed_alloc, q08_a_request_over_several_tables)
{
    struct bench b;

    start(&b);
    write_pattern(b.node, SPAN - 3 * CLUSTER - 7, 2 * SPAN, 'z');
    cr_expect(reads_as(b.node, SPAN - 3 * CLUSTER - 7, 2 * SPAN, 'z'));
    cr_expect(reads_as(b.node, 0, SPAN - 3 * CLUSTER - 7, 0));
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + 3 * TABLE + 2 * SPAN + CLUSTER);
    bench_open_writable(&b);
    cr_expect(reads_as(b.node, SPAN - 3 * CLUSTER - 7, 2 * SPAN, 'z'));
    bench_finish(&b);
}

Test(qed_alloc, q08_the_last_cluster_may_reach_past_the_virtual_size)
{
    struct qed_header h = small_header(5 * CLUSTER + 512);
    struct bench b;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, NULL));
    bench_open_writable(&b);
    write_pattern(b.node, 5 * CLUSTER, 512, 'e');
    cr_expect_eq(block_write(b.node, "x", 5 * CLUSTER + 512, 1, 0), -EINVAL);
    cr_expect(reads_as(b.node, 5 * CLUSTER, 512, 'e'));
    bench_finish(&b);
}

Test(qed_alloc, files_that_end_within_a_cluster_are_rounded_up)
{
    struct qed_header h = small_header(GIB);
    struct bench b;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, NULL));
    put_word(b.mem, EMPTY + 100, 1);
    bench_open_writable(&b);
    write_pattern(b.node, 0, CLUSTER, 'x');
    cr_expect_eq(host_of(b.node, 0), EMPTY + CLUSTER + TABLE);
    bench_fini(&b);
}

/* ---- several writers ---- */

struct writer {
    struct node *node;
    uint64_t off;
    uint64_t len;
    int err;
    pthread_t thread;
};

static void *write_once(void *opaque)
{
    struct writer *w = opaque;
    char *buf = malloc(w->len);

    memset(buf, 'w', w->len);
    w->err = block_write(w->node, buf, w->off, w->len, 0);
    free(buf);
    return NULL;
}

/* Starts a writer for each offset, all at once. */
static void write_at_once(struct node *node, const uint64_t *offsets, uint64_t len)
{
    struct writer w[WRITERS];

    for (int i = 0; i < WRITERS; i++) {
        w[i] = (struct writer){.node = node, .off = offsets[i], .len = len};
        cr_assert_eq(pthread_create(&w[i].thread, NULL, write_once, &w[i]), 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(w[i].thread, NULL);
        cr_expect_eq(w[i].err, 0);
    }
}

Test(qed_alloc, q09_allocations_in_one_table_write_their_data_in_parallel)
{
    uint64_t offsets[WRITERS];
    struct bench b;

    start(&b);
    for (int i = 0; i < WRITERS; i++)
        offsets[i] = (uint64_t)(3 * i) * CLUSTER;
    fault_plan_gather_writes(&b.plan, WRITERS, CLUSTER, 20000);
    write_at_once(b.node, offsets, CLUSTER);
    cr_expect_eq(fault_plan_most_in_flight(&b.plan), WRITERS);
    fault_plan_gather_writes(&b.plan, 0, 0, 0);
    for (int i = 0; i < WRITERS; i++)
        cr_expect(reads_as(b.node, offsets[i], CLUSTER, 'w'));
    cr_expect_eq(map_at(b.node, SPAN, GIB - SPAN).length, GIB - SPAN);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + TABLE + WRITERS * CLUSTER, "Q-05: one table");
    bench_open_writable(&b);
    bench_finish(&b);
}

Test(qed_alloc, q09_allocations_in_several_tables_write_their_data_in_parallel)
{
    uint64_t offsets[WRITERS];
    struct bench b;

    start(&b);
    for (int i = 0; i < WRITERS; i++)
        offsets[i] = (uint64_t)i * 5 * SPAN;
    fault_plan_gather_writes(&b.plan, WRITERS, CLUSTER, 20000);
    write_at_once(b.node, offsets, CLUSTER);
    cr_expect_eq(fault_plan_most_in_flight(&b.plan), WRITERS);
    fault_plan_gather_writes(&b.plan, 0, 0, 0);
    bench_finish(&b);
}

Test(qed_alloc, q09_only_writes_to_one_cluster_wait_for_each_other)
{
    uint64_t offsets[WRITERS];
    struct bench b;

    start(&b);
    for (int i = 0; i < WRITERS; i++)
        offsets[i] = 7 * CLUSTER + (uint64_t)i * 512;
    fault_plan_delay_writes(&b.plan, 20000000, 512);
    write_at_once(b.node, offsets, 512);
    /* The first write allocates the cluster; then all others can be made in place at once. */
    for (int i = 0; i < WRITERS; i++)
        cr_expect(reads_as(b.node, offsets[i], 512, 'w'));
    fault_plan_delay_writes(&b.plan, 0, 0);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + TABLE + CLUSTER, "one cluster for all");
    bench_open_writable(&b);
    bench_finish(&b);
}

Test(qed_alloc, q05_one_table_however_many_ask)
{
    struct bench b;

    start(&b);
    for (unsigned round = 0; round < 50; round++) {
        uint64_t offsets[WRITERS];
        for (int i = 0; i < WRITERS; i++)
            offsets[i] = round * SPAN + (uint64_t)i * CLUSTER;
        write_at_once(b.node, offsets, CLUSTER);
    }
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + 50 * (TABLE + WRITERS * CLUSTER));
    bench_open_writable(&b);
    bench_finish(&b);
}

/* ---- failures ---- */

Test(qed_alloc, q10_a_failed_data_write_changes_nothing_and_keeps_its_errno)
{
    char buf[CLUSTER] = "new";
    struct bench b;

    start(&b);
    write_pattern(b.node, 0, CLUSTER, 'o');
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, ENOSPC, FAULT_ONCE_AFTER);
    cr_expect_eq(block_write(b.node, buf, CLUSTER, sizeof buf, 0), -ENOSPC);
    cr_expect(reads_as(b.node, 0, CLUSTER, 'o'));
    cr_expect(reads_as(b.node, CLUSTER, CLUSTER, 0));

    /* The cluster is used by the next write, and shows nothing of the failed one. */
    write_pattern(b.node, 2 * CLUSTER + 5, 10, 'p');
    cr_expect(reads_as(b.node, 2 * CLUSTER, 5, 0));
    cr_expect(reads_as(b.node, 2 * CLUSTER + 15, CLUSTER - 15, 0));
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + TABLE + 2 * CLUSTER);
    bench_open_writable(&b);
    bench_finish(&b);
}

Test(qed_alloc, q10_what_was_never_linked_is_cut_off_at_close)
{
    char buf[6 * CLUSTER];
    struct bench b;

    start(&b);
    memset(buf, 'g', sizeof buf);
    write_pattern(b.node, 0, CLUSTER, 'o');
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, EIO, FAULT_ONCE_AFTER);
    cr_expect_eq(block_write(b.node, buf, 8 * CLUSTER, sizeof buf, 0), -EIO);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + TABLE + CLUSTER);
    bench_open_writable(&b);
    bench_finish(&b);
}

Test(qed_alloc, q10_a_new_table_in_used_clusters_is_zeroed_first)
{
    char buf[6 * CLUSTER];
    struct bench b;

    start(&b);
    memset(buf, 1, sizeof buf);
    fault_plan_fail(&b.plan, FAULT_WRITE, 2, EIO,
                    FAULT_ONCE_AFTER); /* the first write is that of the mark */
    cr_expect_eq(block_write(b.node, buf, 0, sizeof buf, 0), -EIO);

    /* A new table that can't be zeroed isn't used. */
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_write(b.node, buf, 5 * SPAN, CLUSTER, 0), -EIO);
    cr_expect_eq(map_at(b.node, SPAN, GIB - SPAN).length, GIB - SPAN);

    write_pattern(b.node, 5 * SPAN + CLUSTER, CLUSTER, 't');
    cr_expect(reads_as(b.node, 5 * SPAN + CLUSTER, CLUSTER, 't'));
    cr_expect_eq(map_at(b.node, 5 * SPAN + 2 * CLUSTER, SPAN).kind, EXTENT_ZERO);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(get_word(b.mem, CLUSTER + 8 * 5), EMPTY + TABLE, "where the data was");
    bench_open_writable(&b);
    cr_expect(reads_as(b.node, 5 * SPAN, CLUSTER, 0));
    cr_expect(reads_as(b.node, 5 * SPAN + 2 * CLUSTER, 100 * CLUSTER, 0));
    bench_fini(&b);
}

Test(qed_alloc, q10_a_file_that_can_not_grow)
{
    struct bench b;

    start(&b);
    fault_plan_fail(&b.plan, FAULT_TRUNCATE, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_write(b.node, "x", 0, 1, 0), -EIO);
    cr_expect_eq(map_at(b.node, 0, GIB).length, GIB);
    /* The failed requests don't hold the mark: it can be cleared and set again. */
    cr_expect_eq(qed_driver.clear_mark(b.node), 0);
    cr_expect_not(features_of(b.mem) & QED_F_NEED_CHECK);
    write_pattern(b.node, 0, 1, 'x');
    cr_expect(features_of(b.mem) & QED_F_NEED_CHECK);
    bench_finish(&b);
}

Test(qed_alloc, q10_a_generous_step_that_fails_gives_way_to_a_small_one)
{
    struct bench b;

    start(&b);
    fault_plan_fail(&b.plan, FAULT_TRUNCATE, 1, EFBIG, FAULT_ONCE);
    write_pattern(b.node, 0, 1, 'x');
    cr_expect_eq(fault_plan_injected(&b.plan), 1);
    bench_finish(&b);
}

Test(qed_alloc, q10_a_mark_that_can_not_be_set_fails_the_write)
{
    struct bench b;

    start(&b);
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_write(b.node, "x", 0, 1, 0), -EIO);
    cr_expect_eq(size_of(b.mem), EMPTY, "nothing was allocated");
    write_pattern(b.node, 0, 1, 'x');
    bench_finish(&b);
}

Test(qed_alloc, preallocation_links_clusters_that_read_as_zeroes)
{
    struct bench b;

    start(&b);
    cr_expect_eq(block_preallocate(b.node, 0, 12 * MIB), 0);
    cr_expect_eq(map_at(b.node, 0, SPAN).kind, EXTENT_DATA);
    cr_expect(reads_as(b.node, 0, 12 * MIB, 0));
    cr_expect_eq(map_at(b.node, 12 * MIB, GIB - 12 * MIB).kind, EXTENT_ZERO);
    bench_finish(&b);
}

/* An entry far past the end (a flipped bit) isn't treated like that of a file that was cut short.
 * The file isn't grown up to it, which would make the entry a valid cluster of zeroes, and other
 * requests can still allocate clusters. */
Test(qed_alloc, entries_far_past_the_end_stay_faults)
{
    static const uint64_t words[] = {UINT64_C(1) << 43, UINT64_C(1) << 62,
                                     UINT64_C(0x7ffffffffffff000)};
    char buf[CLUSTER];

    for (unsigned i = 0; i < 2 * ARRAY_LEN(words); i++) {
        struct bench b;
        start(&b);
        write_pattern(b.node, 0, CLUSTER, 'o');
        cr_assert_eq(bench_close(&b), 0);
        /* First an entry of the L2 table, then one of the L1 table. */
        put_word(b.mem, i % 2 ? CLUSTER + 8 * 5 : EMPTY + 8 * 9, words[i / 2]);
        bench_open_writable(&b);
        write_pattern(b.node, 2 * CLUSTER, CLUSTER, 'n');
        cr_expect(reads_as(b.node, 2 * CLUSTER, CLUSTER, 'n'));
        cr_expect_lt(size_of(b.mem), 16 * MIB);
        cr_expect_eq(block_read(b.node, buf, i % 2 ? 5 * SPAN : 9 * CLUSTER, CLUSTER),
                     -EIO);
        (void)!bench_close(&b);
        bench_fini(&b);
    }
}
