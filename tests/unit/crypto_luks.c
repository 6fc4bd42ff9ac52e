/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests LUKS containers: creating, opening, adding and erasing keys, and failures in between. */
#include "crypto/af.h"
#include "crypto/internal.h"
#include "crypto/secret.h"
#include "crypto_testing.h"
#include "rng.h"

/* ---- the parts ---- */

static void from_hex(uint8_t *bytes, const char *hex)
{
    for (; hex[0]; hex += 2) {
        unsigned byte;
        cr_assert_eq(sscanf(hex, "%2x", &byte), 1);
        *bytes++ = (uint8_t)byte;
    }
}

/* The vectors of RFC 6070, and others like that of RFC 7914, section 11. */
Test(crypto_luks, pbkdf2_vectors)
{
    static const struct {
        enum hash_alg alg;
        const char *passphrase, *salt;
        uint32_t iterations;
        const char *key;
    } cases[] = {
        {HASH_SHA1, "password", "salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"},
        {HASH_SHA1, "password", "salt", 4096, "4b007901b765489abead49d926f721d065a429c1"},
        {HASH_SHA256, "passwd", "salt", 1,
         "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
         "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint8_t want[64], got[64];
        size_t n = strlen(cases[i].key) / 2;
        from_hex(want, cases[i].key);
        cr_assert_eq(hash_pbkdf2(cases[i].alg, got, n, cases[i].passphrase,
                                 strlen(cases[i].passphrase), cases[i].salt,
                                 strlen(cases[i].salt), cases[i].iterations),
                     0);
        cr_expect_arr_eq(got, want, n);
    }
}

Test(crypto_luks, hashes)
{
    for (unsigned i = 0; i < HASH_COUNT; i++) {
        enum hash_alg alg;
        cr_assert(hash_by_name(hash_name(i), &alg));
        cr_expect_eq(alg, i);
        cr_expect(hash_available(alg), "%s", hash_name(alg));
    }
    enum hash_alg alg;
    cr_expect_not(hash_by_name("sha3", &alg));
    cr_expect_not(hash_by_name("", &alg));
}

Test(crypto_luks, iterations_follow_the_time)
{
    uint32_t little, much;

    cr_assert_eq(hash_pbkdf2_iterations(HASH_SHA256, 32, 10, &little), 0);
    cr_assert_eq(hash_pbkdf2_iterations(HASH_SHA256, 32, 1000, &much), 0);
    cr_expect(much > little * 5, "%u and %u", little, much); /* other processes run, too */
    cr_assert_eq(hash_pbkdf2_iterations(HASH_SHA256, 32, UINT32_MAX, &much), 0);
    cr_expect_eq(much, UINT32_MAX);
}

Test(crypto_luks, split_and_merge)
{
    static const size_t lengths[] = {1, 16, 24, 32, 48, 64};
    static const uint32_t stripes[] = {1, 2, 4000};
    static uint8_t split[64 * 4000];

    for (unsigned alg = 0; alg < HASH_COUNT; alg++)
        for (size_t i = 0; i < ARRAY_LEN(lengths); i++)
            for (size_t k = 0; k < ARRAY_LEN(stripes); k++) {
                struct rng rng = {.state = i};
                uint8_t key[64], got[64];
                size_t n = lengths[i];
                rng_fill(&rng, key, sizeof key);
                cr_assert_eq(af_split(alg, split, key, n, stripes[k]), 0);
                cr_assert_eq(af_merge(alg, got, split, n, stripes[k]), 0);
                cr_expect_arr_eq(got, key, n);
                if (stripes[k] == 1)
                    continue;
                split[stripes[k] / 3 * n] ^= 1; /* every bit is needed */
                cr_assert_eq(af_merge(alg, got, split, n, stripes[k]), 0);
                cr_expect(n == 1 || memcmp(got, key, n) != 0);
            }
}

Test(crypto_luks, secrets)
{
    uint8_t *secret = secret_copy("\1\2\3", 3), *large = secret_alloc(1 << 20);

    cr_expect_arr_eq(secret, "\1\2\3", 3);
    cr_expect_eq(large[(1 << 20) - 1], 0);
    secret_free(secret);
    secret_free(large);
    secret_free(secret_alloc(0));
    secret_free(NULL);
    cr_expect_null(secret_alloc(SIZE_MAX));
}

/* ---- opening ---- */

Test(crypto_luks, opens_with_its_passphrase_alone)
{
    struct memory m;

    memory_format(&m, &quick);
    cr_expect_eq(try_open(&m, "first"), 0);
    cr_expect_eq(try_open(&m, "First"), -EKEYREJECTED);
    cr_expect_eq(try_open(&m, "firs"), -EKEYREJECTED);
    cr_expect_eq(try_open(&m, ""), -EKEYREJECTED);
    cr_expect_eq(m.log[0], '\0', "nothing is written");
    memory_free(&m);
}

Test(crypto_luks, sentence_of_a_wrong_passphrase)
{
    struct memory m;
    struct luks *luks = NULL;
    struct diag diag = {0};

    memory_format(&m, &quick);
    struct luks_io io = memory_io(&m);
    cr_expect_eq(luks_open(&luks, &io, "secret", 6, &diag), -EKEYREJECTED);
    cr_expect_str_eq(diag.text, "disk.luks: the passphrase opens none of the 1 key slots");
    memory_free(&m);
}

/* The cipher that luks_format returns must work as the one that luks_open returns. */
Test(crypto_luks, one_key)
{
    struct memory m;
    struct luks *made = NULL, *opened = NULL;
    uint8_t a[1024] = {1}, b[1024] = {1};

    memory_make(&m, luks_payload_offset(&quick));
    struct luks_io io = memory_io(&m);
    cr_assert_eq(luks_format(&made, &io, &quick, "x\0y", 3, NULL), 0);
    cr_assert_eq(luks_open(&opened, &io, "x\0y", 3, NULL), 0);
    cr_expect_eq(opened->payload_offset, luks_payload_offset(&quick));
    cr_expect_eq(made->payload_offset, opened->payload_offset);
    cr_expect_eq(opened->slot, 0);
    cr_assert_eq(cipher_encrypt(made->cipher, a, a, sizeof a, 3), 0);
    cr_assert_eq(cipher_encrypt(opened->cipher, b, b, sizeof b, 3), 0);
    cr_expect_arr_eq(a, b, sizeof a);
    luks_close(made);
    luks_close(opened);
    memory_free(&m);
}

Test(crypto_luks, every_kind)
{
    for (unsigned i = 0; i < 3 * 2 * 3; i++) {
        struct luks_params params = {
            {i % 3, i / 3 % 2, i / 6, HASH_SHA256}, i % HASH_COUNT, QUICK_MS};
        struct memory m;
        memory_format(&m, &params);
        cr_expect_eq(try_open(&m, "first"), 0);
        cr_expect_eq(try_open(&m, "second"), -EKEYREJECTED);
        memory_free(&m);
    }
}

Test(crypto_luks, damaged_material_or_digest)
{
    struct memory m;

    memory_format(&m, &quick);
    m.bytes[4096 + 1000] ^= 1;
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    m.bytes[4096 + 1000] ^= 1;
    m.bytes[112] ^= 1;
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    m.bytes[112] ^= 1;
    cr_expect_eq(try_open(&m, "first"), 0);
    memory_free(&m);
}

Test(crypto_luks, container_cut_off)
{
    static const uint64_t sizes[] = {0, 1, 591, 592, 4096, 4096 + 255999, 2068479};
    struct memory m;

    memory_format(&m, &quick);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        m.size = sizes[i];
        cr_expect_eq(try_open(&m, "first"), -EINVAL, "%llu", (unsigned long long)m.size);
    }
    memory_free(&m);
}

