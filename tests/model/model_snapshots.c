/* SPDX-License-Identifier: BSD-3-Clause */
/* Model test (support/random_ops.h) of internal snapshots and dirty bitmaps, which are changed
 * between random requests.
 *
 * The model of a snapshot is a copy of the flat array.  The model of a bitmap is a byte for each
 * granule, set when a request covers some of the granule.  Snapshots and bitmaps are created,
 * deleted, applied, read, merged and so on; the image is closed and opened, and sometimes idle
 * long enough that its bitmaps are stored.  At the end the image must be clean, and again after
 * all snapshots and bitmaps have been deleted. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/dirty_bitmap.h"
#include "block/snapshot.h"
#include "random_ops.h"
#include "registry.h"

#define SNAPSHOTS 6u
#define BITMAPS   4u
#define NAME      "%c%u"
#define MOST_READ (64 * KIB)

/* ---- the model ---- */

struct model_snapshot {
    char name[16]; /* empty: there is none */
    struct flat disk;
    struct node *reader; /* an open node of it, or NULL */
};

struct model_bitmap {
    char name[16]; /* empty: there is none */
    bool persistent, enabled;
    uint64_t granularity, n;
    uint8_t *dirty; /* one byte for each of n granules */
};

struct model {
    bool bitmaps;          /* the format has them, and its header has room */
    unsigned refcount_max; /* the largest refcount; 0: too large to be reached here */
    unsigned made;         /* how many were made: for unique names */
    struct model_snapshot snapshot[SNAPSHOTS];
    struct model_bitmap bitmap[BITMAPS];
};

static unsigned count_snapshots(const struct model *m)
{
    unsigned n = 0;

    for (unsigned i = 0; i < SNAPSHOTS; i++)
        n += m->snapshot[i].name[0] != 0;
    return n;
}

static void mark(struct model_bitmap *b, uint64_t off, uint64_t len)
{
    if (len)
        memset(b->dirty + off / b->granularity, 1,
               div_round_up(off + len, b->granularity) - off / b->granularity);
}

static void note_change(void *opaque, uint64_t off, uint64_t len)
{
    struct model *m = opaque;

    for (unsigned i = 0; i < BITMAPS; i++)
        if (m->bitmap[i].name[0] && m->bitmap[i].enabled)
            mark(&m->bitmap[i], off, len);
}

/* The added granules are clean. */
static void resize_bitmap(struct model_bitmap *b, uint64_t size)
{
    uint64_t n = div_round_up(size, b->granularity);

    b->dirty = realloc(b->dirty, n + 1);
    if (n > b->n)
        memset(b->dirty + b->n, 0, n - b->n);
    b->n = n;
}

static void resize_bitmaps(struct model *m, uint64_t size)
{
    for (unsigned i = 0; i < BITMAPS; i++)
        if (m->bitmap[i].name[0])
            resize_bitmap(&m->bitmap[i], size);
}

static struct flat copy_flat(const struct flat *from)
{
    struct flat copy = {.bytes = malloc(from->size), .size = from->size};

    memcpy(copy.bytes, from->bytes, from->size);
    return copy;
}

/* ---- comparing ---- */

static void compare_range(struct trial *t, const struct model_snapshot *s,
                          struct node *node, uint64_t off, uint64_t len)
{
    CLEANUP_FREE uint8_t *buf = malloc(len);

    int err = block_read(node, buf, off, len);
    if (err || memcmp(buf, s->disk.bytes + off, len) != 0)
        trial_fail(t, "snapshot %s: %" PRIu64 "+%" PRIu64 " changed, or errno %d", s->name,
                   off, len, -err);
}

static struct node *open_reader(struct trial *t, struct image *img,
                                const struct model_snapshot *s)
{
    struct node *node = NULL;
    struct diag diag = {0};

    if (node_open_snapshot(img->node, s->name, &node, &diag))
        trial_fail(t, "%s", diag.text);
    if (node->size != s->disk.size)
        trial_fail(t, "snapshot %s has %" PRIu64 " bytes instead of %" PRIu64, s->name,
                   node->size, s->disk.size);
    return node;
}

