/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the parsing of LUKS headers: each hostile value is refused with a message that names it. */
#include <inttypes.h>

#include "base/bytes.h"
#include "crypto_testing.h"

/* Offsets of fields as in the specification. */
#define SLOT(n) (208 + 48 * (n))
#define LIMIT   (4u << 20)

static uint8_t bytes[LUKS_HEADER_BYTES];

/* Makes a header with QEMU's layout; slots 0 and 2 are in use. */
static void make_header(void)
{
    struct luks_header h = {.spec = quick.spec, .hash = HASH_SHA256, .key_bytes = 64};

    h.payload_sector = 4040;
    h.digest_iterations = 1000;
    memcpy(h.uuid, "7a0c2ae9-c31a-44cc-8f84-f0bb7033bc5d", 36);
    for (uint32_t i = 0; i < LUKS_SLOTS; i++)
        h.slot[i] = (struct luks_slot){.active = i == 0 || i == 2,
                                       .iterations = 2000 + i,
                                       .salt = {(uint8_t)i},
                                       .material_sector = 8 + i * 504,
                                       .stripes = LUKS_STRIPES};
    luks_header_serialise(&h, bytes);
}

TestSuite(crypto_luks_header, .init = make_header);

static int parse(struct luks_header *h, uint64_t limit, struct diag *diag)
{
    *diag = (struct diag){0};
    return luks_header_parse(h, bytes, sizeof bytes, limit, "disk.luks", diag);
}

static void accepted(void)
{
    struct luks_header h;
    struct diag diag;

    cr_expect_eq(parse(&h, LIMIT, &diag), 0, "%s", diag.text);
}

static void refused(int err, const char *sentence)
{
    struct luks_header h;
    struct diag diag;

    cr_expect_eq(parse(&h, LIMIT, &diag), -err, "%s", sentence);
    cr_expect_str_eq(diag.text, sentence);
    make_header();
}

static void set_word(size_t at, const char *word)
{
    memset(bytes + at, 0, 32);
    memcpy(bytes + at, word, MIN(strlen(word), 32));
}

Test(crypto_luks_header, fields_and_back)
{
    struct luks_header h;
    struct diag diag;
    uint8_t again[LUKS_HEADER_BYTES];

    cr_assert_eq(parse(&h, LIMIT, &diag), 0, "%s", diag.text);
    cr_expect_eq(h.spec.alg, CIPHER_AES_256);
    cr_expect_eq(h.spec.mode, CIPHER_XTS);
    cr_expect_eq(h.spec.ivgen, CIPHER_PLAIN64);
    cr_expect_eq(h.hash, HASH_SHA256);
    cr_expect_eq(h.key_bytes, 64);
    cr_expect_eq(h.payload_sector, 4040);
    cr_expect_str_eq(h.uuid, "7a0c2ae9-c31a-44cc-8f84-f0bb7033bc5d");
    cr_expect_eq(luks_active_slots(&h), 2);
    cr_expect_eq(h.slot[7].material_sector, 8 + 7 * 504);
    cr_expect_eq(h.slot[7].salt[0], 7);
    luks_header_serialise(&h, again);
    cr_expect_arr_eq(again, bytes, sizeof again);
}

Test(crypto_luks_header, every_kind_and_back)
{
    for (unsigned i = 0; i < 3 * 2 * 3 * HASH_COUNT; i++) {
        struct luks_header h, again;
        struct diag diag;
        uint8_t other[LUKS_HEADER_BYTES];
        cr_assert_eq(parse(&h, LIMIT, &diag), 0);
        h.spec = (struct cipher_spec){i % 3, i / 3 % 2, i / 6 % 3, HASH_SHA256};
        h.hash = i / 18;
        h.key_bytes = (uint32_t)cipher_key_bytes(&h.spec);
        luks_header_serialise(&h, other);
        cr_assert_eq(luks_header_parse(&again, other, sizeof other, LIMIT, "", &diag), 0,
                     "%s", diag.text);
        cr_expect_eq(again.spec.alg, h.spec.alg);
        cr_expect_eq(again.spec.mode, h.spec.mode);
        cr_expect_eq(again.spec.ivgen, h.spec.ivgen);
        cr_expect_eq(again.hash, h.hash);
    }
}

