/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of ciphers, modes and generators of initial vectors, and their key sizes. */
#include <string.h>

#include "crypto/cipher.h"

static const char *const algs[] = {"aes-128", "aes-192", "aes-256"};
static const char *const modes[] = {"xts", "cbc"};
static const char *const ivgens[] = {"plain", "plain64", "essiv"};

/* The index of the word, or n. */
static unsigned index_of_word(const char *word, const char *const *words, unsigned n)
{
    unsigned i = 0;

    while (i < n && strcmp(word, words[i]) != 0)
        i++;
    return i;
}

const char *cipher_alg_name(enum cipher_alg alg)
{
    return algs[alg];
}

const char *cipher_mode_name(enum cipher_mode mode)
{
    return modes[mode];
}

const char *cipher_ivgen_name(enum cipher_ivgen ivgen)
{
    return ivgens[ivgen];
}

bool cipher_alg_by_name(const char *name, enum cipher_alg *alg)
{
    *alg = index_of_word(name, algs, ARRAY_LEN(algs));
    return *alg < ARRAY_LEN(algs);
}

bool cipher_mode_by_name(const char *name, enum cipher_mode *mode)
{
    *mode = index_of_word(name, modes, ARRAY_LEN(modes));
    return *mode < ARRAY_LEN(modes);
}

bool cipher_ivgen_by_name(const char *name, enum cipher_ivgen *ivgen)
{
    *ivgen = index_of_word(name, ivgens, ARRAY_LEN(ivgens));
    return *ivgen < ARRAY_LEN(ivgens);
}

size_t cipher_key_bytes(const struct cipher_spec *spec)
{
    size_t n = 16 + 8 * (size_t)spec->alg;

    return spec->mode == CIPHER_XTS ? 2 * n : n;
}

bool cipher_essiv_hash_fits(enum hash_alg hash)
{
    size_t n = hash_bytes(hash);

    return n == 16 || n == 24 || n == 32;
}
