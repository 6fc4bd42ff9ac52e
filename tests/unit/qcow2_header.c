/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the qcow2 header: each limit is refused with its own message; unknown features and
 * extensions are kept or refused. */
#include <criterion/parameterized.h>

#include "fault_storage.h"
#include "qcow2_testing.h"

#define MB (1u << 20)

static void make_small(struct image *img, const char *options)
{
    make(img, &(struct image_spec){.options = options, .size = 4 * MIB});
}

struct limit {
    uint64_t field;
    unsigned bytes;
    uint64_t value;
    int err;
    const char *word;
};

static const struct limit limits[] = {
    {FIELD(magic), 4, 0x514649fa, EINVAL, "magic"},
    {FIELD(version), 4, 1, ENOTSUP, "version"},
    {FIELD(version), 4, 4, ENOTSUP, "version"},
    {FIELD(cluster_bits), 4, 8, EINVAL, "cluster_bits"},
    {FIELD(cluster_bits), 4, 22, EINVAL, "cluster_bits"},
    {FIELD(crypt_method), 4, 3, ENOTSUP, "crypt_method"},
    {FIELD(crypt_method), 4, 2, EINVAL, "LUKS"}, /* without a LUKS header */
    {FIELD(crypt_method), 4, 3, ENOTSUP, "crypt_method"},
    {FIELD(refcount_order), 4, 7, EINVAL, "refcount_order"},
    {FIELD(header_length), 4, 96, EINVAL, "header_length"},
    {FIELD(header_length), 4, 108, EINVAL, "header_length"},
    {FIELD(header_length), 4, 65544, EINVAL, "header_length"},
    {FIELD(size), 8, 1ull << 63, EFBIG, "size"},
    {FIELD(size), 8, 1ull << 40, EINVAL, "l1_size"},
    {FIELD(l1_size), 4, 0, EINVAL, "l1_size"},
    {FIELD(l1_size), 4, 4 * MB + 1, EFBIG, "l1_size"},
    {FIELD(l1_table_offset), 8, 65536 * 3 + 8, EINVAL, "l1_table_offset"},
    {FIELD(l1_table_offset), 8, 0, EINVAL, "l1_table_offset"},
    {FIELD(l1_table_offset), 8, 1ull << 40, EINVAL, "l1_table_offset"},
    {FIELD(l1_table_offset), 8, -65536ull, EINVAL, "l1_table_offset"},
    {FIELD(l1_table_offset), 8, 65536, EINVAL, "refcount table"},
    {FIELD(refcount_table_clusters), 4, 0, EINVAL, "refcount_table_clusters"},
    {FIELD(refcount_table_clusters), 4, 129, EFBIG, "refcount_table_clusters"},
    {FIELD(refcount_table_offset), 8, 65536 + 512, EINVAL, "refcount_table_offset"},
    {FIELD(refcount_table_offset), 8, 0, EINVAL, "refcount_table_offset"},
    {FIELD(refcount_table_offset), 8, 1ull << 40, EINVAL, "refcount_table_offset"},
    {FIELD(nb_snapshots), 4, 65537, EFBIG, "nb_snapshots"},
    {FIELD(nb_snapshots), 4, 1, EINVAL, "snapshots_offset"},
    {FIELD(incompatible_features), 8, 1ull << 63, ENOTSUP, "unknown feature bit 63"},
    {FIELD(incompatible_features), 8, 1ull << 1, EROFS, "corrupt"},
};

ParameterizedTestParameters(qcow2_header, limits)
{
    static int index[ARRAY_LEN(limits)];

    for (int i = 0; i < (int)ARRAY_LEN(limits); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(limits));
}

/* Each violation is refused with its own message, and the file isn't changed. */
ParameterizedTest(int *index, qcow2_header, limits)
{
    const struct limit *l = &limits[*index];
    struct image img;

    make_small(&img, NULL);
    if (l->bytes == 4)
        put32(&img, l->field, (uint32_t)l->value);
    else
        put64(&img, l->field, l->value);
    struct storage *before = mem_storage_clone(img.mem);
    refused(&img, l->err, l->word);
    cr_expect(mem_storage_equal(before, img.mem, NULL));
    storage_close(before);
    image_free(&img);
}

Test(qcow2_header, a_file_that_is_too_short)
{
    struct image img;

    make_small(&img, NULL);
    cr_assert_eq(storage_truncate(img.mem, 71), 0);
    refused(&img, EINVAL, "too few");
    image_free(&img);
}

/* With an external data file, the clusters of a snapshot and of the disk would have the same
 * place: such images are refused. */
