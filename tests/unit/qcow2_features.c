/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests qcow2 images with an external data file or with encryption. */
#include <inttypes.h>

#include "base/zero_bytes.h"
#include "qcow2_testing.h"

#define KIB4 4096u

static bool holds(struct image *img, uint64_t off, uint64_t len, int fill)
{
    uint8_t now[4 * KIB4];

    cr_assert_eq(storage_read(img->data_mem, now, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        if (now[i] != fill)
            return false;
    return true;
}

/* After a crash a raw data file may hold data that was written but never linked.  Zeroing such a
 * range must zero the data file, too. */
Test(qcow2_features, zeroes_reach_a_raw_file_that_has_more_than_the_tables)
{
    struct image img;
    uint8_t lost[4 * KIB4];

    if (!have_qemu())
        return;
    make(&img, &(struct image_spec){
                   .options = "cluster_size=4096", .size = 64 * KIB, .data_file = "raw"});
    memset(lost, 7, sizeof lost);
    cr_assert_eq(storage_write(img.data_mem, lost, 0, sizeof lost, 0), 0);
    image_open(&img);
    cr_expect_eq(block_zero(img.node, 512, 1024, 0), 0, "part of a cluster");
    cr_expect(holds(&img, 0, 512, 7));
    cr_expect(holds(&img, 512, 1024, 0));
    cr_expect(holds(&img, 1536, KIB4 - 1536, 7));
    cr_expect_eq(block_zero(img.node, KIB4 + 1, 2 * KIB4, BLOCK_MAY_UNMAP), 0);
    cr_expect(holds(&img, KIB4, 1, 7));
    cr_expect(holds(&img, KIB4 + 1, 2 * KIB4, 0), "a part, a cluster, a part");
    cr_expect(holds(&img, 3 * KIB4 + 1, KIB4 - 1, 7));
    image_free(&img);
}

/* A write allocates the last cluster, which reaches past the end of the disk.  The raw data file
 * must not become longer than the disk. */
Test(qcow2_features, a_raw_file_is_no_longer_than_the_disk)
{
    static const char *const options[] = {"cluster_size=4096",
                                          "cluster_size=65536,extended_l2=on"};
    uint64_t size = 64 * KIB + 512, bytes;
    uint8_t lost[512];

    if (!have_qemu())
        return;
    for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
        struct image img;
        make(&img,
             &(struct image_spec){.options = options[i], .size = size, .data_file = "raw"});
        memset(lost, 7, sizeof lost);
        cr_assert_eq(storage_truncate(img.data_mem, size), 0); /* qemu-img made it longer */
        image_open(&img);
        zero(&img, 64 * KIB, 512, BLOCK_MAY_UNMAP);
        cr_assert_eq(storage_write(img.data_mem, lost, 64 * KIB, sizeof lost, 0), 0);
        write_fill(&img, 64 * KIB + 100, 1, 1);
        cr_expect(as_model(&img));
        cr_assert_eq(storage_size(img.data_mem, &bytes), 0);
        cr_expect_eq(bytes, size, "%s: %" PRIu64, options[i], bytes);
        close_and_verify(&img);
        image_free(&img);
    }
}

/* A shrink fails after it has unlinked clusters.  They read as zeroes in the image, and must do so
 * in the raw data file. */
Test(qcow2_features, a_raw_file_and_its_image_agree_on_a_shrinking_that_failed)
{
    bool ended = false;

    if (!have_qemu())
        return;
    for (uint64_t nth = 1; !ended; nth++) {
        struct image img;
        struct fault_plan plan;
        struct diag diag = {0};
        uint8_t by_image[64 * KIB], by_file[64 * KIB];
        make(&img, &(struct image_spec){.options = "cluster_size=4096",
                                        .size = 64 * KIB,
                                        .data_file = "raw"});
        fault_plan_init(&plan);
        img.plan = &plan;
        image_open(&img);
        write_fill(&img, 0, 64 * KIB, 1);
        cr_assert_eq(block_flush(img.node), 0);
        fault_plan_fail(&plan, FAULT_WRITE, nth, EIO, FAULT_ONCE);
        ended = qcow2_driver.shrink(img.node, 16 * KIB, &diag) == 0;
        fault_plan_heal(&plan);
        uint64_t size = img.node->size;
        cr_assert_eq(block_read(img.node, by_image, 0, size), 0);
        cr_assert_eq(storage_read(img.data_mem, by_file, 0, size), 0);
        cr_expect_eq(memcmp(by_image, by_file, size), 0, "write %" PRIu64, nth);
        (void)!image_close(&img);
        image_free(&img);
        fault_plan_destroy(&plan);
    }
}

static unsigned syncs;

static int count_sync(struct storage *st)
{
    (void)st;
    syncs++;
    return 0;
}

/* V-06: a session without flushes ends with a sync of the image and of the data file. */
Test(qcow2_features, v06_the_data_file_is_synced_at_the_end)
{
    static const char *const options[] = {"cluster_size=4096",
                                          "cluster_size=4096,lazy_refcounts=on"};

    if (!have_qemu())
        return;
    for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
        struct image img;
        make(&img, &(struct image_spec){.options = options[i],
                                        .size = 64 * KIB,
                                        .data_file = "plain",
                                        .node.cache = cache_mode_find("volatile")});
        image_open(&img);
        struct storage_ops counting = *img.node->data_file->ops;
        counting.flush = count_sync;
        img.node->data_file->ops = &counting;
        syncs = 0;
        write_fill(&img, 0, 8 * KIB, 1);
        cr_assert_eq(block_flush(img.node), 0);
        cr_expect_eq(syncs, 0);
        close_and_verify(&img);
        cr_expect_eq(syncs, 1, "%s: %u", options[i], syncs);
        image_free(&img);
    }
}

