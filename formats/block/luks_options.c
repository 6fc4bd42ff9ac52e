/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of a new LUKS container. */
#include "block/luks_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "crypto/cipher.h"
#include "crypto/hash.h"

/* Opening the image takes as long as this; and LUKS headers with more iterations than that are
 * rejected (luks_header.h). */
#define MAX_ITER_TIME_MS 30000

/* Parses an option's value.  Returns NULL, or a text that says which values are allowed. */
typedef const char *take_value(struct luks_params *params, const char *value);

static const char *take_cipher_alg(struct luks_params *params, const char *value)
{
    return cipher_alg_by_name(value, &params->spec.alg)
               ? NULL
               : "must be aes-128, aes-192 or aes-256";
}

static const char *take_cipher_mode(struct luks_params *params, const char *value)
{
    return cipher_mode_by_name(value, &params->spec.mode) ? NULL : "must be xts or cbc";
}

static const char *take_ivgen(struct luks_params *params, const char *value)
{
    return cipher_ivgen_by_name(value, &params->spec.ivgen)
               ? NULL
               : "must be plain, plain64 or essiv";
}

static const char *take_hash(const char *value, enum hash_alg *hash)
{
    if (!hash_by_name(value, hash))
        return "must be sha256, sha512, sha1, sha224, sha384, ripemd160 or md5";
    return hash_available(*hash) ? NULL
                                 : "the crypto library of this machine doesn't have it";
}

static const char *take_iv_hash(struct luks_params *params, const char *value)
{
    return take_hash(value, &params->spec.iv_hash);
}

static const char *take_key_hash(struct luks_params *params, const char *value)
{
    return take_hash(value, &params->hash);
}

static const char *take_iter_time(struct luks_params *params, const char *value)
{
    char *end;
    uint64_t ms = strtoull(value, &end, 10);

    if (*end || end == value || ms > MAX_ITER_TIME_MS)
        return "must be a number of milliseconds, at most 30000";
    params->iter_time_ms = (uint32_t)MAX(ms, 1);
    return NULL;
}

static const struct {
    const char *name;
    take_value *take;
} options[] = {
    {"cipher-alg", take_cipher_alg}, {"cipher-mode", take_cipher_mode},
    {"ivgen-alg", take_ivgen},       {"ivgen-hash-alg", take_iv_hash},
    {"hash-alg", take_key_hash},     {"iter-time", take_iter_time},
};

static take_value *find_taker(const char *key, const char *prefix)
{
    size_t n = strlen(prefix);

    if (strncmp(key, prefix, n) != 0)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(options); i++)
        if (strcmp(options[i].name, key + n) == 0)
            return options[i].take;
    return NULL;
}

int luks_option_take(struct luks_params *params, const char *filename, const char *prefix,
                     const struct create_option *o, struct diag *diag)
{
    take_value *take = find_taker(o->key, prefix);

    if (!take)
        return -ENOENT;
    const char *wanted = take(params, o->value);
    return wanted ? diag_set(diag, EINVAL, "%s: %s '%s': %s", filename, o->key, o->value,
                             wanted)
                  : 0;
}

int luks_options_judge(const struct luks_params *params, const char *filename,
                       const char *prefix, struct diag *diag)
{
    static const uint8_t key[CIPHER_MAX_KEY_BYTES] = {1};
    const struct cipher_spec *spec = &params->spec;
    CLEANUP_CIPHER struct cipher *cipher = NULL;
    struct diag why = {0};

    if (spec->ivgen == CIPHER_ESSIV && !cipher_essiv_hash_fits(spec->iv_hash))
        return diag_set(diag, EINVAL,
                        "%s: %sivgen-hash-alg '%s': essiv needs a hash with the size of a "
                        "key (sha256, md5)",
                        filename, prefix, hash_name(spec->iv_hash));
    if (cipher_key_bytes(spec) * LUKS_STRIPES % CIPHER_SECTOR)
        return diag_set(
            diag, EINVAL,
            "%s: %scipher-alg '%s': with cbc a key's material is no whole number "
            "of sectors, which QEMU can't read",
            filename, prefix, cipher_alg_name(spec->alg));
    int err = cipher_new(&cipher, spec, key, &why);
    return err ? diag_set(diag, -err, "%s: %scipher-alg: %s", filename, prefix, why.text)
               : 0;
}
