/* SPDX-License-Identifier: BSD-3-Clause */
/* A full filesystem.  A fixed list of requests is run again and again; each time another request
 * is the first for which no block is left.  In half of the runs there is space again later.
 *
 * For every format and cache mode: a request that can't be stored fails with ENOSPC, and each of
 * its sectors is old or new; flushes and the close succeed; and then the image holds exactly
 * what was acknowledged, without leaks.
 *
 * The storage is memory with a limit on its blocks.  As in a real filesystem, an allocated block
 * can be written again, and a punched one becomes free for other data. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define SECTOR   512u
#define REQUESTS 60u

struct full_case {
    const char *name;
    const char *cache;
    struct image_spec image;
    uint64_t most; /* sectors in a request */
};

#define IMAGE(fmt, opts, bytes)                                      \
    .image.format = fmt, .image.options = opts, .image.size = bytes, \
    .image.cache_bytes = 4 * MIB, .image.node.need_check_delay_ns = 5 * SEC
#define BASE(bytes) .image.base_format = "raw", .image.base_size = bytes
#define EACH_MODE(title, cluster, ...)                                                 \
    {.name = title ", writeback", .cache = "writeback", .most = cluster, __VA_ARGS__}, \
        {.name = title ", writethrough",                                               \
         .cache = "writethrough",                                                      \
         .most = cluster,                                                              \
         __VA_ARGS__},                                                                 \
        {.name = title ", none", .cache = "none", .most = cluster, __VA_ARGS__},       \
        {.name = title ", directsync",                                                 \
         .cache = "directsync",                                                        \
         .most = cluster,                                                              \
         __VA_ARGS__},                                                                 \
    {                                                                                  \
        .name = title ", volatile", .cache = "volatile", .most = cluster, __VA_ARGS__  \
    }

static const struct full_case cases[] = {
    EACH_MODE("qcow2", 300, IMAGE("qcow2", "cluster_size=65536", 8 * MIB)),
    EACH_MODE("qcow2 4k", 60, IMAGE("qcow2", "cluster_size=4096", 6 * MIB)),
    EACH_MODE("qcow2 lazy", 60,
              IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", 6 * MIB)),
    EACH_MODE("qcow2 overlay", 60, IMAGE("qcow2", "cluster_size=4096", 6 * MIB),
              BASE(4 * MIB)),
    EACH_MODE("qcow2 512", 90,
              IMAGE("qcow2", "cluster_size=512,refcount_bits=64", 2 * MIB)),
    EACH_MODE("qcow2 version 2", 60,
              IMAGE("qcow2", "cluster_size=4096,compat=0.10", 6 * MIB)),
    EACH_MODE("QED", 60, IMAGE("qed", "cluster_size=4096,table_size=2", 12 * MIB)),
    EACH_MODE("QED 64k", 300, IMAGE("qed", "cluster_size=65536", 8 * MIB)),
    EACH_MODE("QED overlay", 60, IMAGE("qed", "cluster_size=4096,table_size=2", 12 * MIB),
              BASE(5 * MIB)),
    {.name = "a filesystem without fallocate",
     .cache = "writeback",
     IMAGE("qcow2", "cluster_size=4096", 6 * MIB),
     .image.plain = true,
     .most = 60},
};

/* ---- the requests ---- */

enum what { WRITE, ZERO, UNMAP, TRIM, FLUSH, PAUSE };

struct request {
    enum what what;
    unsigned flags;
    uint64_t off, len;
};

/* The same list for every run of a case. */
static void make_requests(const struct full_case *c, struct request *list)
{
    static const enum what kinds[] = {WRITE, WRITE, WRITE, WRITE, WRITE, WRITE,
                                      ZERO,  UNMAP, TRIM,  FLUSH, PAUSE};
    uint64_t sectors = c->image.size / SECTOR;
    struct rng rng;

    rng_init(&rng, env_number("QIMG_SEED", 11));
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t n = rng_between(&rng, 1, c->most), at = rng_below(&rng, sectors);
        list[i] = (struct request){.what = kinds[rng_below(&rng, ARRAY_LEN(kinds))],
                                   .flags = rng_one_in(&rng, 6) ? BLOCK_FUA : 0,
                                   .off = at * SECTOR,
                                   .len = MIN(n, sectors - at) * SECTOR};
    }
}

/* ---- one run ---- */

struct run {
    const struct full_case *c;
    struct image *img;
    uint8_t *first; /* the disk's contents at the start */
    char label[160];
};

static int request(struct run *r, const struct request *q, const void *buf)
{
    struct node *node = r->img->node;

    switch (q->what) {
    case WRITE:
        return block_write(node, buf, q->off, q->len, q->flags);
    case ZERO:
        return block_zero(node, q->off, q->len, q->flags);
    case UNMAP:
        return block_zero(node, q->off, q->len, q->flags | BLOCK_MAY_UNMAP);
    case TRIM:
        return block_discard(node, q->off, q->len, q->flags);
    case FLUSH:
        return block_flush(node);
    case PAUSE:
        r->img->now += 6 * SEC;
        housekeeper_run_due(r->img->ctx.housekeeper);
        return 0;
    }
    return 0;
}

