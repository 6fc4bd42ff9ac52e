/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests look-ups in QED tables, and invalid entries. */
#include "qed_testing.h"

#define CLUSTER  4096u
#define ENTRIES  512u /* entries in a table */
#define SPAN     (UINT64_C(1) * CLUSTER * ENTRIES)
#define L1       4096u
#define L2(n)    (8192u + 4096u * (n))
#define DATA(n)  (UINT64_C(65536) + CLUSTER * (n))
#define FILE_END (MIB)

/* An image of 1 GiB, with room for three L2 tables. */
static struct storage *new_image(const char *backing)
{
    struct storage *mem = new_image_in_memory(small_header(GIB), backing);

    cr_assert_eq(storage_truncate(mem, FILE_END), 0);
    return mem;
}

static void put_l1(struct storage *mem, unsigned index, uint64_t value)
{
    put_word(mem, L1 + 8 * index, value);
}

static void put_l2(struct storage *mem, unsigned table, unsigned index, uint64_t value)
{
    put_word(mem, L2(table) + 8 * index, value);
}

static void expect_extent(struct node *node, uint64_t off, uint64_t len,
                          enum extent_kind kind, uint64_t length, uint64_t host)
{
    struct extent e = map_at(node, off, len);

    cr_expect_eq(e.kind, kind, "at %llu", (unsigned long long)off);
    cr_expect_eq(e.length, length, "at %llu: %llu", (unsigned long long)off,
                 (unsigned long long)e.length);
    cr_expect_eq(e.file != NULL, kind == EXTENT_DATA);
    cr_expect_eq(e.writable, kind == EXTENT_DATA);
    if (kind == EXTENT_DATA)
        cr_expect_eq(e.host_offset, host);
}

Test(qed_map, q06_runs_of_one_kind_are_merged)
{
    struct storage *mem = new_image(NULL);
    struct bench b;

    put_l1(mem, 0, L2(0));
    for (unsigned i = 0; i < 4; i++)
        put_l2(mem, 0, i, DATA(i)); /* contiguous in the file */
    put_l2(mem, 0, 4, DATA(9));     /* not contiguous with these */
    put_l2(mem, 0, 5, 1);
    put_l2(mem, 0, 6, 1);
    put_l2(mem, 0, 9, DATA(20));
    bench_init(&b, mem);
    bench_open(&b);
    expect_extent(b.node, 0, SPAN, EXTENT_DATA, 4 * CLUSTER, DATA(0));
    expect_extent(b.node, 100, SPAN, EXTENT_DATA, 4 * CLUSTER - 100, DATA(0) + 100);
    expect_extent(b.node, 0, 5000, EXTENT_DATA, 5000, DATA(0));
    expect_extent(b.node, 0, 1, EXTENT_DATA, 1, DATA(0));
    expect_extent(b.node, 4 * CLUSTER, SPAN, EXTENT_DATA, CLUSTER, DATA(9));
    expect_extent(b.node, 5 * CLUSTER, SPAN, EXTENT_ZERO, 2 * CLUSTER, 0);
    expect_extent(b.node, 7 * CLUSTER + 5, SPAN, EXTENT_ZERO, 2 * CLUSTER - 5, 0);
    cr_expect(map_at(b.node, 5 * CLUSTER, 1).allocated, "an explicit zero cluster");
    cr_expect_not(map_at(b.node, 7 * CLUSTER, 1).allocated);
    bench_fini(&b);
}

Test(qed_map, q06_runs_go_on_across_tables_and_absent_ones)
{
    struct storage *mem = new_image(NULL);
    struct bench b;

    put_l1(mem, 0, L2(0));
    put_l1(mem, 1, L2(1));
    put_l1(mem, 40, L2(2));
    put_l2(mem, 0, 510, DATA(0));
    put_l2(mem, 0, 511, DATA(1));
    put_l2(mem, 1, 0, DATA(2));
    put_l2(mem, 2, 3, DATA(4));
    bench_init(&b, mem);
    bench_open(&b);
    expect_extent(b.node, 510 * CLUSTER, GIB - 510 * CLUSTER, EXTENT_DATA, 3 * CLUSTER,
                  DATA(0));
    expect_extent(b.node, SPAN + CLUSTER, GIB - SPAN - CLUSTER, EXTENT_ZERO,
                  39 * SPAN + 2 * CLUSTER, 0);
    expect_extent(b.node, 40 * SPAN + 4 * CLUSTER, GIB - 40 * SPAN - 4 * CLUSTER,
                  EXTENT_ZERO, GIB - 40 * SPAN - 4 * CLUSTER, 0);
    bench_fini(&b);
}

