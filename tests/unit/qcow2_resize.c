/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests growing the virtual size, with a larger L1 table if needed. */
#include "base/zero_bytes.h"
#include "qcow2_testing.h"

static void grow(struct image *img, uint64_t size)
{
    struct diag diag = {0};

    cr_assert_eq(qcow2_driver.grow(img->node, size, &diag), 0, "%s", diag.text);
    cr_expect_eq(img->node->size, size);
    img->model.bytes = realloc(img->model.bytes, size);
    memset(img->model.bytes + img->model.size, 0, size - img->model.size);
    img->model.size = size;
}

Test(qcow2_resize, within_the_l1_table)
{
    struct image img;

    make(&img, &(struct image_spec){.size = MIB + 512});
    uint64_t l1 = get64(&img, FIELD(l1_table_offset));
    image_open(&img);
    write_fill(&img, MIB, 512, 1);
    grow(&img, 3 * MIB + 1024);
    write_fill(&img, 3 * MIB, 1024, 2);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    cr_expect_eq(get64(&img, FIELD(l1_table_offset)), l1);
    image_free(&img);
}

Test(qcow2_resize, with_a_larger_l1_table)
{
    static const char *const options[] = {
        "cluster_size=512", "cluster_size=512,refcount_bits=64",
        "cluster_size=4096,lazy_refcounts=on", "cluster_size=512,compat=0.10"};

    for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
        struct image img;
        make(&img, &(struct image_spec){.options = options[i], .size = MIB});
        uint64_t old = get64(&img, FIELD(l1_table_offset));
        image_open(&img);
        write_fill(&img, 0, 700 * KIB, 1);
        grow(&img, 24 * MIB);
        write_fill(&img, 24 * MIB - 700 * KIB, 700 * KIB, 2);
        cr_expect(as_model(&img));
        close_and_verify(&img);
        if (i != 2) { /* the old L1 table is large enough for 24 MiB with 4 KiB clusters */
            cr_expect_neq(get64(&img, FIELD(l1_table_offset)), old);
            cr_expect_eq(refcount_at(&img, old), 0);
        }
        image_free(&img);
    }
}

/* A refcount block covers 64 clusters of 512 bytes.  An L1 table of that size fits nowhere between
 * the refcount blocks that ordinary growth makes. */
Test(qcow2_resize, a_table_larger_than_a_refcount_block_covers, .timeout = 60)
{
    static const uint64_t sizes[] = {63 * 64 * 32 * KIB, 64 * 64 * 32 * KIB, 256 * MIB};

    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        struct image img;
        make(&img, &(struct image_spec){.options = "cluster_size=512,refcount_bits=64",
                                        .size = MIB});
        uint64_t old = get64(&img, FIELD(l1_table_offset));
        image_open(&img);
        write_fill(&img, 0, 300 * KIB, 1);
        grow(&img, sizes[i]);
        write_fill(&img, sizes[i] - MIB, MIB, 2);
        write_fill(&img, sizes[i] / 2, MIB, 3);
        cr_expect(as_model(&img));
        cr_expect_lt(file_size(&img), 12 * MIB);
        close_and_verify(&img);
        cr_expect_eq(refcount_at(&img, old), 0);
        image_free(&img);
    }
}

/* The refcount table grows, too, while the file ends in the middle of a refcount block's range. */
Test(qcow2_resize, a_wide_table_keeps_the_counts_before_it, .timeout = 60)
{
    struct image img;
    struct diag diag = {0};

    make(&img,
         &(struct image_spec){.options = "cluster_size=512,refcount_bits=64", .size = MIB});
    image_open(&img);
    write_fill(&img, 0, 250 * KIB, 1);
    close_and_verify(&img);
    cr_assert_neq(file_size(&img) / 512 % 64, 0);
    image_open(&img);
    for (uint64_t size = 8 * GIB; size <= 16 * GIB; size *= 2)
        cr_assert_eq(qcow2_driver.grow(img.node, size, &diag), 0, "%s", diag.text);
    write_fill(&img, 500 * KIB, 300 * KIB, 2);
    cr_expect(as_model(&img));
    cr_assert_eq(image_close(&img), 0);
    image_save(&img);
    char said[400] = "";
    cr_expect_eq(shell(said, sizeof said, "qemu-img check %s 2>&1", img.path), 0, "%s",
                 said);
    image_free(&img);
}

