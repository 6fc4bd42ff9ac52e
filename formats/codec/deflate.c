/* SPDX-License-Identifier: BSD-3-Clause */
/* Raw deflate streams.
 *
 * libdeflate decompresses them two to three times as fast as zlib, but only complete streams
 * with exactly the expected number of bytes.  QEMU lets zlib fill a cluster and accepts the
 * cluster when it is full, whatever follows: the stream may continue, be truncated or be
 * damaged after that point.  So what libdeflate rejects is tried again with zlib.
 *
 * libdeflate can't compress with a small window, so zlib does that. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include <libdeflate.h>
#include <zlib.h>

#include "base/compiler.h"
#include "base/spares.h"
#include "codec/codec.h"
#include "codec/internal.h"

#define RAW_4K_WINDOW (-12) /* windowBits of zlib: negative means no header */
#define MEMORY_LEVEL  9     /* the maximum, which QEMU uses */

static struct spares readers, patient_readers, writers;

/* ---- reading ---- */

static z_stream *new_patient_reader(void)
{
    z_stream *z = calloc(1, sizeof *z);

    if (z && inflateInit2(z, RAW_4K_WINDOW) != Z_OK) {
        free(z);
        return NULL;
    }
    return z;
}

static void free_patient_reader(z_stream *z)
{
    inflateEnd(z);
    free(z);
}

/* Decompresses as QEMU does. */
static int fill_with_zlib(void *dst, size_t dst_len, const void *src, size_t src_len)
{
    z_stream *z = spares_take(&patient_readers);

    if (!z)
        z = new_patient_reader();
    if (!z)
        return -ENOMEM;
    z->next_in = (Bytef *)src;
    z->avail_in = (uInt)src_len;
    z->next_out = dst;
    z->avail_out = (uInt)dst_len;
    int end = inflate(z, Z_FINISH);
    bool full = z->avail_out == 0;
    if (inflateReset(z) != Z_OK || !spares_leave(&patient_readers, z))
        free_patient_reader(z);
    if (end == Z_MEM_ERROR)
        return -ENOMEM;
    return (end == Z_STREAM_END || end == Z_BUF_ERROR) && full ? 0 : -EIO;
}

static int decompress_deflate(void *dst, size_t dst_len, const void *src, size_t src_len)
{
    struct libdeflate_decompressor *reader = spares_take(&readers);

    if (!reader)
        reader = libdeflate_alloc_decompressor();
    if (!reader)
        return -ENOMEM;
    enum libdeflate_result result =
        libdeflate_deflate_decompress(reader, src, src_len, dst, dst_len, NULL);
    if (!spares_leave(&readers, reader))
        libdeflate_free_decompressor(reader);
    if (result == LIBDEFLATE_SUCCESS)
        return 0;
    if (result == LIBDEFLATE_SHORT_OUTPUT) /* a valid stream that is too short */
        return -EIO;
    return fill_with_zlib(dst, dst_len, src, src_len);
}

/* ---- writing ---- */

static z_stream *new_writer(void)
{
    z_stream *writer = calloc(1, sizeof *writer);

    if (writer && deflateInit2(writer, Z_DEFAULT_COMPRESSION, Z_DEFLATED, RAW_4K_WINDOW,
                               MEMORY_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK) {
        free(writer);
        return NULL;
    }
    return writer;
}

static void free_writer(z_stream *writer)
{
    deflateEnd(writer);
    free(writer);
}

static size_t compress_cluster(void *dst, size_t dst_cap, const void *src, size_t len)
{
    z_stream *writer = spares_take(&writers);

    if (!writer)
        writer = new_writer();
    if (!writer)
        return 0;
    writer->next_in = (Bytef *)src;
    writer->avail_in = (uInt)len;
    writer->next_out = dst;
    writer->avail_out = (uInt)dst_cap;
    int end = deflate(writer, Z_FINISH);
    size_t written = dst_cap - writer->avail_out;
    if (deflateReset(writer) != Z_OK || !spares_leave(&writers, writer))
        free_writer(writer);
    return end == Z_STREAM_END ? written : 0;
}

const struct codec codec_deflate = {
    .name = "deflate",
    .decompress = decompress_deflate,
    .compress = compress_cluster,
};

/* The plugin may be unloaded before its process ends. */
__attribute__((destructor)) static void free_spares(void)
{
    void *object;

    while ((object = spares_take(&readers)))
        libdeflate_free_decompressor(object);
    while ((object = spares_take(&patient_readers)))
        free_patient_reader(object);
    while ((object = spares_take(&writers)))
        free_writer(object);
}