Test(qed_map, q07_reads_and_backing)
{
    struct storage *mem = new_image("base.qed"), *below = new_image(NULL);
    struct bench b;

    put_l1(below, 0, L2(0));
    for (unsigned i = 0; i < 3; i++) {
        uint8_t bytes[CLUSTER];
        put_l2(below, 0, i, DATA(i));
        memset(bytes, 0xb0, sizeof bytes);
        cr_assert_eq(storage_write(below, bytes, DATA(i), sizeof bytes, 0), 0);
    }
    /* The backing file is shorter than its overlay: one cluster and a bit. */
    put_word(below, offsetof(struct qed_disk_header, image_size), CLUSTER + 512);
    put_l1(mem, 0, L2(0));
    put_l2(mem, 0, 0, 1);
    bench_init(&b, mem);
    bench_open(&b);
    b.node->backing = open_backing(&b, below);

    expect_extent(b.node, CLUSTER, GIB - CLUSTER, EXTENT_BACKING, GIB - CLUSTER, 0);
    cr_expect(reads_as(b.node, 0, CLUSTER, 0), "Q-18: the marker hides the backing file");
    cr_expect(reads_as(b.node, CLUSTER, 512, 0xb0));
    cr_expect(reads_as(b.node, CLUSTER + 512, CLUSTER, 0),
              "past the end of the backing file");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0, "a read never allocates");
    bench_fini(&b);
}

Test(qed_map, q07_without_the_backing_file_holes_read_as_zeroes)
{
    struct bench b;

    bench_init(&b, new_image("base.qed"));
    bench_open(&b);
    expect_extent(b.node, 0, GIB, EXTENT_ZERO, GIB, 0);
    bench_fini(&b);
}

Test(qed_map, q05_a_page_is_read_once)
{
    struct storage *mem = new_image(NULL);
    struct bench b;

    put_l1(mem, 0, L2(0));
    put_l2(mem, 0, 0, 1);
    bench_init(&b, mem);
    bench_open(&b);
    fault_plan_reset_counters(&b.plan);
    for (int i = 0; i < 10; i++)
        expect_extent(b.node, 0, CLUSTER, EXTENT_ZERO, CLUSTER, 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_READ), 1);
    bench_fini(&b);
}

/* ---- invalid entries ---- */

struct bad_word {
    uint64_t value;
    const char *fault;
};

static int map_error(struct node *node, uint64_t off)
{
    struct extent e;
    gate_ticket ticket = gate_enter(&node->ctx->gate);
    int err = node->driver->map(node, off, CLUSTER, &e);

    gate_leave(&node->ctx->gate, ticket);
    return err;
}

static void expect_corrupt(struct storage *mem, const char *level,
                           const struct bad_word *bad)
{
    char message[256], byte;
    struct bench b;

    bench_init(&b, mem);
    bench_open_writable(&b);
    log_set_sink(log_to_buffer);
    logged[0] = '\0';
    cr_expect_eq(map_error(b.node, 7 * CLUSTER), -EIO);
    snprintf(message, sizeof message,
             "disk.qed: %s entry for guest offset 28672: 0x%llx: %s", level,
             (unsigned long long)bad->value, bad->fault);
    cr_expect_str_eq(logged, message);
    cr_expect_eq(block_read(b.node, &byte, 7 * CLUSTER, 1), -EIO);
    cr_expect_eq(block_write(b.node, "x", 7 * CLUSTER, 1, 0), -EIO);
    cr_expect_eq(block_zero(b.node, 7 * CLUSTER, CLUSTER, BLOCK_MAY_UNMAP), -EIO);
    /* The tables can't be trusted any more: all writes are refused. */
    cr_expect_eq(block_write(b.node, "x", 9 * CLUSTER, 1, 0), -EIO);
    cr_expect_eq(bench_close(&b), -EIO);
    bench_fini(&b);
}

Test(qed_map, q11_impossible_l2_entries_are_errors)
{
    static const struct bad_word bad[] = {
        {2, "not a multiple of the cluster size"},
        {DATA(0) + 512, "not a multiple of the cluster size"},
        {FILE_END, "past the end of the file"},
        {0x7ffffffffffff000, "past the end of the file"},
        {0xfffffffffffff000, "past the end of the file"},
        {L1, "inside the L1 table"},
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct storage *mem = new_image(NULL);
        put_l1(mem, 0, L2(0));
        put_l2(mem, 0, 7, bad[i].value);
        expect_corrupt(mem, "L2", &bad[i]);
    }
}

