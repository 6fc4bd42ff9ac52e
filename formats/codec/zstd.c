/* SPDX-License-Identifier: BSD-3-Clause */
/* zstd frames.
 *
 * QEMU decompresses them with the library's stream interface, until the cluster is full and the
 * last frame has ended.  That interface would allocate as much as a frame's header asks for,
 * 128 MiB and more.  Here the end of each frame is found first, and then the frame is
 * decompressed in one call, directly into the cluster, with the same result. */
#include <errno.h>
#include <stdint.h>

#include <zstd.h>

#include "base/spares.h"
#include "codec/codec.h"
#include "codec/internal.h"

static struct spares readers, writers;

static int read_frames(ZSTD_DCtx *reader, uint8_t *dst, size_t dst_len, const uint8_t *src,
                       size_t src_len)
{
    while (dst_len > 0) {
        size_t frame = ZSTD_findFrameCompressedSize(src, src_len);
        if (ZSTD_isError(frame))
            return -EIO;
        size_t n = ZSTD_decompressDCtx(reader, dst, dst_len, src, frame);
        if (ZSTD_isError(n))
            return -EIO;
        dst += n;
        dst_len -= n;
        src += frame;
        src_len -= frame;
    }
    return 0;
}

static int decompress_zstd(void *dst, size_t dst_len, const void *src, size_t src_len)
{
    ZSTD_DCtx *reader = spares_take(&readers);

    if (!reader)
        reader = ZSTD_createDCtx();
    if (!reader)
        return -ENOMEM;
    int err = read_frames(reader, dst, dst_len, src, src_len);
    if (!spares_leave(&readers, reader))
        ZSTD_freeDCtx(reader);
    return err;
}

static size_t compress_cluster(void *dst, size_t dst_cap, const void *src, size_t len)
{
    ZSTD_CCtx *writer = spares_take(&writers);

    if (!writer)
        writer = ZSTD_createCCtx();
    if (!writer)
        return 0;
    size_t n = ZSTD_compress2(writer, dst, dst_cap, src, len); /* at the default level */
    /* After an error it may be in the middle of a frame. */
    if (ZSTD_isError(ZSTD_CCtx_reset(writer, ZSTD_reset_session_only)) ||
        !spares_leave(&writers, writer))
        ZSTD_freeCCtx(writer);
    return ZSTD_isError(n) ? 0 : n;
}

const struct codec codec_zstd = {
    .name = "zstd",
    .decompress = decompress_zstd,
    .compress = compress_cluster,
};

/* The plugin may be unloaded before its process ends. */
__attribute__((destructor)) static void free_spares(void)
{
    void *object;

    while ((object = spares_take(&readers)))
        ZSTD_freeDCtx(object);
    while ((object = spares_take(&writers)))
        ZSTD_freeCCtx(object);
}
