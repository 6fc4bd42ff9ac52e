/* SPDX-License-Identifier: BSD-3-Clause */
/* Random chains of up to eight layers, of mixed formats, cluster sizes and lengths, compared with
 * a flat array.
 *
 * Several disks share the layers as their backing files.  Each is opened, read and closed
 * repeatedly by its own thread, while one more disk over the same layers is written to; in half
 * of the trials with little memory for tables.  E-12, E-13 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "image.h"
#include "registry.h"

#define MAX_SIZE  (6 * MIB)
#define MAX_DEPTH 8
#define READERS   3

/* The kinds of layers.  Only the lowest layer may be raw. */
static const struct kind {
    const char *format, *options;
    bool compress, data_file;
} kinds[] = {
    {"qcow2", "cluster_size=65536", false, false},
    {"qcow2", "cluster_size=65536", true, false},
    {"qcow2", "cluster_size=4096", true, false},
    {"qcow2", "cluster_size=512", false, false},
    {"qcow2", "cluster_size=262144", false, false},
    {"qcow2", "cluster_size=65536,extended_l2=on", false, false},
    {"qcow2", "cluster_size=16384,extended_l2=on", false, false},
    {"qcow2", NULL, false, true},
    {"qed", "cluster_size=65536", false, false},
    {"qed", "cluster_size=4096", false, false},
    {"raw", NULL, false, false},
};

struct trial {
    struct rng rng;
    uint64_t seed;
    struct scratch scratch;
    struct block_shared shared;
    struct block_context ctx;
    unsigned depth;
    const char *format; /* of the highest layer */
    uint8_t *model;
    uint64_t size; /* bytes of the model */
};

static char *layer_path(struct trial *t, unsigned i)
{
    char name[16];

    snprintf(name, sizeof name, "layer%u", i);
    return scratch_path(&t->scratch, name);
}

/* ---- making ---- */

/* Makes one random change to the open layer and to the model. */
static void change(struct trial *t, struct node *node)
{
    uint64_t most = rng_one_in(&t->rng, 4) ? MIB : 40 * KIB;
    uint64_t len = rng_between(&t->rng, 1, MIN(t->size, most));
    uint64_t off = rng_below(&t->rng, t->size - len + 1);

    if (rng_one_in(&t->rng, 2)) { /* whole clusters: these can be compressed or unmapped */
        off = off / (256 * KIB) * (256 * KIB);
        len = MIN(t->size - off, 256 * KIB);
    }
    if (rng_one_in(&t->rng, 4)) {
        memset(t->model + off, 0, len);
        unsigned flags = rng_one_in(&t->rng, 2) ? BLOCK_MAY_UNMAP : 0;
        cr_assert_eq(block_zero(node, off, len, flags), 0);
        return;
    }
    rng_texture(&t->rng, t->model + off, len);
    cr_assert_eq(block_write(node, t->model + off, off, len, 0), 0);
}

static void fill_layer(struct trial *t, const char *path, const struct kind *kind)
{
    struct chain_options options = {.format = kind->format,
                                    .node.compress = kind->compress};
    struct diag diag = {0};
    struct node *node;

    cr_assert_eq(chain_open(&t->ctx, path, &options, &node, &diag), 0, "%s", diag.text);
    cr_assert_eq(node_activate(node, &diag), 0, "%s", diag.text);
    for (uint64_t n = rng_below(&t->rng, 12); n > 0; n--)
        change(t, node);
    cr_assert_eq(node_close(node), 0);
}

static void make_with_data_file(const char *path, uint64_t size, const char *below,
                                const char *below_format)
{
    CLEANUP_FREE char *data = NULL;
    struct diag diag = {0};

    cr_assert_geq(asprintf(&data, "%s.data", path), 0);
    const struct create_request request = {.filename = path,
                                           .size = size,
                                           .backing_file = below,
                                           .backing_format = below_format,
                                           .data_file = data};
    cr_assert_eq(create_image(driver_find("qcow2"), &request, &diag), 0, "%s", diag.text);
}

static void make_layer(struct trial *t, unsigned i, const char **below_format)
{
    size_t n_kinds = ARRAY_LEN(kinds) - (i > 0); /* raw has nothing below it */
    const struct kind *kind = &kinds[rng_below(&t->rng, n_kinds)];
    CLEANUP_FREE char *path = layer_path(t, i);
    CLEANUP_FREE char *below = i ? layer_path(t, i - 1) : NULL;
    uint64_t size =
        (rng_one_in(&t->rng, 2) ? MAX_SIZE : rng_between(&t->rng, 64 * KIB, MAX_SIZE)) /
        512 * 512;

    if (kind->data_file)
        make_with_data_file(path, size, below, *below_format);
    else
        image_create(path, kind->format, kind->options, size, below, *below_format);
    /* Bytes past the end of this layer read as zeroes in all layers above, even in longer ones. */
    if (size < t->size)
        memset(t->model + size, 0, t->size - size);
    t->size = size;
    fill_layer(t, path, kind);
    *below_format = kind->format;
}

/* ---- reading ---- */

/* A disk over the layers, with its own overlay and block context. */
struct disk {
    struct trial *trial;
    const uint8_t *model;
    struct rng rng;
    struct block_context ctx;
    char *path;
    struct node *node;
    pthread_t thread;
};

