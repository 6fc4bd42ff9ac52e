/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage that fails.  A fixed list of requests is run again and again; each time another call
 * of the storage fails (support/fault_storage.h).
 *
 * Always: the client gets the storage's errno; flushed data stays; a sector of a failed request
 * is old or new; the image can be opened again, and a check finds nothing worse than leaks.
 * Snapshots keep their contents, and a dirty bitmap misses no change.
 *
 * Each request fills its range with a byte value of its own.  So the test can keep, for each
 * sector, the set of values that a read may return now (`live`), and the set that it may return
 * after the image is opened again (`kept`). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/snapshot.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define SECTOR   512u
#define REQUESTS 80u

struct fault_case {
    const char *name;
    struct image_spec image;
    uint64_t most;   /* sectors in a request */
    uint64_t stride; /* without QIMG_LONG only every nth call fails; 0: every one */
    bool snapshots;  /* snapshots are created and deleted, too */
    bool bitmap;     /* a persistent bitmap records all changes */
};

#define IMAGE(fmt, opts, bytes)                                      \
    .image.format = fmt, .image.options = opts, .image.size = bytes, \
    .image.cache_bytes = 4 * MIB
#define BASE(bytes) .image.base_format = "raw", .image.base_size = bytes

static const struct fault_case cases[] = {
    {.name = "qcow2", IMAGE("qcow2", "cluster_size=4096", MIB + 512), .most = 40},
    {.name = "qcow2-growing-tables",
     IMAGE("qcow2", "cluster_size=512,refcount_bits=64", 3 * MIB),
     .most = 400,
     .stride = 5},
    {.name = "qcow2-lazy",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", MIB + 512),
     .image.node.need_check_delay_ns = 5 * SEC,
     .most = 40},
    {.name = "qcow2-base",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     BASE(700 * KIB),
     .most = 40},
    {.name = "qcow2-v2-base",
     IMAGE("qcow2", "cluster_size=4096,compat=0.10", MIB),
     BASE(700 * KIB),
     .most = 40},
    {.name = "qed",
     IMAGE("qed", "cluster_size=4096,table_size=2", 6 * MIB),
     .image.node.need_check_delay_ns = 5 * SEC,
     .most = 60},
    {.name = "qed-base",
     IMAGE("qed", "cluster_size=4096,table_size=2", MIB),
     BASE(700 * KIB),
     .most = 40},
    {.name = "qcow2-snapshots",
     IMAGE("qcow2", "cluster_size=4096", MIB + 512),
     .most = 40,
     .stride = 6,
     .snapshots = true},
    {.name = "qcow2-lazy-snapshots",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", MIB + 512),
     .image.node.need_check_delay_ns = 5 * SEC,
     .most = 40,
     .stride = 6,
     .snapshots = true},
    {.name = "qcow2-extended-base-snapshots",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", MIB),
     BASE(700 * KIB),
     .most = 40,
     .stride = 6,
     .snapshots = true},
    {.name = "qcow2-compress-snapshots",
     IMAGE("qcow2", "cluster_size=4096,refcount_bits=8", MIB + 512),
     .image.node.compress = true,
     .most = 40,
     .stride = 6,
     .snapshots = true},
    {.name = "qcow2-bitmap",
     IMAGE("qcow2", "cluster_size=4096", MIB + 512),
     .image.node.need_check_delay_ns = 5 * SEC,
     .most = 40,
     .stride = 4,
     .bitmap = true},
    {.name = "qcow2-bitmap-lazy-snapshots",
     IMAGE("qcow2", "cluster_size=1024,lazy_refcounts=on", MIB + 512),
     .image.node.need_check_delay_ns = 5 * SEC,
     .most = 40,
     .stride = 6,
     .snapshots = true,
     .bitmap = true},
    {.name = "qcow2-aes-base",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     BASE(700 * KIB),
     .image.encrypt = "aes",
     .most = 40,
     .stride = 6},
    {.name = "qcow2-data-raw",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     .image.data_file = "raw",
     .most = 40,
     .stride = 6},
    {.name = "qcow2-data-extended-base",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", MIB),
     BASE(700 * KIB),
     .image.data_file = "plain",
     .most = 40,
     .stride = 6},
};