Test(crypto_luks, no_room_or_no_cipher)
{
    struct luks_params params = quick;
    struct memory m;
    struct diag diag = {0};

    memory_make(&m, luks_payload_offset(&quick) - 1);
    struct luks_io io = memory_io(&m);
    cr_expect_eq(luks_format(NULL, &io, &params, "x", 1, &diag), -ENOSPC);
    cr_expect_str_eq(diag.text,
                     "disk.luks: a LUKS header takes 2068480 bytes, not 2068479");
    params.spec = (struct cipher_spec){CIPHER_AES_128, CIPHER_CBC, CIPHER_ESSIV, HASH_SHA1};
    cr_expect_eq(luks_format(NULL, &io, &params, "x", 1, &diag), -ENOTSUP);
    cr_expect_str_eq(diag.text,
                     "disk.luks: essiv:sha1: a digest of 20 bytes is no key of AES");
    cr_expect_eq(m.log[0], '\0', "nothing is written");
    memory_free(&m);
}

/* ---- keys ---- */

static int add(struct memory *m, const char *old, const char *new, int slot, bool force,
               struct diag *diag)
{
    struct luks_io io = memory_io(m);

    m->log[0] = '\0';
    return luks_add_key(&io, old, strlen(old), new, strlen(new), slot, QUICK_MS, force,
                        diag);
}