static void compare_snapshot(struct trial *t, struct image *img,
                             const struct model_snapshot *s)
{
    struct node *node = open_reader(t, img, s);

    for (uint64_t off = 0; off < s->disk.size; off += MOST_READ)
        compare_range(t, s, node, off, MIN(MOST_READ, s->disk.size - off));
    node_close_snapshot(node);
}

static void compare_bitmap(struct trial *t, struct image *img, const struct model_bitmap *b)
{
    struct dirty_bitmap *bitmap = node_bitmap_find(img->node, b->name);

    if (!bitmap || dirty_bitmap_inconsistent(bitmap))
        trial_fail(t, "bitmap %s is lost", b->name);
    if (dirty_bitmap_enabled(bitmap) != b->enabled ||
        dirty_bitmap_persistent(bitmap) != b->persistent ||
        dirty_bitmap_granularity(bitmap) != b->granularity)
        trial_fail(t, "bitmap %s is another", b->name);
    for (uint64_t i = 0; i < b->n; i++)
        if (dirty_bitmap_get(bitmap, i * b->granularity) != b->dirty[i])
            trial_fail(t, "bitmap %s: granule %" PRIu64 " should be %s", b->name, i,
                       b->dirty[i] ? "dirty" : "clean");
}

static void compare_all(void *opaque, struct trial *t, struct image *img)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    struct model *m = opaque;

    cr_assert_eq(node_snapshots(img->node, &list), 0);
    if (list.n != count_snapshots(m))
        trial_fail(t, "there are %zu snapshots instead of %u", list.n, count_snapshots(m));
    for (unsigned i = 0; i < SNAPSHOTS; i++)
        if (m->snapshot[i].name[0])
            compare_snapshot(t, img, &m->snapshot[i]);
    for (unsigned i = 0; i < BITMAPS; i++)
        if (m->bitmap[i].name[0])
            compare_bitmap(t, img, &m->bitmap[i]);
}

/* ---- snapshots ---- */

static int change_snapshot(struct image *img, enum snapshot_kind kind, const char *name,
                           bool ahead, struct diag *diag)
{
    const struct snapshot_request request = {
        .kind = kind, .name = name, .date_sec = 1700000000, .ahead = ahead};

    return node_change_snapshot(img->node, &request, NULL, diag);
}

/* Refcounts of few bits limit the number of snapshots: then creating one must fail with ERANGE and
 * change nothing. */
static void create_snapshot(struct model *m, struct trial *t, struct image *img,
                            struct model_snapshot *s, bool ahead)
{
    struct model_snapshot made = {0};
    struct diag diag = {0};

    snprintf(made.name, sizeof made.name, NAME, 's', m->made++);
    trial_note(t, "snapshot %s%s", made.name, ahead ? " ahead" : "");
    int err = change_snapshot(img, SNAPSHOT_CREATE, made.name, ahead, &diag);
    bool too_many = m->refcount_max && count_snapshots(m) + 2 > m->refcount_max;
    bool packed = img->spec.node.compress && m->refcount_max;
    if (err == -ERANGE && (too_many || packed))
        return;
    if (err)
        trial_fail(t, "%s", diag.text);
    made.disk = copy_flat(&img->model);
    *s = made;
}

static void forget_snapshot(struct model_snapshot *s)
{
    free(s->disk.bytes);
    *s = (struct model_snapshot){0};
}

static void delete_snapshot(struct trial *t, struct image *img, struct model_snapshot *s)
{
    struct diag diag = {0};

    trial_note(t, "delete %s", s->name);
    int err = change_snapshot(img, SNAPSHOT_DELETE, s->name, false, &diag);
    if (s->reader && err == -EBUSY)
        return;
    if (err || s->reader)
        trial_fail(t, "errno %d: %s", -err, diag.text);
    forget_snapshot(s);
}

static void close_reader(struct model_snapshot *s)
{
    if (s->reader)
        node_close_snapshot(s->reader);
    s->reader = NULL;
}

