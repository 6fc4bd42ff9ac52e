/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of codecs, and the checks that are common to them. */
#include "codec/codec.h"

#include <errno.h>
#include <limits.h>

#include "codec/internal.h"

const struct codec *codec_find(enum codec_id id)
{
    return id == CODEC_ZSTD ? &codec_zstd : &codec_deflate;
}

const char *codec_name(const struct codec *codec)
{
    return codec->name;
}

int codec_decompress(const struct codec *codec, void *dst, size_t dst_len, const void *src,
                     size_t src_len)
{
    if (dst_len == 0 || dst_len > INT_MAX || src_len == 0 || src_len > INT_MAX)
        return -EIO;
    return codec->decompress(dst, dst_len, src, src_len);
}

size_t codec_compress(const struct codec *codec, void *dst, size_t dst_cap, const void *src,
                      size_t len)
{
    if (len <= 1 || len > INT_MAX || dst_cap == 0)
        return 0;
    return codec->compress(dst, MIN(dst_cap, len - 1), src, len);
}
