/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what failures in qcow2 leave behind: of an activation, of the dirty mark, of growing, on
 * full devices; and snapshots that are made while clients flush. */
#include <pthread.h>

#include "qcow2/internal.h"
#include "qcow2_testing.h"

static struct image img;
static struct fault_plan plan;

static void done(void)
{
    image_free(&img);
    fault_plan_destroy(&plan);
}

static void flush_behind_read(void *opaque)
{
    static _Thread_local bool flushes;

    if (flushes)
        return;
    flushes = true; /* the flush may read, which must not flush again */
    cr_expect_eq(block_flush(opaque), 0);
    flushes = false;
}

/* While a snapshot is made, a client flushes after each read of the file.  The flush writes tables
 * and refcounts that the file didn't have when it was read, and that aren't dirty in memory any
 * more when the snapshot looks for them there. */
Test(failures, flushes_while_a_snapshot_is_made)
{
    static const char *const options[] = {"cluster_size=4096",
                                          "cluster_size=16k,extended_l2=on"};

    for (size_t o = 0; o < ARRAY_LEN(options); o++) {
        const struct snapshot_request request = {.kind = SNAPSHOT_CREATE, .name = "s"};
        struct diag diag = {0};
        make(&img, &(struct image_spec){.options = options[o], .size = 64 * MIB});
        fault_plan_init(&plan);
        img.plan = &plan;
        image_open(&img);
        for (uint64_t off = 0; off < 64 * MIB; off += 3 * MIB)
            write_fill(&img, off, 40 * KIB, (int)(off / MIB) + 1);
        plan.behind_read_opaque = img.node;
        plan.behind_read = flush_behind_read;
        cr_expect_eq(node_change_snapshot(img.node, &request, NULL, &diag), 0, "%s",
                     diag.text);
        plan.behind_read = NULL;
        cr_expect(as_model(&img), "%s", options[o]);
        close_and_verify(&img);
        done();
    }
}

/* Each write of the activation fails once; the second try must succeed and do everything. */
Test(failures, a_failed_activation_is_repeated_whole)
{
    static const struct node_options none;
    int err = -EIO;

    for (unsigned nth = 1; err; nth++) {
        struct diag diag = {0};
        make(&img, &(struct image_spec){.size = MIB});
        put64(&img, FIELD(autoclear_features), 4);
        fault_plan_init(&plan);
        cr_assert_eq(node_open(&img.ctx, &qcow2_driver,
                               fault_storage_new(mem_storage_share(img.mem), &plan), "disk",
                               &none, &img.node, &diag),
                     0);
        fault_plan_fail(&plan, FAULT_WRITE, nth, EIO, FAULT_ONCE);
        err = node_activate(img.node, &diag);
        cr_expect(err || nth > 1, "no write was made");
        cr_expect_eq(node_activate(img.node, &diag), 0, "%s", diag.text);
        cr_expect_eq(get64(&img, FIELD(autoclear_features)), 0);
        done();
    }
}

static void *first_write(void *place)
{
    static const uint8_t data[64 * KIB] = {1};

    cr_expect_eq(block_write(img.node, data, (uintptr_t)place, sizeof data, 0), 0);
    return NULL;
}

/* Two writers begin at once; writing the dirty bit fails for one of them only (L-03). */
Test(failures, a_clean_end_after_the_bit_was_given_up)
{
    pthread_t threads[2];

    make(&img, &(struct image_spec){.options = "lazy_refcounts=on", .size = 8 * MIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    fault_plan_delay_writes(&plan, 200000000, 1);
    fault_plan_fail(&plan, FAULT_WRITE, 1, EIO, FAULT_ONCE);
    for (uintptr_t i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, first_write, (void *)(i * 4 * MIB));
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    fault_plan_heal(&plan);
    cr_expect_eq(image_close(&img), 0);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), 0);
    done();
}

/* Whichever write of the growing fails, a clean close leaves an image without leaks. */
Test(failures, growing_that_fails_leaks_nothing)
{
    int err = -ENOSPC;

    for (unsigned nth = 1; err; nth++) {
        struct diag diag = {0};
        char said[400] = "";
        make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 8 * MIB});
        fault_plan_init(&plan);
        img.plan = &plan;
        image_open(&img);
        fault_plan_fail(&plan, FAULT_WRITE, nth, ENOSPC, FAULT_ONCE);
        err = qcow2_driver.grow(img.node, 8 * GIB, &diag);
        fault_plan_heal(&plan);
        bool poisoned = mcache_health(img.node->mc) != 0;
        cr_expect(image_close(&img) == 0 || poisoned);
        image_save(&img);
        cr_expect(poisoned ||
                      shell(said, sizeof said, "qemu-img check %s 2>&1", img.path) == 0,
                  "write %u: %s", nth, said);
        done();
    }
}

