/* SPDX-License-Identifier: BSD-3-Clause */
/* Compression of single clusters.  It reads what QEMU reads; what it writes, QEMU reads.
 *
 * CODEC_DEFLATE: a raw deflate stream, without zlib's header.  It is written with a window of 4
 * KiB, because readers of such streams need not support more; it is read with any window.
 * CODEC_ZSTD: one zstd frame, with its content size.  Several frames in a row are read, too.
 *
 * The working memory of the libraries is kept for reuse (base/spares.h): only the first calls
 * allocate.  No allocation is sized by the input.  Threads: any, at once.  Layer: codec. */
#ifndef CODEC_CODEC_H
#define CODEC_CODEC_H

#include <stddef.h>

#include "base/compiler.h"
#include "base/library.h"

enum codec_id { CODEC_DEFLATE, CODEC_ZSTD };

struct codec;

/* Never NULL; static. */
const struct codec *codec_find(enum codec_id id);

/* "deflate" or "zstd", for messages.  Static. */
const char *codec_name(const struct codec *codec);

/* Decompresses exactly dst_len bytes (1 or more).  `src` may contain more after the end of the
 * stream, which is ignored; nothing after src_len is read.  `dst` and `src` must not overlap.
 *
 * Returns 0; -EIO if the data is damaged, truncated, or gives fewer than dst_len bytes; or
 * -ENOMEM.  After an error the content of `dst` is undefined.  A deflate stream that would give
 * more than dst_len bytes is decompressed up to there; a zstd frame that would is -EIO.  Both
 * are what QEMU does. */
int codec_decompress(const struct codec *codec, void *dst, size_t dst_len, const void *src,
                     size_t src_len) MUST_USE;

/* Compresses `len` bytes, with QEMU's level (6 for deflate, 3 for zstd).  Returns the length of
 * what was written to `dst`, at most dst_cap and less than len.  Returns 0 if it doesn't fit (or
 * only barely: the library may give up then), or when memory is short: then the content of `dst`
 * is undefined, and the data is to be stored uncompressed.  `dst` and `src` must not overlap. */
size_t codec_compress(const struct codec *codec, void *dst, size_t dst_cap, const void *src,
                      size_t len) MUST_USE;

void codec_tell_libraries(library_sink *sink, void *opaque);

#endif
