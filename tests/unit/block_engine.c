/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which calls of a driver the request engine makes, and what it does with the results. */
#include <pthread.h>

#include "base/clock.h"
#include "block_testing.h"
#include "crypto/cipher.h"

#define SIZE (CLUSTERS * CLUSTER)

/* The host offset of guest cluster c: its first place, and its new place. */
#define OLD_HOST(c) ((PLACE + (uint64_t)(c)) * CLUSTER)
#define NEW_HOST(c) ((NEW_PLACE + (uint64_t)(c)) * CLUSTER)

/* ---- reading ---- */

Test(block_engine, a_read_goes_over_all_kinds)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = ZERO;
    b.toy.cell[2] = DATA;
    toy_fill_host(&b, OLD_HOST(1), 2 * CLUSTER, 7);
    cr_expect(toy_reads(&b, 0, 2 * CLUSTER, 0), "a hole, and zero over old bytes");
    cr_expect(toy_reads(&b, 2 * CLUSTER + 10, CLUSTER - 10, 7));
    toy_fini(&b);
}

Test(block_engine, a_shorter_backing_file_ends_in_zeroes)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, 3 * CLUSTER + 100, 9);
    b.toy.cell[0] = ZERO;
    cr_expect(toy_reads(&b, 0, CLUSTER, 0), "zero hides it");
    cr_expect(toy_reads(&b, CLUSTER, 2 * CLUSTER + 100, 9));
    cr_expect(toy_reads(&b, 3 * CLUSTER + 100, 5 * CLUSTER, 0));
    toy_fini(&b);
}

Test(block_engine, requests_outside_are_refused)
{
    struct toy_bench b;
    char byte = 0;

    toy_init(&b, SIZE - 512, NULL);
    cr_expect_eq(block_read(b.node, &byte, SIZE - 512, 1), -EINVAL);
    cr_expect_eq(block_write(b.node, &byte, UINT64_MAX, 1, 0), -EINVAL);
    cr_expect_eq(block_zero(b.node, 0, SIZE, 0), -EINVAL);
    cr_expect_eq(block_discard(b.node, 1, UINT64_MAX, 0), -EINVAL);
    cr_expect_eq(block_read(b.node, &byte, SIZE - 512, 0), 0, "nothing, at the very end");
    cr_expect_eq(block_write(b.node, &byte, 0, 0, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "");
    toy_fini(&b);
}

Test(block_engine, a_node_that_isnt_active_isnt_written)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.node->active = false;
    cr_expect_eq(toy_write(&b, 0, 512, 1, 0), -EROFS);
    cr_expect_eq(block_zero(b.node, 0, 512, 0), -EROFS);
    cr_expect_eq(block_discard(b.node, 0, 512, 0), -EROFS);
    cr_expect_eq(block_flush(b.node), 0);
    toy_fini(&b);
}

Test(block_engine, errors_of_a_map_are_passed_on)
{
    struct toy_bench b;
    char byte;

    toy_init(&b, SIZE, NULL);
    b.toy.fail_map = EIO;
    cr_expect_eq(block_read(b.node, &byte, 0, 1), -EIO);
    cr_expect_eq(toy_write(&b, 0, 512, 1, 0), -EIO);
    b.toy.fail_map = 0;
    b.toy.cell[0] = DATA;
    fault_plan_fail(&b.plan, FAULT_READ, 1, ENXIO, FAULT_ONCE);
    cr_expect_eq(block_read(b.node, &byte, 0, 1), -ENXIO);
    toy_fini(&b);
}

/* ---- writing ---- */

Test(block_engine, in_place_reserves_nothing)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = b.toy.cell[2] = DATA;
    cr_expect_eq(toy_write(&b, CLUSTER + 512, CLUSTER, 5, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_WRITE), 1);
    cr_expect_eq(fault_plan_bytes_written(&b.plan), CLUSTER);
    cr_expect(toy_reads(&b, CLUSTER + 512, CLUSTER, 5));
    toy_fini(&b);
}

Test(block_engine, fresh_clusters_over_zeroes_take_only_the_data)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.fresh = true;
    cr_expect_eq(toy_write(&b, 4 * CLUSTER + 512, 512, 5, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "RZ");
    cr_expect_eq(fault_plan_bytes_written(&b.plan), 512);
    toy_fini(&b);
}

