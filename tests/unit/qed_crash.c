/* SPDX-License-Identifier: BSD-3-Clause */
/* Power failures with QED: at every crash point of a workload, with every crash policy, the image
 * has no corruption, flushed data is there, and unflushed data is old or new. */
#include "crash_storage.h"
#include "qed_testing.h"
#include "rng.h"

#define CLUSTER  4096u
#define TABLE    (2 * CLUSTER)
#define EMPTY    (CLUSTER + TABLE)
#define SPAN     (UINT64_C(1) * CLUSTER * (TABLE / 8))
#define SECTOR   512u
#define CLUSTERS 24u /* used by the workload, on both sides of the border of two tables */
#define FIRST    (SPAN - CLUSTERS / 2 * CLUSTER)
#define SECTORS  (CLUSTERS * CLUSTER / SECTOR)
#define STEPS    40

/* A write fills its sectors with bytes of its own number.  After a crash a sector may hold its
 * number at the last flush or any later one. */
struct history {
    uint8_t flushed[SECTORS];
    uint8_t later[STEPS + 2][SECTORS];
    unsigned n_later;
};

struct workload {
    struct bench *b;
    struct node *node;
    struct crash_log *log;
    struct rng rng;
    /* history[i] is valid while the log has up to until[i] entries. */
    struct history history[2 * STEPS + 2];
    uint64_t until[2 * STEPS + 2];
    unsigned n;
};

static struct node *open_over(struct bench *b, struct storage *file, struct storage *below)
{
    struct node *node = NULL;
    struct diag diag = {0};

    cr_assert_eq(
        node_open(&b->ctx, &qed_driver, file, "disk.qed", &b->options, &node, &diag), 0,
        "%s", diag.text);
    if (below)
        node->backing = open_backing(b, mem_storage_share(below));
    return node;
}

static void note(struct workload *w, const struct history *now)
{
    w->until[w->n] = crash_log_count(w->log);
    w->history[w->n++] = *now;
}

/* Writes or zeroes some sectors, and sometimes flushes.  While the request runs each of its sectors
 * may be old or new, so the history that is noted for this time allows both. */
static void one_step(struct workload *w, struct history *now, unsigned step)
{
    uint8_t buf[4 * CLUSTER];
    uint64_t first = rng_below(&w->rng, SECTORS);
    uint64_t n = rng_between(&w->rng, 1, MIN(SECTORS - first, sizeof buf / SECTOR));
    bool zero = rng_one_in(&w->rng, 4);

    memset(buf, zero ? 0 : (int)(100 + step), sizeof buf);
    uint8_t *latest = now->later[now->n_later];
    memcpy(latest, now->n_later ? now->later[now->n_later - 1] : now->flushed, SECTORS);
    memset(latest + first, buf[0], n);
    now->n_later++;

    uint64_t off = FIRST + first * SECTOR;
    int err = zero ? block_zero(w->node, off, n * SECTOR, BLOCK_MAY_UNMAP)
                   : block_write(w->node, buf, off, n * SECTOR, 0);
    cr_assert_eq(err, 0);
    if (rng_one_in(&w->rng, 3)) {
        cr_assert_eq(block_flush(w->node), 0);
        note(w, now);
        memcpy(now->flushed, now->later[now->n_later - 1], SECTORS);
        now->n_later = 0;
    } else {
        note(w, now);
    }
    if (rng_one_in(&w->rng, 6)) { /* lets time pass, so that the mark is cleared */
        w->b->now += 6 * SEC;
        housekeeper_run_due(w->b->ctx.housekeeper);
        note(w, now);
    }
}

/* Each table entry must be valid, and each cluster referenced once at most. */
static void expect_sound(struct storage *st, uint64_t point)
{
    uint64_t end = size_of(st), n = end / CLUSTER + 1;
    uint8_t *used = calloc(n, 1);

    for (unsigned i = 0; i < TABLE / 8; i++) {
        uint64_t table = get_word(st, CLUSTER + 8 * i);
        if (table == 0)
            continue;
        cr_assert(table % CLUSTER == 0 && table >= EMPTY && table + TABLE <= end,
                  "point %llu: table %llx", (unsigned long long)point,
                  (unsigned long long)table);
        cr_assert_eq(used[table / CLUSTER]++ + used[table / CLUSTER + 1]++, 0);
        for (unsigned j = 0; j < TABLE / 8; j++) {
            uint64_t data = get_word(st, table + 8 * j);
            if (data <= 1)
                continue;
            cr_assert(data % CLUSTER == 0 && data >= EMPTY && data < end,
                      "point %llu: cluster %llx, end %llx", (unsigned long long)point,
                      (unsigned long long)data, (unsigned long long)end);
            cr_assert_eq(used[data / CLUSTER]++, 0, "point %llu: cluster %llx twice",
                         (unsigned long long)point, (unsigned long long)data);
        }
    }
    free(used);
}

static bool allowed(const struct history *h, unsigned sector, uint8_t value)
{
    if (value == h->flushed[sector])
        return true;
    for (unsigned i = 0; i < h->n_later; i++)
        if (value == h->later[i][sector])
            return true;
    return false;
}

static void expect_contents(struct workload *w, struct storage *st, struct storage *below,
                            uint64_t point)
{
    static uint8_t buf[SECTORS * SECTOR];
    unsigned i = 0;

    while (i + 1 < w->n && w->until[i] < point)
        i++;
    struct node *node = open_over(w->b, mem_storage_share(st), below);
    cr_assert_eq(block_read(node, buf, FIRST, sizeof buf), 0);
    for (unsigned s = 0; s < SECTORS; s++) {
        for (unsigned k = 1; k < SECTOR; k++)
            cr_assert_eq(buf[s * SECTOR + k], buf[s * SECTOR], "torn sector");
        cr_assert(allowed(&w->history[i], s, buf[s * SECTOR]),
                  "point %llu, sector %u: %u is neither old nor new",
                  (unsigned long long)point, s, buf[s * SECTOR]);
    }
    cr_assert_eq(node_close(node), 0);
}

