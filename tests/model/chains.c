/* SPDX-License-Identifier: BSD-3-Clause */
/* Random chains of up to eight layers, of mixed formats, cluster sizes and lengths, against a
 * flat array: what a disk over them reads, from several threads at once and with little memory
 * for tables, while the top is written to. */
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

/* Kinds of layers; the lowest may be raw. */
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
    struct block_context ctx;
    struct node *top;
    unsigned depth;
    uint8_t *model;
    uint64_t size; /* of what the model holds */
};

static char *layer_path(struct trial *t, unsigned i)
{
    char name[16];

    snprintf(name, sizeof name, "layer%u", i);
    return scratch_path(&t->scratch, name);
}

/* ---- making ---- */

/* One change of the layer that is open, done to the model as well. */
static void change(struct trial *t, struct node *node)
{
    uint64_t most = rng_one_in(&t->rng, 4) ? MIB : 40 * KIB;
    uint64_t len = rng_between(&t->rng, 1, MIN(t->size, most));
    uint64_t off = rng_below(&t->rng, t->size - len + 1);

    if (rng_one_in(&t->rng, 2)) { /* whole clusters, which can be compressed or unmapped */
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
    /* What a shorter layer cut off doesn't come back in a longer one. */
    if (size < t->size)
        memset(t->model + size, 0, t->size - size);
    t->size = size;
    fill_layer(t, path, kind);
    *below_format = kind->format;
}

/* ---- reading ---- */

static void expect_same(struct trial *t, struct rng *rng, const uint8_t *model)
{
    uint64_t most = rng_one_in(rng, 3) ? MIB : 16 * KIB;
    uint64_t len = rng_between(rng, 1, MIN(t->size, most));
    uint64_t off = rng_below(rng, t->size - len + 1);
    CLEANUP_FREE uint8_t *got = malloc(len);

    int err = block_read(t->top, got, off, len);
    cr_assert_eq(err, 0, "seed %" PRIu64 ", depth %u, %" PRIu64 " at %" PRIu64 ": %s",
                 t->seed, t->depth, len, off, strerror(-err));
    uint64_t same = 0;
    while (same < len && got[same] == model[off + same])
        same++;
    cr_assert_eq(same, len, "seed %" PRIu64 ", depth %u: byte %" PRIu64, t->seed, t->depth,
                 off + same);
}

struct reader {
    struct trial *trial;
    const uint8_t *model; /* as it was: nobody writes meanwhile */
    struct rng rng;
    pthread_t thread;
};

static void *read_much(void *opaque)
{
    struct reader *reader = opaque;

    for (unsigned i = 0; i < 200 / build_slowness(); i++)
        expect_same(reader->trial, &reader->rng, reader->model);
    return NULL;
}

static void read_from_threads(struct trial *t)
{
    struct reader readers[READERS];

    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct reader){.trial = t, .model = t->model};
        rng_init(&readers[i].rng, rng_next(&t->rng));
        cr_assert_eq(pthread_create(&readers[i].thread, NULL, read_much, &readers[i]), 0);
    }
    for (unsigned i = 0; i < READERS; i++)
        pthread_join(readers[i].thread, NULL);
}

/* What block status calls zero reads so, and it comes to the end of the disk. */
static void check_status(struct trial *t)
{
    for (uint64_t off = 0; off < t->size;) {
        struct block_status st;
        cr_assert_eq(block_status(t->top, off, t->size - off, &st), 0);
        uint64_t zeroes = 0;
        while (zeroes < st.length && t->model[off + zeroes] == 0)
            zeroes++;
        cr_assert(!st.zero || zeroes == st.length, "seed %" PRIu64, t->seed);
        off += st.length;
    }
}

static void run_trial(uint64_t seed)
{
    struct trial t = {.seed = seed, .model = calloc(1, MAX_SIZE)};
    const char *format = NULL;
    struct diag diag = {0};

    rng_init(&t.rng, seed);
    scratch_make(&t.scratch);
    uint64_t cache = rng_one_in(&t.rng, 2) ? 64 * KIB : 16 * MIB;
    cr_assert_eq(block_context_init(&t.ctx, cache, NULL, NULL), 0);
    t.depth = 1 + (unsigned)rng_below(&t.rng, MAX_DEPTH);
    for (unsigned i = 0; i < t.depth; i++)
        make_layer(&t, i, &format);

    CLEANUP_FREE char *path = layer_path(&t, t.depth - 1);
    struct chain_options options = {.format = format};
    cr_assert_eq(chain_open(&t.ctx, path, &options, &t.top, &diag), 0,
                 "seed %" PRIu64 ": %s", seed, diag.text);
    cr_assert_eq(node_activate(t.top, &diag), 0, "%s", diag.text);
    for (unsigned round = 0; round < 4; round++) {
        read_from_threads(&t);
        for (unsigned i = 0; i < 6; i++)
            change(&t, t.top);
    }
    check_status(&t);
    cr_assert_eq(node_close(t.top), 0);
    block_context_destroy(&t.ctx);
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
