/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests write zeroes and trim: which calls of the driver are made, and how parts of clusters are
 * handled. */
#include <pthread.h>

#include "base/clock.h"
#include "block_testing.h"
#include "crypto/cipher.h"

#define SIZE        (CLUSTERS * CLUSTER)
#define OLD_HOST(c) ((PLACE + (uint64_t)(c)) * CLUSTER)

Test(block_zero, whole_clusters_by_the_driver_parts_in_place)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    for (unsigned c = 0; c < 4; c++)
        b.toy.cell[c] = DATA;
    toy_fill_host(&b, 0, 4 * CLUSTER, 7);
    cr_expect_eq(block_zero(b.node, CLUSTER - 100, 2 * CLUSTER + 200, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "z");
    cr_expect(toy_reads(&b, 0, CLUSTER - 100, 7));
    cr_expect(toy_reads(&b, CLUSTER - 100, 2 * CLUSTER + 200, 0));
    cr_expect(toy_reads(&b, 3 * CLUSTER + 100, CLUSTER - 100, 7));
    cr_expect_eq(b.toy.cell[0], DATA);
    cr_expect_eq(b.toy.cell[1], ZERO);
    cr_expect_eq(b.toy.cell[3], DATA);
    toy_fini(&b);
}

Test(block_zero, parts_of_what_is_zero_cost_nothing)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = ZERO;
    cr_expect_eq(block_zero(b.node, 100, 100, 0), 0);
    cr_expect_eq(block_zero(b.node, CLUSTER + 100, 100, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    toy_fini(&b);
}

Test(block_zero, parts_over_the_base_are_written)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, 2 * CLUSTER, 9);
    cr_expect_eq(block_zero(b.node, 100, 100, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "RL");
    cr_expect(toy_reads(&b, 0, 100, 9));
    cr_expect(toy_reads(&b, 100, 100, 0));
    cr_expect(toy_reads(&b, 200, 2 * CLUSTER - 200, 9));
    cr_expect_eq(block_zero(b.node, 2 * CLUSTER + 100, 100, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "", "past the base it is zero");
    toy_fini(&b);
}

/* If the rest of a cluster is zero, too, it isn't allocated. */
Test(block_zero, parts_of_holes_whose_rest_is_zero)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, 4 * CLUSTER + 300, 9);
    b.base_toy.cell[1] = ZERO;
    b.base_toy.cell[2] = HOLE;
    cr_expect_eq(block_zero(b.node, CLUSTER + 100, 100, 0), 0);
    cr_expect_eq(b.toy.cell[1], ZERO, "zeroes below");
    cr_expect_eq(block_zero(b.node, 2 * CLUSTER, 1, BLOCK_MAY_UNMAP), 0);
    cr_expect_eq(b.toy.cell[2], ZERO, "nothing below");
    cr_expect_eq(block_zero(b.node, 4 * CLUSTER, 300, 0), 0);
    cr_expect_eq(b.toy.cell[4], ZERO, "the base's end, and zeroes past it");
    cr_expect_str_eq(toy_calls(&b.toy), "zzz");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    cr_expect_eq(block_zero(b.node, 3 * CLUSTER, 299, 0), 0);
    cr_expect_eq(b.toy.cell[3], MOVED, "bytes of the base are left");
    cr_expect(toy_reads(&b, 0, CLUSTER, 9));
    cr_expect(toy_reads(&b, CLUSTER, 2 * CLUSTER + 299, 0));
    cr_expect(toy_reads(&b, 3 * CLUSTER + 299, CLUSTER - 299, 9));
    cr_expect(toy_reads(&b, 4 * CLUSTER, 4 * CLUSTER, 0));
    toy_fini(&b);
}

/* In a format without zero clusters, zeroes are written only where the disk reads as something
 * else. */
Test(block_zero, parts_of_holes_in_a_format_that_cant_say_zero)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, 4 * CLUSTER + 300, 9);
    b.base_toy.cell[1] = ZERO;
    b.toy.fail_zero = ENOTSUP;
    cr_expect_eq(block_zero(b.node, CLUSTER + 100, 100, 0), 0);
    cr_expect_eq(b.toy.cell[1], HOLE, "it reads as zeroes already");
    cr_expect_eq(block_zero(b.node, 4 * CLUSTER, 300, 0), 0);
    cr_expect_eq(b.toy.cell[4], MOVED);
    cr_expect(toy_reads(&b, 4 * CLUSTER, 4 * CLUSTER, 0));
    toy_fini(&b);
}

