/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the decompression of a cluster.  The target also decompresses it as QEMU does, with the
 * same library calls: whatever QEMU can read, our codec must read with the same result.
 *
 * The input: a byte for the codec, a byte for the cluster size, and the compressed bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>
#include <zstd.h>

#include "codec/codec.h"
#include "fuzz.h"

#define MAX_CLUSTER 65536u

static bool qemu_inflate(uint8_t *dst, size_t dst_len, const uint8_t *src, size_t n)
{
    z_stream z = {.next_in = (uint8_t *)src,
                  .avail_in = (unsigned)n,
                  .next_out = dst,
                  .avail_out = (unsigned)dst_len};

    if (inflateInit2(&z, -12) != Z_OK)
        return false;
    int end = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return (end == Z_STREAM_END || end == Z_BUF_ERROR) && z.avail_out == 0;
}

/* As QEMU does, except that large windows, which would make the fuzzer slow, are refused. */
static bool qemu_zstd(uint8_t *dst, size_t dst_len, const uint8_t *src, size_t n)
{
    ZSTD_inBuffer in = {src, n, 0};
    ZSTD_outBuffer out = {dst, dst_len, 0};
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    size_t left = 0;

    ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax, 20);
    while (out.pos < out.size && left != SIZE_MAX) {
        size_t before = in.pos + out.pos;
        left = ZSTD_decompressStream(ctx, &out, &in);
        if (ZSTD_isError(left) || in.pos + out.pos == before)
            left = SIZE_MAX;
    }
    ZSTD_freeDCtx(ctx);
    return left == 0;
}

/* The decompressed data must survive compression and decompression. */
static void check_back(const struct codec *codec, const uint8_t *data, size_t n)
{
    static uint8_t packed[MAX_CLUSTER], back[MAX_CLUSTER];
    size_t len = codec_compress(codec, packed, sizeof packed, data, n);

    fuzz_check(len < n, "%zu of %zu bytes", len, n);
    if (len == 0)
        return;
    fuzz_check(codec_decompress(codec, back, n, packed, len) == 0, "not read back");
    fuzz_check(memcmp(back, data, n) == 0, "read back otherwise");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t ours[MAX_CLUSTER], theirs[MAX_CLUSTER];

    if (size < 2)
        return 0;
    enum codec_id id = data[0] & 1 ? CODEC_ZSTD : CODEC_DEFLATE;
    const struct codec *codec = codec_find(id);
    size_t cluster = 512u << data[1] % 8, n = size - 2;
    uint8_t *src = malloc(n ? n : 1); /* exactly n, so that ASan sees a read past the end */

    if (!src)
        abort();
    memcpy(src, data + 2, n);
    int err = codec_decompress(codec, ours, cluster, src, n);
    fuzz_check(err == 0 || err == -EIO, "error %d", err);
    bool read = id == CODEC_ZSTD ? qemu_zstd(theirs, cluster, src, n)
                                 : qemu_inflate(theirs, cluster, src, n);
    free(src);
    fuzz_check(!read || err == 0, "QEMU reads it");
    fuzz_check(!read || memcmp(ours, theirs, cluster) == 0, "QEMU reads it otherwise");
    if (err == 0)
        check_back(codec, ours, cluster);
    return 0;
}
