/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of LUKS, version 1 (LUKS On-Disk Format Specification 1.2.3): 592 bytes,
 * big-endian.  It is validated before it is used; no key is involved.
 *
 * Rejected is what QEMU rejects, what is out of place (key material outside [0, limit)), what
 * this program can't decrypt (other ciphers than AES, other modes than XTS and CBC), and what
 * would take too long to open (iteration counts).  Threads: any.  Layer: crypto. */
#ifndef CRYPTO_LUKS_HEADER_H
#define CRYPTO_LUKS_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "crypto/cipher.h"

#define LUKS_HEADER_BYTES 592u /* on disk */
/* Bytes at the start of the file that are reserved for the header. */
#define LUKS_AREA_BYTES   4096u
#define LUKS_SLOTS        8u
#define LUKS_STRIPES      4000u
#define LUKS_SALT_BYTES   32u
#define LUKS_DIGEST_BYTES 20u
#define LUKS_UUID_BYTES   40u
#define LUKS_WORD_BYTES   32u

/* Iteration counts are chosen to take a second or two; a fast processor does about five million
 * per second.  No tool writes counts above these limits, and opening such an image would take
 * minutes.  One limit is for a single count, the other for the rounds (iterations times digests
 * per key) of all active slots and the master key's digest together: three to ten minutes of
 * work. */
#define LUKS_MAX_ITERATIONS 100000000u
#define LUKS_MAX_ROUNDS     400000000u

struct luks_slot {
    bool active;
    uint32_t iterations; /* if active: 1 to LUKS_MAX_ITERATIONS */
    uint8_t salt[LUKS_SALT_BYTES];
    uint32_t material_sector; /* of 512 bytes, from the header's start */
    uint32_t stripes;         /* LUKS_STRIPES */
};

struct luks_header {
    struct cipher_spec spec; /* from "aes", "xts-plain64" and the size of the key */
    enum hash_alg hash;
    uint32_t payload_sector;
    uint32_t key_bytes;
    uint8_t digest[LUKS_DIGEST_BYTES], digest_salt[LUKS_SALT_BYTES];
    uint32_t digest_iterations;
    char uuid[LUKS_UUID_BYTES + 1]; /* NUL-terminated here; may contain any bytes */
    struct luks_slot slot[LUKS_SLOTS];
};

/* Does it begin like LUKS version 1?  False with fewer than 8 bytes. */
bool luks_header_probe(const void *bytes, size_t n);

/* Parses and validates a header.  `bytes`: the first n bytes of the container; `limit`: its
 * size.  Messages begin with `name`. Returns 0, -EINVAL (damaged) or -ENOTSUP. */
int luks_header_parse(struct luks_header *h, const void *bytes, size_t n, uint64_t limit,
                      const char *name, struct diag *diag) MUST_USE;

/* Writes LUKS_HEADER_BYTES. */
void luks_header_serialise(const struct luks_header *h, void *bytes);

/* The size of one slot's key material in bytes, whole sectors. */
uint64_t luks_material_bytes(uint32_t key_bytes);

/* The number of active slots. */
unsigned luks_active_slots(const struct luks_header *h);

#endif
