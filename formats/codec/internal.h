/* SPDX-License-Identifier: BSD-3-Clause */
/* A codec's operations; private to this folder.  Layer: codec. */
#ifndef CODEC_INTERNAL_H
#define CODEC_INTERNAL_H

#include <stddef.h>

/* codec.c ensures that lengths are 1 to INT_MAX, and dst_cap is less than len. */
struct codec {
    const char *name;
    int (*decompress)(void *dst, size_t dst_len, const void *src, size_t src_len);
    size_t (*compress)(void *dst, size_t dst_cap, const void *src, size_t len);
};

extern const struct codec codec_deflate, codec_zstd;

#endif
