/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the check of images with extended L2 entries, an external data file or a LUKS header.  The
 * images are made by hand: header, refcount table, refcount block, L1 table, L2 table, one cluster
 * each, then data. */
#include "qcow2/l2_entry.h"
#include "qcow2_testing.h"

#define CL     UINT64_C(16384)
#define RT     (1 * CL)
#define BLOCK  (2 * CL)
#define L1     (3 * CL)
#define L2     (4 * CL)
#define DATA   (5 * CL) /* the first of N_DATA clusters that have a refcount */
#define N_DATA 4
#define N_USED (5 + N_DATA)
#define COPIED L2_COPIED
#define ALL    ((uint64_t)ALL_SUBCLUSTERS)
#define ZEROES (ALL << 32)

struct words {
    uint64_t entry, bitmap;
};

static void put(struct storage *st, uint64_t off, uint64_t value)
{
    uint8_t raw[8];

    store_be64(raw, value);
    cr_assert_eq(storage_write(st, raw, off, 8, 0), 0);
}

static uint64_t get(struct storage *st, uint64_t off)
{
    uint8_t raw[8];

    cr_assert_eq(storage_read(st, raw, off, 8), 0);
    return load_be64(raw);
}

static void put_count(struct storage *st, uint64_t host, uint16_t count)
{
    uint8_t raw[2];

    store_be16(raw, count);
    cr_assert_eq(storage_write(st, raw, BLOCK + host / CL * 2, 2, 0), 0);
}

static struct storage *make_image(uint64_t incompatible)
{
    struct storage *st = mem_storage_new(0);
    uint8_t raw[112] = {0};

    store_be32(raw + FIELD(magic), QCOW2_MAGIC);
    store_be32(raw + FIELD(version), 3);
    store_be32(raw + FIELD(cluster_bits), 14);
    store_be64(raw + FIELD(size), 16 * MIB);
    store_be32(raw + FIELD(l1_size), 1);
    store_be64(raw + FIELD(l1_table_offset), L1);
    store_be64(raw + FIELD(refcount_table_offset), RT);
    store_be32(raw + FIELD(refcount_table_clusters), 1);
    store_be32(raw + FIELD(refcount_order), 4);
    store_be32(raw + FIELD(header_length), 104);
    store_be64(raw + FIELD(incompatible_features), incompatible);
    cr_assert_eq(storage_write(st, raw, 0, sizeof raw, 0), 0);
    cr_assert_eq(storage_truncate(st, N_USED * CL), 0);
    put(st, RT, BLOCK);
    put(st, L1, L2 | L1_COPIED);
    for (uint64_t host = 0; host < N_USED * CL; host += CL)
        put_count(st, host, 1);
    return st;
}

static void put_extended(struct storage *st, uint32_t index, struct words words)
{
    put(st, L2 + 16ull * index, words.entry);
    put(st, L2 + 16ull * index + 8, words.bitmap);
}

/* Guest clusters 0 to 3 are allocated; the rest of the L2 table is empty. */
static struct storage *make_extended(void)
{
    struct storage *st = make_image(INCOMPAT_EXTENDED_L2);

    for (uint32_t i = 0; i < N_DATA; i++)
        put_extended(st, i, (struct words){(DATA + i * CL) | COPIED, ALL});
    return st;
}

static int check_with(struct storage *st, enum check_repair repair, bool keep_mappings,
                      struct check_result *result)
{
    const struct check_options options = {.repair = repair, .keep_mappings = keep_mappings};
    struct diag diag = {0};

    *result = (struct check_result){0};
    return qcow2_driver.check(st, &options, result, &diag);
}

static void expect_found(struct storage *st, uint64_t corruptions, uint64_t leaks,
                         const char *what)
{
    struct check_result r;

    cr_assert_eq(check_with(st, REPAIR_NONE, false, &r), 0, "%s", what);
    cr_expect_eq(r.corruptions, corruptions, "%s: %llu corruptions", what,
                 (unsigned long long)r.corruptions);
    cr_expect_eq(r.leaks, leaks, "%s: %llu leaks", what, (unsigned long long)r.leaks);
}

static void repair_all(struct storage *st, const char *what)
{
    struct check_result r;

    cr_assert_eq(check_with(st, REPAIR_ALL, false, &r), 0, "%s", what);
    expect_found(st, 0, 0, what);
}