/* After a failed request or a trim: each sector must be old or new; the model takes it over. */
static void adopt(struct run *r, const struct request *q, const uint8_t *new)
{
    uint8_t *model = r->img->model.bytes + q->off;
    CLEANUP_FREE uint8_t *now = malloc(q->len);

    cr_assert_eq(block_read(r->img->node, now, q->off, q->len), 0, "%s", r->label);
    for (uint64_t at = 0; at < q->len; at += SECTOR)
        cr_assert(memcmp(now + at, model + at, SECTOR) == 0 ||
                      memcmp(now + at, new + at, SECTOR) == 0,
                  "%s: offset %" PRIu64 " is neither old nor new", r->label, q->off + at);
    memcpy(model, now, q->len);
}

static void one_request(struct run *r, const struct request *q, unsigned i)
{
    CLEANUP_FREE uint8_t *new = calloc(1, q->len);

    if (q->what == WRITE)
        memset(new, (int)i + 1, q->len);
    int err = request(r, q, new);
    cr_assert(err == 0 || (err == -ENOSPC && q->what < FLUSH), "%s: request %u: errno %d",
              r->label, i, -err);
    if (q->what >= FLUSH)
        return;
    if (err || q->what == TRIM)
        adopt(r, q, new);
    else
        memcpy(r->img->model.bytes + q->off, new, q->len);
}

static bool as_model(struct image *img)
{
    CLEANUP_FREE uint8_t *all = malloc(img->model.size);

    cr_assert_eq(block_read(img->node, all, 0, img->model.size), 0);
    return memcmp(all, img->model.bytes, img->model.size) == 0;
}

/* The closed image must be sound by our check, and read as the model; with_qemu: QEMU's tools must
 * agree. */
static void judge(struct run *r, bool with_qemu)
{
    struct image *img = r->img;
    const struct check_options options = {.repair = REPAIR_NONE};
    struct check_result found = {0};
    struct diag diag = {0};
    char why[1024];

    int err = driver_find(img->spec.format)->check(img->mem, &options, &found, &diag);
    cr_assert_eq(err, 0, "%s: %s", r->label, diag.text);
    cr_assert_eq(found.corruptions + found.check_errors + found.leaks, 0,
                 "%s: %" PRIu64 " corruptions, %" PRIu64 " leaks", r->label,
                 found.corruptions, found.leaks);
    cr_assert_eq(image_try_open(img, &diag), 0, "%s: %s", r->label, diag.text);
    cr_assert(as_model(img), "%s: opened again it reads differently", r->label);
    cr_assert_eq(image_close(img), 0, "%s", r->label);
    if (with_qemu)
        cr_assert(image_verify(img, why, sizeof why), "%s: %s", r->label, why);
}

static void limit_to_what_is_there(struct storage *mem)
{
    uint64_t bytes;

    cr_assert_eq(storage_allocated(mem, &bytes), 0);
    mem_storage_limit(mem, bytes);
}

/* One run: no blocks are left from request `full` on, until request `again`. */
static void run_once(struct run *r, struct storage *pristine, unsigned full, unsigned again)
{
    struct request list[REQUESTS];
    struct image *img = r->img;
    struct diag diag = {0};

    snprintf(r->label, sizeof r->label, "%s: full from request %u to %u", r->c->name, full,
             again);
    make_requests(r->c, list);
    storage_close(img->mem);
    img->mem = mem_storage_clone(pristine);
    memcpy(img->model.bytes, r->first, img->model.size);
    cr_assert_eq(image_try_open(img, &diag), 0, "%s: %s", r->label, diag.text);
    for (unsigned i = 0; i < REQUESTS; i++) {
        if (i == full)
            limit_to_what_is_there(img->mem);
        if (i == again)
            mem_storage_limit(img->mem, UINT64_MAX);
        one_request(r, &list[i], i);
    }
    cr_assert_eq(block_flush(img->node), 0, "%s: the last flush", r->label);
    cr_assert(as_model(img), "%s: at the end it reads differently", r->label);
    cr_assert_eq(image_close(img), 0, "%s: the end", r->label);
    mem_storage_limit(img->mem, UINT64_MAX);
    judge(r, full % 20 == 0);
}

static void no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

ParameterizedTestParameters(full, from_any_request_on)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, full, from_any_request_on, .timeout = 600)
{
    const struct full_case *c = &cases[*index];
    struct image_spec spec = c->image;
    struct image img;

    registry_init();
    log_set_sink(no_messages);
    spec.node.cache = cache_mode_find(c->cache);
    image_make(&img, &spec, 1);
    struct run r = {.c = c, .img = &img, .first = malloc(img.model.size)};
    memcpy(r.first, img.model.bytes, img.model.size);
    struct storage *pristine = mem_storage_clone(img.mem);
    for (unsigned full = 0; full < REQUESTS; full += build_slowness()) {
        run_once(&r, pristine, full, REQUESTS);
        run_once(&r, pristine, full, full + 15);
    }
    storage_close(pristine);
    free(r.first);
    image_free(&img);
}
