/* SPDX-License-Identifier: BSD-3-Clause */
/* The key of the legacy encryption. */
#include "crypto/qcow_aes.h"

#include <string.h>

#include "crypto/secret.h"

int qcow_aes_new(struct cipher **out, const void *passphrase, size_t len, struct diag *diag)
{
    const struct cipher_spec spec = {CIPHER_AES_128, CIPHER_CBC, CIPHER_PLAIN64,
                                     HASH_SHA256};
    uint8_t key[16] = {0};

    if (len > 0)
        memcpy(key, passphrase, MIN(len, sizeof key));
    int err = cipher_new(out, &spec, key, diag);
    secret_wipe(key, sizeof key);
    return err;
}