Test(qcow2_header, snapshots_of_data_in_another_file)
{
    struct image img;

    make_small(&img, NULL);
    put64(&img, FIELD(incompatible_features), INCOMPAT_DATA_FILE);
    put32(&img, FIELD(nb_snapshots), 1);
    put64(&img, FIELD(snapshots_offset), 65536);
    refused(&img, EINVAL, "nb_snapshots");
    image_free(&img);
}

/* As Q-17 for QED: unknown compatible bits are ignored and kept. */
Test(qcow2_header, unknown_compatible_bits_are_kept)
{
    struct image img;

    make_small(&img, NULL);
    put64(&img, FIELD(compatible_features), 1ull << 40 | 1ull << 5);
    image_open(&img);
    write_fill(&img, 0, 4096, 1);
    close_and_verify(&img);
    cr_expect_eq(get64(&img, FIELD(compatible_features)), 1ull << 40 | 1ull << 5);
    image_free(&img);
}

Test(qcow2_header, autoclear_bits_are_cleared_by_the_first_writable_open)
{
    struct image img;
    struct diag diag = {0};

    make_small(&img, NULL);
    put64(&img, FIELD(autoclear_features), 1ull << 33 | 1ull << 1);
    cr_assert_eq(open_for_reading(&img, &diag), 0, "%s", diag.text);
    cr_assert_eq(image_close(&img), 0);
    cr_expect_eq(get64(&img, FIELD(autoclear_features)), 1ull << 33 | 1ull << 1,
                 "reading clears none");
    image_open(&img);
    cr_expect_eq(get64(&img, FIELD(autoclear_features)), 0, "before the first write");
    image_free(&img);
}

/* Autoclear bits are cleared durably before anything else is written. */
Test(qcow2_header, autoclear_bits_are_cleared_durably)
{
    struct image img;

    make_small(&img, NULL);
    put64(&img, FIELD(autoclear_features), 2);
    img.log = crash_log_new(img.mem);
    image_open(&img);
    cr_assert_eq(crash_log_count(img.log), 2);
    cr_expect_eq(crash_log_op(img.log, 0).kind, CRASH_WRITE);
    cr_expect_eq(crash_log_op(img.log, 1).kind, CRASH_FLUSH);
    cr_assert_eq(image_close(&img), 0);
    crash_log_free(img.log);
    image_free(&img);
}

/* Bitmaps in the image are valid as long as nothing changes.  The first change clears the bit
 * durably before, and fails if that fails. */
Test(qcow2_header, the_bitmaps_bit_goes_with_the_first_change)
{
    static const uint8_t data[4096] = {1};
    struct fault_plan plan;
    struct image img;

    fault_plan_init(&plan);
    for (int how = 0; how < 4; how++) {
        make_small(&img, NULL);
        img.plan = &plan;
        put64(&img, FIELD(autoclear_features), AUTOCLEAR_BITMAPS);
        image_open(&img);
        cr_assert_eq(block_flush(img.node), 0);
        cr_expect_eq(get64(&img, FIELD(autoclear_features)), AUTOCLEAR_BITMAPS);
        if (how == 0) {
            fault_plan_fail(&plan, FAULT_FLUSH, 1, EIO, FAULT_ONCE);
            cr_expect_eq(block_write(img.node, data, 0, sizeof data, 0), -EIO);
            cr_expect_eq(block_write(img.node, data, 0, sizeof data, 0), 0);
        } else if (how == 1) {
            cr_expect_eq(block_zero(img.node, 0, 4096, 0), 0);
        } else if (how == 2) {
            cr_expect_eq(block_discard(img.node, 0, 4096, 0), 0);
        } else {
            cr_expect_eq(qcow2_driver.grow(img.node, 8 * MIB, NULL), 0);
        }
        cr_expect_eq(get64(&img, FIELD(autoclear_features)), 0, "%d", how);
        cr_assert_eq(image_close(&img), 0);
        image_free(&img);
    }
    fault_plan_destroy(&plan);
}

Test(qcow2_header, version_2_has_no_feature_fields)
{
    struct image img;

    make_small(&img, "compat=0.10");
    /* Version 2 has other bytes at these offsets, which may be anything. */
    put64(&img, FIELD(autoclear_features), ~0ull);
    put64(&img, FIELD(incompatible_features), EXT_END);
    put32(&img, FIELD(refcount_order), 99);
    image_open(&img);
    write_fill(&img, 0, 4096, 1);
    cr_assert_eq(image_close(&img), 0);
    cr_expect_eq(get64(&img, FIELD(autoclear_features)), ~0ull, "not ours to clear");
    image_free(&img);
}

/* ---- extensions ---- */

#define EXT_PLACE 112u

