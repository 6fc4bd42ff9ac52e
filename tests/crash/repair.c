/* A repair that is cut short by a power failure or a kill: whatever is left of it, running
 * it again ends with a clean image, and the disk reads as after a repair that nothing
 * disturbed. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/check.h"
#include "crash_storage.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define DISK      (4 * MIB)
#define CLUSTER   4096u
#define COPIED    (UINT64_C(1) << 63)
#define OFFSET    UINT64_C(0x00fffffffffffe00)
#define TORN_RUNS 6

/* ---- bytes of the image ---- */

static uint64_t get(struct storage *st, uint64_t off)
{
    uint8_t raw[8];

    cr_assert_eq(storage_read(st, raw, 8, off), 0);
    return load_be64(raw);
}

static void put(struct storage *st, uint64_t off, uint64_t value)
{
    uint8_t raw[8];

    store_be64(raw, value);
    cr_assert_eq(storage_write(st, raw, 8, off, 0), 0);
}

/* The place of the n-th L2 entry in use of a qcow2 image. */
static uint64_t l2_place(struct storage *st, unsigned n)
{
    uint64_t l1 = get(st, 40);

    for (uint64_t i = 0; i < DISK / (CLUSTER * CLUSTER / 8); i++) {
        uint64_t table = get(st, l1 + i * 8) & OFFSET;
        for (uint64_t j = 0; table && j < CLUSTER / 8; j++)
            if ((get(st, table + j * 8) & OFFSET) && n-- == 0)
                return table + j * 8;
    }
    cr_assert_fail("not that many entries");
    abort();
}

/* ---- damages ---- */

static void no_refcounts(struct storage *st)
{
    cr_assert_eq(storage_zero(st, get(st, get(st, 48)), CLUSTER, 0), 0);
}

static void no_refcount_block(struct storage *st)
{
    put(st, get(st, 48), 0);
}

static void refcount_block_misplaced(struct storage *st)
{
    put(st, get(st, 48), get(st, l2_place(st, 3)) & OFFSET);
}

static void refcount_table_lost(struct storage *st)
{
    put(st, 48, 512 * MIB);
}

static void leaks(struct storage *st)
{
    uint64_t size, block = get(st, get(st, 48));

    cr_assert_eq(storage_size(st, &size), 0);
    for (uint64_t i = 0; i < size / CLUSTER + 20; i++)
        cr_assert_eq(storage_write(st, "\0\7", 2, block + i * 2, 0), 0);
    cr_assert_eq(storage_truncate(st, size + 20 * CLUSTER), 0);
}

static void copied_flags(struct storage *st)
{
    for (unsigned i = 0; i < 60; i++)
        put(st, l2_place(st, i), get(st, l2_place(st, i)) ^ COPIED);
    put(st, get(st, 40), get(st, get(st, 40)) ^ COPIED);
}

static void shared_cluster(struct storage *st)
{
    put(st, l2_place(st, 1), get(st, l2_place(st, 20)));
}

static void misaligned_entry(struct storage *st)
{
    put(st, l2_place(st, 2), get(st, l2_place(st, 2)) + 512);
}

static void data_on_the_l1_table(struct storage *st)
{
    put(st, l2_place(st, 5), get(st, 40) | COPIED);
}

static void l1_past_the_end(struct storage *st)
{
    put(st, get(st, 40) + 8, 512 * MIB);
    put(st, get(st, 40), get(st, get(st, 40)) | 1);
}

static void everything(struct storage *st)
{
    leaks(st);
    copied_flags(st);
    shared_cluster(st);
    misaligned_entry(st);
    data_on_the_l1_table(st);
    refcount_block_misplaced(st);
    put(st, 72, 3); /* dirty and corrupt */
}

static void short_snapshot_entry(struct storage *st)
{
    uint64_t entry = get(st, 64);

    cr_assert_eq(storage_write(st, "\0\0\0\10", 4, entry + 36, 0), 0);
}

static void snapshot_on_data(struct storage *st)
{
    put(st, get(st, 64), get(st, l2_place(st, 20)) & OFFSET);
}

