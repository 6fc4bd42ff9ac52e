/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests refcounts of all widths, and the growth of refcount blocks and of the refcount table. */
#include <criterion/parameterized.h>

#include "qcow2/internal.h"
#include "qcow2_testing.h"

static const char *const widths[] = {
    "cluster_size=512,refcount_bits=1",  "cluster_size=512,refcount_bits=2",
    "cluster_size=512,refcount_bits=4",  "cluster_size=512,refcount_bits=8",
    "cluster_size=512,refcount_bits=16", "cluster_size=512,refcount_bits=32",
    "cluster_size=512,refcount_bits=64",
};

ParameterizedTestParameters(qcow2_refcount, widths)
{
    static int order[] = {0, 1, 2, 3, 4, 5, 6};

    return cr_make_param_array(int, order, ARRAY_LEN(order));
}

/* Setting, getting and packing refcounts must agree with each other and the specification. */
ParameterizedTest(int *order, qcow2_refcount, widths)
{
    struct image img;
    struct rng rng;
    uint64_t most = *order == 6 ? UINT64_MAX : (1ull << (1u << *order)) - 1;

    rng_init(&rng, 3);
    make(&img, &(struct image_spec){.options = widths[*order], .size = MIB});
    image_open(&img);
    struct refcounts *refs = &qcow2_of(img.node)->alloc.refs;
    uint64_t n = 1ull << refs->block_bits, want[4096];
    uint8_t packed[512] = {0}, stored[512];

    /* Sets each refcount twice, so that a change of a neighbour would be seen. */
    for (uint64_t i = 0; i < 2 * n; i++) {
        uint64_t c = i % n;
        want[c] = i < n ? most : rng_next(&rng) & most;
        cr_assert_eq(refcount_lock_page_for_store(refs, c), 0);
        refcount_set(refs, c, want[c], MC_LEAF);
        lock_release(mcache_meta(img.node->mc));
    }
    for (uint64_t c = 0; c < n; c++) {
        cr_assert_eq(refcount_lock_page_for_store(refs, c), 0);
        uint64_t got = refcount_get(refs, c);
        lock_release(mcache_meta(img.node->mc));
        cr_assert_eq(got, want[c]);
        refcount_pack(refs->order, packed, c, want[c]);
    }
    mcache_note_write(img.node->mc);
    uint64_t block = refcount_block_offset(refs, 0);
    cr_assert_eq(mcache_commit(img.node->mc, MC_COMMIT_EVERYTHING), 0);
    cr_assert_eq(storage_read(img.mem, stored, block, sizeof stored), 0);
    cr_expect_arr_eq(packed, stored, sizeof stored);
    for (uint64_t c = 0; c < n; c++)
        cr_assert_eq(refcount_at(&img, c * 512), want[c], "by the book, cluster %u",
                     (unsigned)c);
    image_free(&img);
}

/* Grows images with every width, with new blocks and tables; qemu-img must find the same counts. */
ParameterizedTestParameters(qcow2_refcount, growth)
{
    static int order[] = {0, 1, 2, 3, 4, 5, 6};

    return cr_make_param_array(int, order, ARRAY_LEN(order));
}

ParameterizedTest(int *order, qcow2_refcount, growth)
{
    struct image img;

    make(&img, &(struct image_spec){
                   .options = widths[*order], .size = 6 * MIB, .cache_bytes = 64 * KIB});
    uint64_t table = get64(&img, FIELD(refcount_table_offset));
    image_open(&img);
    for (uint64_t off = 0; off < 6 * MIB; off += 96 * KIB)
        write_fill(&img, off, 95 * KIB, (int)(off / (96 * KIB)) + 1);
    cr_expect(as_model(&img));
    if (*order >= 4) { /* a table cluster has 64 blocks, each for 32 KiB to 128 KiB */
        cr_assert_eq(block_flush(img.node), 0);
        bool moved = get64(&img, FIELD(refcount_table_offset)) != table;
        cr_expect_eq(moved, *order >= 5, "the table of 2 MiB or 4 MiB is too small");
    }
    close_and_verify(&img);
    image_free(&img);
}

