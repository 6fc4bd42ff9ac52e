/* SPDX-License-Identifier: BSD-3-Clause */
/* Compression of one cluster at a time.  What QEMU reads, this reads; what this writes,
 * QEMU reads.
 *
 * CODEC_DEFLATE: a raw deflate stream, without zlib's header.  It is written with a window
 * of 4 KiB, which is all that a reader of such streams may have; it is read with any window.
 * CODEC_ZSTD: one zstd frame, with its content size.  Several frames, one after the other,
 * are read too.
 *
 * The working memory of the libraries is kept and used again by whoever comes next
 * (base/spares.h): no call allocates, but for the first ones.  No memory is sized by the
 * input.  Threads: any, at once.  Layer: codec. */
#ifndef CODEC_CODEC_H
#define CODEC_CODEC_H

#include <stddef.h>

#include "base/compiler.h"
#include "base/library.h"

enum codec_id { CODEC_DEFLATE, CODEC_ZSTD };

struct codec;

/* Never NULL; it lives as long as the program. */
const struct codec *codec_find(enum codec_id id);

/* "deflate" or "zstd", for messages. */
const char *codec_name(const struct codec *codec);

/* Fills exactly the dst_len bytes (1 or more).  `src` may go on behind the end of the
 * stream, which nobody looks at; nothing behind src_len is read.  `dst` and `src` don't
 * overlap.
 *
 * 0; -EIO when the bytes are damaged, cut off, or give less than dst_len bytes; -ENOMEM.
 * After an error `dst` has anything in it.  A deflate stream that would give more than
 * dst_len bytes is read up to there, as QEMU does; a zstd frame that would is -EIO, as QEMU
 * has it. */
int codec_decompress(const struct codec *codec, void *dst, size_t dst_len, const void *src,
                     size_t src_len) MUST_USE;

#define CODEC_DEFAULT_LEVEL 0

/* How hard to try: CODEC_DEFAULT_LEVEL is what QEMU takes (6 for deflate, 3 for zstd).
 * Others go from 1 to this; what is out of range becomes the nearest. */
int codec_max_level(const struct codec *codec);

/* The length of what was written to `dst`, at most dst_cap and less than len.  0 when it
 * would be more than that, or so nearly as much that the library ends without it, or when
 * there is no memory: then `dst` has anything in it, and the data is to be stored as it is.
 * `dst` and `src` don't overlap. */
size_t codec_compress(const struct codec *codec, int level, void *dst, size_t dst_cap,
                      const void *src, size_t len) MUST_USE;

void codec_tell_libraries(library_sink *sink, void *opaque);

#endif