/* ---- a write while its range is being zeroed ---- */

static struct {
    struct image *img;
    struct storage_ops ops;
    const struct storage_ops *below;
    unsigned left; /* the write is made after so many calls; 0: it was made */
} intruder;

static void write_between(void)
{
    if (intruder.left == 0 || --intruder.left > 0)
        return;
    cr_expect_eq(block_write(intruder.img->node, "written", KIB4 + 512, 7, 0), 0);
}

static int zero_and_write(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    int err = intruder.below->zero(st, off, len, flags);

    write_between();
    return err;
}

static int discard_and_write(struct storage *st, uint64_t off, uint64_t len)
{
    int err = intruder.below->discard(st, off, len);

    write_between();
    return err;
}

/* Zeroing changes the image's tables and the raw data file, one after the other, and a write may
 * come between both.  Afterwards the image and the data file must read the same. */
static void zero_around_a_write(const char *options, int how, unsigned calls)
{
    struct image img;
    uint8_t by_image[16 * KIB], by_file[16 * KIB];

    make(&img,
         &(struct image_spec){.options = options, .size = 64 * KIB, .data_file = "raw"});
    image_open(&img);
    write_fill(&img, 0, 16 * KIB, 1);
    struct storage *st = img.node->data_file;
    intruder.img = &img;
    intruder.below = st->ops;
    intruder.ops = *st->ops;
    intruder.ops.zero = zero_and_write;
    intruder.ops.discard = discard_and_write;
    intruder.left = calls;
    st->ops = &intruder.ops;
    int err = how < 0 ? block_discard(img.node, KIB4, 2 * KIB4, 0)
                      : block_zero(img.node, KIB4, 2 * KIB4, (unsigned)how);
    cr_assert_eq(err, 0);
    st->ops = intruder.below;
    cr_expect_eq(intruder.left, 0, "%s, %d: no call %u", options, how, calls);
    cr_assert_eq(block_read(img.node, by_image, 0, sizeof by_image), 0);
    cr_assert_eq(storage_read(img.data_mem, by_file, 0, sizeof by_file), 0);
    cr_expect_eq(memcmp(by_image, by_file, sizeof by_file), 0, "%s, %d, behind call %u",
                 options, how, calls);
    image_free(&img);
}

