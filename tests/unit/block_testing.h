/* SPDX-License-Identifier: BSD-3-Clause */
/* A bench for tests of formats/block without a real format: a node whose "toy" driver is just a
 * table in memory, with clusters of 4 KiB.
 *
 * An allocated guest cluster n lies at host cluster PLACE + n; a reservation for it gives host
 * cluster NEW_PLACE + n. */
#ifndef BLOCK_TESTING_H
#define BLOCK_TESTING_H

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/node.h"
#include "crash_storage.h"
#include "fault_storage.h"
#include "mem_storage.h"

#define CLUSTER   4096u
#define CLUSTERS  64u
#define PLACE     0u
#define NEW_PLACE 128u
#define SEC       UINT64_C(1000000000)

enum cell {
    HOLE,
    ZERO,
    DATA,
    SHARED /* not writable in place */,
    MOVED /* at its new place */
};

/* The driver's state: the kind of each cluster, the calls so far and the wanted failures. */
struct toy {
    enum cell cell[CLUSTERS];
    char calls[64]; /* a letter for each call except map: R reserve, L link, Z link over
                       zeroes, X release, z zero, f zero_is_fast */
    bool fresh;
    int fail_reserve, fail_link, fail_map, fail_zero;
    uint64_t map_limit; /* clusters in an extent; 0: no limit */
    bool fast;
};

struct toy_bench {
    uint64_t now;
    struct block_context ctx;
    struct crash_log *log;
    struct fault_plan plan;
    struct toy toy, base_toy;
    struct node *node;
};

static inline struct toy *toy_of(struct node *node)
{
    return node->state;
}

static inline void toy_note(struct toy *toy, char c)
{
    size_t n = strlen(toy->calls);

    if (n + 1 < sizeof toy->calls)
        toy->calls[n] = c;
}

static inline int toy_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    struct toy *toy = toy_of(node);
    uint64_t first = off / CLUSTER, n = 1, in = off % CLUSTER;
    enum cell cell = toy->cell[first];

    if (toy->fail_map)
        return -toy->fail_map;
    while (first + n < CLUSTERS && toy->cell[first + n] == cell &&
           (toy->map_limit == 0 || n < toy->map_limit))
        n++;
    *out = (struct extent){.length = MIN(len, n * CLUSTER - in)};
    out->allocated = cell != HOLE;
    out->file = cell >= DATA ? node->file : NULL;
    out->writable = cell == DATA || cell == MOVED;
    out->kind = cell >= DATA ? (node->cipher ? EXTENT_ENCRYPTED : EXTENT_DATA)
                : cell == HOLE && node->backing ? EXTENT_BACKING
                                                : EXTENT_ZERO;
    if (out->file)
        out->host_offset = (cell == MOVED ? NEW_PLACE : PLACE) * CLUSTER + off;
    return 0;
}

static inline int toy_reserve(struct node *node, uint64_t off, uint64_t len,
                              struct reservation *out)
{
    struct toy *toy = toy_of(node);

    toy_note(toy, 'R');
    cr_expect(is_aligned(off | len, CLUSTER) && len > 0);
    if (toy->fail_reserve)
        return -toy->fail_reserve;
    *out = (struct reservation){.guest_offset = off,
                                .length = len,
                                .file = node->file,
                                .host_offset = NEW_PLACE * CLUSTER + off,
                                .fresh = toy->fresh};
    return 0;
}

static inline int toy_link(struct node *node, const struct reservation *res,
                           bool replaces_zero)
{
    struct toy *toy = toy_of(node);

    toy_note(toy, replaces_zero ? 'Z' : 'L');
    if (toy->fail_link)
        return -toy->fail_link;
    for (uint64_t c = 0; c < res->length / CLUSTER; c++)
        toy->cell[res->guest_offset / CLUSTER + c] = MOVED;
    return 0;
}

static inline void toy_release(struct node *node, const struct reservation *res)
{
    (void)res;
    toy_note(toy_of(node), 'X');
}

static inline int toy_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                           uint64_t *done)
{
    struct toy *toy = toy_of(node);

    (void)how;
    toy_note(toy, 'z');
    cr_expect(is_aligned(off | len, CLUSTER) && len > 0);
    *done = 0;
    if (toy->fail_zero)
        return -toy->fail_zero;
    for (*done = 0; *done < len; *done += CLUSTER)
        toy->cell[(off + *done) / CLUSTER] = ZERO;
    return 0;
}

