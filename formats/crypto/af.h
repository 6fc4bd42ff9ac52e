/* SPDX-License-Identifier: BSD-3-Clause */
/* The anti-forensic splitter of LUKS: spreads a key over many stripes, all of which are needed
 * to get it back, so that overwriting any of them destroys it.  Threads: any.  Layer: crypto. */
#ifndef CRYPTO_AF_H
#define CRYPTO_AF_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "crypto/hash.h"

/* Writes key_bytes * stripes bytes to `split`; stripes >= 1.  Returns 0, -ENOTSUP, -ENOMEM or
 * -EIO. */
int af_split(enum hash_alg alg, uint8_t *split, const uint8_t *key, size_t key_bytes,
             uint32_t stripes) MUST_USE;

/* The reverse: `key` gets key_bytes. */
int af_merge(enum hash_alg alg, uint8_t *key, const uint8_t *split, size_t key_bytes,
             uint32_t stripes) MUST_USE;

#endif