static void make_disk(struct disk *disk, struct trial *t, unsigned number)
{
    char name[16];
    CLEANUP_FREE char *below = layer_path(t, t->depth - 1);

    snprintf(name, sizeof name, "disk%u", number);
    *disk = (struct disk){.trial = t, .model = t->model};
    rng_init(&disk->rng, rng_next(&t->rng));
    disk->path = scratch_path(&t->scratch, name);
    image_create(disk->path, "qcow2", NULL, t->size, below, t->format);
}

static void open_disk(struct disk *disk)
{
    struct chain_options options = {.format = "qcow2"};
    struct diag diag = {0};

    block_context_init_shared(&disk->ctx, &disk->trial->shared);
    int err = chain_open(&disk->ctx, disk->path, &options, &disk->node, &diag);
    cr_assert_eq(err, 0, "seed %" PRIu64 ": %s", disk->trial->seed, diag.text);
}

static void close_disk(struct disk *disk)
{
    cr_assert_eq(node_close(disk->node), 0);
    block_context_destroy(&disk->ctx);
}

static void expect_same(struct disk *disk)
{
    const struct trial *t = disk->trial;
    uint64_t most = rng_one_in(&disk->rng, 3) ? MIB : 16 * KIB;
    uint64_t len = rng_between(&disk->rng, 1, MIN(t->size, most));
    uint64_t off = rng_below(&disk->rng, t->size - len + 1), same = 0;
    CLEANUP_FREE uint8_t *got = malloc(len);

    int err = block_read(disk->node, got, off, len);
    cr_assert_eq(err, 0, "seed %" PRIu64 ", depth %u, %" PRIu64 " at %" PRIu64 ": %s",
                 t->seed, t->depth, len, off, strerror(-err));
    while (same < len && got[same] == disk->model[off + same])
        same++;
    cr_assert_eq(same, len, "seed %" PRIu64 ", depth %u: byte %" PRIu64, t->seed, t->depth,
                 off + same);
}

static void *come_and_go(void *opaque)
{
    struct disk *disk = opaque;

    for (unsigned turn = 0; turn < 4; turn++) {
        open_disk(disk);
        for (unsigned i = 0; i < 100 / build_slowness(); i++)
            expect_same(disk);
        close_disk(disk);
    }
    return NULL;
}

/* What block status reports as zero must be zero in the model, and the runs must reach the end of
 * the disk. */
static void check_status(struct disk *disk)
{
    for (uint64_t off = 0; off < disk->trial->size;) {
        struct block_status st;
        uint64_t zeroes = 0;
        cr_assert_eq(block_status(disk->node, off, disk->trial->size - off, &st), 0);
        while (zeroes < st.length && disk->model[off + zeroes] == 0)
            zeroes++;
        cr_assert(!st.zero || zeroes == st.length, "seed %" PRIu64, disk->trial->seed);
        off += st.length;
    }
}

/* Writes to one disk.  Its changes go to a copy of the model, because the other disks still read
 * the layers as they were. */
static void write_to(struct disk *disk)
{
    struct trial *t = disk->trial;
    struct diag diag = {0};
    uint8_t *layers = t->model;

    cr_assert_not_null(t->model = malloc(MAX_SIZE));
    memcpy(t->model, layers, MAX_SIZE);
    disk->model = t->model;
    open_disk(disk);
    cr_assert_eq(node_activate(disk->node, &diag), 0, "%s", diag.text);
    for (unsigned i = 0; i < 200 / build_slowness(); i++) {
        if (rng_one_in(&t->rng, 8))
            change(t, disk->node);
        expect_same(disk);
    }
    check_status(disk);
    close_disk(disk);
    free(t->model);
    t->model = layers;
}

static void use_disks(struct trial *t)
{
    struct disk disks[1 + READERS];

    for (unsigned i = 0; i <= READERS; i++)
        make_disk(&disks[i], t, i);
    for (unsigned i = 1; i <= READERS; i++)
        cr_assert_eq(pthread_create(&disks[i].thread, NULL, come_and_go, &disks[i]), 0);
    write_to(&disks[0]);
    for (unsigned i = 1; i <= READERS; i++)
        pthread_join(disks[i].thread, NULL);
    for (unsigned i = 0; i <= READERS; i++)
        free(disks[i].path);
}

static void run_trial(uint64_t seed)
{
    struct trial t = {.seed = seed, .model = calloc(1, MAX_SIZE)};

    rng_init(&t.rng, seed);
    scratch_make(&t.scratch);
    uint64_t cache = rng_one_in(&t.rng, 2) ? 64 * KIB : 16 * MIB;
    cr_assert_eq(block_shared_init(&t.shared, cache, NULL, NULL), 0);
    block_context_init_shared(&t.ctx, &t.shared);
    t.depth = 1 + (unsigned)rng_below(&t.rng, MAX_DEPTH);
    for (unsigned i = 0; i < t.depth; i++)
        make_layer(&t, i, &t.format);
    use_disks(&t);
    block_context_destroy(&t.ctx);
    block_shared_destroy(&t.shared); /* asserts that no layer is left open */
    scratch_remove(&t.scratch);
    free(t.model);
}

Test(chains, random, .timeout = 600)
{
    uint64_t seed = env_number("QIMG_SEED", 0), rounds = env_number("QIMG_OPS", 40);

    registry_init();
    if (seed) {
        run_trial(seed);
        return;
    }
    for (uint64_t i = 1; i <= rounds / build_slowness() + 1; i++)
        run_trial(i);
}