/* Inserts an extension before those in the header. */
static void insert_extension(struct image *img, uint32_t type, uint32_t len,
                             const char *data)
{
    uint8_t area[4096];
    uint32_t padded = (uint32_t)align_up(len, 8);

    cr_assert_eq(storage_read(img->mem, area, EXT_PLACE, sizeof area), 0);
    cr_assert_eq(storage_write(img->mem, area, EXT_PLACE + 8 + padded, sizeof area, 0), 0);
    put32(img, EXT_PLACE, type);
    put32(img, EXT_PLACE + 4, len);
    cr_assert_eq(storage_write(img->mem, data, EXT_PLACE + 8, len, 0), 0);
}

Test(qcow2_header, unknown_extensions_are_kept)
{
    struct image img;
    uint8_t before[4096], after[4096];

    make_small(&img, NULL);
    insert_extension(&img, 0x12345678, 11, "hello world");
    cr_assert_eq(storage_read(img.mem, before, EXT_PLACE, sizeof before), 0);
    image_open(&img);
    write_fill(&img, 0, 2 * MIB, 1);
    cr_assert_eq(block_flush(img.node), 0);
    cr_assert_eq(qcow2_driver.grow(img.node, 1 * GIB, NULL), 0);
    cr_assert_eq(image_close(&img), 0);
    cr_assert_eq(storage_read(img.mem, after, EXT_PLACE, sizeof after), 0);
    cr_expect_arr_eq(before, after, sizeof before);
    image_free(&img);
}

Test(qcow2_header, an_extension_that_reaches_too_far)
{
    struct image img;

    make_small(&img, NULL);
    put32(&img, EXT_PLACE, 0x12345678);
    put32(&img, EXT_PLACE + 4, 65536);
    refused(&img, EINVAL, "0x12345678");
    image_free(&img);
}

/* L-09 */
Test(qcow2_header, the_image_names_its_features)
{
    struct image img;
    char row[48] = {FEATURE_INCOMPATIBLE, 50};

    make_small(&img, NULL);
    strcpy(row + 2, "time travel");
    /* Appends one after ours: the last table counts. */
    uint64_t at = EXT_PLACE;
    while (get32(&img, at) != EXT_END)
        at += 8 + align_up(get32(&img, at + 4), 8);
    put32(&img, at, EXT_FEATURE_NAMES);
    put32(&img, at + 4, sizeof row);
    cr_assert_eq(storage_write(img.mem, row, at + 8, sizeof row, 0), 0);
    put64(&img, at + 8 + sizeof row, 0);
    put64(&img, FIELD(incompatible_features), 1ull << 50 | 1ull << 51);
    refused(&img, ENOTSUP, "time travel");
    refused(&img, ENOTSUP, "unknown feature bit 51");
    refused(&img, ENOTSUP, "0xc000000000000");
    image_free(&img);
}

/* A text with a NUL inside is refused: the part after it would be ignored, so that the text isn't
 * what the image says. */
Test(qcow2_header, texts_with_a_nul_inside)
{
    struct image img;
    char row[48] = {FEATURE_INCOMPATIBLE, 50, 'a', 0, 'b'};

    make_small(&img, NULL);
    insert_extension(&img, EXT_BACKING_FORMAT, 8, "raw\0qcow");
    refused(&img, EINVAL, "backing format: its 8 bytes have a NUL byte at 3, after 'raw'");
    image_free(&img);
    make_small(&img, NULL);
    insert_extension(&img, EXT_BACKING_FORMAT, 4, "raw");
    refused(&img, EINVAL, "NUL byte at 3");
    image_free(&img);
    make_small(&img, NULL);
    insert_extension(&img, EXT_FEATURE_NAMES, sizeof row, row);
    refused(&img, EINVAL, "the feature name 'a' goes on after a NUL byte");
    image_free(&img);
}

Test(qcow2_header, the_backing_name)
{
    struct image img;

    make_small(&img, NULL);
    put64(&img, FIELD(backing_file_offset), 60000);
    put32(&img, FIELD(backing_file_size), 1024);
    refused(&img, EINVAL, "backing_file_size");
    put32(&img, FIELD(backing_file_size), 1023);
    put64(&img, FIELD(backing_file_offset), 65536 - 1022);
    refused(&img, EINVAL, "backing_file_offset");
    put64(&img, FIELD(backing_file_offset), 64);
    refused(&img, EINVAL, "backing_file_offset");
    put64(&img, FIELD(backing_file_offset), 60000);
    put32(&img, FIELD(backing_file_size), 4);
    cr_assert_eq(storage_write(img.mem, "a\0bc", 60000, 4, 0), 0);
    refused(&img, EINVAL, "NUL byte at 1, after 'a'");
    cr_assert_eq(storage_write(img.mem, "base", 60000, 4, 0), 0);
    struct diag diag = {0};
    cr_assert_eq(open_for_reading(&img, &diag), 0, "%s", diag.text);
    cr_expect_str_eq(img.node->backing_name, "base");
    image_free(&img);
}