/* ---- extended L2 entries ---- */

Test(qcow2_check_features, sound_subclusters)
{
    struct storage *st = make_extended();
    struct check_result r;

    put_extended(st, 1, (struct words){(DATA + CL) | COPIED, 0x5 | ZEROES << 8});
    put_extended(st, 2, (struct words){(DATA + 2 * CL) | COPIED, 0});
    put_extended(st, 3, (struct words){L2_COMPRESSED | (DATA + 3 * CL), 0});
    put_extended(st, 9, (struct words){0, ZEROES});
    put_extended(st, 1023, (struct words){0, 1ull << 63});
    cr_assert_eq(check_with(st, REPAIR_NONE, false, &r), 0);
    cr_expect_eq(r.corruptions + r.leaks + r.check_errors, 0);
    cr_expect_eq(r.allocated_clusters, 4);
    cr_expect_eq(r.compressed_clusters, 1);
    storage_close(st);
}

/* A bad entry, what the repair makes of it, and how many errors QEMU's check counts for it. */
struct damage {
    const char *name;
    struct words odd;
    uint64_t corruptions, leaks;
    struct words mended;
};

/* Entries for guest cluster 1.  If an entry names another place, the cluster's own place leaks. */
static const struct damage odd_subclusters[] = {
    {"allocated and zero",
     {(DATA + CL) | COPIED, ALL | 3ull << 32},
     1,
     0,
     {(DATA + CL) | COPIED, (ALL & ~3ull) | 3ull << 32}},
    {"allocated without a place", {0, 5}, 1, 1, {0, 5ull << 32}},
    {"both without a place", {COPIED, 5 | 6ull << 32}, 1, 1, {COPIED, 7ull << 32}},
    {"misaligned", {(DATA + CL + 512) | COPIED, 3}, 2, 0, {0, 3ull << 32}},
    {"misaligned, and both",
     {(DATA + CL + 512) | COPIED, 1 | 3ull << 32},
     3,
     0,
     {0, 3ull << 32}},
    {"past the end", {1ull << 40, 5}, 1, 1, {0, 5ull << 32}},
    {"on the L1 table", {L1 | COPIED, 5}, 1, 1, {0, 5ull << 32}},
    {"reserved", {(DATA + CL) | COPIED | 4, 5}, 1, 0, {(DATA + CL) | COPIED, 5}},
    {"the zero flag of others",
     {(DATA + CL) | COPIED | L2_ZERO, 5},
     1,
     0,
     {(DATA + CL) | COPIED, 5}},
    {"without the copied flag", {DATA + CL, 5}, 1, 0, {(DATA + CL) | COPIED, 5}},
    {"compressed with subclusters",
     {L2_COMPRESSED | (DATA + CL), 1},
     1,
     1,
     {L2_COMPRESSED | (DATA + CL), 0}},
    {"copied and compressed with subclusters",
     {COPIED | L2_COMPRESSED | (DATA + CL), 1},
     2,
     1,
     {L2_COMPRESSED | (DATA + CL), 0}},
    {"compressed past the end", {L2_COMPRESSED | 1ull << 40, 0}, 1, 1, {0, ZEROES}},
};

Test(qcow2_check_features, odd_subclusters_are_found_and_mended)
{
    for (size_t i = 0; i < ARRAY_LEN(odd_subclusters); i++) {
        const struct damage *d = &odd_subclusters[i];
        struct storage *st = make_extended();
        put_extended(st, 1, d->odd);
        expect_found(st, d->corruptions, d->leaks, d->name);
        repair_all(st, d->name);
        cr_expect_eq(get(st, L2 + 16), d->mended.entry, "%s: 0x%llx", d->name,
                     (unsigned long long)get(st, L2 + 16));
        cr_expect_eq(get(st, L2 + 24), d->mended.bitmap, "%s: 0x%llx", d->name,
                     (unsigned long long)get(st, L2 + 24));
        cr_expect_eq(get(st, L2), DATA | COPIED, "%s: the one before", d->name);
        cr_expect_eq(get(st, L2 + 32), (DATA + 2 * CL) | COPIED, "%s: the one after",
                     d->name);
        storage_close(st);
    }
}

/* The repair before the first write (keep_mappings) drops no mapping.  Errors that would need that
 * stay, and the image is refused. */
