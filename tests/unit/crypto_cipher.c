/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the ciphers against published vectors, against the library's own modes, and with many
 * threads. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "base/bytes.h"
#include "base/thread.h"
#include "crypto/cipher.h"
#include "crypto/qcow_aes.h"
#include "rng.h"

static void from_hex(uint8_t *bytes, const char *hex)
{
    for (; hex[0]; hex += 2) {
        unsigned byte;
        cr_assert_eq(sscanf(hex, "%2x", &byte), 1);
        *bytes++ = (uint8_t)byte;
    }
}

static struct cipher *make(const struct cipher_spec *spec, const uint8_t *key)
{
    struct cipher *c = NULL;
    struct diag diag = {0};

    cr_assert_eq(cipher_new(&c, spec, key, &diag), 0, "%s", diag.text);
    return c;
}

static void fill(uint8_t *bytes, size_t n, uint64_t seed)
{
    struct rng rng = {.state = seed};

    rng_fill(&rng, bytes, n);
}

/* ---- published vectors ---- */

/* IEEE 1619-2007, annex B, vector 4: the bytes 0 to 255, twice, as sector 0. */
Test(crypto_cipher, ieee_1619_vector_4)
{
    const struct cipher_spec spec = {CIPHER_AES_128, CIPHER_XTS, CIPHER_PLAIN64,
                                     HASH_SHA256};
    uint8_t key[32], data[512], want[32];

    from_hex(key, "27182818284590452353602874713526"
                  "31415926535897932384626433832795");
    from_hex(want, "27a7479befa1d476489f308cd4cfa6e2"
                   "a96e4bbe3208ff25287dd3819616e89c");
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    struct cipher *c = make(&spec, key);
    cr_assert_eq(cipher_encrypt(c, data, data, sizeof data, 0), 0);
    cr_expect_arr_eq(data, want, sizeof want);
    cr_assert_eq(cipher_decrypt(c, data, data, sizeof data, 0), 0);
    for (size_t i = 0; i < sizeof data; i++)
        cr_assert_eq(data[i], (uint8_t)i);
    cipher_free(c);
}

/* IEEE 1619-2007, annex B, vector 10: aes-256, sector 0xff. */
Test(crypto_cipher, ieee_1619_vector_10)
{
    const struct cipher_spec spec = {CIPHER_AES_256, CIPHER_XTS, CIPHER_PLAIN64,
                                     HASH_SHA256};
    uint8_t key[64], data[512], want[32];

    from_hex(key, "2718281828459045235360287471352662497757247093699959574966967627"
                  "3141592653589793238462643383279502884197169399375105820974944592");
    from_hex(want, "1c3b3a102f770386e4836c99e370cf9b"
                   "ea00803f5e482357a4ae12d414a3e63b");
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    struct cipher *c = make(&spec, key);
    cr_assert_eq(cipher_encrypt(c, data, data, sizeof data, 0xff), 0);
    cr_expect_arr_eq(data, want, sizeof want);
    cipher_free(c);
}

/* NIST SP 800-38A, F.2.  Its initialization vector isn't one of a sector.  So the first block of
 * the plain text is changed by the difference between both vectors. */
Test(crypto_cipher, nist_sp_800_38a_cbc)
{
    static const struct {
        enum cipher_alg alg;
        const char *key, *blocks;
    } cases[] = {
        {CIPHER_AES_128, "2b7e151628aed2a6abf7158809cf4f3c",
         "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
         "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7"},
        {CIPHER_AES_192, "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
         "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a"
         "571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd"},
        {CIPHER_AES_256, "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
         "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
         "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b"},
    };
    uint8_t iv[16], plain[64], key[32], want[64], data[512];

    from_hex(iv, "000102030405060708090a0b0c0d0e0f");
    from_hex(plain, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
                    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct cipher_spec spec = {cases[i].alg, CIPHER_CBC, CIPHER_PLAIN64,
                                         HASH_SHA256};
        from_hex(key, cases[i].key);
        from_hex(want, cases[i].blocks);
        memset(data, 0, sizeof data);
        memcpy(data, plain, sizeof plain);
        data[0] ^= 9; /* undoes the initialization vector of sector 9 */
        for (size_t k = 0; k < 16; k++)
            data[k] ^= iv[k];
        struct cipher *c = make(&spec, key);
        cr_assert_eq(cipher_encrypt(c, data, data, sizeof data, 9), 0);
        cr_expect_arr_eq(data, want, sizeof want, "%s", cipher_alg_name(cases[i].alg));
        cipher_free(c);
    }
}

/* ---- the library's modes, sector by sector ---- */

#define MAX_BYTES (40 * CIPHER_SECTOR)

static const char *library_name(const struct cipher_spec *spec)
{
    static const char *const names[2][3] = {{"AES-128-XTS", NULL, "AES-256-XTS"},
                                            {"AES-128-CBC", "AES-192-CBC", "AES-256-CBC"}};

    return names[spec->mode][spec->alg];
}