Test(crypto_luks_header, probe)
{
    cr_expect(luks_header_probe(bytes, sizeof bytes));
    cr_expect(luks_header_probe(bytes, 8));
    cr_expect_not(luks_header_probe(bytes, 7));
    bytes[7] = 2;
    cr_expect_not(luks_header_probe(bytes, sizeof bytes));
}

Test(crypto_luks_header, beginning)
{
    struct luks_header h;
    struct diag diag;

    bytes[0] = 'l';
    refused(EINVAL, "disk.luks: LUKS header: magic: not LUKS");
    bytes[7] = 2;
    refused(ENOTSUP, "disk.luks: LUKS header: version 2: only 1 is supported");
    cr_expect_eq(luks_header_parse(&h, bytes, 591, LIMIT, "x", &diag), -EINVAL);
    cr_expect_str_eq(diag.text, "x: LUKS header: 591 bytes, less than 592");
    cr_expect_eq(luks_header_parse(&h, bytes, 592, 100, "x", &diag), -EINVAL);
    cr_expect_str_eq(diag.text, "x: LUKS header: 100 bytes, less than 592");
    cr_expect_eq(luks_header_parse(&h, bytes, 0, 0, "x", &diag), -EINVAL);
}

Test(crypto_luks_header, words_without_an_end)
{
    static const struct {
        size_t at;
        const char *field;
    } words[] = {{8, "cipher name"}, {40, "cipher mode"}, {72, "hash"}};

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        char sentence[200];
        memset(bytes + words[i].at, 'a', 32);
        snprintf(
            sentence, sizeof sentence,
            "disk.luks: LUKS header: %s 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa': no NUL in its "
            "32 bytes",
            words[i].field);
        refused(EINVAL, sentence);
    }
}

Test(crypto_luks_header, words)
{
    set_word(8, "serpent");
    refused(ENOTSUP,
            "disk.luks: LUKS header: cipher name 'serpent': only aes is supported");
    set_word(8, "aes\n");
    refused(ENOTSUP, "disk.luks: LUKS header: cipher name 'aes?': only aes is supported");
    set_word(8, "");
    refused(ENOTSUP, "disk.luks: LUKS header: cipher name '': only aes is supported");
    set_word(40, "xts");
    refused(EINVAL,
            "disk.luks: LUKS header: cipher mode 'xts': no '-' in front of vectors");
    set_word(40, "ctr-plain64");
    refused(ENOTSUP,
            "disk.luks: LUKS header: cipher mode 'ctr-plain64': only xts and cbc are "
            "supported");
    set_word(40, "xts-plain65");
    refused(ENOTSUP,
            "disk.luks: LUKS header: cipher mode 'xts-plain65': vectors 'plain65': "
            "only plain, plain64 and essiv are supported");
    set_word(40, "xts-essiv");
    refused(EINVAL, "disk.luks: LUKS header: cipher mode 'xts-essiv': essiv has no hash");
    set_word(40, "xts-essiv:sha255");
    refused(ENOTSUP,
            "disk.luks: LUKS header: cipher mode 'xts-essiv:sha255': hash 'sha255' is "
            "not supported");
    set_word(40, "cbc-essiv:sha1");
    store_be32(bytes + 108, 32);
    refused(ENOTSUP, "disk.luks: LUKS header: cipher mode 'cbc-essiv:sha1': a digest of 20 "
                     "bytes is no key of AES");
    set_word(72, "whirlpool");
    refused(ENOTSUP, "disk.luks: LUKS header: hash 'whirlpool' is not supported");
    set_word(40, "xts-plain64:nonsense"); /* dm-crypt and QEMU accept it */
    accepted();
}

Test(crypto_luks_header, key_bytes)
{
    static const uint32_t bad[] = {0,  1,  16,  24,         33,        63,
                                   65, 80, 128, 0x80000000, 0xffffffff};

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char sentence[200];
        store_be32(bytes + 108, bad[i]);
        snprintf(sentence, sizeof sentence,
                 "disk.luks: LUKS header: key bytes %" PRIu32 ": not a key of aes-xts",
                 bad[i]);
        refused(EINVAL, sentence);
    }
    set_word(40, "cbc-plain");
    refused(EINVAL, "disk.luks: LUKS header: key bytes 64: not a key of aes-cbc");
}

