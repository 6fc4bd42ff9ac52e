/* SPDX-License-Identifier: BSD-3-Clause */
/* Encryption of a new image: parsing the options, checking them together, and writing the LUKS
 * header. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/luks_options.h"
#include "block/luks_store.h"
#include "crypto/qcow_aes.h"
#include "crypto/secret.h"
#include "qcow2/create.h"
#include "qcow2/qcow2_format.h"

#define LUKS_PREFIX "encrypt."

/* ---- one option each ---- */

static int refuse_option(const struct qcow2_params *p, const struct create_option *o,
                         const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: %s '%s': %s", p->filename, o->key, o->value, why);
}

static int take_switch(struct qcow2_params *p, const struct create_option *o,
                       struct diag *diag)
{
    p->encryption.alias_on = strcmp(o->value, "on") == 0;
    if (!p->encryption.alias_on && strcmp(o->value, "off") != 0)
        return refuse_option(p, o, "must be on or off", diag);
    return 0;
}

static int take_format(struct qcow2_params *p, const struct create_option *o,
                       struct diag *diag)
{
    p->encryption.format = o->value;
    if (strcmp(o->value, "aes") != 0 && strcmp(o->value, "luks") != 0)
        return refuse_option(p, o, "must be aes or luks", diag);
    return 0;
}

static const struct {
    const char *key;
    int (*take)(struct qcow2_params *p, const struct create_option *o, struct diag *diag);
} takers[] = {
    {"encryption", take_switch},
    {"encrypt.format", take_format},
};

int qcow2_take_encryption(struct qcow2_params *p, const struct create_option *o,
                          struct diag *diag)
{
    for (size_t i = 0; i < ARRAY_LEN(takers); i++)
        if (strcmp(takers[i].key, o->key) == 0)
            return takers[i].take(p, o, diag);
    int err = luks_option_take(&p->encryption.luks, p->filename, LUKS_PREFIX, o, diag);
    if (err != -ENOENT)
        p->encryption.luks_option = o->key;
    return err;
}

/* ---- all of them ---- */

/* encryption=on is QEMU's older spelling of encrypt.format=aes. */
static int choose_method(struct qcow2_params *p, bool has_passphrase, struct diag *diag)
{
    struct qcow2_encryption *e = &p->encryption;
    const char *given = e->luks_option   ? e->luks_option
                        : has_passphrase ? "encrypt.key-secret"
                                         : NULL;

    if (e->alias_on && e->format)
        return diag_set(diag, EINVAL,
                        "%s: encryption=on and encrypt.format can't be used together",
                        p->filename);
    if (e->alias_on || e->format)
        e->method = e->format && strcmp(e->format, "luks") == 0 ? CRYPT_LUKS : CRYPT_AES;
    if (!e->method && given)
        return diag_set(diag, EINVAL, "%s: %s: encrypt.format is missing", p->filename,
                        given);
    if (e->method == CRYPT_AES && e->luks_option)
        return diag_set(diag, EINVAL, "%s: %s: the format aes has no such option",
                        p->filename, e->luks_option);
    return 0;
}

int qcow2_judge_encryption(struct qcow2_params *p, const struct create_request *req,
                           struct diag *diag)
{
    int err = choose_method(p, req->passphrase, diag);

    if (err || !p->encryption.method)
        return err;
    if (!req->passphrase)
        return diag_set(diag, EINVAL,
                        "%s: encrypt.key-secret: is required: the id of a secret with the "
                        "passphrase",
                        p->filename);
    p->encryption.passphrase = req->passphrase;
    p->encryption.passphrase_len = req->passphrase_len;
    return p->encryption.method == CRYPT_LUKS
               ? luks_options_judge(&p->encryption.luks, p->filename, LUKS_PREFIX, diag)
               : 0;
}

/* ---- the key ---- */

uint64_t qcow2_luks_bytes(const struct qcow2_params *p)
{
    return p->encryption.method == CRYPT_LUKS ? luks_payload_offset(&p->encryption.luks)
                                              : 0;
}

int qcow2_make_key(const struct qcow2_params *p, struct storage *file, uint64_t off,
                   struct cipher **cipher, struct diag *diag)
{
    const struct qcow2_encryption *e = &p->encryption;

    if (e->method == CRYPT_LUKS) {
        struct luks_place place = {file, off, qcow2_luks_bytes(p), p->filename};
        return luks_make_container(&place, &e->luks, e->passphrase, e->passphrase_len,
                                   cipher, diag);
    }
    return e->method == CRYPT_AES
               ? qcow_aes_new(cipher, e->passphrase, e->passphrase_len, diag)
               : 0;
}