/* ---- the requests ---- */

enum what { WRITE, WRITE_FUA, ZERO, UNMAP, TRIM, FLUSH, PAUSE, SNAPSHOT };

struct request {
    enum what what;
    uint64_t at, n; /* sectors */
};

/* The same list for every run of a case. */
static void make_requests(const struct fault_case *c, struct request *list)
{
    static const enum what kinds[] = {WRITE, WRITE, WRITE, WRITE, WRITE, WRITE_FUA, ZERO,
                                      UNMAP, TRIM,  FLUSH, FLUSH, PAUSE, SNAPSHOT};
    unsigned n_kinds = ARRAY_LEN(kinds) - !c->snapshots;
    uint64_t sectors = c->image.size / SECTOR;
    struct rng rng;

    rng_init(&rng, env_number("QIMG_SEED", 5));
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t n = rng_between(&rng, 1, c->most), at = rng_below(&rng, sectors);
        if (rng_one_in(&rng, 2))
            at = at / 8 * 8;
        list[i] = (struct request){
            .what = kinds[rng_below(&rng, n_kinds)], .at = at, .n = MIN(n, sectors - at)};
    }
}

/* ---- the values that sectors may have ---- */

/* A set of byte values. */
struct values {
    uint64_t bits[4];
};

static void add(struct values *set, uint8_t v)
{
    set->bits[v / 64] |= 1ull << (v % 64);
}

static bool has(const struct values *set, uint8_t v)
{
    return set->bits[v / 64] >> (v % 64) & 1;
}

/* A snapshot that was made, or whose creation failed but may have had an effect. */
struct taken {
    char name[16];
    struct values *held; /* the values that each of its sectors may have */
};

struct run {
    struct taken taken[REQUESTS];
    unsigned n_taken;
    bool *changed; /* for each sector: has it changed since the bitmap exists? */
    const struct fault_case *c;
    struct image *img;
    struct fault_plan plan;
    struct values *live, *kept; /* for each sector: now; after the image is opened again */
    uint64_t n_sectors;
    enum fault_kind kind; /* the kind of call that fails */
    int err;              /* the errno with which it fails */
    bool poisoned;
    char label[160];
};

static void note_effect(struct run *r, const struct request *q, uint8_t value, int err)
{
    for (uint64_t s = q->at; s < q->at + q->n; s++) {
        /* A trim or a failed request may have changed all of the range, some of it or nothing. */
        if (err || q->what == TRIM)
            add(&r->live[s], value);
        else
            r->live[s] = (struct values){0}, add(&r->live[s], value);
        add(&r->kept[s], value);
        if (!err && q->what == WRITE_FUA)
            r->kept[s] = r->live[s];
    }
}

static void note_durable(struct run *r)
{
    memcpy(r->kept, r->live, r->n_sectors * sizeof *r->live);
}

/* A sector with a single value, as most are, needs only one look-up. */
static void compare_sector(struct run *r, const uint8_t *bytes, uint64_t s,
                           const struct values *allowed, const char *when)
{
    bool uniform = memcmp(bytes, bytes + 1, SECTOR - 1) == 0;

    for (unsigned i = 0; i < (uniform ? 1 : SECTOR); i++)
        cr_assert(has(allowed, bytes[i]), "%s: %s: offset %" PRIu64 " is 0x%02x", r->label,
                  when, s * SECTOR + i, bytes[i]);
}

static void compare(struct run *r, const struct values *allowed, const char *when)
{
    CLEANUP_FREE uint8_t *all = malloc(r->img->model.size);

    cr_assert_eq(block_read(r->img->node, all, 0, r->img->model.size), 0, "%s", r->label);
    for (uint64_t s = 0; s < r->n_sectors; s++)
        compare_sector(r, all + s * SECTOR, s, &allowed[s], when);
}

