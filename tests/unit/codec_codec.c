/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests each codec: compressing and decompressing clusters, and bytes before and after streams. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/thread.h"
#include "codec/codec.h"
#include "rng.h"

#define MAX_CLUSTER (2u << 20)

static const enum codec_id ids[] = {CODEC_DEFLATE, CODEC_ZSTD};

enum content { ZEROES, TEXT, HALF_NOISE, CONTENTS };

static void fill(uint8_t *data, size_t n, enum content content)
{
    struct rng rng = {.state = n + content};

    memset(data, 0, n);
    for (size_t i = 0; content != ZEROES && i < n; i++)
        if (content == TEXT)
            data[i] = (uint8_t)('a' + rng_below(&rng, 7));
        else if (i % 1024 < 512)
            data[i] = (uint8_t)rng_next(&rng);
}

/* A copy in memory of exactly n bytes, so that ASan sees a read past the end. */
static uint8_t *exact(const void *bytes, size_t n)
{
    uint8_t *copy = malloc(n);

    memcpy(copy, bytes, n);
    return copy;
}

static void round_trip(const struct codec *codec, size_t cluster, enum content content)
{
    uint8_t *data = malloc(cluster), *back = malloc(cluster), *packed = malloc(cluster);

    fill(data, cluster, content);
    size_t n = codec_compress(codec, packed, cluster, data, cluster);
    cr_assert(n > 0 && n < cluster, "%s: %zu of %zu", codec_name(codec), n, cluster);
    uint8_t *source = exact(packed, n);
    memset(back, 0xee, cluster);
    cr_expect_eq(codec_decompress(codec, back, cluster, source, n), 0);
    cr_expect_arr_eq(back, data, cluster);
    free(source);
    free(packed);
    free(back);
    free(data);
}

Test(codec_codec, round_trips)
{
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        for (size_t cluster = 512; cluster <= MAX_CLUSTER; cluster *= 8)
            for (enum content c = 0; c < CONTENTS; c++)
                round_trip(codec_find(ids[i]), cluster,
                           cluster < 1024 && c == HALF_NOISE ? TEXT : c);
}

Test(codec_codec, what_does_not_shrink_is_left_alone)
{
    static uint8_t noise[65536], packed[65536 + 4096];
    struct rng rng = {.state = 1};

    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)rng_next(&rng);
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        const struct codec *codec = codec_find(ids[i]);
        cr_expect_eq(codec_compress(codec, packed, sizeof packed, noise, sizeof noise), 0);
        cr_expect_eq(codec_compress(codec, packed, sizeof packed, noise, 1), 0);
        cr_expect_eq(codec_compress(codec, packed, 0, noise, 512), 0);
        round_trip(codec, 65536, TEXT); /* the failure leaves nothing behind */
    }
}

Test(codec_codec, never_more_than_there_is_room_for)
{
    static uint8_t data[65536];
    uint8_t packed[65536];

    fill(data, sizeof data, TEXT);
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        const struct codec *codec = codec_find(ids[i]);
        size_t n = codec_compress(codec, packed, sizeof packed, data, sizeof data);
        cr_assert_gt(n, 0);
        packed[n - 1] = 0xee;
        cr_expect_eq(codec_compress(codec, packed, n - 1, data, sizeof data), 0);
        cr_expect_eq(packed[n - 1], 0xee);
        cr_expect_eq(codec_compress(codec, packed, n + 64, data, sizeof data), n);
    }
}

Test(codec_codec, bytes_behind_the_stream_do_not_matter)
{
    static uint8_t data[65536], back[65536], packed[65536 + 512];

    fill(data, sizeof data, TEXT);
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        const struct codec *codec = codec_find(ids[i]);
        memset(packed, 0xa5, sizeof packed);
        size_t n = codec_compress(codec, packed, 65536, data, sizeof data);
        memset(packed + n, 0xa5, 511);
        for (size_t more = 0; more < 512; more += 73) {
            uint8_t *source = exact(packed, n + more);
            cr_expect_eq(codec_decompress(codec, back, sizeof back, source, n + more), 0);
            cr_expect_arr_eq(back, data, sizeof back);
            free(source);
        }
    }
}

/* A stream cut to any shorter length is refused. */
Test(codec_codec, cut_off)
{
    static uint8_t data[8192], back[8192], packed[8192];

    fill(data, sizeof data, HALF_NOISE);
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        const struct codec *codec = codec_find(ids[i]);
        size_t n = codec_compress(codec, packed, sizeof packed, data, sizeof data);
        for (size_t cut = 0; cut + 8 < n; cut += 7) {
            uint8_t *source = exact(packed, cut);
            cr_expect_eq(codec_decompress(codec, back, sizeof back, source, cut), -EIO,
                         "%s: %zu of %zu bytes", codec_name(codec), cut, n);
            free(source);
        }
    }
}

Test(codec_codec, too_short_a_cluster)
{
    static uint8_t data[4096], back[8192], packed[4096];

    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        const struct codec *codec = codec_find(ids[i]);
        size_t n = codec_compress(codec, packed, sizeof packed, data, sizeof data);
        cr_expect_eq(codec_decompress(codec, back, sizeof back, packed, n), -EIO);
        cr_expect_eq(codec_decompress(codec, back, sizeof data + 1, packed, n), -EIO);
        cr_expect_eq(codec_decompress(codec, back, sizeof data, packed, n), 0);
        cr_expect_eq(codec_decompress(codec, back, 0, packed, n), -EIO);
    }
}

/* ---- many threads ---- */

#define THREADS 8

static void *work(void *opaque)
{
    for (size_t i = 0; i < 24; i++)
        round_trip(codec_find(ids[i % 2]), 16384u << (i % 3),
                   (enum content)((i + (size_t)(uintptr_t)opaque) % CONTENTS));
    return NULL;
}

Test(codec_codec, threads)
{
    pthread_t threads[THREADS];

    for (uintptr_t i = 0; i < THREADS; i++)
        cr_assert_eq(thread_start(&threads[i], work, (void *)i), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}
