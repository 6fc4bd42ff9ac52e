/* SPDX-License-Identifier: BSD-3-Clause */
/* The legacy encryption of QEMU's copy-on-write formats (method 1): AES-128-CBC with plain64
 * vectors of the guest's sectors; the key is the passphrase itself.  It protects little, and
 * nothing says that a passphrase is the wrong one.  Layer: crypto. */
#ifndef CRYPTO_QCOW_AES_H
#define CRYPTO_QCOW_AES_H

#include "crypto/cipher.h"

/* The key is the first 16 bytes, filled up with zeroes.  As cipher_new. */
int qcow_aes_new(struct cipher **out, const void *passphrase, size_t len,
                 struct diag *diag) MUST_USE;

#endif
