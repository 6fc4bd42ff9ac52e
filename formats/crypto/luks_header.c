/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads, validates and writes the header. */
#include "crypto/luks_header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "crypto/luks_layout.h"

#define VERSION 1u

#define AREA_SECTORS (LUKS_AREA_BYTES / CIPHER_SECTOR)

/* A header that is being validated. */
struct judged {
    const uint8_t *bytes;
    uint64_t limit;
    const char *name;
    struct diag *diag;
};

bool luks_header_probe(const void *bytes, size_t n)
{
    const uint8_t *b = bytes;

    return n >= LUKS_AT_CIPHER_NAME && memcmp(b, LUKS_MAGIC, LUKS_MAGIC_BYTES) == 0 &&
           load_be16(b + LUKS_AT_VERSION) == VERSION;
}

uint64_t luks_material_bytes(uint32_t key_bytes)
{
    return align_up((uint64_t)key_bytes * LUKS_STRIPES, CIPHER_SECTOR);
}

unsigned luks_active_slots(const struct luks_header *h)
{
    unsigned n = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        n += h->slot[i].active;
    return n;
}

/* ---- strings ---- */

/* Reads the string at `at`, which must be NUL-terminated inside its field. */
static int read_word(const struct judged *j, char *word, size_t at, const char *field)
{
    memcpy(word, j->bytes + at, LUKS_WORD_BYTES);
    word[LUKS_WORD_BYTES] = '\0';
    if (strlen(word) == LUKS_WORD_BYTES)
        return diag_set(j->diag, EINVAL, "%s: LUKS header: %s '%s': no NUL in its %u bytes",
                        j->name, field, word, LUKS_WORD_BYTES);
    return 0;
}

/* Parses "essiv:sha256".  dm-crypt and QEMU also accept a hash after the other generators, and
 * ignore it. */
static int parse_ivgen(const struct judged *j, struct cipher_spec *spec, const char *mode,
                       char *ivgen)
{
    char *hash = strchr(ivgen, ':');

    if (hash)
        *hash++ = '\0';
    if (!cipher_ivgen_by_name(ivgen, &spec->ivgen))
        return diag_set(j->diag, ENOTSUP,
                        "%s: LUKS header: cipher mode '%s': vectors '%s': only plain, "
                        "plain64 and essiv are supported",
                        j->name, mode, ivgen);
    spec->iv_hash = HASH_SHA256;
    if (spec->ivgen != CIPHER_ESSIV)
        return 0;
    if (!hash)
        return diag_set(j->diag, EINVAL,
                        "%s: LUKS header: cipher mode '%s': essiv has no hash", j->name,
                        mode);
    if (!hash_by_name(hash, &spec->iv_hash))
        return diag_set(j->diag, ENOTSUP,
                        "%s: LUKS header: cipher mode '%s': hash '%s' is not supported",
                        j->name, mode, hash);
    if (!cipher_essiv_hash_fits(spec->iv_hash))
        return diag_set(
            j->diag, ENOTSUP,
            "%s: LUKS header: cipher mode '%s': a digest of %zu bytes is no key "
            "of AES",
            j->name, mode, hash_bytes(spec->iv_hash));
    return 0;
}

/* Parses "xts-plain64". */
static int parse_mode(const struct judged *j, struct cipher_spec *spec)
{
    char mode[LUKS_WORD_BYTES + 1], words[LUKS_WORD_BYTES + 1];
    int err = read_word(j, mode, LUKS_AT_CIPHER_MODE, "cipher mode");

    if (err)
        return err;
    memcpy(words, mode, sizeof words);
    char *ivgen = strchr(words, '-');
    if (!ivgen)
        return diag_set(j->diag, EINVAL,
                        "%s: LUKS header: cipher mode '%s': no '-' in front of vectors",
                        j->name, mode);
    *ivgen++ = '\0';
    if (!cipher_mode_by_name(words, &spec->mode))
        return diag_set(j->diag, ENOTSUP,
                        "%s: LUKS header: cipher mode '%s': only xts and cbc are supported",
                        j->name, mode);
    return parse_ivgen(j, spec, mode, ivgen);
}

/* The name says AES; the key size determines which one. */
static int parse_cipher(const struct judged *j, struct luks_header *h)
{
    char name[LUKS_WORD_BYTES + 1];
    int err = read_word(j, name, LUKS_AT_CIPHER_NAME, "cipher name");

    if (err)
        return err;
    if (strcmp(name, "aes") != 0)
        return diag_set(j->diag, ENOTSUP,
                        "%s: LUKS header: cipher name '%s': only aes is supported", j->name,
                        name);
    err = parse_mode(j, &h->spec);
    if (err)
        return err;
    for (h->spec.alg = CIPHER_AES_128; h->spec.alg <= CIPHER_AES_256; h->spec.alg++)
        if (cipher_key_bytes(&h->spec) == h->key_bytes)
            return 0;
    return diag_set(j->diag, EINVAL,
                    "%s: LUKS header: key bytes %" PRIu32 ": not a key of aes-%s", j->name,
                    h->key_bytes, cipher_mode_name(h->spec.mode));
}