Test(block_zero, the_end_of_the_disk_counts_as_a_cluster)
{
    struct toy_bench b;

    toy_init(&b, 5 * CLUSTER + 512, NULL);
    b.toy.cell[5] = DATA;
    cr_expect_eq(block_zero(b.node, 5 * CLUSTER, 512, BLOCK_MAY_UNMAP), 0);
    cr_expect_eq(b.toy.cell[5], ZERO);
    b.toy.cell[5] = DATA;
    cr_expect_eq(block_discard(b.node, 5 * CLUSTER, 512, 0), 0);
    cr_expect_eq(b.toy.cell[5], ZERO);
    b.toy.cell[5] = DATA;
    cr_expect_eq(block_discard(b.node, 5 * CLUSTER, 511, 0), 0);
    cr_expect_eq(b.toy.cell[5], DATA, "a byte of the guest's is left");
    toy_fini(&b);
}

/* If the file's bytes aren't the guest's bytes (encryption), zeroes in the file don't read as
 * zeroes for the guest. */
Test(block_zero, host_zeroes_that_dont_show)
{
    struct toy_bench b;
    struct block_status st;

    toy_init(&b, SIZE, NULL);
    b.node->host_zeroes_show = false;
    b.toy.cell[1] = DATA;
    b.toy.fresh = true;
    toy_fill_host(&b, 0, 4 * CLUSTER, 7);
    cr_expect_eq(block_zero(b.node, CLUSTER + 100, 100, BLOCK_MAY_UNMAP), 0);
    cr_expect_eq(block_discard(b.node, CLUSTER + 300, 100, 0), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_ZERO), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_DISCARD), 0);
    cr_expect_eq(fault_plan_bytes_written(&b.plan), 100, "zero bytes, as a write has them");
    cr_expect_eq(toy_write(&b, 2 * CLUSTER + 512, 512, 5, 0), 0);
    cr_expect_eq(fault_plan_bytes_written(&b.plan), 100 + CLUSTER,
                 "also what is around it");
    cr_assert_eq(storage_truncate(b.node->file, (PLACE + CLUSTERS) * CLUSTER), 0);
    b.toy.cell[9] = DATA;
    cr_assert_eq(block_status(b.node, 9 * CLUSTER, CLUSTER, &st), 0);
    cr_expect(st.data && !st.zero, "a hole in the file");
    toy_fini(&b);
}

/* If the format can't do it, zeroing writes zero bytes, and a trim does nothing. */
Test(block_zero, not_supported_by_the_format)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = DATA;
    b.toy.cell[2] = SHARED;
    toy_fill_host(&b, OLD_HOST(1), 2 * CLUSTER, 7);
    b.toy.fail_zero = ENOTSUP;
    cr_expect_eq(block_discard(b.node, CLUSTER, 2 * CLUSTER, 0), 0);
    cr_expect(toy_reads(&b, CLUSTER, 2 * CLUSTER, 7));
    cr_expect_eq(block_zero(b.node, CLUSTER, 2 * CLUSTER, 0), 0);
    cr_expect(toy_reads(&b, CLUSTER, 2 * CLUSTER, 0));
    cr_expect_eq(b.toy.cell[1], DATA);
    cr_expect_eq(b.toy.cell[2], MOVED);
    toy_fini(&b);
}

Test(block_zero, other_errors_are_passed_on)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = DATA;
    b.toy.fail_zero = EIO;
    cr_expect_eq(block_zero(b.node, CLUSTER, CLUSTER, 0), -EIO);
    cr_expect_eq(block_discard(b.node, CLUSTER, CLUSTER, 0), -EIO);
    b.toy.fail_zero = 0;
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, ENOSPC, FAULT_ONCE);
    cr_expect_eq(block_zero(b.node, CLUSTER, 100, 0), -ENOSPC);
    toy_fini(&b);
}

/* A FAST request that isn't fast fails before any byte is changed, in parts or whole clusters. */
Test(block_zero, fast_is_decided_first)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[0] = DATA;
    cr_expect_eq(block_zero(b.node, 100, 2 * CLUSTER, BLOCK_FAST), -ENOTSUP,
                 "a part has data");
    cr_expect_str_eq(toy_calls(&b.toy), "");
    b.toy.fast = false;
    cr_expect_eq(block_zero(b.node, CLUSTER, 2 * CLUSTER, BLOCK_FAST), -ENOTSUP);
    cr_expect_str_eq(toy_calls(&b.toy), "f");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    b.toy.fast = true;
    cr_expect_eq(block_zero(b.node, CLUSTER + 100, 2 * CLUSTER, BLOCK_FAST), 0,
                 "the parts are holes");
    cr_expect_str_eq(toy_calls(&b.toy), "fz");
    toy_fini(&b);
}

