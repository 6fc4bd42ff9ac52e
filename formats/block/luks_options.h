/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of a new LUKS container.  Each format has its own prefix for them, for example
 * "encrypt.cipher-alg".  Layer: block. */
#ifndef BLOCK_LUKS_OPTIONS_H
#define BLOCK_LUKS_OPTIONS_H

#include "base/compiler.h"
#include "base/diag.h"
#include "block/create.h"
#include "crypto/luks.h"

/* Entries for a format's table of options. */
#define LUKS_CREATE_OPTIONS(prefix)                                                        \
    {prefix "key-secret", CREATE_TEXT, .help = "Id of the secret with the passphrase",     \
     .in_request = true},                                                                  \
        {prefix "cipher-alg", CREATE_TEXT, .help = "Cipher: aes-128, aes-192 or aes-256"}, \
        {prefix "cipher-mode", CREATE_TEXT, .help = "Mode of the cipher: xts or cbc"},     \
        {prefix "ivgen-alg", CREATE_TEXT,                                                  \
         .help = "Initial vectors: plain, plain64 or essiv"},                              \
        {prefix "ivgen-hash-alg", CREATE_TEXT, .help = "Hash for essiv"},                  \
        {prefix "hash-alg", CREATE_TEXT, .help = "Hash that makes keys from passphrases"}, \
    {                                                                                      \
        prefix "iter-time", CREATE_NUMBER,                                                 \
            .help = "Milliseconds that trying a passphrase shall take"                     \
    }

/* Parses one option into params.  Returns 0; -EINVAL with a sentence that names file, option
 * and value; or -ENOENT without a sentence: it isn't an option of LUKS. */
int luks_option_take(struct luks_params *params, const char *filename, const char *prefix,
                     const struct create_option *o, struct diag *diag) MUST_USE;

/* To be called after all options were parsed: can this program and QEMU read such a container?
 * Doesn't depend on the key. */
int luks_options_judge(const struct luks_params *params, const char *filename,
                       const char *prefix, struct diag *diag) MUST_USE;

#endif