/* A refcount table that was replaced by a larger one is freed. */
Test(qcow2_refcount, the_old_table_is_freed)
{
    struct image img;

    make(&img, &(struct image_spec){.options = widths[6], .size = 4 * MIB});
    uint64_t old = get64(&img, FIELD(refcount_table_offset));
    cr_expect_eq(refcount_at(&img, old), 1);
    image_open(&img);
    write_fill(&img, 0, 3 * MIB, 1);
    cr_assert_eq(image_close(&img), 0);
    cr_assert_neq(get64(&img, FIELD(refcount_table_offset)), old);
    cr_expect_eq(refcount_at(&img, old), 0);
    image_free(&img);
}

/* The new table and its blocks are durable before the header points to the table. */
Test(qcow2_refcount, a_new_table_is_durable_before_the_header_names_it)
{
    struct image img;
    bool seen = false;

    make(&img, &(struct image_spec){.options = widths[6], .size = 4 * MIB});
    img.log = crash_log_new(img.mem);
    image_open(&img);
    write_fill(&img, 0, 3 * MIB, 1);
    for (uint64_t i = 1; i + 1 < crash_log_count(img.log); i++) {
        struct crash_op op = crash_log_op(img.log, i);
        if (op.kind != CRASH_WRITE || op.off != FIELD(refcount_table_offset))
            continue;
        seen = true;
        cr_expect_eq(crash_log_op(img.log, i - 1).kind, CRASH_FLUSH);
        cr_expect_eq(crash_log_op(img.log, i + 1).kind, CRASH_FLUSH);
    }
    cr_expect(seen);
    cr_assert_eq(image_close(&img), 0);
    crash_log_free(img.log);
    image_free(&img);
}

/* A close gives back unused clusters of the tail and cuts the file to what is used. */
Test(qcow2_refcount, close_gives_back_what_was_not_used)
{
    struct image img;

    make(&img, &(struct image_spec){.size = 64 * MIB});
    uint64_t before = file_size(&img);
    image_open(&img);
    write_fill(&img, 0, 65536, 1);
    cr_expect_gt(file_size(&img), before + 2 * 65536, "grown in a step");
    close_and_verify(&img);
    cr_expect_eq(file_size(&img), before + 2 * 65536, "a table and a cluster");
    image_free(&img);
}

Test(qcow2_refcount, a_full_device)
{
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 8 * MIB});
    cr_assert_eq(storage_truncate(img.mem, 2 * MIB), 0);
    struct storage *device = mem_storage_share(img.mem);
    device->fixed_size = true;
    static const struct node_options none;
    cr_assert_eq(
        node_open(&img.ctx, &qcow2_driver, device, "device", &none, &img.node, NULL), 0);
    cr_assert_eq(node_activate(img.node, NULL), 0);
    int err = 0;
    uint64_t off = 0;
    uint8_t data[4096] = {7};
    for (; !err && off < 8 * MIB; off += 4096) {
        err = block_write(img.node, data, off, 4096, 0);
        if (!err)
            memcpy(img.model.bytes + off, data, 4096);
    }
    cr_expect_eq(err, -ENOSPC);
    cr_expect_gt(off, 2 * MIB - 64 * KIB, "the device is full of data");
    cr_expect(as_model(&img));
    /* Trimmed clusters can be used again. */
    trim(&img, 0, MIB);
    cr_assert_eq(block_flush(img.node), 0);
    for (off = 4 * MIB; off < 4 * MIB + 512 * KIB; off += 4096)
        write_fill(&img, off, 4096, 9);
    cr_expect(as_model(&img));
    cr_assert_eq(image_close(&img), 0);
    char why[1024];
    cr_expect(image_verify(&img, why, sizeof why), "%s", why);
    image_free(&img);
}