Test(block_zero, trim_can_be_switched_off)
{
    struct toy_bench b;
    struct node_options options = {.discard_ignore = true};

    toy_init(&b, SIZE, &options);
    b.toy.cell[1] = DATA;
    cr_expect_eq(block_discard(b.node, CLUSTER, CLUSTER, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "");
    cr_expect_eq(block_discard(b.node, CLUSTER, SIZE, 0), -EINVAL, "but not out of range");
    toy_fini(&b);
}

Test(block_zero, detect_zeroes)
{
    struct toy_bench b;
    struct node_options options = {.detect_zeroes = DETECT_ON};

    toy_init(&b, SIZE, &options);
    cr_expect_eq(toy_write(&b, CLUSTER, CLUSTER, 0, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "z");
    cr_expect_eq(toy_write(&b, CLUSTER, CLUSTER, 1, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "RZ");
    toy_fini(&b);
}

/* ---- an encrypted disk without clusters ---- */

static int map_encrypted(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    *out = (struct extent){.kind = EXTENT_ENCRYPTED,
                           .writable = true,
                           .allocated = true,
                           .length = len,
                           .file = node->file,
                           .host_offset = off};
    return 0;
}

static int zero_nothing(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                        uint64_t *done)
{
    (void)node;
    (void)off;
    (void)len;
    (void)how;
    *done = 0;
    return -ENOTSUP;
}

static const struct driver encrypted_driver = {
    .name = "encrypted", .map = map_encrypted, .zero = zero_nothing, .close = toy_close};

/* A write to the same sector that begins after the zeroing request has read the sector. */
struct comer {
    struct toy_bench *b;
    pthread_t thread;
    bool came;
    _Atomic bool done;
};

static void *write_to_sector(void *opaque)
{
    struct comer *c = opaque;

    cr_expect_eq(toy_write(c->b, 300, 100, 5, 0), 0);
    atomic_store(&c->done, true);
    return NULL;
}

static bool waits_or_is_done(struct comer *c)
{
    LOCK_GUARD(&c->b->node->ranges.lock);
    return c->b->node->ranges.waiting > 0 || atomic_load(&c->done);
}

static void come(void *opaque)
{
    struct comer *c = opaque;

    if (c->came)
        return;
    c->came = true;
    cr_assert_eq(pthread_create(&c->thread, NULL, write_to_sector, c), 0);
    while (!waits_or_is_done(c))
        clock_nap_ns(100000);
}

/* An encrypted sector can only be written as a whole.  Zeroing a part must keep the rest, also
 * what another request writes there meanwhile. */
Test(block_zero, parts_of_encrypted_sectors, .timeout = 60)
{
    static const struct cipher_spec spec = {CIPHER_AES_128, CIPHER_CBC, CIPHER_PLAIN64, 0};
    static const uint8_t key[CIPHER_MAX_KEY_BYTES] = {1};
    struct toy_bench b;
    struct comer comer = {.b = &b};

    toy_init(&b, SIZE, NULL);
    b.node->driver = &encrypted_driver;
    b.node->cluster_size = b.node->subcluster_size = 1;
    b.node->host_zeroes_show = false;
    cr_assert_eq(cipher_new(&b.node->cipher, &spec, key, NULL), 0);
    cr_assert_eq(toy_write(&b, 0, 1024, 7, 0), 0);
    b.plan.behind_read_opaque = &comer;
    b.plan.behind_read = come;
    cr_expect_eq(block_zero(b.node, 100, 100, 0), 0);
    cr_assert(comer.came);
    cr_assert_eq(pthread_join(comer.thread, NULL), 0);
    b.plan.behind_read = NULL;
    cr_expect(toy_reads(&b, 0, 100, 7));
    cr_expect(toy_reads(&b, 100, 100, 0));
    cr_expect(toy_reads(&b, 200, 100, 7));
    cr_expect(toy_reads(&b, 300, 100, 5), "a write that was answered");
    cr_expect(toy_reads(&b, 400, 624, 7));
    toy_fini(&b);
}