/* Applying a snapshot counts as a change of the whole disk for the bitmaps that record. */
static void apply_snapshot(struct model *m, struct trial *t, struct image *img,
                           const struct model_snapshot *s)
{
    struct diag diag = {0};

    trial_note(t, "apply %s", s->name);
    int err = change_snapshot(img, SNAPSHOT_APPLY, s->name, false, &diag);
    bool full = m->refcount_max && count_snapshots(m) + 1 > m->refcount_max;
    if (err == -ERANGE && (full || (img->spec.node.compress && m->refcount_max)))
        return;
    if (err)
        trial_fail(t, "%s", diag.text);
    free(img->model.bytes);
    img->model = copy_flat(&s->disk);
    resize_bitmaps(m, img->model.size);
    note_change(m, 0, img->model.size);
}

static void read_some(struct trial *t, struct image *img, struct model_snapshot *s,
                      struct rng *rng)
{
    uint64_t off = rng_below(rng, s->disk.size);

    trial_note(t, "read %s at %" PRIu64, s->name, off);
    if (!s->reader)
        s->reader = open_reader(t, img, s);
    compare_range(t, s, s->reader, off, MIN(MOST_READ, s->disk.size - off));
    if (rng_one_in(rng, 2))
        close_reader(s);
}

static void grow(struct model *m, struct trial *t, struct image *img, struct rng *rng)
{
    uint64_t size = img->model.size + rng_between(rng, 1, 20) * 32 * KIB;
    struct diag diag = {0};

    if (img->model.size > img->spec.size * 2)
        return;
    trial_note(t, "grow to %" PRIu64, size);
    int err = node_grow(img->node, size, &diag);
    if (err == -ENOTSUP) /* a version 2 image with snapshots can't grow */
        return;
    if (err)
        trial_fail(t, "%s", diag.text);
    img->model.bytes = realloc(img->model.bytes, size);
    memset(img->model.bytes + img->model.size, 0, size - img->model.size);
    resize_bitmaps(m, size);
    note_change(m, img->model.size,
                size - img->model.size); /* it may have been there before */
    img->model.size = size;
}

static void act_on_snapshots(struct model *m, struct trial *t, struct image *img,
                             struct rng *rng)
{
    struct model_snapshot *s = &m->snapshot[rng_below(rng, SNAPSHOTS)];
    uint64_t dice = rng_below(rng, 10);

    if (!s->name[0])
        create_snapshot(m, t, img, s, rng_one_in(rng, 2));
    else if (dice < 4)
        delete_snapshot(t, img, s);
    else if (dice < 6)
        apply_snapshot(m, t, img, s);
    else
        read_some(t, img, s, rng);
}

/* ---- bitmaps ---- */

static void create_bitmap(struct model *m, struct trial *t, struct image *img,
                          struct model_bitmap *b, struct rng *rng)
{
    struct dirty_bitmap *bitmap;
    struct diag diag = {0};

    *b = (struct model_bitmap){.granularity = 512ull << rng_below(rng, 9),
                               .enabled = !rng_one_in(rng, 4),
                               .persistent = !rng_one_in(rng, 4)};
    snprintf(b->name, sizeof b->name, NAME, 'b', m->made++);
    resize_bitmap(b, img->model.size);
    trial_note(t, "bitmap %s of %" PRIu64, b->name, b->granularity);
    const struct bitmap_params params = {.name = b->name,
                                         .granularity = b->granularity,
                                         .persistent = b->persistent,
                                         .disabled = !b->enabled};
    if (node_bitmap_create(img->node, &params, &bitmap, &diag) ||
        (b->persistent && node_bitmaps_keep(img->node, &diag)))
        trial_fail(t, "%s", diag.text);
}

static void forget_bitmap(struct model_bitmap *b)
{
    free(b->dirty);
    *b = (struct model_bitmap){0};
}

static void remove_bitmap(struct trial *t, struct image *img, struct model_bitmap *b)
{
    struct diag diag = {0};

    trial_note(t, "remove %s", b->name);
    if (node_bitmap_remove(img->node, b->name, &diag) ||
        (b->persistent && node_bitmaps_keep(img->node, &diag)))
        trial_fail(t, "%s", diag.text);
    forget_bitmap(b);
}