Test(crypto_luks_header, payload)
{
    struct luks_header h;
    struct diag diag;

    store_be32(bytes + 104, 7);
    refused(EINVAL, "disk.luks: LUKS header: payload offset 3584: inside the header");
    store_be32(bytes + 104, 0xffffffff);
    refused(EINVAL, "disk.luks: LUKS header: payload offset 2199023255040: past the end at "
                    "4194304");
    store_be32(bytes + 104, 4035);
    refused(EINVAL,
            "disk.luks: LUKS header: key slot 7: key material offset 1810432 (256000 "
            "bytes): inside the payload");
    cr_expect_eq(parse(&h, 4040 * 512, &diag), 0, "nothing may lie behind it");
    cr_expect_eq(parse(&h, 4040 * 512 - 1, &diag), -EINVAL);
}

Test(crypto_luks_header, iterations)
{
    store_be32(bytes + 164, 0);
    refused(EINVAL, "disk.luks: LUKS header: master key digest: iterations 0");
    store_be32(bytes + 164, 0xffffffff);
    refused(ENOTSUP,
            "disk.luks: LUKS header: master key digest: iterations 4294967295: more "
            "than 100000000 would take minutes, and no tool writes them");
    store_be32(bytes + SLOT(2) + 4, 0);
    refused(EINVAL, "disk.luks: LUKS header: key slot 2: iterations 0");
    store_be32(bytes + SLOT(2) + 4, 100000001);
    refused(ENOTSUP, "disk.luks: LUKS header: key slot 2: iterations 100000001: more than "
                     "100000000 would take minutes, and no tool writes them");
    store_be32(bytes + SLOT(1) + 4, 0xffffffff); /* this slot isn't in use */
    accepted();
    store_be32(bytes + SLOT(0) + 4, 100000000);
    accepted();
    store_be32(bytes + SLOT(2) + 4, 100000000);
    refused(ENOTSUP,
            "disk.luks: LUKS header: key slots: 400001000 rounds of hashing in all: "
            "more than 400000000 would take minutes, and no tool writes them");
}

Test(crypto_luks_header, slots)
{
    store_be32(bytes + SLOT(3), 1);
    refused(EINVAL, "disk.luks: LUKS header: key slot 3: state 0x00000001: neither in use "
                    "(0x00ac71f3) nor free (0x0000dead)");
    store_be32(bytes + SLOT(0) + 44, 0);
    refused(EINVAL, "disk.luks: LUKS header: key slot 0: stripes 0: not 4000");
    store_be32(bytes + SLOT(5) + 44, 0xffffffff);
    refused(EINVAL, "disk.luks: LUKS header: key slot 5: stripes 4294967295: not 4000");
}

Test(crypto_luks_header, places_of_material)
{
    store_be32(bytes + SLOT(1) + 40, 7);
    refused(EINVAL, "disk.luks: LUKS header: key slot 1: key material offset 3584 (256000 "
                    "bytes): inside the header");
    store_be32(bytes + SLOT(1) + 40, 0xffffffff);
    refused(EINVAL, "disk.luks: LUKS header: key slot 1: key material offset 2199023255040 "
                    "(256000 bytes): inside the payload");
    store_be32(bytes + SLOT(4) + 40, 8 + 2 * 504 + 499);
    refused(EINVAL,
            "disk.luks: LUKS header: key slot 4: key material offset 775680 (256000 "
            "bytes): overlaps that of key slot 2 at 520192");
    store_be32(bytes + SLOT(4) + 40, 8 + 4 * 504 + 4); /* ends where the next one begins */
    accepted();
}

/* Key material of 96000 bytes isn't a whole number of sectors. */
Test(crypto_luks_header, material_is_whole_sectors)
{
    cr_expect_eq(luks_material_bytes(24), 96256);
    cr_expect_eq(luks_material_bytes(64), 256000);
}
