/* SPDX-License-Identifier: BSD-3-Clause */
/* The offsets of the fields of a LUKS header of version 1 (LUKS On-Disk Format Specification
 * 1.2.3, figures 1 and 2); numbers are big-endian.  Used by the parser (luks_header.c), and by
 * code that only describes a header.  Layer: crypto. */
#ifndef CRYPTO_LUKS_LAYOUT_H
#define CRYPTO_LUKS_LAYOUT_H

#define LUKS_MAGIC       "LUKS\xba\xbe"
#define LUKS_MAGIC_BYTES 6u

#define LUKS_SLOT_BYTES  48u
#define LUKS_SLOT_IN_USE 0x00ac71f3u
#define LUKS_SLOT_FREE   0x0000deadu

enum {
    LUKS_AT_VERSION = 6,     /* 16 bits */
    LUKS_AT_CIPHER_NAME = 8, /* strings have LUKS_WORD_BYTES */
    LUKS_AT_CIPHER_MODE = 40,
    LUKS_AT_HASH = 72,
    LUKS_AT_PAYLOAD = 104, /* sectors */
    LUKS_AT_KEY_BYTES = 108,
    LUKS_AT_DIGEST = 112,
    LUKS_AT_DIGEST_SALT = 132,
    LUKS_AT_DIGEST_ITERATIONS = 164,
    LUKS_AT_UUID = 168,
    LUKS_AT_SLOTS = 208,

    /* In a slot, which begins with LUKS_SLOT_IN_USE or LUKS_SLOT_FREE. */
    LUKS_AT_SLOT_ITERATIONS = 4,
    LUKS_AT_SLOT_SALT = 8,
    LUKS_AT_SLOT_MATERIAL = 40, /* sectors */
    LUKS_AT_SLOT_STRIPES = 44,
};

#endif