Test(qcow2_features, a_raw_file_and_its_image_agree_on_a_write_beside_zeroes)
{
    static const char *const options[] = {"cluster_size=4096",
                                          "cluster_size=32768,extended_l2=on"};

    if (!have_qemu())
        return;
    for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
        zero_around_a_write(options[i], 0, 1);
        for (unsigned calls = 1; calls <= 2; calls++) {
            zero_around_a_write(options[i], BLOCK_MAY_UNMAP, calls);
            zero_around_a_write(options[i], -1, calls);
        }
    }
}

static void expect_model(struct image *img)
{
    uint8_t now[64 * KIB];

    cr_assert_eq(block_read(img->node, now, 0, sizeof now), 0);
    cr_expect_eq(memcmp(now, img->model.bytes, sizeof now), 0);
}

/* Writes of less than a sector, or of parts of two sectors, that allocate a cluster. */
Test(qcow2_features, parts_of_sectors_allocate_encrypted_clusters)
{
    struct image img;

    if (!have_qemu())
        return;
    make(&img, &(struct image_spec){
                   .options = "cluster_size=4096", .size = 64 * KIB, .encrypt = "aes"});
    image_open(&img);
    write_fill(&img, 100, 10, 1);
    write_fill(&img, KIB4 + 300, 400, 2);
    write_fill(&img, 3 * KIB4 - 7, 7, 3);
    write_fill(&img, 4 * KIB4 + 1, 2 * KIB4, 4);
    write_fill(&img, 8 * KIB4, 1, 5);
    expect_model(&img);
    image_close(&img);
    image_open(&img);
    expect_model(&img);
    image_free(&img);
}

/* ---- preallocation, where zero bytes in the file aren't the guest's zeroes ---- */

static unsigned links;

/* A commit can come right after any link, and then a crash: at this moment the linked clusters must
 * already read as zeroes. */
static int link_and_commit(struct node *node, const struct reservation *res,
                           bool replaces_zero)
{
    uint8_t bytes[KIB4];

    int err = qcow2_driver.link(node, res, replaces_zero);
    cr_assert_eq(block_flush(node), 0);
    for (uint64_t at = 0; at < res->length; at += sizeof bytes) {
        memset(bytes, 1, sizeof bytes);
        cr_assert_eq(block_read(node, bytes, res->guest_offset + at, sizeof bytes), 0);
        cr_assert(bytes_are_zero(bytes, sizeof bytes));
    }
    links++;
    return err;
}

static void preallocate_encrypted(const char *options)
{
    struct image img;
    struct driver watched = qcow2_driver;

    make(&img,
         &(struct image_spec){.options = options, .size = 512 * KIB, .encrypt = "luks"});
    image_open(&img);
    write_fill(&img, 3 * KIB4, KIB4, 1);
    watched.link = link_and_commit;
    img.node->driver = &watched;
    links = 0;
    cr_expect_eq(block_preallocate(img.node, 0, 512 * KIB), 0);
    cr_expect_gt(links, 0);
    img.node->driver = &qcow2_driver;
    for (uint64_t off = 0; off < 512 * KIB; off += KIB4) {
        struct extent ext;
        gate_ticket ticket = gate_enter(&img.ctx.gate);
        cr_assert_eq(img.node->driver->map(img.node, off, KIB4, &ext), 0);
        gate_leave(&img.ctx.gate, ticket);
        cr_expect_not_null(ext.file, "%s: no place at %" PRIu64, options, off);
    }
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_features, clusters_ahead_read_as_zeroes_at_any_moment)
{
    if (!have_qemu())
        return;
    preallocate_encrypted("cluster_size=4096");
    preallocate_encrypted("cluster_size=131072,extended_l2=on");
}
