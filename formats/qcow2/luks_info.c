/* SPDX-License-Identifier: BSD-3-Clause */
/* What the LUKS header inside an encrypted image says of itself (LUKS On-Disk Format,
 * version 1). No key is looked at; all numbers are big-endian. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "qcow2/internal.h"

#define SECTOR      512
#define SLOT_IN_USE 0x00ac71f3u

struct luks_slot {
    uint32_t active, iterations;
    uint8_t salt[32];
    uint32_t key_material_offset; /* sectors */
    uint32_t stripes;
};

struct luks_header {
    uint8_t magic[6];
    uint16_t version;
    char cipher_name[32], cipher_mode[32], hash_spec[32];
    uint32_t payload_offset, key_bytes; /* sectors; bytes */
    uint8_t digest[20], digest_salt[32];
    uint32_t digest_iterations;
    char uuid[40];
    struct luks_slot slots[LUKS_KEY_SLOTS];
};
_Static_assert(sizeof(struct luks_header) == 592, "LUKS header");

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

static uint32_t load_number(const uint32_t *field)
{
    return load_be32((const uint8_t *)field);
}

static uint64_t load_sectors(const uint32_t *field)
{
    return (uint64_t)load_number(field) * SECTOR;
}

/* A field's text has up to n bytes, and ends with a NUL where it is shorter; out has room
 * for a NUL more. */
static void copy_text(char *out, const char *text, size_t n)
{
    n = strnlen(text, n);
    memcpy(out, text, n);
    out[n] = '\0';
}

/* Copies the text up to the first `end`, which it is moved behind, or up to its own end. */
static void take_word(char *out, const char **text, char end)
{
    const char *stop = strchrnul(*text, end);

    copy_text(out, *text, (size_t)(stop - *text));
    *text = *stop ? stop + 1 : stop;
}

/* A mode is "xts-plain64" or "cbc-essiv:sha256": how blocks are chained, where their
 * initial vectors come from, and by which hash. */
static void parse_mode(const struct luks_header *h, struct luks_info *out)
{
    char mode[sizeof h->cipher_mode + 1];
    const char *rest = mode;

    copy_text(mode, h->cipher_mode, sizeof h->cipher_mode);
    take_word(out->chaining, &rest, '-');
    take_word(out->ivgen, &rest, ':');
    copy_text(out->ivgen_hash, rest, sizeof h->cipher_mode);
}

/* The bits of the cipher's key, of which xts has two. */
static uint32_t key_bits(const struct luks_header *h)
{
    uint32_t bits = load_number(&h->key_bytes) * 8;

    return strncmp(h->cipher_mode, "xts", 3) == 0 ? bits / 2 : bits;
}

static struct luks_slot_info parse_slot(const struct luks_slot *slot)
{
    return (struct luks_slot_info){
        .active = load_number(&slot->active) == SLOT_IN_USE,
        .iterations = load_number(&slot->iterations),
        .stripes = load_number(&slot->stripes),
        .key_offset = load_sectors(&slot->key_material_offset),
    };
}

static void parse_header(const struct luks_header *h, struct luks_info *out)
{
    out->known = true;
    out->key_bits = key_bits(h);
    out->payload_offset = load_sectors(&h->payload_offset);
    out->master_key_iterations = load_number(&h->digest_iterations);
    copy_text(out->cipher, h->cipher_name, sizeof h->cipher_name);
    copy_text(out->hash, h->hash_spec, sizeof h->hash_spec);
    copy_text(out->uuid, h->uuid, sizeof h->uuid);
    parse_mode(h, out);
    for (unsigned i = 0; i < LUKS_KEY_SLOTS; i++)
        out->slots[i] = parse_slot(&h->slots[i]);
}

void qcow2_read_luks(struct qcow2 *q, struct luks_info *out)
{
    const struct node *node = q->node;
    struct luks_header h;

    *out = (struct luks_info){0};
    int err = q->header.luks_bytes < sizeof h
                  ? -EINVAL
                  : storage_read(node->file, &h, q->header.luks_offset, sizeof h);
    if (err || memcmp(h.magic, magic, sizeof magic) != 0 || load_be16(&h.version) != 1) {
        log_warning(
            "%s: header extension 0x%08x: no LUKS header of version 1 at offset %" PRIu64,
            node->filename, EXT_LUKS, q->header.luks_offset);
        return;
    }
    parse_header(&h, out);
}
