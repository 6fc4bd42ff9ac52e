/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that the time and memory of a check of qcow2 images don't depend on an image's claims. */
#include <time.h>

#include "qcow2/check/check_counts.h"
#include "qcow2_testing.h"

static int check(struct storage *st, enum check_repair repair, struct check_result *result)
{
    const struct check_options options = {.repair = repair};
    struct diag diag = {0};

    *result = (struct check_result){0};
    return qcow2_driver.check(st, &options, result, &diag);
}

/* ---- counts ---- */

Test(qcow2_check, counts_of_any_size)
{
    struct counts counts;
    uint64_t lost = 0;

    cr_assert_eq(counts_init(&counts, 1000), 0);
    for (unsigned i = 0; i < 600; i++)
        cr_assert_eq(counts_add(&counts, 10, 20, 1, UINT64_MAX, &lost), 0);
    cr_assert_eq(counts_add(&counts, 15, 1, UINT64_C(1) << 40, UINT64_MAX, &lost), 0);
    cr_expect_eq(counts_get(&counts, 9), 0);
    cr_expect_eq(counts_get(&counts, 10), 600);
    cr_expect_eq(counts_get(&counts, 15), 600 + (UINT64_C(1) << 40));
    cr_expect_eq(counts_get(&counts, 29), 600);
    cr_expect_eq(counts_get(&counts, 30), 0);
    cr_expect_eq(lost, 0);
    counts_free(&counts);
}

Test(qcow2_check, counts_end_at_what_a_refcount_can_say)
{
    static const uint64_t max[] = {1, 3, 15, 255, 65535};

    for (size_t i = 0; i < ARRAY_LEN(max); i++) {
        struct counts counts;
        uint64_t lost = 0;
        cr_assert_eq(counts_init(&counts, 64), 0);
        cr_assert_eq(counts_add(&counts, 0, 64, max[i] - 1, max[i], &lost), 0);
        cr_expect_eq(lost, 0);
        cr_assert_eq(counts_add(&counts, 5, 2, 3, max[i], &lost), 0);
        cr_expect_eq(counts_get(&counts, 4), max[i] - 1);
        cr_expect_eq(counts_get(&counts, 5), max[i]);
        cr_expect_eq(lost, 4);
        counts_free(&counts);
    }
}

Test(qcow2_check, bitmaps_at_every_edge)
{
    uint8_t bits[8] = {0};

    bit_set(bits, 21);
    for (uint64_t first = 0; first < 64; first++)
        for (uint64_t n = 0; first + n <= 64; n++)
            cr_expect_eq(bits_any(bits, first, n), first <= 21 && 21 < first + n);
}

/* ---- hostile images ---- */

static void header(struct storage *st, uint32_t cluster_bits, uint64_t size,
                   uint32_t l1_size, uint64_t l1, uint64_t rt, uint32_t rt_clusters)
{
    uint8_t raw[112] = {0};

    store_be32(raw + FIELD(magic), QCOW2_MAGIC);
    store_be32(raw + FIELD(version), 3);
    store_be32(raw + FIELD(cluster_bits), cluster_bits);
    store_be64(raw + FIELD(size), size);
    store_be32(raw + FIELD(l1_size), l1_size);
    store_be64(raw + FIELD(l1_table_offset), l1);
    store_be64(raw + FIELD(refcount_table_offset), rt);
    store_be32(raw + FIELD(refcount_table_clusters), rt_clusters);
    store_be32(raw + FIELD(refcount_order), 4);
    store_be32(raw + FIELD(header_length), 104);
    cr_assert_eq(storage_write(st, raw, 0, sizeof raw, 0), 0);
}

/* Fills [off, off+8n) with one word. */
static void fill_words(struct storage *st, uint64_t off, uint64_t n, uint64_t word)
{
    uint64_t *words = malloc(n * 8);

    cr_assert(words);
    for (uint64_t i = 0; i < n; i++)
        store_be64(&words[i], word);
    cr_assert_eq(storage_write(st, words, off, n * 8, 0), 0);
    free(words);
}

Test(qcow2_check, every_l1_entry_leads_to_the_same_table, .timeout = 60)
{
    const uint64_t cluster = 2 << 20, l1 = 4 << 20;
    struct storage *st = mem_storage_new(0);
    struct check_result r;

    /* All of four million L1 entries point to one table of 256 Ki entries: a check that looked at
     * each of them would never end. */
    header(st, 21, 1 << 20, MAX_L1_BYTES / 8, l1, cluster, 1);
    fill_words(st, l1, MAX_L1_BYTES / 8, 64 << 20);
    fill_words(st, 64 << 20, cluster / 8, 80 << 20);
    cr_assert_eq(storage_truncate(st, 100 << 20), 0);
    cr_expect_eq(check(st, REPAIR_NONE, &r), 0);
    cr_expect_gt(r.corruptions, 0);
    cr_expect_eq(check(st, REPAIR_ALL, &r), 0);
    storage_close(st);
}