/* ---- snapshots ---- */

static struct taken *find_taken(struct run *r, const char *name)
{
    for (unsigned i = 0; i < r->n_taken; i++)
        if (strcmp(r->taken[i].name, name) == 0)
            return &r->taken[i];
    cr_assert_fail("%s: snapshot '%s' is nobody's", r->label, name);
    return NULL;
}

static int take_snapshot(struct run *r)
{
    struct taken *t = &r->taken[r->n_taken];
    struct diag diag = {0};

    snprintf(t->name, sizeof t->name, "s%u", r->n_taken++);
    t->held = malloc(r->n_sectors * sizeof *t->held);
    memcpy(t->held, r->live, r->n_sectors * sizeof *t->held);
    const struct snapshot_request request = {
        .kind = SNAPSHOT_CREATE, .name = t->name, .ahead = r->n_taken % 2};
    return node_change_snapshot(r->img->node, &request, NULL, &diag);
}

/* Makes a snapshot, or deletes the first one when there are two. */
static int change_snapshots(struct run *r)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    struct diag diag = {0};

    cr_assert_eq(node_snapshots(r->img->node, &list), 0);
    if (list.n < 2)
        return take_snapshot(r);
    const struct snapshot_request request = {.kind = SNAPSHOT_DELETE,
                                             .name = list.list[0].name};
    return node_change_snapshot(r->img->node, &request, NULL, &diag);
}

static void compare_snapshot(struct run *r, const char *name, const char *when)
{
    CLEANUP_FREE uint8_t *all = malloc(r->img->model.size);
    const struct taken *t = find_taken(r, name);
    struct node *snapshot;
    struct diag diag = {0};

    cr_assert_eq(node_open_snapshot(r->img->node, name, &snapshot, &diag), 0, "%s: %s: %s",
                 r->label, when, diag.text);
    cr_assert_eq(block_read(snapshot, all, 0, r->img->model.size), 0, "%s", r->label);
    for (uint64_t s = 0; s < r->n_sectors; s++)
        compare_sector(r, all + s * SECTOR, s, &t->held[s], when);
    node_close_snapshot(snapshot);
}

static void compare_snapshots(struct run *r, const char *when)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};

    /* After a failed barrier the node no longer shows a snapshot that may have been deleted. */
    if (!r->c->snapshots || mcache_health(r->img->node->mc))
        return;
    cr_assert_eq(node_snapshots(r->img->node, &list), 0);
    for (size_t i = 0; i < list.n; i++)
        compare_snapshot(r, list.list[i].name, when);
}

/* ---- a bitmap ---- */

static void add_bitmap(struct run *r)
{
    const struct bitmap_params params = {
        .name = "all", .granularity = SECTOR, .persistent = true};
    struct dirty_bitmap *bitmap;
    struct diag diag = {0};

    if (!r->c->bitmap)
        return;
    cr_assert_eq(node_bitmap_create(r->img->node, &params, &bitmap, &diag), 0, "%s",
                 diag.text);
    cr_assert_eq(node_bitmaps_keep(r->img->node, &diag), 0, "%s", diag.text);
}

/* The bitmap may be inconsistent, or have too many dirty bits, but never too few. */
static void judge_bitmap(struct run *r, const char *when)
{
    const struct dirty_bitmap *bitmap = node_bitmap_find(r->img->node, "all");

    if (!bitmap || dirty_bitmap_inconsistent(bitmap))
        return;
    for (uint64_t s = 0; s < r->n_sectors; s++)
        cr_assert(!r->changed[s] || dirty_bitmap_get(bitmap, s * SECTOR),
                  "%s: %s: its bitmap misses a change at %" PRIu64, r->label, when,
                  s * SECTOR);
}

/* ---- one run ---- */