/* Marks all granules of `to` that overlap a dirty granule of `from`. */
static void merge_models(struct model_bitmap *to, const struct model_bitmap *from,
                         uint64_t size)
{
    for (uint64_t i = 0; i < from->n; i++)
        if (from->dirty[i])
            mark(to, i * from->granularity,
                 MIN(from->granularity, size - i * from->granularity));
}

static void change_bitmap(struct model *m, struct trial *t, struct image *img,
                          struct model_bitmap *b, struct rng *rng)
{
    struct dirty_bitmap *bitmap = node_bitmap_find(img->node, b->name);
    const struct model_bitmap *other = &m->bitmap[rng_below(rng, BITMAPS)];
    uint64_t dice = rng_below(rng, 3);
    struct diag diag = {0};

    if (!bitmap || node_bitmap_begin_change(img->node, bitmap, &diag))
        trial_fail(t, "bitmap %s: %s", b->name, diag.text);
    trial_note(t, "%s %s",
               dice == 0   ? "clear"
               : dice == 1 ? "switch"
                           : "merge into",
               b->name);
    if (dice == 0) {
        dirty_bitmap_clear(bitmap, 0, dirty_bitmap_size(bitmap));
        memset(b->dirty, 0, b->n);
    } else if (dice == 1) {
        b->enabled = !b->enabled;
        dirty_bitmap_enable(bitmap, b->enabled);
    } else if (other->name[0] && other != b) {
        dirty_bitmap_merge(bitmap, node_bitmap_find(img->node, other->name));
        merge_models(b, other, img->model.size);
    }
    node_bitmap_end_change(img->node, bitmap);
}

static void act_on_bitmaps(struct model *m, struct trial *t, struct image *img,
                           struct rng *rng)
{
    struct model_bitmap *b = &m->bitmap[rng_below(rng, BITMAPS)];

    if (!b->name[0])
        create_bitmap(m, t, img, b, rng);
    else if (rng_one_in(rng, 4))
        remove_bitmap(t, img, b);
    else if (rng_one_in(rng, 2))
        change_bitmap(m, t, img, b, rng);
    else
        compare_bitmap(t, img, b);
}

/* ---- beside the requests ---- */

/* Lets time pass without requests: bitmaps are stored after a whole delay without changes. */
static void rest(struct image *img)
{
    for (unsigned i = 0; i < 3; i++) {
        img->now += 6 * SEC;
        housekeeper_run_due(img->ctx.housekeeper);
    }
}

static void close_readers(struct model *m)
{
    for (unsigned i = 0; i < SNAPSHOTS; i++)
        close_reader(&m->snapshot[i]);
}

static void step(void *opaque, struct trial *t, struct image *img, struct rng *rng)
{
    struct model *m = opaque;

    if (rng_one_in(rng, 30))
        act_on_snapshots(m, t, img, rng);
    if (m->bitmaps && rng_one_in(rng, 30))
        act_on_bitmaps(m, t, img, rng);
    if (rng_one_in(rng, 60))
        rest(img);
    if (rng_one_in(rng, 150))
        grow(m, t, img, rng);
    if (rng_one_in(rng, 300))
        compare_all(m, t, img);
}

static void closing(void *opaque)
{
    close_readers(opaque);
}

static void drop_transient(void *opaque, struct trial *t, struct image *img)
{
    struct model *m = opaque;

    for (unsigned i = 0; i < BITMAPS; i++)
        if (m->bitmap[i].name[0] && !m->bitmap[i].persistent)
            forget_bitmap(&m->bitmap[i]);
    compare_all(m, t, img);
}

static void undo(void *opaque, struct trial *t, struct image *img)
{
    struct model *m = opaque;

    close_readers(m);
    for (unsigned i = 0; i < SNAPSHOTS; i++)
        if (m->snapshot[i].name[0])
            delete_snapshot(t, img, &m->snapshot[i]);
    for (unsigned i = 0; i < BITMAPS; i++)
        if (m->bitmap[i].name[0])
            remove_bitmap(t, img, &m->bitmap[i]);
}

static const struct trial_more snapshots_and_bitmaps = {
    .changed = note_change,
    .step = step,
    .closing = closing,
    .reopened = drop_transient,
    .end = compare_all,
    .undo = undo,
};

