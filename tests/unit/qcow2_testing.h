/* SPDX-License-Identifier: BSD-3-Clause */
/* Helpers for tests of the qcow2 driver: images in memory, and access to fields in their files. */
#ifndef QCOW2_TESTING_H
#define QCOW2_TESTING_H

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "image.h"
#include "mem_storage.h"
#include "qcow2/header.h"
#include "qcow2/qcow2.h"
#include "qcow2/qcow2_format.h"

#define FIELD(name) offsetof(struct qcow2_disk_header, name)

/* All messages logged since the image was made. */
static char logged[8192];

static inline void log_to_buffer(enum log_level level, const char *fmt, va_list ap)
{
    size_t n = strlen(logged);

    if (level != LOG_DEBUG)
        vsnprintf(logged + n, sizeof logged - n, fmt, ap);
}

static inline void make(struct image *img, const struct image_spec *spec)
{
    static const struct driver *const drivers[] = {&qcow2_driver, NULL};
    struct image_spec copy = *spec;

    drivers_set(drivers);
    log_set_sink(log_to_buffer);
    logged[0] = 0;
    copy.format = "qcow2";
    image_make(img, &copy, 1);
}

/* ---- bytes ---- */

static inline uint32_t get32(struct image *img, uint64_t off)
{
    uint8_t raw[4];

    cr_assert_eq(storage_read(img->mem, raw, off, 4), 0);
    return load_be32(raw);
}

static inline uint64_t get64(struct image *img, uint64_t off)
{
    uint8_t raw[8];

    cr_assert_eq(storage_read(img->mem, raw, off, 8), 0);
    return load_be64(raw);
}

static inline void put32(struct image *img, uint64_t off, uint32_t value)
{
    uint8_t raw[4];

    store_be32(raw, value);
    cr_assert_eq(storage_write(img->mem, raw, off, 4, 0), 0);
}

static inline void put64(struct image *img, uint64_t off, uint64_t value)
{
    uint8_t raw[8];

    store_be64(raw, value);
    cr_assert_eq(storage_write(img->mem, raw, off, 8, 0), 0);
}

static inline uint64_t cluster_of(struct image *img)
{
    return 1ull << get32(img, FIELD(cluster_bits));
}

/* The file offset of the L1 entry of a guest offset; that of its L2 entry, whose table must exist.
 */
static inline uint64_t l1_entry_at(struct image *img, uint64_t guest)
{
    uint64_t cluster = cluster_of(img);

    return get64(img, FIELD(l1_table_offset)) + guest / cluster / (cluster / 8) * 8;
}

static inline uint64_t l2_entry_at(struct image *img, uint64_t guest)
{
    uint64_t cluster = cluster_of(img);
    uint64_t table = get64(img, l1_entry_at(img, guest)) & L1_OFFSET;

    cr_assert_neq(table, 0);
    return table + guest / cluster % (cluster / 8) * 8;
}

static inline uint64_t l2_entry(struct image *img, uint64_t guest)
{
    return get64(img, l2_entry_at(img, guest));
}

/* The refcount of the cluster at a host offset, read from the file without the driver. */
static inline uint64_t refcount_at(struct image *img, uint64_t host)
{
    uint64_t cluster = cluster_of(img), index = host / cluster;
    uint32_t order = get32(img, FIELD(version)) < 3 ? 4 : get32(img, FIELD(refcount_order));
    uint64_t per_block = cluster * 8 >> order, bit = index % per_block << order;
    uint64_t table = get64(img, FIELD(refcount_table_offset));
    uint64_t block = get64(img, table + index / per_block * 8) & RT_OFFSET;
    uint8_t raw[8] = {0};

    if (block == 0)
        return 0;
    uint32_t bits = 1u << order, bytes = MAX(bits / 8, 1);
    cr_assert_eq(storage_read(img->mem, raw, block + bit / 8, bytes), 0);
    if (bits < 8)
        return (uint32_t)raw[0] >> (bit & 7) & ((1u << bits) - 1);
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++)
        value = value << 8 | raw[i];
    return value;
}

static inline uint64_t file_size(struct image *img)
{
    uint64_t bytes;

    cr_assert_eq(storage_size(img->mem, &bytes), 0);
    return bytes;
}

/* ---- requests, which change the model, too ---- */

static inline int try_write(struct image *img, uint64_t off, uint64_t len, int fill,
                            unsigned flags)
{
    memset(img->model.bytes + off, fill, len);
    return block_write(img->node, img->model.bytes + off, off, len, flags);
}

static inline void write_fill(struct image *img, uint64_t off, uint64_t len, int fill)
{
    cr_assert_eq(try_write(img, off, len, fill, 0), 0);
}

static inline void zero(struct image *img, uint64_t off, uint64_t len, unsigned flags)
{
    memset(img->model.bytes + off, 0, len);
    cr_assert_eq(block_zero(img->node, off, len, flags), 0);
}

static inline void trim(struct image *img, uint64_t off, uint64_t len)
{
    memset(img->model.bytes + off, 0, len);
    cr_assert_eq(block_discard(img->node, off, len, 0), 0);
}

static inline bool as_model(struct image *img)
{
    uint8_t *all = malloc(img->model.size);

    cr_assert_eq(block_read(img->node, all, 0, img->model.size), 0);
    bool same = memcmp(all, img->model.bytes, img->model.size) == 0;
    free(all);
    return same;
}

static inline void close_and_verify(struct image *img)
{
    char why[1024];

    cr_assert_eq(image_close(img), 0);
    cr_assert(image_verify(img, why, sizeof why), "%s", why);
}

/* Opening for writing must fail with that errno and a message that contains `word`. */
static inline void refused(struct image *img, int err, const char *word)
{
    struct diag diag = {0};

    cr_assert_eq(image_try_open(img, &diag), -err, "%s: %s", word, diag.text);
    cr_expect(strstr(diag.text, word), "'%s' should name %s", diag.text, word);
    cr_expect_eq(diag.err, err);
}

/* Opens the image for reading: it isn't activated. */
static inline int open_for_reading(struct image *img, struct diag *diag)
{
    static const struct node_options none;

    return node_open(&img->ctx, &qcow2_driver, mem_storage_share(img->mem), "disk", &none,
                     &img->node, diag);
}

#endif
