/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests growth in unusual images: the file was cut short and its tables point past its end; the
 * device has become larger. */
#include "qcow2/internal.h"
#include "qcow2_testing.h"

#define CL 4096u

/* Makes an image with guest clusters [0, 512) in one run, and cuts the file after the first `kept`
 * of them.  Returns the new end. */
static uint64_t cut_short(struct image *img, uint64_t kept)
{
    make(img, &(struct image_spec){.options = "cluster_size=4096", .size = 16 * MIB});
    image_open(img);
    cr_assert_eq(block_preallocate(img->node, 0, 512 * CL), 0);
    cr_assert_eq(image_close(img), 0);
    uint64_t host = l2_entry(img, kept * CL) & L2_OFFSET;
    cr_assert_eq(storage_truncate(img->mem, host), 0);
    return host;
}

/* If clusters past the end that have a refcount were allocated, two guest ranges would share them
 * without any error. */
Test(qcow2_growth, clusters_past_the_end_that_have_a_count_are_passed_over)
{
    struct image img;

    uint64_t end = cut_short(&img, 128);
    image_open(&img);
    write_fill(&img, 8 * MIB, 3 * MIB, 1);
    write_fill(&img, 130 * CL, 300 * CL, 2);
    cr_expect(as_model(&img));
    cr_assert_eq(block_flush(img.node), 0);
    uint64_t placed = l2_entry(&img, 8 * MIB) & L2_OFFSET;
    cr_expect_geq(placed, end + (512 - 128) * CL, "behind what the tables point to");
    close_and_verify(&img);
    cr_expect_eq(refcount_at(&img, end), 1);
    image_free(&img);
}

/* A close must not set refcounts past the end to 0, as it does with unused clusters of the tail. */
Test(qcow2_growth, a_session_that_uses_little_leaves_counts_past_the_end_alone)
{
    struct image img;

    uint64_t end = cut_short(&img, 128);
    image_open(&img);
    write_fill(&img, 8 * MIB, 1, 1);
    close_and_verify(&img);
    for (uint64_t c = 0; c < 512 - 128; c++)
        cr_assert_eq(refcount_at(&img, end + c * CL), 1);
    image_free(&img);
}

/* Past the end, single free clusters between those in use are allocated. */
Test(qcow2_growth, what_is_free_between_clusters_in_use_is_taken)
{
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 16 * MIB});
    image_open(&img);
    cr_assert_eq(block_preallocate(img.node, 0, 512 * CL), 0);
    for (uint64_t c = 130; c < 512; c += 3)
        trim(&img, c * CL, CL);
    cr_assert_eq(image_close(&img), 0);
    uint64_t end = l2_entry(&img, 128 * CL) & L2_OFFSET;
    cr_assert_eq(storage_truncate(img.mem, end), 0);
    image_open(&img);
    write_fill(&img, 8 * MIB, 4 * MIB, 1);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    for (uint64_t c = 130; c < 512; c += 3)
        cr_expect_eq(refcount_at(&img, end + (c - 128) * CL), 1);
    image_free(&img);
}

/* When the refcount block is lost together with an L2 table, no refcount tells that the table's
 * cluster is in use. */
Test(qcow2_growth, an_l2_table_past_the_end_is_not_given_away)
{
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 16 * MIB});
    image_open(&img);
    write_fill(&img, 0, CL, 1);
    write_fill(&img, 8 * MIB, CL, 2);
    cr_assert_eq(image_close(&img), 0);
    uint64_t table = get64(&img, l1_entry_at(&img, 8 * MIB)) & L1_OFFSET;
    cr_assert_eq(storage_truncate(img.mem, table), 0);
    image_open(&img);
    write_fill(&img, MIB, MIB, 3);
    cr_expect_eq(get64(&img, table), 0, "no data in the table");
    /* What the table mapped is lost and reads as zeroes. */
    memset(img.model.bytes + 8 * MIB, 0, CL);
    cr_expect(as_model(&img));
    cr_assert_eq(image_close(&img), 0);
    image_free(&img);
}

static void open_device(struct image *img)
{
    static const struct node_options none;
    struct storage *device = mem_storage_share(img->mem);

    device->fixed_size = true;
    cr_assert_eq(
        node_open(&img->ctx, &qcow2_driver, device, "device", &none, &img->node, NULL), 0);
    cr_assert_eq(node_activate(img->node, NULL), 0);
}

/* Thin volumes are used in this way: they are enlarged whenever they are full. */
static void grow_device(const char *options)
{
    struct image img;
    uint64_t off = 0;
    int err = 0;

    make(&img, &(struct image_spec){.options = options, .size = 16 * MIB});
    cr_assert_eq(storage_truncate(img.mem, 2 * MIB), 0);
    open_device(&img);
    for (unsigned times = 0; times < 4; times++) {
        for (err = 0; !err && off < 12 * MIB; off += err ? 0 : 64 * KIB)
            err = try_write(&img, off, 64 * KIB, 1 + (int)times, 0);
        cr_expect_eq(err, -ENOSPC);
        memset(img.model.bytes + off, 0, 64 * KIB);
        /* A part of the failed write may have been done; the range is written again. */
        cr_assert_eq(storage_truncate(img.mem, (3 + times) * MIB), 0);
        write_fill(&img, off, 64 * KIB, 9);
        off += 64 * KIB;
    }
    cr_expect_gt(off, 4 * MIB);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_growth, a_device_that_became_larger_is_used)
{
    grow_device("cluster_size=4096");
    grow_device("cluster_size=65536");
    grow_device("cluster_size=512,refcount_bits=64");
}
