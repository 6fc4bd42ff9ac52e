/* SPDX-License-Identifier: BSD-3-Clause */
/* Unlocks an encrypted image: the key comes from the LUKS header, which is part of the image's
 * metadata, or in the legacy AES method from the passphrase itself. */
#include <errno.h>

#include "crypto/qcow_aes.h"
#include "qcow2/internal.h"

struct luks_place qcow2_luks_place(const struct qcow2 *q)
{
    return (struct luks_place){.file = q->node->file,
                               .offset = q->header.luks_offset,
                               .limit = q->header.luks_bytes,
                               .name = q->node->filename};
}

static int unlock_luks(struct qcow2 *q, const void *passphrase, size_t len,
                       struct diag *diag)
{
    struct luks_place place = qcow2_luks_place(q);

    /* Initialisation vectors count sectors by their host offset, from the start of the file. */
    q->node->cipher_by_place = true;
    return luks_take_cipher(&place, passphrase, len, &q->node->cipher, diag);
}

int qcow2_unlock(struct node *node, const void *passphrase, size_t len, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->header.crypt_method == CRYPT_LUKS)
        return unlock_luks(q, passphrase, len, diag);
    return qcow_aes_new(&node->cipher, passphrase, len, diag);
}
