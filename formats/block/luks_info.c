/* SPDX-License-Identifier: BSD-3-Clause */
/* Describes a LUKS header. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "block/luks_store.h"
#include "crypto/luks_header.h"
#include "crypto/luks_layout.h"

_Static_assert(LUKS_KEY_SLOTS == LUKS_SLOTS, "what is described and what there is");

static uint64_t load_sectors(const uint8_t *field)
{
    return (uint64_t)load_be32(field) * CIPHER_SECTOR;
}

/* Copies the text of a field of n bytes; it is NUL-terminated if it is shorter.  out has n + 1
 * bytes. */
static void copy_text(char *out, const char *text, size_t n)
{
    n = strnlen(text, n);
    memcpy(out, text, n);
    out[n] = '\0';
}

static void copy_field(char *out, const uint8_t *field, size_t n)
{
    copy_text(out, (const char *)field, n);
}

/* Copies the text up to the first `end`, and moves *text after it; without `end`, up to the end
 * of the text. */
static void take_word(char *out, const char **text, char end)
{
    const char *stop = strchrnul(*text, end);

    copy_text(out, *text, (size_t)(stop - *text));
    *text = *stop ? stop + 1 : stop;
}

/* A mode is "xts-plain64" or "cbc-essiv:sha256": the chaining mode, the generator of initial
 * vectors, and its hash. */
static void parse_mode(const uint8_t *header, struct luks_info *out)
{
    char mode[LUKS_WORD_BYTES + 1];
    const char *rest = mode;

    copy_field(mode, header + LUKS_AT_CIPHER_MODE, LUKS_WORD_BYTES);
    take_word(out->chaining, &rest, '-');
    take_word(out->ivgen, &rest, ':');
    copy_text(out->ivgen_hash, rest, LUKS_WORD_BYTES);
}

/* The size of the cipher's key in bits; xts has two keys of half the size. */
static uint32_t key_bits(const uint8_t *header)
{
    uint32_t bits = load_be32(header + LUKS_AT_KEY_BYTES) * 8;

    return memcmp(header + LUKS_AT_CIPHER_MODE, "xts", 3) == 0 ? bits / 2 : bits;
}

static struct luks_slot_info parse_slot(const uint8_t *slot)
{
    return (struct luks_slot_info){
        .active = load_be32(slot) == LUKS_SLOT_IN_USE,
        .iterations = load_be32(slot + LUKS_AT_SLOT_ITERATIONS),
        .stripes = load_be32(slot + LUKS_AT_SLOT_STRIPES),
        .key_offset = load_sectors(slot + LUKS_AT_SLOT_MATERIAL),
    };
}

static void parse_header(const uint8_t *header, struct luks_info *out)
{
    out->known = true;
    out->key_bits = key_bits(header);
    out->payload_offset = load_sectors(header + LUKS_AT_PAYLOAD);
    out->master_key_iterations = load_be32(header + LUKS_AT_DIGEST_ITERATIONS);
    copy_field(out->cipher, header + LUKS_AT_CIPHER_NAME, LUKS_WORD_BYTES);
    copy_field(out->hash, header + LUKS_AT_HASH, LUKS_WORD_BYTES);
    copy_field(out->uuid, header + LUKS_AT_UUID, LUKS_UUID_BYTES);
    parse_mode(header, out);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        out->slots[i] = parse_slot(header + LUKS_AT_SLOTS + i * LUKS_SLOT_BYTES);
}

int luks_info_read(const struct luks_place *place, struct luks_info *out)
{
    uint8_t header[LUKS_HEADER_BYTES];

    *out = (struct luks_info){0};
    int err = place->limit < sizeof header
                  ? -EINVAL
                  : storage_read(place->file, header, place->offset, sizeof header);
    if (!err && !luks_header_probe(header, sizeof header))
        err = -EINVAL;
    if (!err)
        parse_header(header, out);
    return err;
}