static inline bool toy_zero_is_fast(struct node *node, uint64_t off, uint64_t len)
{
    (void)off;
    (void)len;
    toy_note(toy_of(node), 'f');
    return toy_of(node)->fast;
}

static inline int toy_open(struct node *node, struct diag *diag)
{
    (void)diag;
    node->cluster_size = CLUSTER;
    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, NULL, NULL);
    return 0;
}

static inline int toy_activate(struct node *node, struct diag *diag)
{
    (void)node;
    (void)diag;
    return 0;
}

static inline int toy_close(struct node *node)
{
    (void)node;
    return 0;
}

static const struct driver toy_driver = {
    .name = "toy",
    .features = DRIVER_CLUSTERS,
    .open = toy_open,
    .activate = toy_activate,
    .close = toy_close,
    .map = toy_map,
    .reserve = toy_reserve,
    .link = toy_link,
    .release = toy_release,
    .zero = toy_zero,
    .zero_is_fast = toy_zero_is_fast,
};

static inline uint64_t toy_clock(void *opaque)
{
    return *(uint64_t *)opaque;
}

static inline void toy_no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

static inline struct node *toy_node(struct toy_bench *b, struct storage *st,
                                    struct toy *toy, uint64_t size,
                                    const struct node_options *options)
{
    static const struct node_options none;
    struct node *node;

    cr_assert_eq(
        node_open(&b->ctx, &toy_driver, st, "toy", options ? options : &none, &node, NULL),
        0);
    node->state = toy;
    node->size = size;
    return node;
}

/* Opens a writable disk of `size` bytes without any allocated cluster. */
static inline void toy_init(struct toy_bench *b, uint64_t size,
                            const struct node_options *options)
{
    *b = (struct toy_bench){0};
    log_set_sink(toy_no_messages);
    b->toy.fast = true;
    cr_assert_eq(block_context_init(&b->ctx, 1 << 20, toy_clock, &b->now), 0);
    b->log = crash_log_new(NULL);
    fault_plan_init(&b->plan);
    struct storage *st = fault_storage_new(crash_storage_open(b->log), &b->plan);
    b->node = toy_node(b, st, &b->toy, size, options);
    cr_assert_eq(node_activate(b->node, NULL), 0);
}

/* Adds a backing node: all its clusters are DATA, and all bytes of its file are `fill`. */
static inline void toy_add_base(struct toy_bench *b, uint64_t size, int fill)
{
    struct storage *st = mem_storage_new(0);
    unsigned char *bytes = malloc(CLUSTERS * CLUSTER);

    memset(bytes, fill, CLUSTERS * CLUSTER);
    cr_assert_eq(storage_write(st, bytes, 0, CLUSTERS * CLUSTER, 0), 0);
    free(bytes);
    for (unsigned c = 0; c < CLUSTERS; c++)
        b->base_toy.cell[c] = DATA;
    b->node->backing = toy_node(b, st, &b->base_toy, size, NULL);
}

static inline void toy_fini(struct toy_bench *b)
{
    cr_assert(gate_empty(&b->ctx.gate));
    cr_assert_eq(node_close(b->node), 0);
    block_context_destroy(&b->ctx);
    fault_plan_destroy(&b->plan);
    crash_log_free(b->log);
}

/* The calls since the last call of this function. */
static inline const char *toy_calls(struct toy *toy)
{
    static char copy[64];

    memcpy(copy, toy->calls, sizeof copy);
    memset(toy->calls, 0, sizeof toy->calls);
    return copy;
}

/* Fills bytes of the file, without counting that as calls of the engine. */
static inline void toy_fill_host(struct toy_bench *b, uint64_t off, uint64_t len, int fill)
{
    struct storage *live = crash_log_live(b->log);
    unsigned char *bytes = malloc(len);

    memset(bytes, fill, len);
    cr_assert_eq(storage_write(live, bytes, off, len, 0), 0);
    free(bytes);
    storage_close(live);
}

static inline bool toy_reads(struct toy_bench *b, uint64_t off, uint64_t len, int fill)
{
    unsigned char *bytes = malloc(len);
    bool same = true;

    cr_assert_eq(block_read(b->node, bytes, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        same &= bytes[i] == (unsigned char)fill;
    free(bytes);
    return same;
}

static inline int toy_write(struct toy_bench *b, uint64_t off, uint64_t len, int fill,
                            unsigned flags)
{
    unsigned char *bytes = malloc(len + 1);

    memset(bytes, fill, len);
    int err = block_write(b->node, bytes, off, len, flags);
    free(bytes);
    return err;
}

#endif