static int erase(struct memory *m, const char *passphrase, bool force, struct diag *diag)
{
    struct luks_io io = memory_io(m);

    m->log[0] = '\0';
    return luks_erase_passphrase(&io, passphrase, strlen(passphrase), force, diag);
}

Test(crypto_luks, keys_come_and_go)
{
    struct memory m;

    memory_format(&m, &quick);
    cr_expect_eq(add(&m, "first", "second", LUKS_ANY_SLOT, false, NULL), 0);
    cr_expect_str_eq(m.log, "w 262144 256000;f;w 0 592;f;", "material, then header");
    cr_expect_eq(add(&m, "second", "third", 7, false, NULL), 0);
    cr_expect_eq(try_open(&m, "first"), 0);
    cr_expect_eq(try_open(&m, "second"), 0);
    cr_expect_eq(try_open(&m, "third"), 0);
    cr_expect_eq(erase(&m, "first", false, NULL), 0);
    cr_expect_str_eq(m.log, "w 0 592;f;w 4096 256000;f;", "header, then material");
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    cr_expect_eq(try_open(&m, "third"), 0);
    struct luks_io io = memory_io(&m);
    cr_expect_eq(luks_erase_slot(&io, 7, false, NULL), 0);
    cr_expect_eq(try_open(&m, "third"), -EKEYREJECTED);
    cr_expect_eq(try_open(&m, "second"), 0);
    memory_free(&m);
}

Test(crypto_luks, erased_material_is_gone)
{
    struct memory m;
    uint8_t header[LUKS_HEADER_BYTES];

    memory_format(&m, &quick);
    memcpy(header, m.bytes, sizeof header);
    cr_assert_eq(add(&m, "first", "second", LUKS_ANY_SLOT, false, NULL), 0);
    cr_assert_eq(erase(&m, "first", false, NULL), 0);
    memcpy(m.bytes, header, sizeof header); /* as from an old backup of the header */
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    memory_free(&m);
}

Test(crypto_luks, what_is_not_added)
{
    struct memory m;
    struct diag diag = {0};

    memory_format(&m, &quick);
    cr_expect_eq(add(&m, "wrong", "second", LUKS_ANY_SLOT, false, &diag), -EKEYREJECTED);
    cr_expect_eq(add(&m, "first", "second", 0, false, &diag), -EEXIST);
    cr_expect_str_eq(diag.text, "disk.luks: key slot 0 is in use");
    cr_expect_eq(add(&m, "first", "second", 8, false, &diag), -EINVAL);
    cr_expect_eq(add(&m, "first", "second", -2, false, &diag), -EINVAL);
    cr_expect_str_eq(diag.text, "disk.luks: key slot -2: there are 0 to 7");
    cr_expect_eq(m.log[0], '\0', "nothing is written");
    for (int i = 1; i < 8; i++)
        cr_assert_eq(add(&m, "first", "second", LUKS_ANY_SLOT, false, &diag), 0);
    cr_expect_eq(add(&m, "first", "second", LUKS_ANY_SLOT, false, &diag), -ENOSPC);
    cr_expect_str_eq(diag.text, "disk.luks: all 8 key slots are in use");
    cr_expect_eq(add(&m, "second", "third", 0, true, &diag), 0);
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    cr_expect_eq(try_open(&m, "third"), 0);
    memory_free(&m);
}

