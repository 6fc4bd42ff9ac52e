/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes images and damages them by changing single fields; see damaged.h. */
#include "damaged.h"

#include <stdlib.h>

#include <criterion/criterion.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "image.h"
#include "mem_storage.h"

#define CLUSTER 4096u
#define COPIED  (UINT64_C(1) << 63)
#define OFFSET  UINT64_C(0x00fffffffffffe00)

/* ---- bytes of the image ---- */

static uint64_t get(struct storage *st, uint64_t off)
{
    uint8_t raw[8];

    cr_assert_eq(storage_read(st, raw, off, 8), 0);
    return load_be64(raw);
}

static void put(struct storage *st, uint64_t off, uint64_t value)
{
    uint8_t raw[8];

    store_be64(raw, value);
    cr_assert_eq(storage_write(st, raw, off, 8, 0), 0);
}

/* The file offset of the nth L2 entry in use (from 0) of a qcow2 image. */
static uint64_t l2_place(struct storage *st, unsigned n)
{
    uint64_t l1 = get(st, 40);

    for (uint64_t i = 0; i < SCENARIO_DISK / (CLUSTER * CLUSTER / 8); i++) {
        uint64_t table = get(st, l1 + i * 8) & OFFSET;
        for (uint64_t j = 0; table && j < CLUSTER / 8; j++)
            if ((get(st, table + j * 8) & OFFSET) && n-- == 0)
                return table + j * 8;
    }
    cr_assert_fail("not that many entries");
    abort();
}

/* ---- damages ---- */

static void no_refcounts(struct storage *st)
{
    cr_assert_eq(storage_zero(st, get(st, get(st, 48)), CLUSTER, 0), 0);
}

static void no_refcount_block(struct storage *st)
{
    put(st, get(st, 48), 0);
}

static void refcount_block_misplaced(struct storage *st)
{
    put(st, get(st, 48), get(st, l2_place(st, 3)) & OFFSET);
}

static void refcount_table_lost(struct storage *st)
{
    put(st, 48, 512 * MIB);
}

static void leaks(struct storage *st)
{
    uint64_t size, block = get(st, get(st, 48));

    cr_assert_eq(storage_size(st, &size), 0);
    for (uint64_t i = 0; i < size / CLUSTER + 20; i++)
        cr_assert_eq(storage_write(st, "\0\7", block + i * 2, 2, 0), 0);
    cr_assert_eq(storage_truncate(st, size + 20 * CLUSTER), 0);
}

static void copied_flags(struct storage *st)
{
    for (unsigned i = 0; i < 60; i++)
        put(st, l2_place(st, i), get(st, l2_place(st, i)) ^ COPIED);
    put(st, get(st, 40), get(st, get(st, 40)) ^ COPIED);
}

static void shared_cluster(struct storage *st)
{
    put(st, l2_place(st, 1), get(st, l2_place(st, 20)));
}

static void misaligned_entry(struct storage *st)
{
    put(st, l2_place(st, 2), get(st, l2_place(st, 2)) + 512);
}

static void data_on_the_l1_table(struct storage *st)
{
    put(st, l2_place(st, 5), get(st, 40) | COPIED);
}

static void l1_past_the_end(struct storage *st)
{
    put(st, get(st, 40) + 8, 512 * MIB);
    put(st, get(st, 40), get(st, get(st, 40)) | 1);
}

static void everything(struct storage *st)
{
    leaks(st);
    copied_flags(st);
    shared_cluster(st);
    misaligned_entry(st);
    data_on_the_l1_table(st);
    refcount_block_misplaced(st);
    put(st, 72, 3); /* sets the dirty bit and the corrupt bit */
}

static void short_snapshot_entry(struct storage *st)
{
    uint64_t entry = get(st, 64);

    cr_assert_eq(storage_write(st, "\0\0\0\10", entry + 36, 4, 0), 0);
}

/* Overwrites the last byte of the snapshot's name, which stands at the end of the entry. */
static void nul_in_snapshot_name(struct storage *st)
{
    uint64_t entry = get(st, 64);
    uint16_t id = (uint16_t)(get(st, entry + 8) >> 16), name = (uint16_t)get(st, entry + 8);
    uint32_t extra = (uint32_t)get(st, entry + 32);

    cr_assert_gt(name, 0);
    cr_assert_eq(storage_write(st, "", entry + 40 + extra + id + name - 1u, 1, 0), 0);
}

