/* SPDX-License-Identifier: BSD-3-Clause */
/* Mutates images so that they stay recognisable; see mutate.h. */
#include "mutate.h"

#include <stddef.h>
#include <string.h>

#include "image_input.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static bool is_inside(struct place place, uint64_t n)
{
    return place.off < n && place.bytes <= n - place.off;
}

uint64_t mutate_get(const uint8_t *image, uint64_t n, struct place place, bool big_endian)
{
    uint64_t value = 0;

    if (!is_inside(place, n))
        return 0;
    for (unsigned i = 0; i < place.bytes; i++)
        value = value << 8 | image[place.off + (big_endian ? i : place.bytes - 1 - i)];
    return value;
}

static void put(uint8_t *image, struct place place, bool big_endian, uint64_t value)
{
    for (unsigned i = 0; i < place.bytes; i++, value >>= 8)
        image[place.off + (big_endian ? place.bytes - 1 - i : i)] = (uint8_t)value;
}

/* ---- values ---- */

static uint64_t odd_value(struct rng *rng)
{
    static const uint64_t values[] = {0,
                                      1,
                                      2,
                                      UINT64_MAX,
                                      INT64_MAX,
                                      UINT64_C(1) << 63,
                                      UINT32_MAX,
                                      INT32_MAX,
                                      0xffff,
                                      1 << 20,
                                      1 << 21,
                                      UINT64_C(1) << 56,
                                      0xfffffffffffffe00,
                                      0x00fffffffffffe00,
                                      UINT64_C(1) << 62,
                                      65537};

    return values[rng_below(rng, ARRAY_LEN(values))];
}

/* The offset of a random cluster of the file, or of the first one behind it. */
static uint64_t some_cluster(const struct layout *layout, uint64_t n, struct rng *rng)
{
    return rng_below(rng, n / layout->cluster + 2) * layout->cluster;
}

static uint64_t new_value(const struct layout *layout, const uint8_t *image, uint64_t n,
                          uint64_t old, struct rng *rng)
{
    switch (rng_below(rng, 8)) {
    case 0:
        return old ^ UINT64_C(1) << rng_below(rng, 64);
    case 1:
        return odd_value(rng);
    case 2:
        return old + rng_between(rng, 0, 16) - 8;
    case 3:
        return old + (rng_one_in(rng, 2) ? layout->cluster : 0 - layout->cluster);
    case 4:
        return old ^ layout->flags[rng_below(rng, ARRAY_LEN(layout->flags))];
    case 5:
        return mutate_get(image, n, layout->pick(image, n, layout->cluster, rng),
                          layout->big_endian);
    default:
        return some_cluster(layout, n, rng) |
               layout->flags[rng_below(rng, ARRAY_LEN(layout->flags))];
    }
}

static void mutate_word(const struct layout *layout, uint8_t *image, uint64_t n,
                        struct rng *rng)
{
    struct place place = layout->pick(image, n, layout->cluster, rng);

    if (!is_inside(place, n))
        place = (struct place){rng_below(rng, n / 8) * 8, 8};
    uint64_t old = mutate_get(image, n, place, layout->big_endian);
    put(image, place, layout->big_endian, new_value(layout, image, n, old, rng));
}

/* ---- the image's size and clusters ---- */

static void copy_cluster(const struct layout *layout, uint8_t *image, uint64_t n,
                         struct rng *rng)
{
    uint64_t from = some_cluster(layout, n, rng), to = some_cluster(layout, n, rng);

    if (from < n && to < n)
        memmove(image + to, image + from, MIN(layout->cluster, n - MAX(from, to)));
}

static uint64_t resize(const struct layout *layout, uint8_t *image, uint64_t n,
                       uint64_t max, struct rng *rng)
{
    uint64_t size = some_cluster(layout, n, rng);

    if (rng_one_in(rng, 2))
        size = n + layout->cluster;
    if (size < layout->cluster || size > max)
        return n;
    if (size > n)
        memset(image + n, 0, size - n);
    return size;
}

static uint64_t mutate_image(const struct layout *layout, uint8_t *image, uint64_t n,
                             uint64_t max, struct rng *rng)
{
    if (rng_one_in(rng, 16))
        return resize(layout, image, n, max, rng);
    if (rng_one_in(rng, 16))
        copy_cluster(layout, image, n, rng);
    for (uint64_t i = rng_between(rng, 1, 4); i > 0; i--)
        mutate_word(layout, image, n, rng);
    return n;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    struct rng rng;
    struct layout layout;
    uint8_t *image = data + PROGRAM_BYTES;

    rng_init(&rng, seed);
    if (size < PROGRAM_BYTES + 512 || rng_one_in(&rng, 16))
        return LLVMFuzzerMutate(data, size, max_size);
    size_t n = size - PROGRAM_BYTES, max = max_size - PROGRAM_BYTES;
    if (rng_one_in(&rng, 4))
        LLVMFuzzerMutate(data, PROGRAM_BYTES, PROGRAM_BYTES);
    else if (mutate_qcow2_layout(image, n, &layout) || mutate_qed_layout(image, n, &layout))
        n = mutate_image(&layout, image, n, max, &rng);
    else
        n = LLVMFuzzerMutate(image, n, max);
    return PROGRAM_BYTES + n;
}