Test(crypto_luks, the_last_key_stays)
{
    struct memory m;
    struct diag diag = {0};

    memory_format(&m, &quick);
    struct luks_io io = memory_io(&m);
    cr_expect_eq(erase(&m, "first", false, &diag), -EPERM);
    cr_expect_str_eq(diag.text,
                     "disk.luks: no other key slot is in use: without this one the "
                     "data is lost");
    cr_expect_eq(luks_erase_slot(&io, 0, false, &diag), -EPERM);
    cr_expect_eq(luks_erase_slot(&io, 1, false, &diag), -ENOENT);
    cr_expect_eq(luks_erase_slot(&io, 8, true, &diag), -EINVAL);
    cr_expect_eq(erase(&m, "second", true, &diag), -EKEYREJECTED);
    cr_expect_eq(add(&m, "first", "first", 3, false, &diag), 0);
    cr_expect_eq(erase(&m, "first", false, &diag), -EPERM, "both at once are the last");
    cr_expect_eq(m.log[0], '\0', "nothing is written");
    cr_expect_eq(try_open(&m, "first"), 0);
    cr_expect_eq(erase(&m, "first", true, &diag), 0);
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    memory_free(&m);
}

/* Replaces the key of the only slot in use; the call after the first `calls` ones fails.  Returns
 * add's result. */
static int replace_only_key(unsigned slot, enum torn torn, int calls)
{
    struct memory m;
    struct diag diag = {0};

    memory_format(&m, &quick);
    struct luks_io io = memory_io(&m);
    if (slot > 0) {
        cr_assert_eq(add(&m, "first", "first", (int)slot, false, &diag), 0);
        cr_assert_eq(luks_erase_slot(&io, 0, false, &diag), 0);
    }
    m.torn = torn;
    m.fail_after = calls;
    int err = add(&m, "first", "second", (int)slot, true, &diag);
    m.fail_after = -1;
    cr_expect(err == 0 || err == -EIO || err == -ENOSPC, "%d: %d", calls, err);
    cr_expect(try_open(&m, "first") == 0 || try_open(&m, "second") == 0,
              "slot %u: nothing opens it after %d calls", slot, calls);
    if (!err) {
        cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
        cr_expect_eq(luks_erase_slot(&io, slot, false, &diag), -EPERM,
                     "no other slot is left in use");
    }
    memory_free(&m);
    return err;
}

/* O-05: at each moment one of the two passphrases opens the container, whichever part of the
 * failed write is in the file.  Slots 6 and 7 lie in the header's second sector. */
Test(crypto_luks, failures_while_the_only_key_is_replaced)
{
    static const unsigned slots[] = {0, 6, 7};

    for (size_t i = 0; i < ARRAY_LEN(slots); i++)
        for (enum torn torn = NOT_TORN; torn <= TORN_END; torn++)
            for (int calls = 0; replace_only_key(slots[i], torn, calls); calls++)
                cr_assert_lt(calls, 40);
}

/* Uses all slots: slots 0 to 7 are opened by the passphrases "0" to "7". */
static void fill_slots(struct memory *m)
{
    struct diag diag = {0};

    memory_format(m, &quick);
    cr_assert_eq(add(m, "first", "0", 1, false, &diag), 0);
    cr_assert_eq(add(m, "0", "0", 0, true, &diag), 0);
    for (int i = 1; i < 8; i++)
        cr_assert_eq(add(m, "0", (const char[]){(char)('0' + i), 0}, i, true, &diag), 0);
}

/* O-05: while all slots are in use, the only slot that the given passphrase opens isn't replaced,
 * not even by force: a failure in between would lock the user out. */
Test(crypto_luks, the_own_key_among_eight_stays)
{
    struct memory m;
    struct diag diag = {0};

    fill_slots(&m);
    for (int i = 0; i < 8; i++) {
        const char own[] = {(char)('0' + i), 0};
        cr_expect_eq(add(&m, own, "new", i, true, &diag), -EPERM);
        cr_expect(strstr(diag.text, "all 8 key slots are in use"), "%s", diag.text);
        cr_expect_eq(m.log[0], '\0', "nothing is written");
        cr_expect_eq(try_open(&m, own), 0);
    }
    cr_assert_eq(add(&m, "3", "5", 5, true, &diag), 0);
    cr_assert_eq(add(&m, "5", "3", 3, true, &diag), 0);
    cr_expect_eq(add(&m, "3", "new", 5, true, &diag), 0);
    cr_assert_eq(add(&m, "3", "new", 2, true, &diag), 0);
    cr_expect_eq(add(&m, "new", "newer", 2, true, &diag), 0, "it opens 5, too");
    cr_expect_eq(try_open(&m, "newer"), 0);
    memory_free(&m);
}

