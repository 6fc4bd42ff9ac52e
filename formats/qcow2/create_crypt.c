/* SPDX-License-Identifier: BSD-3-Clause */
/* Encryption of a new image: its options, what they say together, and the LUKS header. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "crypto/qcow_aes.h"
#include "crypto/secret.h"
#include "qcow2/create.h"
#include "qcow2/qcow2_format.h"

/* Longer would make everyone wait who opens the image, and LUKS headers with more rounds than
 * that takes are refused (luks_header.h). */
#define MAX_ITER_TIME_MS 30000

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

static int take_cipher_alg(struct qcow2_params *p, const struct create_option *o,
                           struct diag *diag)
{
    return cipher_alg_by_name(o->value, &p->encryption.luks.spec.alg)
               ? 0
               : refuse_option(p, o, "must be aes-128, aes-192 or aes-256", diag);
}

static int take_cipher_mode(struct qcow2_params *p, const struct create_option *o,
                            struct diag *diag)
{
    return cipher_mode_by_name(o->value, &p->encryption.luks.spec.mode)
               ? 0
               : refuse_option(p, o, "must be xts or cbc", diag);
}

static int take_ivgen(struct qcow2_params *p, const struct create_option *o,
                      struct diag *diag)
{
    return cipher_ivgen_by_name(o->value, &p->encryption.luks.spec.ivgen)
               ? 0
               : refuse_option(p, o, "must be plain, plain64 or essiv", diag);
}

static int take_hash(struct qcow2_params *p, const struct create_option *o,
                     enum hash_alg *hash, struct diag *diag)
{
    if (!hash_by_name(o->value, hash))
        return refuse_option(
            p, o, "must be sha256, sha512, sha1, sha224, sha384, ripemd160 or md5", diag);
    return hash_available(*hash)
               ? 0
               : refuse_option(p, o, "the crypto library of this machine doesn't have it",
                               diag);
}

static int take_iv_hash(struct qcow2_params *p, const struct create_option *o,
                        struct diag *diag)
{
    return take_hash(p, o, &p->encryption.luks.spec.iv_hash, diag);
}

static int take_key_hash(struct qcow2_params *p, const struct create_option *o,
                         struct diag *diag)
{
    return take_hash(p, o, &p->encryption.luks.hash, diag);
}

static int take_iter_time(struct qcow2_params *p, const struct create_option *o,
                          struct diag *diag)
{
    char *end;
    uint64_t ms = strtoull(o->value, &end, 10);

    if (*end || end == o->value || ms > MAX_ITER_TIME_MS)
        return refuse_option(p, o, "must be a number of milliseconds, at most 30000", diag);
    p->encryption.luks.iter_time_ms = (uint32_t)MAX(ms, 1);
    return 0;
}

static const struct {
    const char *key;
    bool luks_only;
    int (*take)(struct qcow2_params *p, const struct create_option *o, struct diag *diag);
} takers[] = {
    {"encryption", false, take_switch},
    {"encrypt.format", false, take_format},
    {"encrypt.cipher-alg", true, take_cipher_alg},
    {"encrypt.cipher-mode", true, take_cipher_mode},
    {"encrypt.ivgen-alg", true, take_ivgen},
    {"encrypt.ivgen-hash-alg", true, take_iv_hash},
    {"encrypt.hash-alg", true, take_key_hash},
    {"encrypt.iter-time", true, take_iter_time},
};

int qcow2_take_encryption(struct qcow2_params *p, const struct create_option *o,
                          struct diag *diag)
{
    for (size_t i = 0; i < ARRAY_LEN(takers); i++)
        if (strcmp(takers[i].key, o->key) == 0) {
            if (takers[i].luks_only)
                p->encryption.luks_option = o->key;
            return takers[i].take(p, o, diag);
        }
    return -ENOENT;
}

/* ---- all of them ---- */

/* encryption=on is an old word for encrypt.format=aes. */
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

/* Whether the cipher is one that all can read; which key it has doesn't matter. */
static int check_cipher(const struct qcow2_params *p, struct diag *diag)
{
    static const uint8_t key[CIPHER_MAX_KEY_BYTES] = {1};
    const struct cipher_spec *spec = &p->encryption.luks.spec;
    CLEANUP_CIPHER struct cipher *cipher = NULL;
    struct diag why = {0};

    if (spec->ivgen == CIPHER_ESSIV && !cipher_essiv_hash_fits(spec->iv_hash))
        return diag_set(diag, EINVAL,
                        "%s: encrypt.ivgen-hash-alg '%s': essiv needs a hash with the "
                        "size of a key (sha256, md5)",
                        p->filename, hash_name(spec->iv_hash));
    if (cipher_key_bytes(spec) * LUKS_STRIPES % CIPHER_SECTOR)
        return diag_set(
            diag, EINVAL,
            "%s: encrypt.cipher-alg '%s': with cbc a key's material is no whole "
            "number of sectors, which QEMU can't read",
            p->filename, cipher_alg_name(spec->alg));
    int err = cipher_new(&cipher, spec, key, &why);
    return err ? diag_set(diag, -err, "%s: encrypt.cipher-alg: %s", p->filename, why.text)
               : 0;
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
    return p->encryption.method == CRYPT_LUKS ? check_cipher(p, diag) : 0;
}

/* ---- the key ---- */

uint64_t qcow2_luks_bytes(const struct qcow2_params *p)
{
    return p->encryption.method == CRYPT_LUKS ? luks_payload_offset(&p->encryption.luks)
                                              : 0;
}

struct luks_area {
    struct storage *file;
    uint64_t off;
};

static int read_area(void *opaque, void *buf, uint64_t off, size_t len)
{
    struct luks_area *area = opaque;

    return storage_read(area->file, buf, area->off + off, len);
}

static int write_area(void *opaque, const void *buf, uint64_t off, size_t len)
{
    struct luks_area *area = opaque;

    return storage_write(area->file, buf, area->off + off, len, 0);
}

static int flush_area(void *opaque)
{
    struct luks_area *area = opaque;

    return storage_flush(area->file);
}

static int make_luks(const struct qcow2_params *p, struct storage *file, uint64_t off,
                     struct cipher **cipher, struct diag *diag)
{
    struct luks_area area = {file, off};
    const struct luks_io io = {.read = read_area,
                               .write = write_area,
                               .flush = flush_area,
                               .opaque = &area,
                               .limit = qcow2_luks_bytes(p),
                               .name = p->filename};
    struct luks *luks = NULL;

    int err = luks_format(&luks, &io, &p->encryption.luks, p->encryption.passphrase,
                          p->encryption.passphrase_len, diag);
    if (err)
        return err;
    *cipher = luks->cipher;
    luks->cipher = NULL;
    luks_close(luks);
    return 0;
}

int qcow2_make_key(const struct qcow2_params *p, struct storage *file, uint64_t off,
                   struct cipher **cipher, struct diag *diag)
{
    const struct qcow2_encryption *e = &p->encryption;

    if (e->method == CRYPT_LUKS)
        return make_luks(p, file, off, cipher, diag);
    return e->method == CRYPT_AES
               ? qcow_aes_new(cipher, e->passphrase, e->passphrase_len, diag)
               : 0;
}