static void make_iv(const struct cipher_spec *spec, const uint8_t *key, uint64_t sector,
                    uint8_t iv[16])
{
    memset(iv, 0, 16);
    if (spec->ivgen == CIPHER_PLAIN)
        store_le32(iv, (uint32_t)sector);
    else
        store_le64(iv, sector);
    if (spec->ivgen != CIPHER_ESSIV)
        return;
    uint8_t hashed[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    int len;
    EVP_Digest(key, cipher_key_bytes(spec), hashed, &n,
               EVP_get_digestbyname(hash_name(spec->iv_hash)), NULL);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    EVP_EncryptInit_ex(ctx, n == 16 ? EVP_aes_128_ecb() : EVP_aes_256_ecb(), NULL, hashed,
                       NULL);
    EVP_EncryptUpdate(ctx, iv, &len, iv, 16);
    EVP_CIPHER_CTX_free(ctx);
}

static void by_library(const struct cipher_spec *spec, const uint8_t *key, uint8_t *data,
                       size_t n, uint64_t sector)
{
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, library_name(spec), NULL);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t iv[16];
    int len;

    for (size_t at = 0; at < n; at += CIPHER_SECTOR, sector++) {
        make_iv(spec, key, sector, iv);
        cr_assert_eq(EVP_EncryptInit_ex2(ctx, cipher, key, iv, NULL), 1);
        EVP_CIPHER_CTX_set_padding(ctx, 0);
        cr_assert_eq(EVP_EncryptUpdate(ctx, data + at, &len, data + at, CIPHER_SECTOR), 1);
    }
    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER_free(cipher);
}

static void compare(const struct cipher_spec *spec, size_t n, uint64_t sector)
{
    static uint8_t plain[MAX_BYTES], want[MAX_BYTES], got[MAX_BYTES + 1];
    uint8_t key[CIPHER_MAX_KEY_BYTES];

    fill(key, sizeof key, n);
    fill(plain, n, sector + 1);
    memcpy(want, plain, n);
    struct cipher *c = make(spec, key);
    cr_assert_eq(cipher_encrypt(c, got + 1, plain, n, sector), 0); /* an odd address */
    if (library_name(spec)) {
        by_library(spec, key, want, n, sector);
        cr_assert_arr_eq(got + 1, want, n, "%s-%s-%s", cipher_alg_name(spec->alg),
                         cipher_mode_name(spec->mode), cipher_ivgen_name(spec->ivgen));
    }
    memcpy(want, got + 1, n);
    cr_assert_eq(cipher_decrypt(c, got + 1, got + 1, n, sector), 0); /* in place */
    cr_expect_arr_eq(got + 1, plain, n);
    cr_assert_eq(cipher_decrypt(c, got, want, n, sector), 0);
    cr_expect_arr_eq(got, plain, n);
    memcpy(got, plain, n);
    cr_assert_eq(cipher_encrypt(c, got, got, n, sector), 0);
    cr_expect_arr_eq(got, want, n);
    cipher_free(c);
}

Test(crypto_cipher, as_the_library_has_them)
{
    static const size_t lengths[] = {0, 1, 2, 15, 16, 17, 40};
    static const uint64_t sectors[] = {0, 1, 0xfffffffe, 0x123456789abcdef};

    for (unsigned i = 0; i < 3 * 2 * 4; i++) {
        struct cipher_spec spec = {i % 3, i / 3 % 2, MIN(i / 6, 2u),
                                   i / 6 == 3 ? HASH_MD5 : HASH_SHA256};
        for (size_t k = 0; k < ARRAY_LEN(lengths); k++)
            for (size_t s = 0; s < ARRAY_LEN(sectors); s++)
                compare(&spec, lengths[k] * CIPHER_SECTOR, sectors[s]);
    }
}

/* Encrypting a range in two calls gives the same as in one, wherever it is cut. */
Test(crypto_cipher, calls_can_be_cut)
{
    const struct cipher_spec spec = {CIPHER_AES_192, CIPHER_XTS, CIPHER_ESSIV, HASH_SHA256};
    static uint8_t plain[MAX_BYTES], whole[MAX_BYTES], parts[MAX_BYTES];
    uint8_t key[CIPHER_MAX_KEY_BYTES];

    fill(key, sizeof key, 1);
    fill(plain, sizeof plain, 2);
    struct cipher *c = make(&spec, key);
    cr_assert_eq(cipher_encrypt(c, whole, plain, sizeof plain, 77), 0);
    for (size_t cut = 0; cut <= MAX_BYTES; cut += CIPHER_SECTOR) {
        cr_assert_eq(cipher_encrypt(c, parts, plain, cut, 77), 0);
        cr_assert_eq(cipher_encrypt(c, parts + cut, plain + cut, MAX_BYTES - cut,
                                    77 + cut / CIPHER_SECTOR),
                     0);
        cr_assert_arr_eq(parts, whole, MAX_BYTES);
    }
    cipher_free(c);
}