/* Replaces the key of a slot while all eight are in use; returns add's result. */
static int replace_among_eight(struct memory *m, int slot, enum torn torn, int calls)
{
    struct diag diag = {0};

    m->torn = torn;
    m->fail_after = calls;
    int err = add(m, "0", "new", slot, true, &diag);
    m->fail_after = -1;
    cr_expect(err == 0 || err == -EIO || err == -ENOSPC, "%d: %d", calls, err);
    cr_expect_eq(try_open(m, "0"), 0, "slot %d: after %d calls", slot, calls);
    if (err)
        cr_expect_eq(add(m, "0", "new", slot, true, &diag), 0, "once more");
    cr_expect_eq(try_open(m, "new"), 0, "slot %d: after %d calls", slot, calls);
    return err;
}

/* O-05: the old passphrase opens the container at each moment, so that the change can be tried
 * again. */
Test(crypto_luks, failures_while_a_key_among_eight_is_replaced)
{
    static const int slots[] = {6, 7};
    struct memory m;

    fill_slots(&m);
    for (size_t i = 0; i < ARRAY_LEN(slots); i++)
        for (enum torn torn = NOT_TORN; torn <= TORN_END; torn++)
            for (int calls = 0; replace_among_eight(&m, slots[i], torn, calls); calls++)
                cr_assert_lt(calls, 40);
    memory_free(&m);
}

/* Each call fails once: afterwards the old or the new passphrase opens the container. */
Test(crypto_luks, failures_in_the_middle)
{
    struct memory m;
    struct diag diag = {0};

    memory_format(&m, &quick);
    for (int calls = 0, err = -1; err; calls++) {
        m.fail_after = calls;
        err = add(&m, "first", "second", LUKS_ANY_SLOT, false, &diag);
        m.fail_after = -1;
        cr_expect(err == 0 || err == -EIO || err == -ENOSPC, "%d: %d", calls, err);
        cr_expect_eq(try_open(&m, "first"), 0);
        cr_assert_lt(calls, 20);
    }
    for (int calls = 0, err = -1; err; calls++) {
        m.fail_after = calls;
        err = erase(&m, "first", false, &diag);
        m.fail_after = -1;
        cr_expect(err == 0 || err == -EIO || err == -ENOSPC || err == -EKEYREJECTED,
                  "%d: %d", calls, err);
        cr_expect_eq(try_open(&m, "second"), 0);
        if (err == -EKEYREJECTED)
            break; /* the slot was disabled before its key material was overwritten */
    }
    cr_expect_eq(try_open(&m, "first"), -EKEYREJECTED);
    memory_free(&m);
}

Test(crypto_luks, failures_while_it_is_made)
{
    struct memory m;

    memory_make(&m, luks_payload_offset(&quick));
    struct luks_io io = memory_io(&m);
    for (int calls = 0, err = -1; err; calls++) {
        struct luks *luks = NULL;
        struct diag diag = {0};
        memset(m.bytes, 0, m.size);
        m.fail_after = calls;
        m.log[0] = '\0';
        err = luks_format(&luks, &io, &quick, "first", 5, &diag);
        cr_expect_eq(!luks, err != 0);
        cr_expect_eq(err, -diag.err);
        luks_close(luks);
        cr_assert_lt(calls, 100);
    }
    memory_free(&m);
}

/* Iteration counts below the specification's minimum, or so large that opening would never end,
 * are refused. */
Test(crypto_luks, counts_have_limits)
{
    uint32_t n;

    cr_assert_eq(luks_iterations(HASH_SHA512, 64, 0, &n), 0);
    cr_expect_eq(n, 1000);
    cr_assert_eq(luks_iterations(HASH_SHA512, 64, UINT32_MAX, &n), 0);
    cr_expect_eq(n, LUKS_MAX_ITERATIONS);
}