Test(qcow2_check, tens_of_thousands_of_snapshots_of_overlapping_tables, .timeout = 60)
{
    struct storage *st = mem_storage_new(0);
    const uint64_t table = 1 << 20, tables = 16 << 20;
    uint8_t raw[56] = {0}, count[12];
    struct check_result r;

    header(st, 9, 32768, 1, 512, 1024, 1);
    store_be32(count, MAX_SNAPSHOTS);
    store_be64(count + 4, table);
    cr_assert_eq(storage_write(st, count, FIELD(nb_snapshots), 12, 0), 0);
    store_be32(raw + 36, 16);
    for (uint64_t i = 0; i < MAX_SNAPSHOTS; i++) {
        store_be64(raw, tables + (i % 2000) * 512);
        store_be32(raw + 8, 2000000 - (uint32_t)(i / 2000));
        cr_assert_eq(storage_write(st, raw, table + i * sizeof raw, sizeof raw, 0), 0);
    }
    fill_words(st, tables, 2200000, 20 << 20);
    cr_expect_eq(check(st, REPAIR_NONE, &r), 0);
    cr_expect_gt(r.corruptions, 0);
    cr_expect_eq(check(st, REPAIR_ALL, &r), 0);
    storage_close(st);
}

Test(qcow2_check, a_file_larger_than_can_be_counted, .timeout = 60)
{
    struct storage *st = mem_storage_new(0);
    struct check_result r;

    header(st, 9, 32768, 1, 512, 1024, 1);
    cr_assert_eq(storage_truncate(st, UINT64_C(1) << 60), 0);
    cr_expect_eq(check(st, REPAIR_NONE, &r), -EFBIG);
    storage_close(st);
}

Test(qcow2_check, random_bytes_behind_a_header, .timeout = 120)
{
    for (uint64_t seed = 0; seed < 300 / build_slowness(); seed++) {
        struct storage *st = mem_storage_new(0);
        uint8_t noise[64 * 1024];
        struct check_result r;
        struct rng rng;

        rng_init(&rng, seed);
        rng_fill(&rng, noise, sizeof noise);
        /* Plausible offsets, so that the check gets far. */
        for (size_t i = 0; i < sizeof noise; i += 8)
            if (noise[i] < 200)
                store_be64(noise + i, (load_be64(noise + i) & 0xfe00) |
                                          (noise[i] % 2 ? 0 : 1ull << 63));
        cr_assert_eq(storage_write(st, noise, 0, sizeof noise, 0), 0);
        header(st, 9, 32768, 1 + (uint32_t)rng_below(&rng, 100), 512 * rng_below(&rng, 100),
               512 * rng_below(&rng, 100), (uint32_t)rng_below(&rng, 10));
        check(st, REPAIR_NONE, &r);
        check(st, REPAIR_LEAKS, &r);
        check(st, REPAIR_ALL, &r);
        storage_close(st);
    }
}

/* ---- failures ---- */

Test(qcow2_check, a_failing_write_ends_the_repair, .timeout = 120)
{
    struct image img;

    make(&img, &(struct image_spec){.size = MIB, .options = "cluster_size=4096"});
    image_open(&img);
    cr_assert_eq(block_write(img.node, "x", 5000, 1, 0), 0);
    cr_assert_eq(image_close(&img), 0);
    put64(&img, get64(&img, FIELD(refcount_table_offset)), 0);
    for (uint64_t nth = 1;; nth++) {
        struct storage *copy = mem_storage_clone(img.mem);
        struct fault_plan plan;
        struct check_result r;

        fault_plan_init(&plan);
        fault_plan_fail(&plan, FAULT_CHANGE, nth, EIO, FAULT_FROM_THEN_ON);
        struct storage *st = fault_storage_new(mem_storage_share(copy), &plan);
        int err = check(st, REPAIR_ALL, &r);
        bool failed = fault_plan_injected(&plan) > 0;
        cr_expect_eq(err, failed ? -EIO : 0, "change %llu", (unsigned long long)nth);
        storage_close(st);
        cr_expect_eq(check(copy, REPAIR_ALL, &r), 0);
        cr_expect_eq(check(copy, REPAIR_NONE, &r), 0);
        cr_expect_eq(r.corruptions + r.leaks + r.check_errors, 0, "change %llu",
                     (unsigned long long)nth);
        storage_close(copy);
        fault_plan_destroy(&plan);
        if (!failed)
            break;
    }
    image_free(&img);
}

Test(qcow2_check, a_store_of_fixed_size_without_room)
{
    struct image img;
    struct check_result r;

    make(&img, &(struct image_spec){.size = MIB, .options = "cluster_size=4096"});
    put64(&img, get64(&img, FIELD(refcount_table_offset)), 0);
    img.mem->fixed_size = true;
    cr_expect_eq(check(img.mem, REPAIR_ALL, &r), -ENOSPC);
    img.mem->fixed_size = false;
    cr_expect_eq(check(img.mem, REPAIR_ALL, &r), 0);
    cr_expect_eq(r.corruptions, 0);
    image_free(&img);
}
