/* SPDX-License-Identifier: BSD-3-Clause */
/* Big- and little-endian loads and stores at any address.  Layer: base. */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define DEFINE_BYTES(order, bits)                                     \
    static inline uint##bits##_t load_##order##bits(const void *p)    \
    {                                                                 \
        uint##bits##_t v;                                             \
        memcpy(&v, p, sizeof v);                                      \
        return order##bits##toh(v);                                   \
    }                                                                 \
    static inline void store_##order##bits(void *p, uint##bits##_t v) \
    {                                                                 \
        v = hto##order##bits(v);                                      \
        memcpy(p, &v, sizeof v);                                      \
    }

DEFINE_BYTES(be, 16)
DEFINE_BYTES(be, 32)
DEFINE_BYTES(be, 64)
DEFINE_BYTES(le, 16)
DEFINE_BYTES(le, 32)
DEFINE_BYTES(le, 64)

#undef DEFINE_BYTES

#endif