static uint64_t qed_entry(struct storage *st, unsigned n)
{
    return __builtin_bswap64(get(st, CLUSTER)) + n * 8;
}

static void qed_damage(struct storage *st)
{
    uint64_t size;

    cr_assert_eq(storage_size(st, &size), 0);
    put(st, qed_entry(st, 3), __builtin_bswap64(size * 2));
    put(st, qed_entry(st, 5), __builtin_bswap64(12345));
    put(st, CLUSTER + 8, __builtin_bswap64(77));
    put(st, 16, __builtin_bswap64(2));
    cr_assert_eq(storage_truncate(st, size + 9 * CLUSTER + 100), 0);
}

struct scenario {
    const char *name, *format, *options;
    void (*damage)(struct storage *st);
    bool snapshot;
};

static const struct scenario scenarios[] = {
    {"no refcounts", "qcow2", "cluster_size=4096", no_refcounts, false},
    {"no refcount block", "qcow2", "cluster_size=4096", no_refcount_block, false},
    {"misplaced block", "qcow2", "cluster_size=4096", refcount_block_misplaced, false},
    {"lost table", "qcow2", "cluster_size=4096", refcount_table_lost, false},
    {"leaks", "qcow2", "cluster_size=4096", leaks, false},
    {"copied flags", "qcow2", "cluster_size=4096", copied_flags, false},
    {"copied flags, v2", "qcow2", "cluster_size=4096,compat=0.10", copied_flags, false},
    {"shared cluster", "qcow2", "cluster_size=4096", shared_cluster, false},
    {"misaligned entry", "qcow2", "cluster_size=4096", misaligned_entry, false},
    {"data on the L1 table", "qcow2", "cluster_size=4096", data_on_the_l1_table, false},
    {"L1 entries", "qcow2", "cluster_size=4096", l1_past_the_end, false},
    {"everything", "qcow2", "cluster_size=4096", everything, false},
    {"everything, snapshot", "qcow2", "cluster_size=4096", everything, true},
    {"short snapshot entry", "qcow2", "cluster_size=4096", short_snapshot_entry, true},
    {"snapshot on data", "qcow2", "cluster_size=4096", snapshot_on_data, true},
    {"qed", "qed", "cluster_size=4096,table_size=2", qed_damage, false},
};

/* ---- running it ---- */

static const struct driver *driver_of(const struct scenario *s)
{
    return driver_find(s->format);
}

static int check(const struct scenario *s, struct storage *st, enum check_repair repair,
                 struct check_result *result)
{
    const struct check_options options = {.repair = repair};
    struct diag diag = {0};

    *result = (struct check_result){0};
    int err = driver_of(s)->check(st, &options, result, &diag);
    cr_expect_eq(err, 0, "%s: %s", s->name, diag.text);
    return err;
}

static uint8_t *read_disk(const struct scenario *s, struct storage *st)
{
    struct block_context ctx;
    struct node_options options = {0};
    struct node *node;
    struct diag diag = {0};
    uint8_t *disk = malloc(DISK);

    cr_assert(disk);
    cr_assert_eq(block_context_init(&ctx, MIB, NULL, NULL), 0);
    cr_assert_eq(node_open(&ctx, driver_of(s), mem_storage_share(st), "disk", &options,
                           &node, &diag),
                 0, "%s: %s", s->name, diag.text);
    cr_assert_eq(block_read(node, disk, DISK, 0), 0, "%s: reading", s->name);
    node_close(node);
    block_context_destroy(&ctx);
    return disk;
}

/* Something in every L2 table, and clusters shared with a snapshot. */
static struct storage *make_damaged(const struct scenario *s)
{
    struct image img;

    image_make(&img,
               &(struct image_spec){.format = s->format,
                                    .options = s->options,
                                    .size = DISK,
                                    .snapshot = s->snapshot},
               1);
    image_open(&img);
    uint8_t buf[3 * CLUSTER];
    struct rng rng;
    rng_init(&rng, 7);
    for (uint64_t off = CLUSTER / 2; off + sizeof buf < DISK; off += DISK / 24) {
        rng_fill(&rng, buf, sizeof buf);
        cr_assert_eq(block_write(img.node, buf, sizeof buf, off, 0), 0);
    }
    cr_assert_eq(image_close(&img), 0);
    struct storage *st = mem_storage_clone(img.mem);
    image_free(&img);
    s->damage(st);
    return st;
}

