/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent dirty bitmaps are stored on a full filesystem, when the image is closed or while it
 * is idle.  No bitmap may be lost or miss a write.  If their bits had been stored before (and can
 * be overwritten), or there is enough space for them, they must be exact. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/dirty_bitmap.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define BITMAPS 3u
#define SECTOR  512u

static const uint64_t granularities[BITMAPS] = {512, 4096, 65536};

static const struct full_case {
    const char *options;
    bool stored;    /* bits all over the disk were stored before the filesystem is full */
    uint64_t spare; /* bytes that are left */
} cases[] = {
    {"cluster_size=65536", false, 0},
    {"cluster_size=65536", true, 0},
    {"cluster_size=4096", false, 0},
    {"cluster_size=4096", true, 0},
    {"cluster_size=4096", false, 3 * 4096},
    {"cluster_size=4096", false, 100 * 4096},
    {"cluster_size=4096,lazy_refcounts=on", false, 2 * 4096},
    {"cluster_size=1024", false, 5 * 4096},
    {"cluster_size=16384,extended_l2=on", true, 0},
};

struct run {
    const struct full_case *c;
    struct image img;
    struct rng rng;
    uint8_t *written; /* for each sector: was it written since the bitmaps were cleared? */
};

static struct dirty_bitmap *find(struct run *r, unsigned i)
{
    return node_bitmap_find(r->img.node, i == 0 ? "b0" : i == 1 ? "b1" : "b2");
}

static void add(struct run *r, unsigned i)
{
    const struct bitmap_params params = {.name = i == 0   ? "b0"
                                                 : i == 1 ? "b1"
                                                          : "b2",
                                         .granularity = granularities[i],
                                         .persistent = true};
    struct dirty_bitmap *bitmap;
    struct diag diag = {0};

    cr_assert_eq(node_bitmap_create(r->img.node, &params, &bitmap, &diag), 0, "%s",
                 diag.text);
    cr_assert_eq(node_bitmaps_keep(r->img.node, &diag), 0, "%s", diag.text);
}

static void clear_all(struct run *r)
{
    struct diag diag = {0};

    for (unsigned i = 0; i < BITMAPS; i++) {
        struct dirty_bitmap *bitmap = find(r, i);
        cr_assert_eq(node_bitmap_begin_change(r->img.node, bitmap, &diag), 0);
        dirty_bitmap_clear(bitmap, 0, dirty_bitmap_size(bitmap));
        node_bitmap_end_change(r->img.node, bitmap);
    }
    memset(r->written, 0, r->img.model.size / SECTOR);
}

static void reopen(struct run *r)
{
    struct diag diag = {0};

    cr_assert_eq(image_close(&r->img), 0);
    cr_assert_eq(image_try_open(&r->img, &diag), 0, "%s", diag.text);
}

/* Overwrites allocated clusters, for which no space is needed. */
static void write_some(struct run *r)
{
    uint8_t data[40 * SECTOR];

    for (unsigned i = 0; i < 20; i++) {
        uint64_t len = rng_between(&r->rng, 1, 40) * SECTOR;
        uint64_t off = rng_below(&r->rng, r->img.model.size - len) / SECTOR * SECTOR;
        rng_fill(&r->rng, data, len);
        cr_assert_eq(block_write(r->img.node, data, off, len, 0), 0);
        memset(r->written + off / SECTOR, 1, len / SECTOR);
    }
}

static bool was_written(const struct run *r, uint64_t off, uint64_t len)
{
    for (uint64_t at = off; at < MIN(off + len, r->img.model.size); at += SECTOR)
        if (r->written[at / SECTOR])
            return true;
    return false;
}

static void judge(struct run *r, unsigned i, bool exact)
{
    struct dirty_bitmap *bitmap = find(r, i);

    cr_assert(bitmap && !dirty_bitmap_inconsistent(bitmap), "%s: bitmap %u is lost",
              r->c->options, i);
    for (uint64_t off = 0; off < r->img.model.size; off += granularities[i]) {
        bool dirty = dirty_bitmap_get(bitmap, off);
        bool written = was_written(r, off, granularities[i]);
        cr_assert(dirty == written || (dirty && !exact),
                  "%s: bitmap %u at %" PRIu64 " is %s", r->c->options, i, off,
                  dirty ? "dirty" : "clean");
    }
}

static void run_once(const struct full_case *c, uint64_t seed, bool rests)
{
    struct run r = {.c = c};
    const struct image_spec spec = {.format = "qcow2",
                                    .options = c->options,
                                    .size = 24 * MIB,
                                    .node.need_check_delay_ns = 5 * SEC};
    uint64_t bytes;
    char why[1024];

    rng_init(&r.rng, seed);
    image_make(&r.img, &spec, seed);
    r.written = calloc(r.img.model.size / SECTOR, 1);
    image_open(&r.img);
    cr_assert_eq(block_write(r.img.node, r.img.model.bytes, 0, r.img.model.size, 0), 0);
    for (unsigned i = 0; i < BITMAPS; i++)
        add(&r, i);
    for (unsigned i = 0; c->stored && i < BITMAPS; i++)
        dirty_bitmap_set(find(&r, i), 0, r.img.model.size);
    reopen(&r);
    if (c->stored)
        clear_all(&r);
    cr_assert_eq(storage_allocated(r.img.mem, &bytes), 0);
    mem_storage_limit(r.img.mem, bytes + c->spare);
    write_some(&r);
    for (unsigned i = 0; rests && i < 3; i++) {
        r.img.now += 6 * SEC;
        housekeeper_run_due(r.img.ctx.housekeeper);
    }
    if (rests && rng_one_in(&r.rng, 2))
        write_some(&r);
    reopen(&r);
    for (unsigned i = 0; i < BITMAPS; i++)
        judge(&r, i, c->stored || c->spare > 20 * 4096);
    mem_storage_limit(r.img.mem, UINT64_MAX);
    cr_assert_eq(block_read(r.img.node, r.img.model.bytes, 0, r.img.model.size), 0);
    clear_all(&r);
    write_some(&r);
    cr_assert_eq(block_read(r.img.node, r.img.model.bytes, 0, r.img.model.size), 0);
    reopen(&r);
    for (unsigned i = 0; i < BITMAPS; i++)
        judge(&r, i, true);
    cr_assert_eq(image_close(&r.img), 0);
    cr_assert(image_verify(&r.img, why, sizeof why), "%s: %s", c->options, why);
    image_free(&r.img);
    free(r.written);
}

static void no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

ParameterizedTestParameters(full_bitmaps, are_stored)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, full_bitmaps, are_stored, .timeout = 300)
{
    uint64_t seed = env_number("QIMG_SEED", 1);

    registry_init();
    log_set_sink(no_messages);
    for (unsigned i = 0; i < 6; i += build_slowness())
        run_once(&cases[*index], seed + i, i % 2 == 1);
}
