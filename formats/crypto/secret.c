/* SPDX-License-Identifier: BSD-3-Clause */
/* Pages for keys.  The size is stored in front of the bytes. */
#include "crypto/secret.h"

#include <string.h>
#include <sys/mman.h>

#define HEADER_BYTES 64u /* keeps the bytes aligned for any type */

/* mmap and munmap round up to whole pages. */
void *secret_alloc(size_t n)
{
    size_t size;

    if (__builtin_add_overflow(n, HEADER_BYTES, &size))
        return NULL;
    void *pages =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return NULL;
    /* Both may fail: the limit on locked memory may be small. */
    madvise(pages, size, MADV_DONTDUMP);
    (void)!mlock(pages, size);
    memcpy(pages, &size, sizeof size);
    return (char *)pages + HEADER_BYTES;
}

void secret_free(void *secret)
{
    if (!secret)
        return;
    void *pages = (char *)secret - HEADER_BYTES;
    size_t size;
    memcpy(&size, pages, sizeof size);
    secret_wipe(secret, size - HEADER_BYTES);
    munmap(pages, size);
}

void *secret_copy(const void *bytes, size_t n)
{
    void *secret = secret_alloc(n);

    if (secret && n > 0)
        memcpy(secret, bytes, n);
    return secret;
}

void secret_wipe(void *memory, size_t n)
{
    explicit_bzero(memory, n);
}
