/* SPDX-License-Identifier: BSD-3-Clause */
/* Deletes snapshots on a full filesystem, as users do to get free space.
 *
 * The last snapshot of the list can always be deleted; any other one if the new table fits into
 * space that the image has already (has_padding).  If a deletion fails, nothing has changed.
 * While the filesystem is full, a close may leave leaks but nothing worse; once there is space
 * again there are no leaks. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/snapshot.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define SNAPSHOTS 5u

struct full_case {
    const char *name;
    struct image_spec image;
    bool has_padding; /* a table leaves unused space in its last cluster */
};

#define IMAGE(opts, bytes)                                               \
    .image.format = "qcow2", .image.options = opts, .image.size = bytes, \
    .image.cache_bytes = 4 * MIB, .image.node.need_check_delay_ns = 5 * SEC

static const struct full_case cases[] = {
    {"64k", IMAGE("cluster_size=65536", 8 * MIB), .has_padding = true},
    {"64k overlay", IMAGE("cluster_size=65536", 8 * MIB), .image.base_format = "raw",
     .image.base_size = 4 * MIB, .has_padding = true},
    {"64k lazy", IMAGE("cluster_size=65536,lazy_refcounts=on", 8 * MIB),
     .has_padding = true},
    {"16k extended, rc4",
     IMAGE("cluster_size=16384,extended_l2=on,refcount_bits=4", 6 * MIB),
     .has_padding = true},
    {"16k compressed", IMAGE("cluster_size=16384", 4 * MIB), .image.node.compress = true,
     .has_padding = true},
    {"4k", IMAGE("cluster_size=4096", 4 * MIB), .has_padding = false},
    {"1k, rc64", IMAGE("cluster_size=1024,refcount_bits=64", MIB), .has_padding = false},
    {"version 2", IMAGE("cluster_size=16384,compat=0.10", 4 * MIB), .has_padding = true},
};

struct run {
    const struct full_case *c;
    struct image *img;
    struct rng rng;
    struct flat snapshot[SNAPSHOTS];
    char name[SNAPSHOTS][8];
    unsigned n;
};

static void write_somewhere(struct run *r, bool may_fail)
{
    struct flat *model = &r->img->model;
    uint64_t len = rng_between(&r->rng, 1, 200) * 512;
    uint64_t off = rng_below(&r->rng, model->size - len) / 512 * 512;
    CLEANUP_FREE uint8_t *data = malloc(len), *now = malloc(len);

    image_fill(r->img, &r->rng, data, len);
    int err = block_write(r->img->node, data, off, len, 0);
    cr_assert(!err || (may_fail && err == -ENOSPC), "%s: errno %d", r->c->name, -err);
    cr_assert_eq(block_read(r->img->node, now, off, len), 0);
    for (uint64_t at = 0; at < len; at += 512)
        cr_assert(memcmp(now + at, data + at, 512) == 0 ||
                      (err && memcmp(now + at, model->bytes + off + at, 512) == 0),
                  "%s: neither old nor new", r->c->name);
    memcpy(model->bytes + off, now, len);
}

static void take_snapshot(struct run *r)
{
    struct diag diag = {0};

    snprintf(r->name[r->n], sizeof r->name[0], "s%u", r->n);
    const struct snapshot_request request = {.kind = SNAPSHOT_CREATE,
                                             .name = r->name[r->n]};
    cr_assert_eq(node_change_snapshot(r->img->node, &request, NULL, &diag), 0, "%s",
                 diag.text);
    r->snapshot[r->n] =
        (struct flat){.bytes = malloc(r->img->model.size), .size = r->img->model.size};
    memcpy(r->snapshot[r->n++].bytes, r->img->model.bytes, r->img->model.size);
}

static void compare(struct run *r, struct node *node, const struct flat *flat,
                    const char *what)
{
    CLEANUP_FREE uint8_t *all = malloc(flat->size);

    cr_assert_eq(block_read(node, all, 0, flat->size), 0);
    cr_assert_arr_eq(all, flat->bytes, flat->size, "%s: %s changed", r->c->name, what);
}

