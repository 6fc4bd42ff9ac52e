/* SPDX-License-Identifier: BSD-3-Clause */
/* Adding and erasing passphrases in the key slots of a LUKS header.  Unless that is forced, a
 * slot in use isn't overwritten, and the last one isn't erased: without any slot the data is
 * lost. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/amend.h"
#include "block/luks_store.h"
#include "crypto/luks.h"
#include "qcow2/internal.h"

static int parse_slot(const char *text, int *slot)
{
    char *end;
    long n = text ? strtol(text, &end, 10) : LUKS_ANY_SLOT;

    if (text && (*end || n < 0 || n >= LUKS_KEY_SLOTS))
        return -EINVAL;
    *slot = (int)n;
    return 0;
}

static int activate_key(const struct luks_io *io, const struct amend_request *req, int slot,
                        struct diag *diag)
{
    const char *time = amend_value(req, "encrypt.iter-time");
    unsigned long ms = time ? strtoul(time, NULL, 10) : luks_default_params.iter_time_ms;

    if (!req->new_secret.bytes)
        return diag_set(diag, EINVAL, "%s: 'new-secret' is required to activate a keyslot",
                        io->name);
    if (!req->old_secret.bytes)
        return diag_set(diag, EINVAL,
                        "%s: a passphrase that opens it is needed (encrypt.old-secret, or "
                        "encrypt.key-secret of the image)",
                        io->name);
    if (ms < 1 || ms > 3600000)
        return diag_set(diag, EINVAL, "%s: encrypt.iter-time: %s is not 1 to 3600000",
                        io->name, time);
    return luks_add_key(io, req->old_secret.bytes, req->old_secret.len,
                        req->new_secret.bytes, req->new_secret.len, slot, (uint32_t)ms,
                        req->force, diag);
}

static int erase_key(const struct luks_io *io, const struct amend_request *req, int slot,
                     struct diag *diag)
{
    if (amend_value(req, "encrypt.new-secret"))
        return diag_set(diag, EINVAL,
                        "%s: 'new-secret' must not be given when erasing keyslots",
                        io->name);
    if (amend_value(req, "encrypt.iter-time"))
        return diag_set(diag, EINVAL,
                        "%s: 'iter-time' must not be given when erasing keyslots",
                        io->name);
    if (slot != LUKS_ANY_SLOT)
        return luks_erase_slot(io, (unsigned)slot, req->force, diag);
    if (!amend_value(req, "encrypt.old-secret"))
        return diag_set(diag, EINVAL,
                        "%s: to erase keyslot(s), either 'keyslot' or 'old-secret' must be "
                        "given",
                        io->name);
    return luks_erase_passphrase(io, req->old_secret.bytes, req->old_secret.len, req->force,
                                 diag);
}

int qcow2_amend_keys(struct storage *st, const struct qcow2_header *h,
                     const struct amend_request *req, struct diag *diag)
{
    const char *state = amend_value(req, "encrypt.state");
    struct luks_place place = {
        .file = st, .offset = h->luks_offset, .limit = h->luks_bytes, .name = st->name};
    const struct luks_io io = luks_io_of(&place);
    int slot;

    if (h->crypt_method != CRYPT_LUKS)
        return diag_set(diag, EINVAL, "%s: %s", st->name,
                        h->crypt_method ? "Only LUKS encryption options can be amended"
                                        : "Can't amend encryption options - encryption not "
                                          "present");
    if (parse_slot(amend_value(req, "encrypt.keyslot"), &slot))
        return diag_set(diag, EINVAL, "%s: encrypt.keyslot: must be 0 to %d", st->name,
                        LUKS_KEY_SLOTS - 1);
    if (state && strcmp(state, "active") == 0)
        return activate_key(&io, req, slot, diag);
    if (state && strcmp(state, "inactive") == 0)
        return erase_key(&io, req, slot, diag);
    return diag_set(diag, EINVAL, "%s: encrypt.state: must be active or inactive",
                    st->name);
}