static void cut_everywhere(struct workload *w, struct storage *below)
{
    for (uint64_t point = 0; point <= crash_log_count(w->log); point++) {
        for (unsigned round = 0; round < 6; round++) {
            const struct crash_choice choice = {
                .policy = round == 0   ? CRASH_NONE
                          : round == 1 ? CRASH_ALL
                          : round < 4  ? CRASH_SUBSET
                                       : CRASH_TORN,
                .seed = point * 31 + round,
            };
            struct storage *st = crash_materialise(w->log, point, &choice);
            expect_sound(st, point);
            expect_contents(w, st, below, point);
            if (below)
                cr_assert_not(features_of(st) & QED_F_NEED_CHECK, "Q-16");
            storage_close(st);
        }
    }
}

static void run_workload(uint64_t seed, struct storage *below)
{
    struct qed_header h = small_header(GIB);
    struct workload *w = calloc(1, sizeof *w);
    struct history now = {0};
    struct bench b;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, below ? "base.qed" : NULL));
    w->b = &b;
    w->log = crash_log_new(b.mem);
    rng_init(&w->rng, seed);
    memset(now.flushed, below ? 0xb0 : 0, SECTORS);
    w->node = open_over(&b, crash_storage_open(w->log), below);
    cr_assert_eq(node_activate(w->node, NULL), 0);
    for (unsigned step = 0; step < STEPS; step++)
        one_step(w, &now, step);
    cr_assert_eq(node_close(w->node), 0);
    note(w, &now);
    cut_everywhere(w, below);
    crash_log_free(w->log);
    free(w);
    bench_fini(&b);
}

Test(qed_crash, q13_without_a_backing_file, .timeout = 300)
{
    for (uint64_t seed = 1; seed <= 3; seed++)
        run_workload(seed, NULL);
}

Test(qed_crash, q16_no_untouched_sector_loses_its_backing_content, .timeout = 300)
{
    struct qed_header h = small_header(2 * SPAN);
    struct bench b;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, NULL));
    bench_open_writable(&b);
    write_pattern(b.node, FIRST, CLUSTERS * CLUSTER, 0xb0);
    cr_assert_eq(bench_close(&b), 0);
    for (uint64_t seed = 1; seed <= 3; seed++)
        run_workload(seed, b.mem);
    bench_fini(&b);
}

/* Groups that contain new tables but no new data cluster. */
Test(qed_crash, q16_q18_markers_alone, .timeout = 300)
{
    struct qed_header h = small_header(GIB);
    struct bench b;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, "base.qed"));
    struct crash_log *log = crash_log_new(b.mem);
    struct node *node = open_over(&b, crash_storage_open(log), b.mem);
    cr_assert_eq(node_activate(node, NULL), 0);
    for (uint64_t i = 0; i < 6; i++) {
        cr_assert_eq(block_zero(node, 10 * i * SPAN, 2 * CLUSTER, 0), 0);
        if (i % 2 == 0)
            cr_assert_eq(block_flush(node), 0);
    }
    cr_assert_eq(node_close(node), 0);
    for (uint64_t point = 0; point <= crash_log_count(log); point++) {
        for (unsigned seed = 0; seed < 20; seed++) {
            const struct crash_choice choice = {.policy = CRASH_TORN, .seed = seed};
            struct storage *st = crash_materialise(log, point, &choice);
            expect_sound(st, point);
            storage_close(st);
        }
    }
    crash_log_free(log);
    bench_fini(&b);
}

/* A failed write leaves its bytes in a cluster.  When the cluster is used again, the link must wait
 * for the new data. */
Test(qed_crash, q10_what_a_failed_write_left_is_never_seen, .timeout = 300)
{
    struct qed_header h = small_header(GIB);
    uint8_t garbage[CLUSTER], sector[SECTOR];
    struct bench b;

    h.table_size = 2;
    memset(garbage, 0xee, sizeof garbage);
    bench_init(&b, new_image_in_memory(h, NULL));
    struct crash_log *log = crash_log_new(b.mem);
    struct node *node =
        open_over(&b, fault_storage_new(crash_storage_open(log), &b.plan), NULL);
    cr_assert_eq(node_activate(node, NULL), 0);
    write_pattern(node, 0, CLUSTER, 1);
    cr_assert_eq(block_flush(node), 0); /* makes the growth and the mark durable */
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, EIO, FAULT_ONCE_AFTER);
    cr_assert_eq(block_write(node, garbage, CLUSTER, CLUSTER, 0), -EIO);
    cr_assert_eq(block_flush(node), 0);
    uint64_t from = crash_log_count(log);
    write_pattern(node, 2 * CLUSTER, SECTOR, 2);
    cr_assert_eq(block_flush(node), 0);
    cr_assert_eq(node_close(node), 0);
    for (uint64_t point = from; point <= crash_log_count(log); point++) {
        for (unsigned seed = 0; seed < 20; seed++) {
            const struct crash_choice choice = {.policy = CRASH_TORN, .seed = seed};
            struct node *left = open_over(&b, crash_materialise(log, point, &choice), NULL);
            for (unsigned s = 0; s < 3 * CLUSTER / SECTOR; s++) {
                cr_assert_eq(block_read(left, sector, s * SECTOR, SECTOR), 0);
                cr_assert_neq(sector[0], 0xee);
            }
            cr_assert_eq(node_close(left), 0);
        }
    }
    crash_log_free(log);
    bench_fini(&b);
}
