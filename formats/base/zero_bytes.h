/* SPDX-License-Identifier: BSD-3-Clause */
/* Are bytes all zero?  Layer: base. */
#ifndef BASE_ZERO_BYTES_H
#define BASE_ZERO_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static inline bool bytes_are_zero(const void *buf, size_t len)
{
    /* If the first 16 bytes are zero, all are if the buffer equals itself shifted by 16. */
    const unsigned char *bytes = buf;
    size_t head = len < 16 ? len : 16;

    for (size_t i = 0; i < head; i++)
        if (bytes[i])
            return false;
    return memcmp(bytes, bytes + head, len - head) == 0;
}

#endif