static int send(struct run *r, const struct request *q, uint8_t value)
{
    struct node *node = r->img->node;
    uint64_t off = q->at * SECTOR, len = q->n * SECTOR;
    CLEANUP_FREE uint8_t *buf = malloc(len);

    switch (q->what) {
    case WRITE:
    case WRITE_FUA:
        memset(buf, value, len);
        return block_write(node, buf, off, len, q->what == WRITE_FUA ? BLOCK_FUA : 0);
    case ZERO:
        return block_zero(node, off, len, 0);
    case UNMAP:
        return block_zero(node, off, len, BLOCK_MAY_UNMAP);
    case TRIM:
        return block_discard(node, off, len, 0);
    case FLUSH:
        return block_flush(node);
    case PAUSE:
        r->img->now += 6 * SEC;
        housekeeper_run_due(r->img->ctx.housekeeper);
        return 0;
    case SNAPSHOT:
        return change_snapshots(r);
    }
    return 0;
}

static void one_request(struct run *r, const struct request *q, unsigned i)
{
    uint8_t value = q->what <= WRITE_FUA ? (uint8_t)(i + 1) : 0;
    uint64_t before = fault_plan_injected(&r->plan);

    int err = send(r, q, value);
    bool injected = fault_plan_injected(&r->plan) != before;
    if (err)
        cr_assert(err == -r->err || (err == -EIO && r->poisoned) ||
                      (err == -EIO && injected),
                  "%s: request %u says errno %d", r->label, i, -err);
    if (q->what == FLUSH && injected && r->kind != FAULT_DISCARD && r->kind != FAULT_READ)
        cr_assert_lt(err, 0, "%s: the flush of request %u was not told", r->label, i);
    r->poisoned |= mcache_health(r->img->node->mc) != 0;
    if (q->what < FLUSH)
        note_effect(r, q, value, err);
    if (q->what < FLUSH && !err)
        memset(r->changed + q->at, true, q->n);
    if ((q->what == FLUSH || q->what == SNAPSHOT) && !err)
        note_durable(r);
}

static void first_values(struct run *r)
{
    r->n_sectors = r->img->model.size / SECTOR;
    r->live = calloc(r->n_sectors, sizeof *r->live);
    r->kept = calloc(r->n_sectors, sizeof *r->kept);
    r->changed = calloc(r->n_sectors, sizeof *r->changed);
    for (uint64_t i = 0; i < r->n_sectors * SECTOR; i++)
        add(&r->live[i / SECTOR], r->img->model.bytes[i]);
    note_durable(r);
}

/* Runs the driver's own check, and with_qemu also qemu-img check. */
static void check_image(struct run *r, bool with_qemu)
{
    struct check_result result = {0};
    const struct check_options options = {.repair = REPAIR_NONE};
    struct diag diag = {0};
    struct image *img = r->img;
    const struct driver *driver = driver_find(img->spec.format);

    cr_assert_eq(driver->check(img->mem, &options, &result, &diag), 0, "%s: %s", r->label,
                 diag.text);
    cr_assert(check_is_safe(&result), "%s: %" PRIu64 " corruptions", r->label,
              result.corruptions);
    if (!with_qemu || img->spec.encrypt || !have_qemu())
        return;
    char said[512];
    int status = shell(said, sizeof said, "qemu-img check -f %s %s 2>&1", img->spec.format,
                       image_save(img));
    cr_assert(status == 0 || status == 3, "%s: qemu-img check says %d: %s", r->label,
              status, said);
}

/* Opens the image again, without faults, and judges it.  Called however the session ended. */
static void open_again(struct run *r, bool with_qemu)
{
    struct image *img = r->img;
    struct diag diag = {0};

    img->plan = NULL;
    cr_assert_eq(image_try_open(img, &diag), 0, "%s: opening again: %s", r->label,
                 diag.text);
    compare(r, r->kept, "opened again");
    compare_snapshots(r, "opened again, a snapshot");
    judge_bitmap(r, "opened again");
    cr_assert_eq(image_close(img), 0, "%s", r->label);
    check_image(r, with_qemu);
}

