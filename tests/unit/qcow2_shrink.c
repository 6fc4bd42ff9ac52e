/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests shrinking the virtual size: what stays, what becomes free, and crashes in between. */
#include <inttypes.h>

#include "crash_storage.h"
#include "qcow2_testing.h"

static void shrink(struct image *img, uint64_t size)
{
    struct diag diag = {0};

    cr_assert_eq(qcow2_driver.shrink(img->node, size, &diag), 0, "%s", diag.text);
    cr_expect_eq(img->node->size, size);
    img->model.size = size;
}

Test(qcow2_shrink, what_is_left_is_as_it_was, .timeout = 60)
{
    static const char *const options[] = {
        "cluster_size=512", "cluster_size=4096,lazy_refcounts=on",
        "cluster_size=512,compat=0.10", "cluster_size=32768,extended_l2=on"};

    for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
        struct image img;
        make(&img, &(struct image_spec){.options = options[i], .size = 4 * MIB});
        image_open(&img);
        write_fill(&img, 0, 4 * MIB, 1);
        shrink(&img, 700 * KIB + 512);
        cr_expect(as_model(&img));
        write_fill(&img, 600 * KIB, 100 * KIB, 2);
        close_and_verify(&img);
        /* With small clusters there are refcount blocks all over the file. */
        cr_expect_lt(file_size(&img), 2 * MIB, "%s", options[i]);
        image_free(&img);
    }
}

/* Bytes that were cut off inside the last cluster don't come back when the disk grows again. */
Test(qcow2_shrink, then_growing)
{
    struct image img;
    struct diag diag = {0};

    make(&img, &(struct image_spec){.size = MIB});
    image_open(&img);
    write_fill(&img, 0, MIB, 1);
    shrink(&img, 512 * KIB + 512);
    cr_assert_eq(qcow2_driver.grow(img.node, MIB, &diag), 0, "%s", diag.text);
    memset(img.model.bytes + img.model.size, 0, MIB - img.model.size);
    img.model.size = MIB;
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

/* An L2 table is needed again where an older one was dropped.  It must get its blocks when a write
 * stores to it, not when a commit writes it: on a full filesystem the write must fail, not a later
 * flush. */
Test(qcow2_shrink, a_table_that_comes_again_has_its_place)
{
    struct image img;
    struct diag diag = {0};
    int err = -ENOSPC;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 4 * MIB});
    image_open(&img);
    write_fill(&img, 3 * MIB, 4096, 1);
    cr_assert_eq(block_flush(img.node), 0);
    shrink(&img, MIB);
    cr_assert_eq(qcow2_driver.grow(img.node, 4 * MIB, &diag), 0, "%s", diag.text);
    memset(img.model.bytes + MIB, 0, 3 * MIB);
    img.model.size = 4 * MIB;
    write_fill(&img, 0, 64 * KIB, 2); /* takes all clusters that became free, and more */
    cr_assert_eq(block_flush(img.node), 0);
    for (uint64_t limit = 0; err; limit += MEM_PAGE_BYTES) {
        mem_storage_limit(img.mem, limit);
        err = try_write(&img, 3 * MIB, 4096, 3, 0);
        cr_assert(err == 0 || err == -ENOSPC, "%d", err);
    }
    cr_expect_eq(block_flush(img.node), 0);
    mem_storage_limit(img.mem, UINT64_MAX);
    close_and_verify(&img);
    image_free(&img);
}

/* If it isn't known which size the header has, writes are refused: data past the smaller size could
 * be lost at the next opening. */
Test(qcow2_shrink, a_header_that_may_say_either)
{
    struct image img;
    struct fault_plan plan;
    struct diag diag = {0};

    for (unsigned nth = 1, ended = 0; !ended; nth++) {
        make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 4 * MIB});
        fault_plan_init(&plan);
        img.plan = &plan;
        image_open(&img);
        write_fill(&img, 3 * MIB, 4096, 1);
        cr_assert_eq(block_flush(img.node), 0);
        fault_plan_fail(&plan, FAULT_WRITE, nth, EIO, FAULT_ONCE_AFTER);
        ended = qcow2_driver.shrink(img.node, MIB, &diag) == 0;
        bool shorter = get64(&img, FIELD(size)) == MIB;
        if (!ended && shorter && img.node->size > MIB)
            cr_expect_eq(block_write(img.node, "lost", 3 * MIB, 4, 0), -EIO, "write %u",
                         nth);
        fault_plan_heal(&plan);
        (void)!image_close(&img);
        image_free(&img);
        fault_plan_destroy(&plan);
    }
}

/* Opens what a crash has left, and checks the bytes that both sizes have in common. */
static void judge(struct storage *left, const uint8_t *data, uint64_t common,
                  uint64_t point, unsigned policy)
{
    struct block_context ctx;
    static const struct node_options none;
    struct node *node;
    struct diag diag = {0};
    uint8_t *all = malloc(common);

    cr_assert_eq(block_context_init(&ctx, MIB, NULL, NULL), 0);
    cr_assert_eq(node_open(&ctx, &qcow2_driver, left, "left", &none, &node, &diag), 0,
                 "point %" PRIu64 ": %s", point, diag.text);
    cr_assert_eq(block_read(node, all, 0, common), 0);
    cr_expect_eq(memcmp(all, data, common), 0, "point %" PRIu64 ", policy %u", point,
                 policy);
    struct check_result result = {0};
    const struct check_options how = {.repair = REPAIR_NONE};
    cr_assert_eq(qcow2_driver.check(node->file, &how, &result, &diag), 0, "%s", diag.text);
    cr_expect_eq(result.corruptions, 0, "point %" PRIu64 ", policy %u", point, policy);
    cr_assert_eq(node_close(node), 0);
    block_context_destroy(&ctx);
    free(all);
}

Test(qcow2_shrink, o03_any_crash_leaves_what_both_sizes_have, .timeout = 120)
{
    const uint64_t common = 100 * KIB;
    static const enum crash_policy policies[] = {CRASH_NONE, CRASH_ALL, CRASH_SUBSET,
                                                 CRASH_TORN};
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=512", .size = 512 * KIB});
    image_open(&img);
    write_fill(&img, 0, 512 * KIB, 1);
    for (uint64_t i = 0; i < common; i += 512)
        write_fill(&img, i, 512, (int)(i / 512 % 255 + 1));
    cr_assert_eq(image_close(&img), 0);
    img.log = crash_log_new(img.mem);
    image_open(&img);
    shrink(&img, common);
    cr_assert_eq(image_close(&img), 0);
    for (uint64_t point = 0; point <= crash_log_count(img.log); point++)
        for (unsigned i = 0; i < ARRAY_LEN(policies); i++) {
            const struct crash_choice choice = {.policy = policies[i], .seed = point};
            judge(crash_materialise(img.log, point, &choice), img.model.bytes, common,
                  point, policies[i]);
        }
    crash_log_free(img.log);
    img.log = NULL;
    image_free(&img);
}

/* Version 2 doesn't record the disk sizes of snapshots: a disk with snapshots can't shrink. */
Test(qcow2_shrink, refused)
{
    struct image img;
    struct diag diag = {0};

    make(&img,
         &(struct image_spec){.options = "compat=0.10", .size = MIB, .snapshot = true});
    image_open(&img);
    cr_expect_eq(qcow2_driver.shrink(img.node, KIB, &diag), -ENOTSUP);
    cr_expect(strstr(diag.text, "v2 image which has snapshots"));
    image_free(&img);
}
