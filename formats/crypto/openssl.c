/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads OpenSSL's libcrypto. */
#include "crypto/openssl.h"

#include <errno.h>
#include <pthread.h>

#include "base/library.h"
#include "base/log.h"
#include "crypto/hash.h"

/* The name with the version of its binary interface. */
#define FILE_NAME "libcrypto.so.3"

struct openssl openssl;

static const struct library_function functions[] = {
#define OPENSSL_ROW(name) {#name, offsetof(struct openssl, name)},
    OPENSSL_FUNCTIONS(OPENSSL_ROW)
#undef OPENSSL_ROW
};

static const char *why; /* why it could not be loaded; NULL: it was */

static void load_library(void)
{
    why = library_load(FILE_NAME, functions, ARRAY_LEN(functions), &openssl);
    if (why)
        log_warning("encryption needs OpenSSL's libcrypto: %s", why);
}

int openssl_load(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, load_library);
    return why ? -ENOPKG : 0;
}

EVP_MD *openssl_hash(const char *name)
{
    return openssl_load() == 0 ? openssl.EVP_MD_fetch(NULL, name, NULL) : NULL;
}

EVP_CIPHER *openssl_cipher(const char *name)
{
    return openssl_load() == 0 ? openssl.EVP_CIPHER_fetch(NULL, name, NULL) : NULL;
}

int openssl_random(void *buf, size_t n)
{
    int err = openssl_load();

    if (err)
        return err;
    return openssl.RAND_bytes(buf, (int)n) == 1 ? 0 : -EIO;
}

int openssl_secret_random(void *buf, size_t n)
{
    int err = openssl_load();

    if (err)
        return err;
    return openssl.RAND_priv_bytes(buf, (int)n) == 1 ? 0 : -EIO;
}

void crypto_tell_libraries(library_sink *sink, void *opaque)
{
    sink(opaque, "openssl",
         openssl_load() == 0 ? openssl.OpenSSL_version(OPENSSL_VERSION_STRING) : NULL);
}
