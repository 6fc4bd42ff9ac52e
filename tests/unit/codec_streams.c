/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests streams that our encoders never make.  Each is decompressed by our codec and by the
 * libraries as QEMU calls them; both must agree. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

#include "codec/codec.h"
#include "rng.h"

#define CLUSTER 16384u

static uint8_t data[2 * CLUSTER], ours[CLUSTER], theirs[CLUSTER], stream[3 * CLUSTER];

static void fill_data(void)
{
    struct rng rng = {.state = 7};

    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)('a' + rng_below(&rng, 11));
}

/* ---- how QEMU reads ---- */

static int qemu_inflate(const uint8_t *src, size_t n)
{
    z_stream z = {.next_in = (uint8_t *)src,
                  .avail_in = (unsigned)n,
                  .next_out = theirs,
                  .avail_out = CLUSTER};

    cr_assert_eq(inflateInit2(&z, -12), Z_OK);
    int end = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return (end == Z_STREAM_END || end == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

static int qemu_zstd(const uint8_t *src, size_t n)
{
    ZSTD_inBuffer in = {src, n, 0};
    ZSTD_outBuffer out = {theirs, CLUSTER, 0};
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    size_t left = 0;

    while (out.pos < out.size) {
        size_t before = in.pos + out.pos;
        left = ZSTD_decompressStream(ctx, &out, &in);
        if (ZSTD_isError(left) || in.pos + out.pos == before) {
            left = 1;
            break;
        }
    }
    ZSTD_freeDCtx(ctx);
    return left > 0 ? -EIO : 0;
}

/* Our codec and QEMU's way must both return `wanted`. */
static void expect(enum codec_id id, size_t n, int wanted, const char *what)
{
    uint8_t *exact = malloc(n ? n : 1); /* exactly n, so that ASan sees an overrun */

    memcpy(exact, stream, n);
    int err = codec_decompress(codec_find(id), ours, CLUSTER, exact, n);
    int qemu = id == CODEC_DEFLATE ? qemu_inflate(exact, n) : qemu_zstd(exact, n);
    cr_expect_eq(qemu, wanted, "%s: QEMU: %d", what, qemu);
    cr_expect_eq(err, wanted, "%s: %d", what, err);
    if (wanted == 0) {
        cr_expect_arr_eq(theirs, data, CLUSTER, "%s: QEMU", what);
        cr_expect_arr_eq(ours, data, CLUSTER, "%s", what);
    }
    free(exact);
}

/* ---- deflate ---- */

/* Makes a stream of n bytes and a flush of that kind; then, if `whole`, `rest` more bytes and the
 * end of the stream. */
static size_t make_deflate(size_t n, size_t rest, int flush, bool whole)
{
    z_stream z = {.next_in = data,
                  .avail_in = (unsigned)n,
                  .next_out = stream,
                  .avail_out = sizeof stream};

    cr_assert_eq(deflateInit2(&z, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    cr_assert_eq(deflate(&z, flush), flush == Z_FINISH ? Z_STREAM_END : Z_OK);
    if (whole) {
        z.avail_in = (unsigned)rest;
        cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    }
    deflateEnd(&z);
    return z.total_out;
}

Test(codec_streams, deflate_that_goes_on_behind_the_cluster, .init = fill_data)
{
    expect(CODEC_DEFLATE, make_deflate(2 * CLUSTER, 0, Z_FINISH, false), 0, "one block");
    expect(CODEC_DEFLATE, make_deflate(CLUSTER, CLUSTER, Z_SYNC_FLUSH, true), 0,
           "two blocks");
    expect(CODEC_DEFLATE, make_deflate(CLUSTER, 1, Z_FULL_FLUSH, true), 0, "one byte more");
}

Test(codec_streams, deflate_without_an_end, .init = fill_data)
{
    expect(CODEC_DEFLATE, make_deflate(CLUSTER, 0, Z_SYNC_FLUSH, false), 0, "flushed");
    size_t n = make_deflate(CLUSTER, 0, Z_FINISH, false);
    expect(CODEC_DEFLATE, n, 0, "whole");
    expect(CODEC_DEFLATE, n - 5, -EIO, "cut off before the cluster is full");
    n = make_deflate(CLUSTER - 1, 0, Z_FINISH, false);
    expect(CODEC_DEFLATE, n, -EIO, "a byte too few");
    n = make_deflate(CLUSTER - 1, 0, Z_SYNC_FLUSH, false);
    expect(CODEC_DEFLATE, n, -EIO, "a byte too few, and no end");
    expect(CODEC_DEFLATE, 0, -EIO, "nothing");
}

Test(codec_streams, deflate_with_damage_behind_the_cluster, .init = fill_data)
{
    size_t n = make_deflate(CLUSTER, CLUSTER, Z_SYNC_FLUSH, true);

    memset(stream + n - 1000, 0xff, 1000);
    expect(CODEC_DEFLATE, n, 0, "damage that isn't reached");
    n = make_deflate(CLUSTER, 0, Z_SYNC_FLUSH, false);
    stream[n] = 0x07; /* a final block of a type that doesn't exist */
    expect(CODEC_DEFLATE, n + 1, -EIO, "damage that is seen though nothing comes of it");
    n = make_deflate(CLUSTER, CLUSTER, Z_SYNC_FLUSH, true);
    stream[0] = 0x07;
    expect(CODEC_DEFLATE, n, -EIO, "damage in the cluster");
}

/* libdeflate and writers other than QEMU use windows of 32 KiB, which must be readable. */
Test(codec_streams, deflate_with_a_large_window, .init = fill_data)
{
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(9);
    struct rng rng = {.state = 3};

    for (size_t i = 0; i < CLUSTER; i++)
        data[i] = i < CLUSTER / 2 ? (uint8_t)rng_next(&rng) : data[i - CLUSTER / 2];
    size_t n = libdeflate_deflate_compress(c, data, CLUSTER, stream, sizeof stream);
    cr_assert(n > 0 && n < CLUSTER * 3 / 4, "%zu bytes: matches reach back 8 KiB", n);
    expect(CODEC_DEFLATE, n, 0, "a window of 8 KiB");
    libdeflate_free_compressor(c);
}

/* Our streams must be readable with a window of 4 KiB, also by programs that inflate in pieces. */
Test(codec_streams, deflate_is_written_with_a_small_window, .init = fill_data)
{
    struct rng rng = {.state = 3};
    uint8_t piece[64];

    for (size_t i = 0; i < CLUSTER; i++)
        data[i] = i < CLUSTER / 4 ? (uint8_t)rng_next(&rng) : data[i - CLUSTER / 4];
    data[CLUSTER - 1] ^= 1;
    memset(data + CLUSTER / 2, 0, 1000);
    const struct codec *codec = codec_find(CODEC_DEFLATE);
    size_t n = codec_compress(codec, stream, CLUSTER, data, CLUSTER), got = 0;
    z_stream z = {.next_in = stream, .avail_in = (unsigned)n};
    cr_assert_gt(n, 0);
    cr_assert_eq(inflateInit2(&z, -12), Z_OK);
    for (int end = Z_OK; end != Z_STREAM_END;) {
        z.next_out = piece;
        z.avail_out = sizeof piece;
        end = inflate(&z, Z_NO_FLUSH);
        cr_assert(end == Z_OK || end == Z_STREAM_END, "%d at %zu: %s", end, got,
                  z.msg ? z.msg : "");
        cr_assert_arr_eq(piece, data + got, sizeof piece - z.avail_out);
        got += sizeof piece - z.avail_out;
    }
    cr_expect_eq(got, CLUSTER);
    inflateEnd(&z);
}

Test(codec_streams, deflate_stored_and_static_blocks, .init = fill_data)
{
    z_stream z = {.next_in = data,
                  .avail_in = CLUSTER,
                  .next_out = stream,
                  .avail_out = sizeof stream};

    cr_assert_eq(deflateInit2(&z, 0, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    expect(CODEC_DEFLATE, z.total_out, 0, "stored");
    deflateEnd(&z);
    z = (z_stream){.next_in = data,
                   .avail_in = CLUSTER,
                   .next_out = stream,
                   .avail_out = sizeof stream};
    cr_assert_eq(deflateInit2(&z, 6, Z_DEFLATED, -12, 9, Z_FIXED), Z_OK);
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    expect(CODEC_DEFLATE, z.total_out, 0, "static codes");
    deflateEnd(&z);
}

/* ---- zstd ---- */

static size_t add_frame(size_t at, size_t from, size_t n, bool checksum, bool with_size)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();

    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, checksum);
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, with_size);
    size_t len = ZSTD_compress2(c, stream + at, sizeof stream - at, data + from, n);
    cr_assert_not(ZSTD_isError(len));
    ZSTD_freeCCtx(c);
    return at + len;
}

static size_t add_skippable(size_t at)
{
    memcpy(stream + at, "\x53\x2a\x4d\x18\x05\0\0\0hello", 13);
    return at + 13;
}

Test(codec_streams, zstd_frames, .init = fill_data)
{
    expect(CODEC_ZSTD, add_frame(0, 0, CLUSTER, false, true), 0, "one");
    expect(CODEC_ZSTD, add_frame(0, 0, CLUSTER, true, true), 0, "with a checksum");
    expect(CODEC_ZSTD, add_frame(0, 0, CLUSTER, false, false), 0, "without a size");
    size_t n = add_frame(0, 0, 1000, true, true);
    n = add_frame(n, 1000, 0, false, true);
    n = add_skippable(n);
    expect(CODEC_ZSTD, add_frame(n, 1000, CLUSTER - 1000, true, false), 0, "four");
    expect(CODEC_ZSTD, add_frame(n, 1000, CLUSTER - 1001, true, true), -EIO, "too little");
    expect(CODEC_ZSTD, add_frame(n, 1000, CLUSTER - 999, true, true), -EIO, "too much");
    expect(CODEC_ZSTD, add_frame(n, 1000, CLUSTER - 999, true, false), -EIO,
           "too much, without a size");
}

Test(codec_streams, zstd_frames_that_end_early, .init = fill_data)
{
    size_t n = add_frame(0, 0, CLUSTER, true, true);

    for (size_t cut = 1; cut < 12; cut++)
        expect(CODEC_ZSTD, n - cut, -EIO, "cut off");
    expect(CODEC_ZSTD, 0, -EIO, "nothing");
    stream[n - 1] ^= 1;
    expect(CODEC_ZSTD, n, -EIO, "another checksum");
    expect(CODEC_ZSTD, add_skippable(0), -EIO, "nothing to be read");
}

/* A stream that claims a window of 128 MiB must not make us allocate it. */
Test(codec_streams, zstd_with_a_huge_window, .init = fill_data)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_inBuffer in = {data, CLUSTER, 0};
    ZSTD_outBuffer out = {stream, sizeof stream, 0};

    ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, 27);
    while (in.pos < in.size)
        cr_assert_not(ZSTD_isError(ZSTD_compressStream2(c, &out, &in, ZSTD_e_continue)));
    while (ZSTD_compressStream2(c, &out, &in, ZSTD_e_end) > 0)
        ;
    expect(CODEC_ZSTD, out.pos, 0, "a window of 128 MiB");
    ZSTD_freeCCtx(c);
}