Test(qed_map, q11_entries_inside_a_larger_header_are_errors)
{
    struct qed_header h = small_header(GIB);
    struct storage *mem;

    h.header_size = 2;
    h.l1_table_offset = 12288;
    mem = new_image_in_memory(h, NULL);
    cr_assert_eq(storage_truncate(mem, FILE_END), 0);
    put_word(mem, 12288, 16384);
    put_word(mem, 16384 + 8 * 7, 4096);
    expect_corrupt(mem, "L2", &(struct bad_word){4096, "inside the header"});
}

Test(qed_map, q11_impossible_l1_entries_are_errors)
{
    static const struct bad_word bad[] = {
        {1, "not a multiple of the cluster size"},
        {L2(0) + 8, "not a multiple of the cluster size"},
        {FILE_END, "past the end of the file"},
        {0xfffffffffffff000, "past the end of the file"},
        {L1, "inside the L1 table"},
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct storage *mem = new_image(NULL);
        put_l1(mem, 0, bad[i].value);
        expect_corrupt(mem, "L1", &bad[i]);
    }
}

Test(qed_map, q11_a_table_lies_wholly_in_the_file)
{
    struct qed_header h = small_header(GIB);
    struct storage *mem;

    h.table_size = 4;
    mem = new_image_in_memory(h, NULL);
    cr_assert_eq(storage_truncate(mem, 15 * CLUSTER), 0);
    put_l1(mem, 0, 12 * CLUSTER);
    expect_corrupt(mem, "L1", &(struct bad_word){12 * CLUSTER, "past the end of the file"});
}

Test(qed_map, q11_what_lies_before_a_bad_entry_is_readable)
{
    struct storage *mem = new_image(NULL);
    struct bench b;

    put_l1(mem, 0, L2(0));
    put_l2(mem, 0, 0, DATA(0));
    put_l2(mem, 0, 1, DATA(1));
    put_l2(mem, 0, 2, DATA(2) + 1);
    bench_init(&b, mem);
    bench_open(&b);
    log_set_sink(log_to_buffer);
    logged[0] = '\0';
    expect_extent(b.node, 0, SPAN, EXTENT_DATA, 2 * CLUSTER, DATA(0));
    cr_expect_str_empty(logged, "only who asks there is told");
    cr_expect_eq(map_error(b.node, 2 * CLUSTER), -EIO);
    expect_extent(b.node, 3 * CLUSTER, SPAN, EXTENT_ZERO, SPAN, 0);
    bench_fini(&b);
}

Test(qed_map, q10_a_table_that_can_not_be_read_is_an_error_and_tried_again)
{
    struct storage *mem = new_image(NULL);
    struct bench b;

    put_l1(mem, 0, L2(0));
    put_l2(mem, 0, 0, DATA(0));
    bench_init(&b, mem);
    bench_open(&b);
    fault_plan_fail(&b.plan, FAULT_READ, 1, ETIMEDOUT, FAULT_ONCE);
    cr_expect_eq(map_error(b.node, 0), -ETIMEDOUT);
    expect_extent(b.node, 0, CLUSTER, EXTENT_DATA, CLUSTER, DATA(0));
    bench_fini(&b);
}

Test(qed_map, images_of_qemu_img_read_the_same)
{
    char folder[32];
    struct storage *mem;
    struct bench b;

    if (!have_qemu_img())
        cr_skip("qemu-img is not installed");
    make_folder(folder);
    cr_assert_eq(run("cd %s && head -c 3000000 /dev/urandom >raw && truncate -s 20M raw && "
                     "head -c 100000 /dev/urandom | dd of=raw bs=1M seek=11 conv=notrunc "
                     "2>/dev/null && qemu-img convert -f raw -O qed -o cluster_size=4k,"
                     "table_size=2 raw disk.qed",
                     folder),
                 0);
    char name[64];
    snprintf(name, sizeof name, "%s/disk.qed", folder);
    cr_assert_eq(mem_storage_load(name, &mem), 0);
    bench_init(&b, mem);
    bench_open(&b);
    struct storage *raw;
    snprintf(name, sizeof name, "%s/raw", folder);
    cr_assert_eq(mem_storage_load(name, &raw), 0);
    cr_assert_eq(b.node->size, 20 * MIB);
    unsigned char *ours = malloc(20 * MIB), *theirs = malloc(20 * MIB);
    cr_assert_eq(block_read(b.node, ours, 0, 20 * MIB), 0);
    cr_assert_eq(storage_read(raw, theirs, 0, 20 * MIB), 0);
    cr_expect_eq(memcmp(ours, theirs, 20 * MIB), 0);
    free(ours);
    free(theirs);
    storage_close(raw);
    bench_fini(&b);
    remove_folder(folder);
}
