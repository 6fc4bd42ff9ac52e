/* SPDX-License-Identifier: BSD-3-Clause */
/* OpenSSL's libcrypto, loaded when the first key, hash or random byte is needed.
 *
 * Loading it takes half as long as everything else that a command does which only describes an
 * image, and most images never need it.  Private to this folder; the library is never unloaded.
 *
 * Threads: any.  The functions may be called once openssl_load has succeeded; code that has an
 * object of the library (a hash, a cipher) can rely on that.  Layer: crypto. */
#ifndef CRYPTO_OPENSSL_H
#define CRYPTO_OPENSSL_H

#include <stddef.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "base/compiler.h"

/* The functions that we call. */
#define OPENSSL_FUNCTIONS(F)      \
    F(CRYPTO_memcmp)              \
    F(EVP_CIPHER_CTX_free)        \
    F(EVP_CIPHER_CTX_new)         \
    F(EVP_CIPHER_CTX_set_padding) \
    F(EVP_CIPHER_fetch)           \
    F(EVP_CIPHER_free)            \
    F(EVP_CipherInit_ex2)         \
    F(EVP_CipherUpdate)           \
    F(EVP_DigestFinal_ex)         \
    F(EVP_DigestInit_ex2)         \
    F(EVP_DigestUpdate)           \
    F(EVP_MD_CTX_free)            \
    F(EVP_MD_CTX_new)             \
    F(EVP_MD_fetch)               \
    F(EVP_MD_free)                \
    F(OpenSSL_version)            \
    F(PKCS5_PBKDF2_HMAC)          \
    F(RAND_bytes)                 \
    F(RAND_priv_bytes)

/* openssl.EVP_MD_fetch is EVP_MD_fetch, and so on, with the types of the library's own header. */
struct openssl {
#define OPENSSL_MEMBER(name) __typeof__(name) *name;
    OPENSSL_FUNCTIONS(OPENSSL_MEMBER)
#undef OPENSSL_MEMBER
};
extern struct openssl openssl;

/* Loads the library; does nothing when called again.  Returns 0, or -ENOPKG: it isn't
 * installed, which was logged. */
int openssl_load(void) MUST_USE;

/* NULL: the library isn't installed, or doesn't have it. */
EVP_MD *openssl_hash(const char *name) MUST_USE;
EVP_CIPHER *openssl_cipher(const char *name) MUST_USE;

/* Fill n bytes, at most INT_MAX, with random data: for public values, or for secrets.  Return
 * 0, -ENOPKG or -EIO. */
int openssl_random(void *buf, size_t n) MUST_USE;
int openssl_secret_random(void *buf, size_t n) MUST_USE;

#endif