Test(block_engine, used_clusters_are_filled_in_one_write)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    toy_fill_host(&b, NEW_HOST(4), CLUSTER, 0xee);
    cr_expect_eq(toy_write(&b, 4 * CLUSTER + 512, 512, 5, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "RZ");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_WRITE), 1);
    cr_expect_eq(fault_plan_bytes_written(&b.plan), CLUSTER);
    cr_expect(toy_reads(&b, 4 * CLUSTER, 512, 0));
    cr_expect(toy_reads(&b, 4 * CLUSTER + 512, 512, 5));
    cr_expect(toy_reads(&b, 4 * CLUSTER + 1024, CLUSTER - 1024, 0));
    toy_fini(&b);
}

Test(block_engine, head_and_tail_come_from_below)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, 4 * CLUSTER + 2048, 9);
    cr_expect_eq(toy_write(&b, 4 * CLUSTER + 512, 512, 5, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "RL", "what it replaces isn't zero");
    cr_expect(toy_reads(&b, 4 * CLUSTER, 512, 9));
    cr_expect(toy_reads(&b, 4 * CLUSTER + 512, 512, 5));
    cr_expect(toy_reads(&b, 4 * CLUSTER + 1024, 1024, 9));
    cr_expect(toy_reads(&b, 4 * CLUSTER + 2048, 2048, 0), "past the base");
    toy_fini(&b);
}

Test(block_engine, shared_clusters_are_copied)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = SHARED;
    toy_fill_host(&b, OLD_HOST(1), CLUSTER, 3);
    cr_expect_eq(toy_write(&b, CLUSTER + 100, 100, 5, 0), 0);
    cr_expect_str_eq(toy_calls(&b.toy), "RL");
    cr_expect(toy_reads(&b, CLUSTER, 100, 3));
    cr_expect(toy_reads(&b, CLUSTER + 100, 100, 5));
    cr_expect(toy_reads(&b, CLUSTER + 200, CLUSTER - 200, 3));
    b.toy.cell[1] = SHARED;
    cr_expect(toy_reads(&b, CLUSTER, CLUSTER, 3), "the old place is as it was");
    toy_fini(&b);
}

/* Invariant 8 of mcache.h, Q-10: if the data can't be written, the old mapping stays. */
Test(block_engine, a_failed_data_write_releases)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = SHARED;
    toy_fill_host(&b, OLD_HOST(1), CLUSTER, 3);
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, ENOSPC, FAULT_ONCE);
    cr_expect_eq(toy_write(&b, CLUSTER + 100, 100, 5, 0), -ENOSPC);
    cr_expect_str_eq(toy_calls(&b.toy), "RX");
    cr_expect(toy_reads(&b, CLUSTER, CLUSTER, 3));
    toy_fini(&b);
}

Test(block_engine, a_failed_copy_releases)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = SHARED;
    fault_plan_fail(&b.plan, FAULT_READ, 1, EIO, FAULT_ONCE);
    cr_expect_eq(toy_write(&b, CLUSTER + 100, 100, 5, 0), -EIO);
    cr_expect_str_eq(toy_calls(&b.toy), "RX");
    toy_fini(&b);
}

Test(block_engine, failures_of_reserve_and_link)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.fail_reserve = ENOSPC;
    cr_expect_eq(toy_write(&b, 0, 512, 5, 0), -ENOSPC);
    cr_expect_str_eq(toy_calls(&b.toy), "R", "nothing to release");
    b.toy.fail_reserve = 0;
    b.toy.fail_link = EIO;
    cr_expect_eq(toy_write(&b, 0, 512, 5, 0), -EIO);
    cr_expect_str_eq(toy_calls(&b.toy), "RZ", "link has released it");
    toy_fini(&b);
}

Test(block_engine, a_write_over_many_extents)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    for (unsigned c = 0; c < 8; c++)
        b.toy.cell[c] = (enum cell)(c % 4);
    cr_expect_eq(toy_write(&b, 100, 8 * CLUSTER, 6, 0), 0);
    cr_expect(toy_reads(&b, 100, 8 * CLUSTER, 6));
    cr_expect(toy_reads(&b, 0, 100, 0));
    toy_fini(&b);
}

/* ---- durability ---- */

Test(block_engine, fua_on_a_durable_mapping_is_one_durable_write)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = DATA;
    cr_expect_eq(toy_write(&b, CLUSTER, 512, 5, BLOCK_FUA), 0);
    cr_expect_eq(fault_plan_fua_writes(&b.plan), 1);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_WRITE), 1);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 0);
    toy_fini(&b);
}

Test(block_engine, fua_on_a_new_cluster_commits)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    cr_expect_eq(toy_write(&b, CLUSTER, 512, 5, BLOCK_FUA), 0);
    cr_expect_eq(fault_plan_fua_writes(&b.plan), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1);
    toy_fini(&b);
}

/* ---- a mapping that changes while an encrypted write waits for its sectors ---- */

