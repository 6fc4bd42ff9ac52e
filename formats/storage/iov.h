/* SPDX-License-Identifier: BSD-3-Clause */
/* Lengths and contents of scattered buffers.  Layer: storage. */
#ifndef STORAGE_IOV_H
#define STORAGE_IOV_H

#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "base/compiler.h"

/* The caller knows that the sum doesn't overflow. */
static inline uint64_t iov_length(const struct iovec *iov, int count)
{
    uint64_t len = 0;

    for (int i = 0; i < count; i++)
        len += iov[i].iov_len;
    return len;
}

/* A read position in a vector, which isn't modified. */
struct iov_cursor {
    const struct iovec *iov;
    uint64_t skip; /* bytes of iov[0] */
};

/* Copies the next len bytes and advances the cursor.  The vector must have that many. */
static inline void iov_gather(struct iov_cursor *at, char *to, uint64_t len)
{
    while (len > 0) {
        uint64_t n = MIN(len, at->iov->iov_len - at->skip);
        memcpy(to, (const char *)at->iov->iov_base + at->skip, n);
        to += n;
        len -= n;
        at->skip += n;
        if (at->skip == at->iov->iov_len) {
            at->iov++;
            at->skip = 0;
        }
    }
}

#endif
