/* SPDX-License-Identifier: BSD-3-Clause */
/* The key of an encrypted image: from its LUKS header, which lies in the file as metadata, or
 * of the legacy method from the passphrase itself. */
#include <errno.h>

#include "crypto/luks.h"
#include "crypto/qcow_aes.h"
#include "qcow2/internal.h"

static int read_header(void *opaque, void *buf, uint64_t off, size_t len)
{
    struct qcow2 *q = opaque;

    return storage_read(q->node->file, buf, q->header.luks_offset + off, len);
}

static int unlock_luks(struct qcow2 *q, const void *passphrase, size_t len,
                       struct diag *diag)
{
    const struct luks_io io = {.read = read_header,
                               .opaque = q,
                               .limit = q->header.luks_bytes,
                               .name = q->node->filename};
    struct luks *luks;

    int err = luks_open(&luks, &io, passphrase, len, diag);
    if (err)
        return err;
    q->node->cipher = luks->cipher;
    luks->cipher = NULL;
    luks_close(luks);
    /* Sectors are numbered by their place in the file, from its start and not the payload's. */
    q->node->cipher_by_place = true;
    return 0;
}

int qcow2_unlock(struct node *node, const void *passphrase, size_t len, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->header.crypt_method == CRYPT_LUKS)
        return unlock_luks(q, passphrase, len, diag);
    return qcow_aes_new(&node->cipher, passphrase, len, diag);
}