Test(crypto_cipher, essiv_needs_a_hash_that_is_a_key)
{
    static const enum hash_alg bad[] = {HASH_SHA1, HASH_SHA224, HASH_SHA384, HASH_SHA512,
                                        HASH_RIPEMD160};
    uint8_t key[CIPHER_MAX_KEY_BYTES] = {1};

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const struct cipher_spec spec = {CIPHER_AES_128, CIPHER_CBC, CIPHER_ESSIV, bad[i]};
        struct cipher *c = NULL;
        struct diag diag = {0};
        cr_expect_eq(cipher_new(&c, &spec, key, &diag), -ENOTSUP);
        cr_expect(strstr(diag.text, hash_name(bad[i])), "%s", diag.text);
    }
}

Test(crypto_cipher, words)
{
    enum cipher_alg alg;
    enum cipher_mode mode;
    enum cipher_ivgen ivgen;

    cr_expect(cipher_alg_by_name("aes-192", &alg) && alg == CIPHER_AES_192);
    cr_expect(cipher_mode_by_name("cbc", &mode) && mode == CIPHER_CBC);
    cr_expect(cipher_ivgen_by_name("plain64", &ivgen) && ivgen == CIPHER_PLAIN64);
    cr_expect_not(cipher_alg_by_name("aes", &alg));
    cr_expect_not(cipher_mode_by_name("ecb", &mode));
    cr_expect_not(cipher_ivgen_by_name("", &ivgen));
}

/* ---- the legacy encryption ---- */

Test(crypto_cipher, legacy_key_is_the_passphrase)
{
    const struct cipher_spec spec = {CIPHER_AES_128, CIPHER_CBC, CIPHER_PLAIN64,
                                     HASH_SHA256};
    static const char *const words[] = {"", "short", "exactly 16 bytes",
                                        "more than 16 bytes"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        uint8_t key[16] = {0}, data[1024] = {1}, want[1024] = {1};
        struct cipher *c;
        memcpy(key, words[i], MIN(strlen(words[i]), sizeof key));
        by_library(&spec, key, want, sizeof want, 5);
        cr_assert_eq(qcow_aes_new(&c, words[i], strlen(words[i]), NULL), 0);
        cr_assert_eq(cipher_encrypt(c, data, data, sizeof data, 5), 0);
        cr_expect_arr_eq(data, want, sizeof want);
        cipher_free(c);
    }
}

/* ---- owners ---- */

Test(crypto_cipher, lasts_as_long_as_its_last_owner)
{
    uint8_t data[512] = {1}, want[512] = {1};
    struct cipher *first;

    cr_assert_eq(qcow_aes_new(&first, "word", 4, NULL), 0);
    struct cipher *second = cipher_share(first);
    cr_assert_eq(cipher_encrypt(first, want, want, sizeof want, 7), 0);
    cipher_free(first);
    cr_assert_eq(cipher_encrypt(second, data, data, sizeof data, 7), 0);
    cr_expect_arr_eq(data, want, sizeof want);
    cipher_free(second);
}

/* ---- many threads ---- */

#define THREADS 8
#define ROUNDS  60

static struct cipher *shared;

static void *work(void *opaque)
{
    uint64_t seed = (uintptr_t)opaque;
    uint8_t *plain = malloc(MAX_BYTES), *data = malloc(MAX_BYTES);

    fill(plain, MAX_BYTES, seed);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        size_t n = (1 + (seed + i) % 40) * CIPHER_SECTOR;
        if (cipher_encrypt(shared, data, plain, n, seed * i) ||
            memcmp(data, plain, n) == 0 ||
            cipher_decrypt(shared, data, data, n, seed * i) || memcmp(data, plain, n) != 0)
            abort();
    }
    free(plain);
    free(data);
    return NULL;
}

static void run_threads(const struct cipher_spec *spec)
{
    uint8_t key[CIPHER_MAX_KEY_BYTES];
    pthread_t threads[THREADS];

    fill(key, sizeof key, 3);
    shared = make(spec, key);
    for (uintptr_t i = 0; i < THREADS; i++)
        cr_assert_eq(thread_start(&threads[i], work, (void *)(i + 1)), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cipher_free(shared);
}

Test(crypto_cipher, threads_xts)
{
    run_threads(&(struct cipher_spec){CIPHER_AES_256, CIPHER_XTS, CIPHER_PLAIN64, 0});
}

Test(crypto_cipher, threads_cbc_essiv)
{
    run_threads(
        &(struct cipher_spec){CIPHER_AES_256, CIPHER_CBC, CIPHER_ESSIV, HASH_SHA256});
}
