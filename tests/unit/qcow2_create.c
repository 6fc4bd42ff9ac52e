/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the layout of a new image: its refcount blocks cover all its clusters, including
 * themselves. */
#include <criterion/criterion.h>
#include <string.h>

#include "qcow2/create.h"

#define TIB (UINT64_C(1) << 40)

static struct qcow2_layout plan(uint64_t size, uint32_t cluster_bits, uint32_t order)
{
    const struct qcow2_params params = {
        .size = size, .geo = qcow2_geometry(3, cluster_bits, order, false, false)};

    return qcow2_plan_layout(&params);
}

static void expect_layout(uint64_t size, uint32_t cluster_bits, uint32_t order)
{
    struct qcow2_layout l = plan(size, cluster_bits, order);
    uint64_t per_block = (UINT64_C(8) << cluster_bits) >> order;
    uint64_t per_table = UINT64_C(1) << (cluster_bits - 3), blocks = l.l1 - l.blocks;

    cr_expect_eq(l.table, 1u);
    cr_expect(blocks * per_block >= l.end, "the blocks cover %d clusters", (int)l.end);
    cr_expect((blocks - 1) * per_block < l.end, "and none is there for nothing");
    cr_expect((l.blocks - l.table) * per_table >= blocks, "the table has them all");
    cr_expect(((l.end - l.l1) << cluster_bits) >= l.l1_entries * UINT64_C(8));
}

Test(qcow2_create, counts_cover_everything)
{
    static const uint64_t sizes[] = {0, 512, 1 << 20, UINT64_C(1) << 30,
                                     UINT64_C(100) << 30};

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (uint32_t bits = MIN_CLUSTER_BITS; bits <= MAX_CLUSTER_BITS; bits++)
            for (uint32_t order = 0; order <= MAX_REFCOUNT_ORDER; order++)
                expect_layout(sizes[i], bits, order);
    expect_layout(64 * TIB, 16, 4);
    expect_layout(UINT64_C(128) << 30, 9, 6); /* a refcount table of several clusters */
}

Test(qcow2_create, the_usual_layout)
{
    struct qcow2_layout l = plan(UINT64_C(1) << 30, 16, 4);

    cr_expect_eq(l.table, 1u);
    cr_expect_eq(l.blocks, 2u);
    cr_expect_eq(l.l1, 3u);
    cr_expect_eq(l.end, 4u);
    cr_expect_eq(l.l1_entries, 2u);
}

/* The LUKS header takes clusters that must be counted; extended entries need larger tables. */
Test(qcow2_create, layout_with_everything)
{
    for (uint32_t bits = MIN_EXTENDED_CLUSTER_BITS; bits <= MAX_CLUSTER_BITS; bits++)
        for (uint32_t order = 0; order <= MAX_REFCOUNT_ORDER; order++) {
            const struct qcow2_params params = {
                .size = TIB,
                .geo = qcow2_geometry(3, bits, order, true, true),
                .encryption = {.method = CRYPT_LUKS, .luks = luks_default_params}};
            struct qcow2_layout l = qcow2_plan_layout(&params);
            uint64_t per_block = (UINT64_C(8) << bits) >> order;
            cr_expect(((l.end - l.luks) << bits) >= qcow2_luks_bytes(&params));
            cr_expect(((l.luks - l.l1) << bits) >= l.l1_entries * UINT64_C(8));
            cr_expect((l.l1 - l.blocks) * per_block >= l.end);
            cr_expect(bits > 16 || l.l1_entries == TIB >> (2 * bits - 4));
        }
}

Test(qcow2_create, parameters)
{
    static const struct create_option options[] = {{"cluster_size", "4096"},
                                                   {"refcount_bits", "1"},
                                                   {"lazy_refcounts", "on"},
                                                   {"preallocation", "falloc"}};
    const struct create_request req = {.filename = "new",
                                       .size = 1000,
                                       .options = options,
                                       .n_options = ARRAY_LEN(options)};
    struct qcow2_params p;
    struct diag diag;

    cr_assert_eq(qcow2_parse_params(&req, &p, &diag), 0, "%s", diag.text);
    cr_expect_eq(p.size, 1024u);
    cr_expect_eq(p.geo.version, 3u);
    cr_expect_eq(p.geo.cluster_bits, 12u);
    cr_expect_eq(p.geo.refcount_order, 0u);
    cr_expect(p.lazy_refcounts);
    cr_expect_eq(p.preallocation, PREALLOC_FALLOC);
}

Test(qcow2_create, parameters_of_what_is_coded)
{
    static const struct create_option options[] = {{"extended_l2", "on"},
                                                   {"compression_type", "zstd"},
                                                   {"data_file_raw", "on"},
                                                   {"encrypt.format", "luks"},
                                                   {"encrypt.cipher-alg", "aes-128"},
                                                   {"encrypt.cipher-mode", "cbc"},
                                                   {"encrypt.ivgen-alg", "essiv"},
                                                   {"encrypt.hash-alg", "sha1"},
                                                   {"encrypt.iter-time", "0"}};
    const struct create_request req = {.filename = "new",
                                       .size = 1 << 20,
                                       .data_file = "data",
                                       .passphrase = "",
                                       .options = options,
                                       .n_options = ARRAY_LEN(options)};
    struct qcow2_params p;
    struct diag diag;

    cr_assert_eq(qcow2_parse_params(&req, &p, &diag), 0, "%s", diag.text);
    cr_expect_eq(p.geo.word_bits, 1u);
    cr_expect(p.geo.external);
    cr_expect_eq(p.compression_type, COMPRESSION_ZSTD);
    cr_expect(p.data_file_raw);
    cr_expect_eq(p.preallocation, PREALLOC_METADATA, "as every cluster has its place");
    cr_expect_eq(p.encryption.method, (uint32_t)CRYPT_LUKS);
    cr_expect_eq(p.encryption.luks.spec.alg, CIPHER_AES_128);
    cr_expect_eq(p.encryption.luks.spec.mode, CIPHER_CBC);
    cr_expect_eq(p.encryption.luks.spec.ivgen, CIPHER_ESSIV);
    cr_expect_eq(p.encryption.luks.spec.iv_hash, HASH_SHA256);
    cr_expect_eq(p.encryption.luks.hash, HASH_SHA1);
    cr_expect_eq(p.encryption.luks.iter_time_ms, 1u);
    cr_expect_eq(p.encryption.passphrase_len, 0u);
}