/* On a full device only trimmed clusters are available, and these only after a commit. */
Test(failures, room_is_made_of_what_was_trimmed)
{
    static const struct node_options none;
    static const uint8_t data[4 * KIB] = {7};
    struct storage *device;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 8 * MIB});
    fault_plan_init(&plan);
    cr_assert_eq(storage_truncate(img.mem, 2 * MIB), 0);
    device = mem_storage_share(img.mem);
    device->fixed_size = true;
    cr_assert_eq(
        node_open(&img.ctx, &qcow2_driver, device, "device", &none, &img.node, NULL), 0);
    cr_assert_eq(node_activate(img.node, NULL), 0);
    for (uint64_t off = 0; !block_write(img.node, data, off, sizeof data, 0);)
        off += sizeof data;
    cr_expect_eq(block_write(img.node, data, 7 * MIB, sizeof data, 0), -ENOSPC);
    cr_expect_eq(block_discard(img.node, 0, MIB, 0), 0);
    cr_expect_eq(block_write(img.node, data, 0, sizeof data, BLOCK_INSIDE), -ENOSPC,
                 "not yet durable, and who is inside waits for nobody");
    cr_expect_eq(block_write(img.node, data, 0, sizeof data, 0), 0);
    cr_expect_eq(block_discard(img.node, MIB / 2, MIB, 0), 0);
    cr_expect_eq(block_zero(img.node, MIB, sizeof data, 0), 0);
    done();
}

static void begin_small_clusters(void)
{
    make(&img, &(struct image_spec){.options = "cluster_size=512,refcount_bits=64",
                                    .size = 2 * MIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    write_fill(&img, 0, 300 * KIB, 1);
}

/* Writes to parts of clusters, so that wrong bytes in the rest of them would be seen; then closes
 * the image and checks it. */
static void go_on_and_close(const char *when, unsigned nth)
{
    bool poisoned = mcache_health(img.node->mc) != 0;
    char said[400] = "";

    for (uint64_t off = 300 * KIB; !poisoned && off < 2 * MIB; off += KIB)
        write_fill(&img, off, 7, 2);
    cr_expect(poisoned || as_model(&img), "%s %u", when, nth);
    cr_expect(image_close(&img) == 0 || poisoned);
    image_save(&img);
    cr_expect(poisoned || shell(said, sizeof said, "qemu-img check %s 2>&1", img.path) == 0,
              "%s %u: %s", when, nth, said);
    done();
}

/* Growing needs an L1 table larger than the range of a refcount block, and for the larger size also
 * a new refcount table.  The clusters that a failed attempt has written to must neither leak nor be
 * taken for zeroes later. */
Test(failures, a_wide_table_that_fails_leaves_no_trace, .timeout = 60)
{
    static const uint64_t sizes[] = {256 * MIB, 8 * GIB};

    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++)
        for (unsigned again = 0; again < 2; again++) {
            int err = -ENOSPC;
            for (unsigned nth = 1; err; nth++) {
                begin_small_clusters();
                fault_plan_fail(&plan, FAULT_WRITE, nth, ENOSPC, FAULT_ONCE);
                err = qcow2_driver.grow(img.node, sizes[i], NULL);
                fault_plan_heal(&plan);
                if (again && !mcache_health(img.node->mc))
                    cr_expect_eq(qcow2_driver.grow(img.node, sizes[i], NULL), 0);
                go_on_and_close(again ? "again, write" : "write", nth);
            }
        }
}

/* A new refcount block found no space in the file, but stays in memory, empty.  Growing then puts
 * the block elsewhere, together with a wide table. */
Test(failures, a_block_that_found_no_space_is_made_with_a_wide_table, .timeout = 60)
{
    static const uint64_t sizes[] = {256 * MIB, 8 * GIB};

    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++)
        for (unsigned nth = 1; nth < 8; nth++) {
            begin_small_clusters();
            fault_plan_fail(&plan, FAULT_PREALLOCATE, nth, ENOSPC, FAULT_ONCE);
            for (uint64_t off = 300 * KIB; fault_plan_injected(&plan) == 0; off += 512)
                (void)!try_write(&img, off, 512, 3, 0);
            cr_expect_eq(qcow2_driver.grow(img.node, sizes[i], NULL), 0);
            cr_expect_eq(qcow2_driver.grow(img.node, 2 * sizes[i], NULL), 0);
            for (uint64_t off = 300 * KIB; off < 2 * MIB; off += 512)
                write_fill(&img, off, 512, 4);
            go_on_and_close("preallocation", nth);
        }
}

/* Makes an image whose tail has clusters with refcounts in two pages, neither of which is in
 * memory. */
static void begin_with_a_tail_in_two_pages(void)
{
    uint64_t page = 512, off = 0; /* clusters; bytes */

    make(&img, &(struct image_spec){.options = "cluster_size=8192,refcount_bits=64",
                                    .size = 16 * MIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    struct alloc *a = &qcow2_of(img.node)->alloc;
    do {
        write_fill(&img, off, 8 * KIB, 1);
        off += 8 * KIB;
    } while (off < 12 * MIB && (a->tail.next >> a->cluster_bits >= page - 7 ||
                                a->tail.end >> a->cluster_bits <= page + 3));
    cr_assert_lt(off, 12 * MIB);
    cr_assert_eq(block_flush(img.node), 0);
    mcache_hold(img.node->mc);
    mcmap_forget(a->refs.block_map);
    mcache_release(img.node->mc);
}

/* A close gives the tail's clusters back page by page, and one of the pages can't be read.
 * Clusters that are allocated after the failed close must have a refcount. */
Test(failures, a_tail_that_is_given_back_in_part, .timeout = 60)
{
    unsigned nth = 0;
    int err;

    do {
        begin_with_a_tail_in_two_pages();
        fault_plan_fail(&plan, FAULT_READ, ++nth, EIO, FAULT_ONCE);
        err = node_freeze(img.node);
        fault_plan_heal(&plan);
        if (err)
            write_fill(&img, 12 * MIB, 64 * KIB, 2);
        close_and_verify(&img);
        done();
    } while (err);
    cr_expect_gt(nth, 2, "each of the two pages failed once");
}
