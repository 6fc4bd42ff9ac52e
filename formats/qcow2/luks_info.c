/* SPDX-License-Identifier: BSD-3-Clause */
/* What the LUKS header inside an encrypted image says of itself (LUKS On-Disk Format,
 * version 1). No key is looked at; all numbers are big-endian. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "qcow2/internal.h"

#define SECTOR      512
#define KEY_SLOTS   8
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
    struct luks_slot slots[KEY_SLOTS];
};
_Static_assert(sizeof(struct luks_header) == 592, "LUKS header");

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

/* The n bytes up to the first NUL. */
static json_t *json_text(const char *text, size_t n)
{
    json_t *value = json_stringn(text, strnlen(text, n));

    return value ? value : json_string("?"); /* not UTF-8 */
}

static void add_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static uint32_t number(const uint32_t *field)
{
    return load_be32((const uint8_t *)field);
}

/* The bytes of the text up to the first `end`, or to its own end, which `*text` is moved
 * behind. */
static json_t *next_word(const char **text, size_t *n, char end)
{
    const char *start = *text, *stop = memchr(start, end, *n);
    size_t length = stop ? (size_t)(stop - start) : *n;

    *text += length + (stop != NULL);
    *n -= length + (stop != NULL);
    return json_text(start, length);
}

/* A mode is "xts-plain64" or "cbc-essiv:sha256": how blocks are chained, where their
 * initial vectors come from, and by which hash. */
struct mode {
    json_t *chaining, *vectors, *hash; /* hash: NULL, when there is none */
};

static struct mode parse_mode(const struct luks_header *h)
{
    const char *rest = h->cipher_mode;
    size_t n = strnlen(rest, sizeof h->cipher_mode);
    struct mode mode = {0};

    mode.chaining = next_word(&rest, &n, '-');
    mode.vectors = next_word(&rest, &n, ':');
    mode.hash = n > 0 ? json_text(rest, n) : NULL;
    return mode;
}

/* The cipher with the bits of its key, of which xts has two. */
static void add_cipher(const struct luks_header *h, json_t *object)
{
    uint32_t bits = number(&h->key_bytes) * 8;
    char text[64];

    if (strncmp(h->cipher_mode, "xts", 3) == 0)
        bits /= 2;
    int n = (int)strnlen(h->cipher_name, sizeof h->cipher_name);
    snprintf(text, sizeof text, "%.*s-%" PRIu32, n, h->cipher_name, bits);
    json_object_set_new(object, "cipher-alg", json_text(text, sizeof text));
}

static json_t *describe_slot(const struct luks_slot *slot)
{
    json_t *object = json_object();
    bool active = number(&slot->active) == SLOT_IN_USE;

    json_object_set_new(object, "active", json_boolean(active));
    if (active)
        add_number(object, "iters", number(&slot->iterations));
    add_number(object, "key-offset", (uint64_t)number(&slot->key_material_offset) * SECTOR);
    if (active)
        add_number(object, "stripes", number(&slot->stripes));
    return object;
}

void qcow2_describe_luks(struct qcow2 *q, json_t *object)
{
    const struct node *node = q->node;
    struct luks_header h;

    json_object_set_new(object, "format", json_string("luks"));
    int err = q->header.luks_bytes < sizeof h
                  ? -EINVAL
                  : storage_read(node->file, &h, q->header.luks_offset, sizeof h);
    if (err || memcmp(h.magic, magic, sizeof magic) != 0 || load_be16(&h.version) != 1) {
        log_warning(
            "%s: header extension 0x%08x: no LUKS header of version 1 at offset %" PRIu64,
            node->filename, EXT_LUKS, q->header.luks_offset);
        return;
    }
    json_object_clear(object);
    struct mode mode = parse_mode(&h);
    json_object_set_new(object, "ivgen-alg", mode.vectors);
    json_object_set_new(object, "hash-alg", json_text(h.hash_spec, sizeof h.hash_spec));
    add_cipher(&h, object);
    json_object_set_new(object, "uuid", json_text(h.uuid, sizeof h.uuid));
    if (mode.hash)
        json_object_set_new(object, "ivgen-hash-alg", mode.hash);
    json_object_set_new(object, "format", json_string("luks"));
    json_object_set_new(object, "cipher-mode", mode.chaining);
    json_t *slots = json_array();
    for (unsigned i = 0; i < KEY_SLOTS; i++)
        json_array_append_new(slots, describe_slot(&h.slots[i]));
    json_object_set_new(object, "slots", slots);
    add_number(object, "payload-offset", (uint64_t)number(&h.payload_offset) * SECTOR);
    add_number(object, "master-key-iters", number(&h.digest_iterations));
}
