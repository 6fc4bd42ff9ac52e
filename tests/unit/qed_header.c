/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the QED header: its layout, limits and feature bits. */
#include "qed_testing.h"

/* A violation of one limit, in an otherwise valid header of a file of FILE_BYTES. */
#define FILE_BYTES (64 * KIB)

struct violation {
    const char *name;
    size_t field;
    unsigned bytes; /* 4 or 8 */
    uint64_t value;
    int err;
    const char *message; /* the whole message */
};

#define V32(field, value, err, message)                                 \
    {                                                                   \
#field, offsetof(struct qed_disk_header, field), 4, value, err, \
            "disk.qed: " message                                        \
    }
#define V64(field, value, err, message)                                 \
    {                                                                   \
#field, offsetof(struct qed_disk_header, field), 8, value, err, \
            "disk.qed: " message                                        \
    }

static const struct violation violations[] = {
    V32(magic, 0xfb494651, EINVAL, "magic 0xfb494651: not a QED image"),
    V32(cluster_size, 2048, EINVAL, "cluster_size 2048: not within 4096..67108864"),
    V32(cluster_size, 128u << 20, EINVAL,
        "cluster_size 134217728: not within 4096..67108864"),
    V32(cluster_size, 4097, EINVAL, "cluster_size 4097: not a power of two"),
    V32(cluster_size, 0, EINVAL, "cluster_size 0: not a power of two"),
    V32(table_size, 0, EINVAL, "table_size 0: not a power of two"),
    V32(table_size, 3, EINVAL, "table_size 3: not a power of two"),
    V32(table_size, 32, EINVAL, "table_size 32: not within 1..16 clusters"),
    V32(header_size, 0, EINVAL, "header_size 0: the header itself takes a cluster"),
    V32(header_size, 1u << 20, EINVAL,
        "header_size 1048576: 4096-byte clusters of header don't fit 32 bits"),
    V64(features, 0x8000000000000010, ENOTSUP,
        "features 0x8000000000000010: unknown feature bits 0x8000000000000010"),
    V64(features, 0x0b, ENOTSUP, "features 0xb: unknown feature bits 0x8"),
    V64(image_size, 513, EINVAL, "image_size 513: not a multiple of 512"),
    V64(image_size, GIB + 512, EINVAL,
        "image_size 1073742336: more than the 1073741824 bytes that its tables can map"),
    V64(l1_table_offset, 4104, EINVAL,
        "l1_table_offset 4104: not a multiple of the cluster size"),
    V64(l1_table_offset, 0, EINVAL, "l1_table_offset 0: inside the header"),
    V64(l1_table_offset, FILE_BYTES, EINVAL,
        "l1_table_offset 65536: table of 4096 bytes reaches past the end of the file "
        "(65536 bytes)"),
    V64(l1_table_offset, 0xfffffffffffff000, EINVAL,
        "l1_table_offset 18446744073709547520: table of 4096 bytes reaches past the end of "
        "the file (65536 bytes)"),
};

static void open_fails(struct storage *mem, int err, const char *message)
{
    struct diag diag = {0};
    struct bench b;

    bench_init(&b, mem);
    cr_expect_eq(bench_try_open(&b, &diag), -err, "%s", message);
    cr_expect_eq(diag.err, err);
    cr_expect_str_eq(diag.text, message);
    bench_fini(&b);
}

Test(qed_header, q02_each_limit_is_refused_with_its_own_message)
{
    for (size_t i = 0; i < ARRAY_LEN(violations); i++) {
        const struct violation *v = &violations[i];
        struct storage *mem = new_image_in_memory(small_header(GIB), NULL);
        uint8_t raw[8];

        cr_assert_eq(storage_truncate(mem, FILE_BYTES), 0);
        store_le64(raw, v->value);
        cr_assert_eq(storage_write(mem, raw, v->field, v->bytes, 0), 0);
        open_fails(mem, v->err, v->message);
    }
}

Test(qed_header, q02_backing_name_lies_within_the_header)
{
    struct qed_header h = small_header(MIB);
    struct storage *mem = new_image_in_memory(h, NULL);

    h.features = QED_F_BACKING_FILE;
    h.backing_filename_offset = 4000;
    h.backing_filename_size = 97;
    put_header(mem, &h);
    open_fails(
        mem, EINVAL,
        "disk.qed: backing_filename_offset 4000: name of 97 bytes doesn't lie within "
        "the header clusters");

    h.header_size = 4;
    h.l1_table_offset = 16384;
    h.backing_filename_offset = 64;
    h.backing_filename_size = 5000;
    open_fails(new_image_in_memory(h, NULL), EINVAL,
               "disk.qed: backing_filename_size 5000: longer than 4095 bytes");

    h.backing_filename_size = 10; /* the file doesn't have these bytes */
    open_fails(
        new_image_in_memory(h, NULL), EINVAL,
        "disk.qed: backing_filename_size: the backing file's name: its 10 bytes have a NUL "
        "byte at 0, after ''");
}

/* A header may take several clusters. */
Test(qed_header, q02_a_table_in_the_second_cluster_of_the_header)
{
    struct qed_header h = small_header(MIB);
    struct storage *mem = new_image_in_memory(h, NULL);

    h.header_size = 2;
    cr_assert_eq(h.l1_table_offset, h.cluster_size);
    put_header(mem, &h);
    open_fails(mem, EINVAL, "disk.qed: l1_table_offset 4096: inside the header");
}