/* Runs the list of requests with the nth call of a kind failing.  False: there was no such call. */
static bool run_once(const struct fault_case *c, struct image *img,
                     struct storage *pristine, struct storage *pristine_data,
                     enum fault_kind kind, uint64_t nth, int err, enum fault_how how)
{
    static const char *const hows[] = {"once", "from then on", "torn", "after it was done"};
    struct request list[REQUESTS];
    struct run r = {.c = c, .img = img, .kind = kind, .err = err};
    struct diag diag = {0};

    snprintf(r.label, sizeof r.label, "%s, kind %d, call %" PRIu64 " fails %s with %d",
             c->name, kind, nth, hows[how], err);
    make_requests(c, list);
    storage_close(img->mem);
    img->mem = mem_storage_clone(pristine);
    if (pristine_data) {
        storage_close(img->data_mem);
        img->data_mem = mem_storage_clone(pristine_data);
    }
    fault_plan_init(&r.plan);
    first_values(&r);
    img->plan = &r.plan;
    cr_assert_eq(image_try_open(img, &diag), 0, "%s: %s", r.label, diag.text);
    add_bitmap(&r);
    fault_plan_fail(&r.plan, kind, nth, err, how);
    for (unsigned i = 0; i < REQUESTS; i++)
        one_request(&r, &list[i], i);
    bool injected = fault_plan_injected(&r.plan) > 0;
    if (kind == FAULT_READ) /* the comparisons below must be able to read */
        fault_plan_heal(&r.plan);
    compare(&r, r.live, "at the end");
    compare_snapshots(&r, "at the end, a snapshot");
    judge_bitmap(&r, "at the end");
    if (image_close(img) == 0)
        note_durable(&r);
    injected |= fault_plan_injected(&r.plan) > 0;
    open_again(&r, nth % 16 == 1);
    for (unsigned i = 0; i < r.n_taken; i++)
        free(r.taken[i].held);
    free(r.live);
    free(r.kept);
    free(r.changed);
    fault_plan_destroy(&r.plan);
    return injected;
}

static void no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

static void run_all(const struct fault_case *c, struct image *img)
{
    static const enum fault_kind kinds[] = {
        FAULT_WRITE,   FAULT_FLUSH,       FAULT_ZERO, FAULT_TRUNCATE,
        FAULT_DISCARD, FAULT_PREALLOCATE, FAULT_READ};
    static const enum fault_how hows[] = {FAULT_ONCE, FAULT_FROM_THEN_ON, FAULT_ONCE_TORN,
                                          FAULT_ONCE_AFTER};
    struct storage *pristine = mem_storage_clone(img->mem);
    struct storage *pristine_data = img->data_mem ? mem_storage_clone(img->data_mem) : NULL;

    for (unsigned k = 0; k < ARRAY_LEN(kinds); k++)
        for (unsigned h = 0; h < ARRAY_LEN(hows); h++) {
            uint64_t stride = (h == 0 ? 1 : 3) * build_slowness() * MAX(c->stride, 1);
            if (env_number("QIMG_LONG", 0))
                stride = 1;
            if (hows[h] == FAULT_ONCE_TORN && kinds[k] != FAULT_WRITE)
                continue;
            if (hows[h] != FAULT_ONCE && kinds[k] == FAULT_READ)
                continue;
            uint64_t step = kinds[k] == FAULT_WRITE  ? stride
                            : kinds[k] == FAULT_READ ? 4 * stride
                                                     : 1;
            bool more = true;
            for (uint64_t nth = 1 + h; more; nth += step)
                more = run_once(c, img, pristine, pristine_data, kinds[k], nth,
                                nth % 2 ? EIO : ENOSPC, hows[h]);
        }
    storage_close(pristine);
    storage_close(pristine_data);
}

ParameterizedTestParameters(fault, every_call)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, fault, every_call, .timeout = 600)
{
    struct image img;

    registry_init();
    log_set_sink(no_messages);
    image_make(&img, &cases[*index].image, 1);
    run_all(&cases[*index], &img);
    image_free(&img);
}
