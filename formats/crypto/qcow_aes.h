/* SPDX-License-Identifier: BSD-3-Clause */
/* The legacy encryption of QEMU's copy-on-write formats (method 1): AES-128-CBC with plain64
 * vectors of guest sectors; the key is the passphrase itself.  It protects little, and a wrong
 * passphrase can't be detected.  Layer: crypto. */
#ifndef CRYPTO_QCOW_AES_H
#define CRYPTO_QCOW_AES_H

#include "crypto/cipher.h"

/* The key is the first 16 bytes of the passphrase, padded with zeroes.  Errors as for
 * cipher_new. */
int qcow_aes_new(struct cipher **out, const void *passphrase, size_t len,
                 struct diag *diag) MUST_USE;

#endif