static int parse_hash(const struct judged *j, struct luks_header *h)
{
    char name[LUKS_WORD_BYTES + 1];
    int err = read_word(j, name, LUKS_AT_HASH, "hash");

    if (err)
        return err;
    if (!hash_by_name(name, &h->hash))
        return diag_set(j->diag, ENOTSUP, "%s: LUKS header: hash '%s' is not supported",
                        j->name, name);
    return 0;
}

/* ---- numbers ---- */

static int judge_iterations(const struct judged *j, uint32_t n, const char *whose)
{
    if (n == 0)
        return diag_set(j->diag, EINVAL, "%s: LUKS header: %s: iterations 0", j->name,
                        whose);
    if (n > LUKS_MAX_ITERATIONS)
        return diag_set(j->diag, ENOTSUP,
                        "%s: LUKS header: %s: iterations %" PRIu32
                        ": more than %u would take minutes, and no tool writes them",
                        j->name, whose, n, LUKS_MAX_ITERATIONS);
    return 0;
}

static int judge_payload(const struct judged *j, const struct luks_header *h)
{
    uint64_t at = (uint64_t)h->payload_sector * CIPHER_SECTOR;

    if (h->payload_sector < AREA_SECTORS)
        return diag_set(j->diag, EINVAL,
                        "%s: LUKS header: payload offset %" PRIu64 ": inside the header",
                        j->name, at);
    if (at > j->limit)
        return diag_set(j->diag, EINVAL,
                        "%s: LUKS header: payload offset %" PRIu64
                        ": past the end at %" PRIu64,
                        j->name, at, j->limit);
    return judge_iterations(j, h->digest_iterations, "master key digest");
}

static int parse_slot(const struct judged *j, struct luks_header *h, unsigned i)
{
    const uint8_t *b = j->bytes + LUKS_AT_SLOTS + (size_t)i * LUKS_SLOT_BYTES;
    struct luks_slot *slot = &h->slot[i];
    uint32_t state = load_be32(b);
    char whose[32];

    slot->active = state == LUKS_SLOT_IN_USE;
    slot->iterations = load_be32(b + LUKS_AT_SLOT_ITERATIONS);
    memcpy(slot->salt, b + LUKS_AT_SLOT_SALT, sizeof slot->salt);
    slot->material_sector = load_be32(b + LUKS_AT_SLOT_MATERIAL);
    slot->stripes = load_be32(b + LUKS_AT_SLOT_STRIPES);
    if (state != LUKS_SLOT_IN_USE && state != LUKS_SLOT_FREE)
        return diag_set(j->diag, EINVAL,
                        "%s: LUKS header: key slot %u: state 0x%08" PRIx32
                        ": neither in use (0x%08x) nor free (0x%08x)",
                        j->name, i, state, LUKS_SLOT_IN_USE, LUKS_SLOT_FREE);
    if (slot->stripes != LUKS_STRIPES)
        return diag_set(j->diag, EINVAL,
                        "%s: LUKS header: key slot %u: stripes %" PRIu32 ": not %u",
                        j->name, i, slot->stripes, LUKS_STRIPES);
    snprintf(whose, sizeof whose, "key slot %u", i);
    return slot->active ? judge_iterations(j, slot->iterations, whose) : 0;
}

/* Key material must lie between header and payload, and must not overlap that of another slot. */
static int judge_place(const struct judged *j, const struct luks_header *h, unsigned i)
{
    uint64_t len = luks_material_bytes(h->key_bytes);
    uint64_t at = (uint64_t)h->slot[i].material_sector * CIPHER_SECTOR;
    const char *wrong = NULL;
    char other[64];

    for (unsigned k = 0; k < i && !wrong; k++) {
        uint64_t there = (uint64_t)h->slot[k].material_sector * CIPHER_SECTOR;
        if (!ranges_overlap(at, len, there, len))
            continue;
        snprintf(other, sizeof other, "overlaps that of key slot %u at %" PRIu64, k, there);
        wrong = other;
    }
    if (at < LUKS_AREA_BYTES)
        wrong = "inside the header";
    else if (at + len > (uint64_t)h->payload_sector * CIPHER_SECTOR)
        wrong = "inside the payload";
    if (!wrong)
        return 0;
    return diag_set(j->diag, EINVAL,
                    "%s: LUKS header: key slot %u: key material offset %" PRIu64
                    " (%" PRIu64 " bytes): %s",
                    j->name, i, at, len, wrong);
}

/* Limits how long trying all slots can take, whatever the passphrase. */
static int judge_rounds(const struct judged *j, const struct luks_header *h)
{
    uint64_t rounds = h->digest_iterations, digests;

    digests = div_round_up(h->key_bytes, hash_bytes(h->hash));
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        if (h->slot[i].active)
            rounds += digests * h->slot[i].iterations;
    if (rounds > LUKS_MAX_ROUNDS)
        return diag_set(
            j->diag, ENOTSUP,
            "%s: LUKS header: key slots: %" PRIu64
            " rounds of hashing in all: more than %u would take minutes, and no "
            "tool writes them",
            j->name, rounds, LUKS_MAX_ROUNDS);
    return 0;
}