Test(qcow2_check_features, before_writing_only_what_costs_nothing)
{
    static const struct {
        struct words odd, after;
        bool clean;
    } cases[] = {
        {{1ull << 40, 5 | 1ull << 33}, {0, 7ull << 32}, true},
        {{COPIED | L2_COMPRESSED | (DATA + CL), 0}, {L2_COMPRESSED | (DATA + CL), 0}, true},
        {{(DATA + CL) | COPIED, 1 | 1ull << 32},
         {(DATA + CL) | COPIED, 1 | 1ull << 32},
         false},
        {{0, 1}, {0, 1}, false},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct storage *st = make_extended();
        struct check_result r;
        put_extended(st, 1, cases[i].odd);
        cr_assert_eq(check_with(st, REPAIR_ALL, true, &r), 0);
        cr_expect_eq(r.corruptions == 0, cases[i].clean, "%zu", i);
        cr_expect_eq(get(st, L2 + 16), cases[i].after.entry, "%zu", i);
        cr_expect_eq(get(st, L2 + 24), cases[i].after.bitmap, "%zu", i);
        storage_close(st);
    }
}

Test(qcow2_check_features, the_last_entry_of_an_extended_table)
{
    struct storage *st = make_extended();

    put_extended(st, 1023, (struct words){0, 1});
    expect_found(st, 1, 0, "last");
    repair_all(st, "last");
    cr_expect_eq(get(st, L2 + 1023 * 16 + 8), 1ull << 32);
    storage_close(st);
}

/* Rebuilding the refcounts must not take the bitmaps of extended entries for cluster offsets. */
Test(qcow2_check_features, refcounts_are_made_anew_without_the_bitmaps)
{
    struct storage *st = make_extended();

    put_extended(st, 3, (struct words){(DATA + 3 * CL) | COPIED, DATA | ZEROES << 20});
    put(st, RT, 0);
    repair_all(st, "no refcounts");
    for (uint32_t i = 0; i < N_DATA; i++)
        cr_expect_eq(get(st, L2 + 16 * i), (DATA + i * CL) | COPIED, "%u", i);
    cr_expect_eq(get(st, L2 + 16 * 3 + 8), DATA | ZEROES << 20);
    storage_close(st);
}

Test(qcow2_check_features, two_entries_for_one_cluster)
{
    struct storage *st = make_extended();

    put_extended(st, 1, (struct words){DATA | COPIED, 0xff});
    expect_found(st, 1, 1, "shared");
    repair_all(st, "shared");
    cr_expect_eq(get(st, L2), DATA, "not alone any more");
    cr_expect_eq(get(st, L2 + 16), DATA);
    cr_expect_eq(get(st, L2 + 24), 0xff);
    storage_close(st);
}

/* ---- an external data file ---- */

/* Makes an image with an external data file: no entry refers to the clusters after the tables. */
static struct storage *make_external(void)
{
    struct storage *st = make_image(INCOMPAT_DATA_FILE);

    for (uint32_t i = 0; i < N_DATA; i++)
        put_count(st, DATA + i * CL, 0);
    return st;
}

Test(qcow2_check_features, places_in_another_file_are_not_counted)
{
    static const uint64_t entries[] = {COPIED, /* allocated at offset 0 */
                                       COPIED | CL, COPIED | 2 * CL | L2_ZERO, COPIED | L1,
                                       COPIED | L2};
    struct storage *st = make_external();
    struct check_result r;

    for (uint32_t i = 0; i < ARRAY_LEN(entries); i++)
        put(st, L2 + 8 * i, entries[i]);
    put(st, L2 + 8 * 100, L2_ZERO);
    cr_assert_eq(check_with(st, REPAIR_NONE, false, &r), 0);
    cr_expect_eq(r.corruptions + r.leaks + r.check_errors, 0);
    cr_expect_eq(r.allocated_clusters, ARRAY_LEN(entries));
    cr_expect_eq(r.image_end_offset, DATA);
    storage_close(st);
}