/* The same; the file also ends exactly where the range of a refcount block ends. */
static void nul_in_snapshot_name_no_block(struct storage *st)
{
    uint64_t block = CLUSTER / 2 * CLUSTER, size;

    nul_in_snapshot_name(st);
    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_lt(size, block);
    cr_assert_eq(storage_truncate(st, block), 0);
}

static void snapshot_on_data(struct storage *st)
{
    put(st, get(st, 64), get(st, l2_place(st, 20)) & OFFSET);
}

static uint64_t qed_entry(struct storage *st, unsigned n)
{
    return __builtin_bswap64(get(st, CLUSTER)) + n * 8;
}

static void qed_damage(struct storage *st)
{
    uint64_t size;

    cr_assert_eq(storage_size(st, &size), 0);
    put(st, qed_entry(st, 3), __builtin_bswap64(size * 2));
    put(st, qed_entry(st, 5), __builtin_bswap64(12345));
    put(st, CLUSTER + 8, __builtin_bswap64(77));
    put(st, 16, __builtin_bswap64(2));
    cr_assert_eq(storage_truncate(st, size + 9 * CLUSTER + 100), 0);
}

/* Unlike qed_damage: the file ends with the last cluster in use. */
static void qed_entry_damage(struct storage *st)
{
    put(st, qed_entry(st, 5), __builtin_bswap64(12345));
    put(st, 16, __builtin_bswap64(2));
}

const struct scenario scenarios[] = {
    {"no refcounts", "qcow2", "cluster_size=4096", no_refcounts, false},
    {"no refcount block", "qcow2", "cluster_size=4096", no_refcount_block, false},
    {"misplaced block", "qcow2", "cluster_size=4096", refcount_block_misplaced, false},
    {"lost table", "qcow2", "cluster_size=4096", refcount_table_lost, false},
    {"leaks", "qcow2", "cluster_size=4096", leaks, false},
    {"copied flags", "qcow2", "cluster_size=4096", copied_flags, false},
    {"copied flags, v2", "qcow2", "cluster_size=4096,compat=0.10", copied_flags, false},
    {"shared cluster", "qcow2", "cluster_size=4096", shared_cluster, false},
    {"misaligned entry", "qcow2", "cluster_size=4096", misaligned_entry, false},
    {"data on the L1 table", "qcow2", "cluster_size=4096", data_on_the_l1_table, false},
    {"L1 entries", "qcow2", "cluster_size=4096", l1_past_the_end, false},
    {"everything", "qcow2", "cluster_size=4096", everything, false},
    {"everything, snapshot", "qcow2", "cluster_size=4096", everything, true},
    {"short snapshot entry", "qcow2", "cluster_size=4096", short_snapshot_entry, true},
    {"name of a snapshot", "qcow2", "cluster_size=4096", nul_in_snapshot_name, true},
    {"name of a snapshot, v2", "qcow2", "cluster_size=4096,compat=0.10",
     nul_in_snapshot_name, true},
    {"name of a snapshot, a block's end, v2", "qcow2", "cluster_size=4096,compat=0.10",
     nul_in_snapshot_name_no_block, true},
    {"snapshot on data", "qcow2", "cluster_size=4096", snapshot_on_data, true},
    {"qed", "qed", "cluster_size=4096,table_size=2", qed_damage, false},
    {"qed entry", "qed", "cluster_size=4096,table_size=2", qed_entry_damage, false},
};
const size_t scenario_count = ARRAY_LEN(scenarios);

struct storage *scenario_make(const struct scenario *s)
{
    struct image img;

    image_make(&img,
               &(struct image_spec){.format = s->format,
                                    .options = s->options,
                                    .size = SCENARIO_DISK,
                                    .snapshot = s->snapshot},
               1);
    image_open(&img);
    uint8_t buf[3 * CLUSTER];
    struct rng rng;
    rng_init(&rng, 7);
    for (uint64_t off = CLUSTER / 2; off + sizeof buf < SCENARIO_DISK;
         off += SCENARIO_DISK / 24) {
        rng_fill(&rng, buf, sizeof buf);
        cr_assert_eq(block_write(img.node, buf, off, sizeof buf, 0), 0);
    }
    cr_assert_eq(image_close(&img), 0);
    struct storage *st = mem_storage_clone(img.mem);
    image_free(&img);
    s->damage(st);
    return st;
}