static void compare_all(struct run *r)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    struct diag diag = {0};

    cr_assert_eq(node_snapshots(r->img->node, &list), 0);
    cr_assert_eq(list.n, r->n, "%s: %zu snapshots", r->c->name, list.n);
    compare(r, r->img->node, &r->img->model, "the disk");
    for (unsigned i = 0; i < r->n; i++) {
        struct node *snapshot;
        cr_assert_eq(node_open_snapshot(r->img->node, r->name[i], &snapshot, &diag), 0,
                     "%s", diag.text);
        compare(r, snapshot, &r->snapshot[i], r->name[i]);
        node_close_snapshot(snapshot);
    }
}

/* Closes, checks and opens the image: nothing but leaks may be wrong, and these only if may_leak.
 */
static void close_and_check(struct run *r, bool may_leak)
{
    const struct check_options options = {.repair = REPAIR_NONE};
    struct check_result found = {0};
    struct diag diag = {0};

    cr_assert_eq(image_close(r->img), 0);
    int err = driver_find("qcow2")->check(r->img->mem, &options, &found, &diag);
    cr_assert_eq(err, 0, "%s", diag.text);
    cr_assert_eq(found.corruptions + found.check_errors, 0, "%s: %" PRIu64 " corruptions",
                 r->c->name, found.corruptions);
    cr_assert(may_leak || found.leaks == 0, "%s: %" PRIu64 " leaks", r->c->name,
              found.leaks);
    cr_assert_eq(image_try_open(r->img, &diag), 0, "%s", diag.text);
}

static void no_space(struct run *r)
{
    uint64_t bytes;

    cr_assert_eq(block_flush(r->img->node), 0);
    cr_assert_eq(storage_allocated(r->img->mem, &bytes), 0);
    mem_storage_limit(r->img->mem, bytes);
}

static void delete (struct run *r, unsigned i)
{
    const struct snapshot_request request = {.kind = SNAPSHOT_DELETE, .name = r->name[i]};
    struct diag diag = {0};
    bool must = i == r->n - 1 || r->c->has_padding;

    int err = node_change_snapshot(r->img->node, &request, NULL, &diag);
    cr_assert(err == 0 || (!must && err == -ENOSPC), "%s: deleting %u of %u: %s",
              r->c->name, i, r->n, diag.text);
    if (err == 0) {
        free(r->snapshot[i].bytes);
        r->n--;
        memmove(&r->snapshot[i], &r->snapshot[i + 1], (r->n - i) * sizeof r->snapshot[0]);
        memmove(&r->name[i], &r->name[i + 1], (r->n - i) * sizeof r->name[0]);
    }
    compare_all(r);
}

static void prepare(struct run *r)
{
    struct image_spec spec = r->c->image;

    image_make(r->img, &spec, 1);
    image_open(r->img);
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        for (unsigned n = 0; n < 12; n++)
            write_somewhere(r, false);
        take_snapshot(r);
    }
    for (unsigned n = 0; n < 12; n++)
        write_somewhere(r, false);
    /* Closing gives back clusters that were reserved ahead and have no blocks yet. */
    close_and_check(r, false);
    no_space(r);
}

static void run_once(const struct full_case *c, uint64_t seed, bool last_first)
{
    struct image img;
    struct run r = {.c = c, .img = &img};

    rng_init(&r.rng, seed);
    prepare(&r);
    bool reopens = rng_one_in(&r.rng, 2);
    for (unsigned tries = 0; r.n > 0 && tries < 20; tries++) {
        delete (&r, last_first ? r.n - 1 : (unsigned)rng_below(&r.rng, r.n));
        if (reopens)
            close_and_check(&r, true);
        for (unsigned i = 0; i < 3; i++)
            write_somewhere(&r, true);
        no_space(&r); /* as if other files had taken the blocks that became free */
    }
    cr_assert(r.n == 0 || !c->has_padding, "%s: %u are left", c->name, r.n);
    mem_storage_limit(img.mem, UINT64_MAX);
    close_and_check(&r, reopens); /* clusters leaked by an earlier close stay leaked */
    compare_all(&r);
    for (unsigned i = 0; i < r.n; i++)
        free(r.snapshot[i].bytes);
    image_free(&img);
}

static void no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

ParameterizedTestParameters(full_snapshots, are_deleted)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, full_snapshots, are_deleted, .timeout = 300)
{
    uint64_t seed = env_number("QIMG_SEED", 1);

    registry_init();
    log_set_sink(no_messages);
    for (unsigned i = 0; i < 20; i += build_slowness())
        run_once(&cases[*index], seed + i, i % 2 == 0);
}