Test(qcow2_check_features, odd_entries_over_another_file)
{
    static const struct {
        const char *name;
        uint64_t odd, corruptions, mended;
    } cases[] = {
        {"not copied", DATA, 1, DATA | COPIED},
        {"zero, not copied", DATA | L2_ZERO, 1, DATA | L2_ZERO | COPIED},
        {"misaligned", (DATA + 512) | COPIED, 1, DATA | COPIED},
        {"another's place", (DATA + CL) | COPIED, 1, DATA | COPIED},
        {"another's, zero", (DATA + CL) | COPIED | L2_ZERO, 1, DATA | COPIED | L2_ZERO},
        {"another's, not copied", DATA + CL, 2, DATA | COPIED},
        {"far away", 1ull << 50 | COPIED, 1, DATA | COPIED},
        {"at 0", COPIED, 1, DATA | COPIED},
        {"zero at 0", COPIED | L2_ZERO, 1, DATA | COPIED | L2_ZERO},
        {"reserved", DATA | COPIED | 2, 1, DATA | COPIED},
        {"compressed", L2_COMPRESSED | DATA, 1, L2_ZERO},
        {"copied and compressed", L2_COMPRESSED | COPIED | DATA, 2, L2_ZERO},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct storage *st = make_external();
        put(st, L2 + 8 * (DATA / CL), cases[i].odd);
        expect_found(st, cases[i].corruptions, 0, cases[i].name);
        repair_all(st, cases[i].name);
        cr_expect_eq(get(st, L2 + 8 * (DATA / CL)), cases[i].mended, "%s", cases[i].name);
        storage_close(st);
    }
}

/* ---- the LUKS header ---- */

/* Makes an image with a LUKS header of that offset and length. */
static struct storage *make_luks(uint64_t offset, uint64_t bytes)
{
    struct storage *st = make_image(0);
    uint8_t raw[24], method[4];

    store_be32(method, CRYPT_LUKS);
    cr_assert_eq(storage_write(st, method, FIELD(crypt_method), 4, 0), 0);
    store_be32(raw, EXT_LUKS);
    store_be32(raw + 4, 16);
    store_be64(raw + 8, offset);
    store_be64(raw + 16, bytes);
    cr_assert_eq(storage_write(st, raw, 104, sizeof raw, 0), 0);
    put(st, L2, DATA | COPIED);
    put(st, L2 + 8, (DATA + 3 * CL) | COPIED);
    return st;
}

Test(qcow2_check_features, data_in_the_luks_header)
{
    struct storage *st = make_luks(DATA + CL, CL + 100);

    expect_found(st, 0, 0, "sound");
    put(st, L2 + 8, (DATA + 2 * CL) | COPIED);
    expect_found(st, 1, 1, "data");
    repair_all(st, "data");
    cr_expect_eq(get(st, L2 + 8), L2_ZERO);
    cr_expect_eq(get(st, L2), DATA | COPIED);
    storage_close(st);
}

/* A table in the LUKS header is an error even if the refcount is 2. */
Test(qcow2_check_features, a_table_in_the_luks_header)
{
    struct storage *st = make_luks(DATA + CL, CL + 100);

    put(st, L1, (DATA + CL) | L1_COPIED);
    for (uint64_t host = L2; host < N_USED * CL; host += CL)
        put_count(st, host, 0);
    put_count(st, DATA + CL, 2);
    put_count(st, DATA + 2 * CL, 1);
    expect_found(st, 2, 0, "a table");
    repair_all(st, "a table");
    cr_expect_eq(get(st, L1), 0);
    storage_close(st);
}

/* If the LUKS header is lost, nothing is repaired, because the data can't be decrypted anyway. */
Test(qcow2_check_features, a_luks_header_at_an_impossible_place)
{
    static const uint64_t places[] = {0, L1, N_USED * CL + 4 * CL};

    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        struct storage *st = make_luks(places[i], 2 * CL);
        struct storage *before = mem_storage_clone(st);
        struct check_result r;
        cr_assert_eq(check_with(st, REPAIR_ALL, false, &r), 0);
        cr_expect_gt(r.corruptions, 0, "%zu", i);
        cr_expect(mem_storage_equal(before, st, NULL), "%zu", i);
        storage_close(before);
        storage_close(st);
    }
}

Test(qcow2_check_features, luks_without_a_header)
{
    struct storage *st = make_luks(DATA + CL, 0);
    struct check_result r;

    cr_expect_eq(check_with(st, REPAIR_NONE, false, &r), -EINVAL);
    storage_close(st);
}