static _Atomic uint64_t link_words[8];

static uint64_t place_of_links(void *owner, uint64_t page)
{
    (void)owner;
    (void)page;
    return 1 << 20;
}

/* Stores a link of another request that isn't durable yet. */
static void store_link(struct node *node)
{
    struct mcmap *map = mcmap_new_resident(node->mc, link_words, ARRAY_LEN(link_words),
                                           MC_BE64, place_of_links, NULL);
    struct mc_page *page;

    cr_assert_eq(mcmap_get_for_store(map, 0, &page), 0);
    LOCK_GUARD(mcache_meta(node->mc));
    mcmap_store(page, 0, 1, MC_LINK);
}

static void *write_durable_sector(void *opaque)
{
    cr_expect_eq(toy_write(opaque, CLUSTER, 512, 5, BLOCK_FUA), 0);
    return NULL;
}

static void wait_for_waiter(struct range_lock *ranges)
{
    for (bool waits = false; !waits; clock_nap_ns(100000)) {
        LOCK_GUARD(&ranges->lock);
        waits = ranges->waiting > 0;
    }
}

Test(block_engine, fua_looks_for_dirty_links_once_sectors_are_locked, .timeout = 60)
{
    static const struct cipher_spec spec = {CIPHER_AES_128, CIPHER_CBC, CIPHER_PLAIN64, 0};
    static const uint8_t key[CIPHER_MAX_KEY_BYTES] = {1};
    struct toy_bench b;
    pthread_t thread;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[1] = DATA;
    cr_assert_eq(cipher_new(&b.node->cipher, &spec, key, NULL), 0);
    {
        RANGE_LOCK_GUARD(&b.node->ranges, CLUSTER, 2 * CLUSTER);
        cr_assert_eq(pthread_create(&thread, NULL, write_durable_sector, &b), 0);
        wait_for_waiter(&b.node->ranges);
        b.toy.cell[1] = MOVED;
        store_link(b.node);
    }
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_expect(!mcache_has_dirty(b.node->mc), "what maps the sector is durable");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1);
    toy_fini(&b);
}

Test(block_engine, write_through_is_fua_always)
{
    struct toy_bench b;
    struct node_options options = {.cache = cache_mode_find("writethrough")};

    toy_init(&b, SIZE, &options);
    b.toy.cell[1] = DATA;
    cr_expect_eq(toy_write(&b, CLUSTER, 512, 5, 0), 0);
    cr_expect_eq(fault_plan_fua_writes(&b.plan), 1);
    cr_expect_eq(toy_write(&b, 3 * CLUSTER, 512, 5, 0), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1);
    cr_expect_eq(block_zero(b.node, CLUSTER, CLUSTER, 0), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 2);
    toy_fini(&b);
}

Test(block_engine, a_flush_without_writes_makes_no_call)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 0);
    cr_expect_eq(toy_write(&b, 0, 512, 5, 0), 0);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1);
    toy_fini(&b);
}

/* A failed write may have written something: the next flush must sync the storage. */
Test(block_engine, a_failed_write_is_flushed_too)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    b.toy.cell[0] = DATA;
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, EIO, FAULT_ONCE_TORN);
    cr_expect_eq(toy_write(&b, 0, CLUSTER, 5, 0), -EIO);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1);
    toy_fini(&b);
}

Test(block_engine, after_a_failed_flush_nothing_is_written)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    cr_expect_eq(toy_write(&b, 0, 512, 5, 0), 0);
    fault_plan_fail(&b.plan, FAULT_FLUSH, 1, ENOSPC, FAULT_ONCE);
    cr_expect_eq(block_flush(b.node), -ENOSPC);
    cr_expect_eq(block_flush(b.node), -EIO);
    uint64_t changes = fault_plan_calls(&b.plan, FAULT_CHANGE);
    cr_expect_eq(toy_write(&b, 0, 512, 5, 0), -EIO);
    cr_expect_eq(block_zero(b.node, 0, 512, 0), -EIO);
    cr_expect_eq(block_discard(b.node, 0, 512, 0), -EIO);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), changes);
    cr_expect(toy_reads(&b, 0, 512, 5), "reading goes on");
    toy_fini(&b);
}

/* Without flushes of a client, written data is synced after half a minute at the latest. */
Test(block_engine, old_writes_are_flushed_in_the_background)
{
    struct toy_bench b;

    toy_init(&b, SIZE, NULL);
    cr_expect_eq(toy_write(&b, 0, 512, 5, 0), 0);
    b.now += 29 * SEC;
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 0);
    b.now += SEC;
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1);
    toy_fini(&b);
}