Test(qcow2_resize, on_a_device_of_fixed_size)
{
    struct image img;
    struct diag diag = {0};
    static const struct node_options none;

    make(&img, &(struct image_spec){.options = "cluster_size=512", .size = MIB});
    cr_assert_eq(storage_truncate(img.mem, 8 * MIB), 0);
    struct storage *device = mem_storage_share(img.mem);
    device->fixed_size = true;
    cr_assert_eq(
        node_open(&img.ctx, &qcow2_driver, device, "device", &none, &img.node, NULL), 0);
    cr_assert_eq(node_activate(img.node, NULL), 0);
    write_fill(&img, 0, 100 * KIB, 1);
    cr_expect_eq(qcow2_driver.grow(img.node, 16 * MIB, &diag), 0, "%s", diag.text);
    write_fill(&img, 100 * KIB, 100 * KIB, 2);
    cr_expect_eq(image_close(&img), 0);
    image_free(&img);
}

Test(qcow2_resize, refusals_change_nothing)
{
    struct image img;
    struct diag diag = {0};

    make(&img, &(struct image_spec){.options = "cluster_size=512", .size = MIB});
    image_open(&img);
    struct storage *before = mem_storage_clone(img.mem);
    cr_expect_eq(qcow2_driver.grow(img.node, MIB - 512, &diag), -EINVAL);
    cr_expect_eq(qcow2_driver.grow(img.node, 1ull << 40, &diag), -EFBIG, "%s", diag.text);
    cr_expect(strstr(diag.text, "L1 table"));
    cr_expect_eq(qcow2_driver.grow(img.node, UINT64_MAX, &diag), -EFBIG);
    cr_expect(mem_storage_equal(before, img.mem, NULL));
    storage_close(before);
    image_free(&img);
}

/* The new table is made durable first, then the header names it, then the size is set: no crash
 * leaves a size without its table. */
Test(qcow2_resize, step_by_step)
{
    struct image img;
    uint64_t l1_at = 0, size_at = 0;

    make(&img, &(struct image_spec){.options = "cluster_size=512", .size = MIB});
    img.log = crash_log_new(img.mem);
    image_open(&img);
    cr_assert_eq(qcow2_driver.grow(img.node, 8 * MIB, NULL), 0);
    for (uint64_t i = 1; i + 1 < crash_log_count(img.log); i++) {
        struct crash_op op = crash_log_op(img.log, i);
        if (op.kind != CRASH_WRITE || (op.off != FIELD(l1_size) && op.off != FIELD(size)))
            continue;
        *(op.off == FIELD(size) ? &size_at : &l1_at) = i;
        cr_expect_eq(crash_log_op(img.log, i - 1).kind, CRASH_FLUSH);
        cr_expect_eq(crash_log_op(img.log, i + 1).kind, CRASH_FLUSH);
    }
    cr_expect_gt(l1_at, 0);
    cr_expect_gt(size_at, l1_at);
    cr_assert_eq(image_close(&img), 0);
    crash_log_free(img.log);
    image_free(&img);
}

/* The disk ended within a cluster that is shared with a snapshot.  When the rest of it is
 * preallocated, the beginning is copied to the new place. */
Test(qcow2_resize, places_ahead_in_a_shared_cluster)
{
    struct image img;

    if (!have_qemu())
        return;
    make(&img, &(struct image_spec){.options = "extended_l2=on,cluster_size=16384",
                                    .size = 24 * KIB,
                                    .snapshot = true});
    cr_assert_not(bytes_are_zero(img.model.bytes + 16 * KIB, 8 * KIB));
    image_open(&img);
    grow(&img, 80 * KIB + 512);
    cr_expect_eq(block_preallocate(img.node, 24 * KIB, img.node->size - 24 * KIB), 0);
    cr_expect(as_model(&img));
    for (uint64_t off = 16 * KIB; off < img.node->size; off += 512) {
        struct extent ext;
        gate_ticket ticket = gate_enter(&img.ctx.gate);
        cr_assert_eq(img.node->driver->map(img.node, off, 1, &ext), 0);
        gate_leave(&img.ctx.gate, ticket);
        cr_expect(off < 24 * KIB || ext.file);
    }
    /* qemu-img reads a snapshot with the current size of the disk. */
    img.snapshot.bytes = realloc(img.snapshot.bytes, img.model.size);
    memset(img.snapshot.bytes + img.snapshot.size, 0, img.model.size - img.snapshot.size);
    img.snapshot.size = img.model.size;
    close_and_verify(&img);
    image_free(&img);
}