static void judge(const struct scenario *s, struct storage *state, const uint8_t *expected,
                  const char *what, uint64_t point)
{
    struct check_result result;

    if (check(s, state, REPAIR_ALL, &result))
        return;
    cr_expect_eq(result.corruptions + result.check_errors, 0, "%s: %s at %llu: %llu errors",
                 s->name, what, (unsigned long long)point,
                 (unsigned long long)result.corruptions);
    if (check(s, state, REPAIR_NONE, &result))
        return;
    cr_expect_eq(result.corruptions, 0, "%s: %s at %llu: not clean", s->name, what,
                 (unsigned long long)point);
    CLEANUP_FREE uint8_t *disk = read_disk(s, state);
    cr_expect(memcmp(disk, expected, DISK) == 0, "%s: %s at %llu: other contents", s->name,
              what, (unsigned long long)point);
}

static void judge_point(const struct scenario *s, struct crash_log *log, uint64_t point,
                        const uint8_t *expected)
{
    struct crash_choice choices[2 + 2 * TORN_RUNS] = {{.policy = CRASH_NONE},
                                                      {.policy = CRASH_ALL}};
    unsigned n = 2;

    for (uint64_t i = 0; i < TORN_RUNS; i++) {
        choices[n++] =
            (struct crash_choice){.policy = CRASH_SUBSET, .seed = point * 100 + i};
        choices[n++] = (struct crash_choice){.policy = CRASH_TORN, .seed = point * 100 + i};
    }
    for (unsigned i = 0; i < n; i++) {
        static const char *const names[] = {[CRASH_NONE] = "nothing pending",
                                            [CRASH_ALL] = "a kill",
                                            [CRASH_SUBSET] = "a subset",
                                            [CRASH_TORN] = "torn writes"};
        struct storage *state = crash_materialise(log, point, &choices[i]);
        judge(s, state, expected, names[choices[i].policy], point);
        storage_close(state);
    }
}

ParameterizedTestParameters(repair, can_be_cut_short)
{
    /* Tests run in processes of their own, where pointers mean something else. */
    static int numbers[ARRAY_LEN(scenarios)];

    for (size_t i = 0; i < ARRAY_LEN(scenarios); i++)
        numbers[i] = (int)i;
    return cr_make_param_array(int, numbers, ARRAY_LEN(scenarios));
}

ParameterizedTest(int *number, repair, can_be_cut_short, .timeout = 300)
{
    const struct scenario *s = &scenarios[*number];
    struct check_result result;

    registry_init();
    if (s->snapshot && !have_qemu())
        cr_skip_test("qemu-img makes the snapshot");
    struct storage *damaged = make_damaged(s);
    struct crash_log *log = crash_log_new(damaged);
    struct storage *st = crash_storage_open(log);
    cr_assert_eq(check(s, st, REPAIR_ALL, &result), 0);
    cr_expect_eq(result.corruptions, 0, "%s: not repaired", s->name);
    cr_expect_gt(result.corruptions_fixed + result.leaks_fixed, 0, "%s: nothing wrong",
                 s->name);
    storage_close(st);

    /* At the end all of it is durable. */
    uint64_t end = crash_log_count(log), where;
    struct storage *durable =
        crash_materialise(log, end, &(struct crash_choice){.policy = CRASH_NONE});
    struct storage *live = crash_log_live(log);
    cr_expect(mem_storage_equal(durable, live, &where), "%s: not durable at %llu", s->name,
              (unsigned long long)where);
    storage_close(live);
    CLEANUP_FREE uint8_t *expected = read_disk(s, durable);
    storage_close(durable);
    for (uint64_t point = 0; point <= end; point++)
        judge_point(s, log, point, expected);
    storage_close(damaged);
    crash_log_free(log);
}
