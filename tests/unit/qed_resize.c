/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests growing the virtual size of QED images. */
#include "qed_testing.h"

#define CLUSTER 4096u
#define TABLE   (2 * CLUSTER)

static void start(struct bench *b, uint64_t size, const char *backing)
{
    struct qed_header h = small_header(size);

    h.table_size = 2;
    bench_init(b, new_image_in_memory(h, backing));
    bench_open_writable(b);
}

static void finish(struct bench *b)
{
    cr_expect_eq(bench_close(b), 0);
    cr_expect_eq(qemu_check(b->mem), 0);
    bench_fini(b);
}

static uint64_t size_in_header(struct bench *b)
{
    return get_word(b->mem, offsetof(struct qed_disk_header, image_size));
}

Test(qed_resize, new_space_reads_as_zeroes_and_takes_data)
{
    struct bench b;

    start(&b, 3 * CLUSTER + 512, NULL);
    write_pattern(b.node, 3 * CLUSTER, 512, 'x');
    cr_expect_eq(qed_driver.grow(b.node, GIB + 100, NULL), 0);
    cr_expect_eq(b.node->size, GIB + 512, "whole sectors");
    cr_expect_eq(size_in_header(&b), GIB + 512);
    cr_expect(reads_as(b.node, 3 * CLUSTER, 512, 'x'));
    cr_expect(reads_as(b.node, 3 * CLUSTER + 512, MIB, 0));
    write_pattern(b.node, GIB - CLUSTER, CLUSTER + 512, 'y');
    cr_expect(reads_as(b.node, GIB - CLUSTER, CLUSTER + 512, 'y'));
    cr_assert_eq(bench_close(&b), 0);
    bench_open_writable(&b);
    cr_expect_eq(b.node->size, GIB + 512);
    cr_expect(reads_as(b.node, 3 * CLUSTER, 512, 'x'));
    cr_expect(reads_as(b.node, GIB - CLUSTER, CLUSTER + 512, 'y'));
    finish(&b);
}

Test(qed_resize, limits)
{
    struct diag diag = {0};
    struct bench b;

    start(&b, MIB, NULL);
    cr_expect_eq(qed_driver.grow(b.node, MIB - 512, &diag), -ENOTSUP);
    cr_expect_str_eq(diag.text,
                     "disk.qed: image_size 1048064: a QED image can't be shrunk (it "
                     "has 1048576 bytes)");
    cr_expect_eq(qed_driver.grow(b.node, 4 * GIB + 512, &diag), -EFBIG);
    cr_expect_str_eq(diag.text, "disk.qed: image_size 4294967808: more than the 4294967296 "
                                "bytes that its tables can map");
    cr_expect_eq(qed_driver.grow(b.node, UINT64_MAX, &diag), -EFBIG);
    cr_expect_eq(b.node->size, MIB);
    cr_expect_eq(size_in_header(&b), MIB);
    cr_expect_eq(qed_driver.grow(b.node, MIB, &diag), 0);
    cr_expect_eq(qed_driver.grow(b.node, 4 * GIB, &diag), 0);
    finish(&b);
}

Test(qed_resize, a_longer_backing_file_does_not_show)
{
    struct qed_header h = small_header(30 * CLUSTER);
    struct bench b;
    struct storage *below;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, NULL));
    bench_open_writable(&b);
    write_pattern(b.node, 0, 30 * CLUSTER, 0xb0);
    cr_assert_eq(bench_close(&b), 0);
    below = mem_storage_share(b.mem);
    bench_fini(&b);

    start(&b, 10 * CLUSTER + 512, "base.qed");
    b.node->backing = open_backing(&b, below);
    cr_expect_eq(qed_driver.grow(b.node, 100 * CLUSTER, NULL), 0);
    cr_expect(reads_as(b.node, 0, 10 * CLUSTER + 512, 0xb0));
    cr_expect(reads_as(b.node, 10 * CLUSTER + 512, 89 * CLUSTER, 0));
    finish(&b);
}

Test(qed_resize, not_without_the_backing_file)
{
    struct diag diag = {0};
    struct bench b;

    start(&b, MIB, "base.qed");
    cr_expect_eq(qed_driver.grow(b.node, 2 * MIB, &diag), -EINVAL);
    cr_expect(strstr(diag.text, "can't grow without its backing file"), "%s", diag.text);
    bench_fini(&b);
}

Test(qed_resize, q10_a_failure_leaves_the_old_size)
{
    struct diag diag = {0};
    struct bench b;

    start(&b, MIB, NULL);
    write_pattern(b.node, 0, CLUSTER, 'x');
    cr_assert_eq(block_flush(b.node), 0);
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, ENOSPC, FAULT_ONCE);
    cr_expect_eq(qed_driver.grow(b.node, GIB, &diag), -ENOSPC, "%s", diag.text);
    cr_expect_eq(b.node->size, MIB);
    cr_expect_eq(size_in_header(&b), MIB);
    cr_expect(reads_as(b.node, 0, CLUSTER, 'x'));
    write_pattern(b.node, CLUSTER, CLUSTER, 'y');
    cr_expect_eq(qed_driver.grow(b.node, GIB, &diag), 0);
    cr_expect(reads_as(b.node, CLUSTER, CLUSTER, 'y'));
    finish(&b);
}