Test(qed_header, q02_files_too_short_to_be_an_image)
{
    struct storage *mem = mem_storage_new(0);

    open_fails(mem, EINVAL, "disk.qed: magic 0x00000000: not a QED image");
    mem = new_image_in_memory(small_header(MIB), NULL);
    cr_assert_eq(storage_truncate(mem, 40), 0);
    open_fails(mem, EINVAL, "disk.qed: header: the file ends after 40 bytes");
}

Test(qed_header, q02_limits_themselves_are_allowed)
{
    static const struct {
        uint32_t cluster_size, table_size;
        uint64_t image_size;
    } cases[] = {
        {4096, 1, 0},          {4096, 1, GIB},
        {4096, 16, 256 * GIB}, {64u << 10, 4, 64 * TIB},
        {64u << 20, 1, GIB},   {64u << 20, 16, 1024 * TIB},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct qed_header h = {
            .cluster_size = cases[i].cluster_size,
            .table_size = cases[i].table_size,
            .header_size = 1,
            .l1_table_offset = cases[i].cluster_size,
            .image_size = cases[i].image_size,
        };
        struct bench b;
        bench_init(&b, new_image_in_memory(h, NULL));
        bench_open(&b);
        cr_expect_eq(b.node->size, cases[i].image_size);
        cr_expect_eq(b.node->cluster_size, cases[i].cluster_size);
        if (b.node->size)
            cr_expect(reads_as(b.node, b.node->size - 512, 512, 0));
        bench_fini(&b);
    }
}

Test(qed_header, q02_largest_size_follows_from_the_tables)
{
    cr_expect_eq(qed_max_image_size(4096, 1), GIB);
    cr_expect_eq(qed_max_image_size(64u << 10, 4), 64 * TIB);
    /* The largest size must not exceed an off_t. */
    cr_expect_leq(qed_max_image_size(64u << 20, 16), INT64_MAX);
}

Test(qed_header, q02_sizes_only_an_attacker_asks_for_take_no_memory)
{
    struct qed_header h = {
        .cluster_size = 1u << 20,
        .table_size = 16,
        .header_size = 1,
        .l1_table_offset = 1u << 20,
        .image_size = UINT64_C(1) << 61,
    };
    struct bench b;

    bench_init(&b, new_image_in_memory(h, NULL));
    struct diag diag = {0};
    if (bench_try_open(&b, &diag) == 0)
        cr_expect(reads_as(b.node, h.image_size - 4096, 4096, 0));
    else
        cr_expect_eq(diag.err, ENOMEM, "%s", diag.text);
    bench_fini(&b);
}

Test(qed_header, q01_encodes_little_endian_at_the_offsets_of_the_specification)
{
    const struct qed_header h = {0x04030201, 2, 3, 0x4, 0x5, 0x6, 0x7, 0x8, 9, 10};
    uint8_t raw[64];

    qed_header_encode(&h, raw);
    cr_expect_eq(memcmp(raw, "QED\0\1\2\3\4\2\0\0\0\3\0\0\0", 16), 0);
    static const struct {
        unsigned off, value;
    } low_bytes[] = {{16, 4}, {24, 5}, {32, 6}, {40, 7}, {48, 8}, {56, 9}, {60, 10}};
    for (size_t i = 0; i < ARRAY_LEN(low_bytes); i++)
        cr_expect_eq(raw[low_bytes[i].off], low_bytes[i].value);
}

Test(qed_header, q17_unknown_compat_bits_are_ignored_and_kept)
{
    struct qed_header h = small_header(MIB);
    struct bench b;

    h.compat_features = 0xf00000000000000f;
    bench_init(&b, new_image_in_memory(h, NULL));
    bench_open_writable(&b);
    write_pattern(b.node, 0, 4096, 1);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(get_word(b.mem, offsetof(struct qed_disk_header, compat_features)),
                 h.compat_features);
    bench_fini(&b);
}

Test(qed_header, q17_unknown_autoclear_bits_are_cleared_on_writable_open_only)
{
    struct qed_header h = small_header(MIB);
    struct bench b;

    h.autoclear_features = 0x11;
    bench_init(&b, new_image_in_memory(h, NULL));
    bench_open(&b);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0, "opening changes no byte");

    bench_open_writable(&b);
    cr_expect_eq(get_word(b.mem, offsetof(struct qed_disk_header, autoclear_features)), 0);
    cr_expect_eq(fault_plan_bytes_written(&b.plan), 8, "only the field");
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 1, "cleared and flushed");
    bench_fini(&b);
}

Test(qed_header, q17_failing_to_clear_autoclear_bits_refuses_writing)
{
    struct qed_header h = small_header(MIB);
    struct diag diag = {0};
    struct bench b;

    h.autoclear_features = 0x11;
    bench_init(&b, new_image_in_memory(h, NULL));
    bench_open(&b);
    fault_plan_fail(&b.plan, FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_expect_eq(node_activate(b.node, &diag), -EIO);
    cr_expect(strstr(diag.text, "autoclear_features 0x11"), "%s", diag.text);
    bench_fini(&b);
}

Test(qed_header, backing_name_and_format)
{
    struct qed_header h = small_header(MIB);
    struct bench b;

    bench_init(&b, new_image_in_memory(h, "base.img"));
    bench_open(&b);
    cr_expect_str_eq(b.node->backing_name, "base.img");
    cr_expect_null(b.node->backing_format);
    bench_fini(&b);

    h.features = QED_F_BACKING_FORMAT_NO_PROBE;
    bench_init(&b, new_image_in_memory(h, "base.img"));
    bench_open(&b);
    cr_expect_str_eq(b.node->backing_format, "raw");
    bench_fini(&b);
}