/* ---- the matrix ---- */

#define IMAGE(opts, bytes)                                               \
    .image.format = "qcow2", .image.options = opts, .image.size = bytes, \
    .image.node.need_check_delay_ns = 5 * SEC
#define BASE(fmt, bytes) .image.base_format = fmt, .image.base_size = bytes
#define CACHE(bytes)     .image.cache_bytes = bytes

static const struct trial_case cases[] = {
    {.name = "512-rc1", IMAGE("cluster_size=512,refcount_bits=1", MIB + 512), .ops = 5000},
    {.name = "4k-rc2",
     IMAGE("cluster_size=4096,refcount_bits=2", 4 * MIB + 512),
     .ops = 5000},
    {.name = "1k-rc4-small-cache",
     IMAGE("cluster_size=1024,refcount_bits=4", MIB + 512),
     CACHE(32 * KIB),
     .ops = 5000},
    {.name = "4k-rc8-base",
     IMAGE("cluster_size=4096,refcount_bits=8", 4 * MIB + 512),
     BASE("raw", 3 * MIB + 512),
     .ops = 5000},
    {.name = "64k-rc16", IMAGE("cluster_size=65536", 16 * MIB + 512), .ops = 4000},
    {.name = "4k-rc32-lazy-base",
     IMAGE("cluster_size=4096,refcount_bits=32,lazy_refcounts=on", 4 * MIB + 512),
     BASE("qed", 5 * MIB),
     .ops = 5000},
    {.name = "1k-rc64",
     IMAGE("cluster_size=1024,refcount_bits=64", MIB + 512),
     .ops = 5000},
    {.name = "extended-16k",
     IMAGE("cluster_size=16384,extended_l2=on", 8 * MIB + 512),
     .ops = 4000},
    {.name = "extended-64k-rc4-base",
     IMAGE("cluster_size=65536,extended_l2=on,refcount_bits=4", 12 * MIB + 512),
     BASE("qcow2", 9 * MIB),
     .ops = 3000},
    {.name = "compress-4k-rc16",
     IMAGE("cluster_size=4096", 4 * MIB + 512),
     .image.packed = true,
     .image.node.compress = true,
     .ops = 3000},
    {.name = "compress-1k-rc2-zstd",
     IMAGE("cluster_size=1024,refcount_bits=2,compression_type=zstd", MIB + 512),
     .image.node.compress = true,
     .ops = 3000},
    {.name = "compress-extended-base",
     IMAGE("cluster_size=16384,extended_l2=on", 6 * MIB + 512),
     BASE("raw", 5 * MIB),
     .image.node.compress = true,
     .ops = 3000},
    {.name = "luks-4k",
     IMAGE("cluster_size=4096", 3 * MIB + 512),
     .image.encrypt = "luks",
     .ops = 2000},
    {.name = "plain-4k",
     IMAGE("cluster_size=4096", 3 * MIB + 512),
     .image.plain = true,
     .ops = 3000},
    {.name = "file-64k",
     IMAGE("cluster_size=65536", 8 * MIB + 512),
     .image.on_file = true,
     .ops = 2000},
    {.name = "2m",
     IMAGE("cluster_size=2097152", 25 * MIB + 512),
     .max_len = 3 * MIB,
     .ops = 500},
    {.name = "v2-4k", IMAGE("compat=0.10,cluster_size=4096", 4 * MIB + 512), .ops = 4000},
};

ParameterizedTestParameters(model_snapshots, random_requests)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, model_snapshots, random_requests, .timeout = 300)
{
    struct trial_case what = cases[*index];
    const char *width = strstr(what.image.options, "refcount_bits=");
    unsigned bits = width ? (unsigned)atoi(strchr(width, '=') + 1) : 16;
    struct model model = {
        .bitmaps = !strstr(what.image.options, "compat=0.10") &&
                   !strstr(what.image.options, "cluster_size=512"),
        .refcount_max = bits <= 8 ? (1u << bits) - 1 : 0,
    };

    registry_init();
    what.more = &snapshots_and_bitmaps;
    what.opaque = &model;
    trial_run(&what);
}