/* ---- the whole header ---- */

static int judge_beginning(const struct judged *j, size_t n)
{
    if (n < LUKS_HEADER_BYTES || j->limit < LUKS_HEADER_BYTES)
        return diag_set(j->diag, EINVAL, "%s: LUKS header: %" PRIu64 " bytes, less than %u",
                        j->name, MIN(n, j->limit), LUKS_HEADER_BYTES);
    if (memcmp(j->bytes, LUKS_MAGIC, LUKS_MAGIC_BYTES) != 0)
        return diag_set(j->diag, EINVAL, "%s: LUKS header: magic: not LUKS", j->name);
    if (load_be16(j->bytes + LUKS_AT_VERSION) != VERSION)
        return diag_set(j->diag, ENOTSUP,
                        "%s: LUKS header: version %u: only %u is supported", j->name,
                        load_be16(j->bytes + LUKS_AT_VERSION), VERSION);
    return 0;
}

static int parse_fields(const struct judged *j, struct luks_header *h)
{
    const uint8_t *b = j->bytes;

    h->payload_sector = load_be32(b + LUKS_AT_PAYLOAD);
    h->key_bytes = load_be32(b + LUKS_AT_KEY_BYTES);
    memcpy(h->digest, b + LUKS_AT_DIGEST, sizeof h->digest);
    memcpy(h->digest_salt, b + LUKS_AT_DIGEST_SALT, sizeof h->digest_salt);
    h->digest_iterations = load_be32(b + LUKS_AT_DIGEST_ITERATIONS);
    memcpy(h->uuid, b + LUKS_AT_UUID, LUKS_UUID_BYTES);
    int err = parse_cipher(j, h);
    if (!err)
        err = parse_hash(j, h);
    if (!err)
        err = judge_payload(j, h);
    for (unsigned i = 0; i < LUKS_SLOTS && !err; i++)
        err = parse_slot(j, h, i);
    for (unsigned i = 0; i < LUKS_SLOTS && !err; i++)
        err = judge_place(j, h, i);
    return err ? err : judge_rounds(j, h);
}

int luks_header_parse(struct luks_header *h, const void *bytes, size_t n, uint64_t limit,
                      const char *name, struct diag *diag)
{
    const struct judged j = {bytes, limit, name, diag};
    int err = judge_beginning(&j, n);

    memset(h, 0, sizeof *h);
    return err ? err : parse_fields(&j, h);
}

/* All strings are shorter than their fields. */
static void write_words(const struct luks_header *h, uint8_t *b)
{
    char mode[64];
    bool essiv = h->spec.ivgen == CIPHER_ESSIV;

    snprintf(mode, sizeof mode, "%s-%s%s%s", cipher_mode_name(h->spec.mode),
             cipher_ivgen_name(h->spec.ivgen), essiv ? ":" : "",
             essiv ? hash_name(h->spec.iv_hash) : "");
    memcpy(b + LUKS_AT_CIPHER_NAME, "aes", 3);
    memcpy(b + LUKS_AT_CIPHER_MODE, mode, strlen(mode));
    memcpy(b + LUKS_AT_HASH, hash_name(h->hash), strlen(hash_name(h->hash)));
}

void luks_header_serialise(const struct luks_header *h, void *bytes)
{
    uint8_t *b = bytes;

    memset(b, 0, LUKS_HEADER_BYTES);
    memcpy(b, LUKS_MAGIC, LUKS_MAGIC_BYTES);
    store_be16(b + LUKS_AT_VERSION, VERSION);
    write_words(h, b);
    store_be32(b + LUKS_AT_PAYLOAD, h->payload_sector);
    store_be32(b + LUKS_AT_KEY_BYTES, h->key_bytes);
    memcpy(b + LUKS_AT_DIGEST, h->digest, sizeof h->digest);
    memcpy(b + LUKS_AT_DIGEST_SALT, h->digest_salt, sizeof h->digest_salt);
    store_be32(b + LUKS_AT_DIGEST_ITERATIONS, h->digest_iterations);
    memcpy(b + LUKS_AT_UUID, h->uuid, LUKS_UUID_BYTES);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *slot = &h->slot[i];
        uint8_t *s = b + LUKS_AT_SLOTS + (size_t)i * LUKS_SLOT_BYTES;
        store_be32(s, slot->active ? LUKS_SLOT_IN_USE : LUKS_SLOT_FREE);
        store_be32(s + LUKS_AT_SLOT_ITERATIONS, slot->iterations);
        memcpy(s + LUKS_AT_SLOT_SALT, slot->salt, sizeof slot->salt);
        store_be32(s + LUKS_AT_SLOT_MATERIAL, slot->material_sector);
        store_be32(s + LUKS_AT_SLOT_STRIPES, slot->stripes);
    }
}
