/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests L2 entries of qcow2: zero flags, impossible entries, durability, and lazy refcounts. */
#include <criterion/parameterized.h>

#include "qcow2_testing.h"

#define CL 4096u

static void make_4k(struct image *img, const char *options, bool backing)
{
    make(img, &(struct image_spec){.options = options,
                                   .size = MIB,
                                   .base_format = backing ? "qcow2" : NULL,
                                   .base_size = MIB});
    if (backing) { /* the backing file has data everywhere */
        image_open(img);
        cr_assert_eq(image_close(img), 0);
    }
}

static uint64_t flushed_entry(struct image *img, uint64_t guest)
{
    cr_assert_eq(block_flush(img->node), 0);
    return l2_entry(img, guest);
}

/* ---- zero flags ---- */

Test(qcow2_entries, zero_without_unmapping_keeps_the_allocation)
{
    struct image img;

    make_4k(&img, "cluster_size=4096", false);
    image_open(&img);
    write_fill(&img, 0, 2 * CL, 1);
    uint64_t host = flushed_entry(&img, 0) & L2_OFFSET;
    zero(&img, 0, CL, 0);
    cr_expect_eq(flushed_entry(&img, 0), host | L2_COPIED | L2_ZERO);
    cr_expect(as_model(&img));
    /* After a write to a part of the cluster the rest must not show the old bytes again. */
    write_fill(&img, 512, 512, 2);
    cr_expect_eq(flushed_entry(&img, 0), host | L2_COPIED, "in the place it kept");
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_entries, unmapping_lets_go)
{
    struct image img;

    make_4k(&img, "cluster_size=4096", false);
    image_open(&img);
    write_fill(&img, 0, 2 * CL, 1);
    uint64_t host = flushed_entry(&img, 0) & L2_OFFSET;
    zero(&img, 0, CL, BLOCK_MAY_UNMAP);
    cr_expect_eq(flushed_entry(&img, 0), 0);
    close_and_verify(&img);
    cr_expect_eq(refcount_at(&img, host), 0);
    image_free(&img);
}

Test(qcow2_entries, over_a_backing_file_zero_is_said)
{
    struct image img;

    make_4k(&img, "cluster_size=4096", true);
    image_open(&img);
    write_fill(&img, 0, CL, 1);
    zero(&img, 0, 3 * CL, BLOCK_MAY_UNMAP);
    cr_expect_eq(flushed_entry(&img, 0), L2_ZERO);
    cr_expect_eq(flushed_entry(&img, CL), L2_ZERO);
    trim(&img, 3 * CL, CL);
    cr_expect_eq(flushed_entry(&img, 3 * CL), L2_ZERO);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

/* Version 2 has no zero flag: a trim keeps the data, rather than let the backing file show. */
Test(qcow2_entries, version_2_over_a_backing_file)
{
    struct image img;
    struct storage *before;

    make_4k(&img, "cluster_size=4096,compat=0.10", true);
    image_open(&img);
    write_fill(&img, 0, 2 * CL, 1);
    cr_assert_eq(block_flush(img.node), 0);
    before = mem_storage_clone(img.mem);
    cr_assert_eq(block_discard(img.node, 0, 3 * CL, 0), 0);
    cr_assert_eq(block_flush(img.node), 0);
    cr_expect(as_model(&img));
    cr_expect(mem_storage_equal(before, img.mem, NULL));
    zero(&img, 0, 3 * CL, BLOCK_MAY_UNMAP);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    storage_close(before);
    image_free(&img);
}

Test(qcow2_entries, zeroing_what_is_zero_changes_nothing)
{
    struct image img;

    make_4k(&img, "cluster_size=4096", false);
    image_open(&img);
    uint64_t size = file_size(&img);
    zero(&img, 0, MIB, BLOCK_MAY_UNMAP);
    zero(&img, 0, MIB, 0);
    trim(&img, 0, MIB);
    cr_expect_not(mcache_has_dirty(img.node->mc));
    cr_expect_eq(file_size(&img), size);
    cr_expect_eq(get64(&img, l1_entry_at(&img, 0)), 0, "not even a table");
    image_free(&img);
}

/* A FAST request that isn't fast fails before anything is changed. */
Test(qcow2_entries, fast_zero)
{
    struct image img;

    make_4k(&img, "cluster_size=4096,compat=0.10", false);
    image_open(&img);
    write_fill(&img, 0, 4 * CL, 1);
    cr_assert_eq(block_flush(img.node), 0);
    struct storage *before = mem_storage_clone(img.mem);
    cr_expect_eq(block_zero(img.node, 512, 2 * CL, BLOCK_FAST), -ENOTSUP,
                 "a part has data");
    cr_expect_not(mcache_has_dirty(img.node->mc));
    cr_expect(mem_storage_equal(before, img.mem, NULL));
    cr_expect(as_model(&img));
    cr_expect_eq(block_zero(img.node, 100 * CL + 512, 2 * CL, BLOCK_FAST), 0,
                 "zero already");
    storage_close(before);
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_entries, fast_zero_in_version_3_is_always_fast_for_clusters)
{
    struct image img;

    make_4k(&img, "cluster_size=4096", true);
    image_open(&img);
    write_fill(&img, 0, 4 * CL, 1);
    cr_expect_eq(block_zero(img.node, 512, 2 * CL, BLOCK_FAST), -ENOTSUP);
    zero(&img, CL, 5 * CL, BLOCK_FAST);
    zero(&img, 4 * CL, 5 * CL, BLOCK_FAST | BLOCK_MAY_UNMAP);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_entries, fast_zero_of_a_part_of_a_compressed_cluster)
{
    const uint64_t cluster = 16384;
    struct image img;

    make(&img, &(struct image_spec){.options = "extended_l2=on,cluster_size=16384",
                                    .size = MIB,
                                    .node = {.compress = true}});
    image_open(&img);
    write_fill(&img, 0, 4 * cluster, 1);
    cr_assert(flushed_entry(&img, 0) & L2_COMPRESSED);
    cr_expect_eq(block_zero(img.node, 512, cluster - 512, BLOCK_FAST), -ENOTSUP);
    cr_expect_eq(block_zero(img.node, cluster, cluster + 512, BLOCK_FAST), -ENOTSUP);
    zero(&img, 2 * cluster, cluster, BLOCK_FAST);
    zero(&img, 8 * cluster + 512, 512, BLOCK_FAST);
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

/* ---- impossible entries ---- */

enum where { IN_L1, IN_L2 };

struct bad {
    const char *name, *options;
    enum where where;
    uint64_t entry;
};

static const struct bad bads[] = {
    {"L2: not aligned", NULL, IN_L2, L2_COPIED | (100 * CL + 512)},
    {"L2: past the end", NULL, IN_L2, L2_COPIED | 1ull << 40},
    {"L2: far past the end", NULL, IN_L2, L2_COPIED | L2_OFFSET},
    {"L2: reserved bits", NULL, IN_L2, L2_COPIED | 1ull << 57 | 5 * CL},
    {"L2: compressed, in the refcount table", NULL, IN_L2, L2_COMPRESSED | (CL + 700)},
    {"L2: compressed, past the end", NULL, IN_L2, L2_COMPRESSED | 1ull << 40},
    {"L2: compressed and copied", NULL, IN_L2, L2_COPIED | L2_COMPRESSED | 5 * CL},
    {"L2: the header", NULL, IN_L2, L2_COPIED | CL},
    {"L2: the L1 table", NULL, IN_L2, L2_COPIED | 3 * CL},
    {"L2: zero flag in version 2", "cluster_size=4096,compat=0.10", IN_L2, L2_ZERO},
    {"L1: not aligned", NULL, IN_L1, L1_COPIED | (100 * CL + 512)},
    {"L1: past the end", NULL, IN_L1, L1_COPIED | 1ull << 40},
    {"L1: reserved bits", NULL, IN_L1, L1_COPIED | 1ull << 57 | 4 * CL},
    {"L1: the refcount table", NULL, IN_L1, L1_COPIED | CL},
};

ParameterizedTestParameters(qcow2_entries, impossible)
{
    static int index[ARRAY_LEN(bads)];

    for (int i = 0; i < (int)ARRAY_LEN(bads); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(bads));
}

/* A bad entry fails the requests that use it with EIO, and no others; what it points to isn't
 * changed. */
ParameterizedTest(int *index, qcow2_entries, impossible)
{
    const struct bad *bad = &bads[*index];
    struct image img;
    uint8_t buf[CL] = {3};

    make(&img,
         &(struct image_spec){.options = bad->options ? bad->options : "cluster_size=4096",
                              .size = 8 * MIB});
    image_open(&img);
    write_fill(&img, 0, 4 * CL, 1);
    write_fill(&img, 4 * MIB, CL, 2); /* uses another L2 table */
    cr_assert_eq(image_close(&img), 0);
    put64(&img, bad->where == IN_L1 ? l1_entry_at(&img, 0) : l2_entry_at(&img, CL),
          bad->entry);

    struct diag diag = {0};
    if (bad->where == IN_L1 &&
        bad->entry == (L1_COPIED | CL)) { /* two tables at one offset */
        cr_expect_eq(image_try_open(&img, &diag), -EINVAL, "%s: %s", bad->name, diag.text);
        image_free(&img);
        return;
    }
    cr_assert_eq(image_try_open(&img, &diag), 0, "%s: %s", bad->name, diag.text);
    cr_expect_eq(block_read(img.node, buf, CL, CL), -EIO, "%s", bad->name);
    cr_expect(strstr(logged, bad->where == IN_L1 ? "L1 entry" : "L2 entry"), "'%s'",
              logged);
    cr_expect_eq(block_read(img.node, buf, 4 * MIB, CL), 0);
    cr_expect_eq(buf[0], 2);
    if (bad->where == IN_L2) {
        cr_expect_eq(block_read(img.node, buf, 0, CL), 0, "%s: its neighbour", bad->name);
        cr_expect_eq(buf[0], 1);
    }
    struct storage *before = mem_storage_clone(img.mem);
    cr_expect_eq(block_write(img.node, buf, CL, 512, 0), -EIO, "%s", bad->name);
    cr_expect_eq(block_zero(img.node, CL, CL, BLOCK_MAY_UNMAP), -EIO, "%s", bad->name);
    cr_expect_eq(block_discard(img.node, CL, CL, 0), -EIO, "%s", bad->name);
    /* L-10: from here on the image can only be read. */
    cr_expect_eq(block_write(img.node, buf, MIB, 512, 0), -EIO, "%s", bad->name);
    cr_expect_eq((get64(&img, FIELD(incompatible_features)) & INCOMPAT_CORRUPT) != 0,
                 !bad->options, "%s", bad->name);
    for (uint64_t where = 2 * CL; where < 100 * CL; where += CL) {
        uint8_t a[CL], b[CL];
        cr_assert_eq(storage_read(before, a, where, CL), 0);
        cr_assert_eq(storage_read(img.mem, b, where, CL), 0);
        cr_expect_arr_eq(a, b, CL, "%s: cluster %u", bad->name, (unsigned)(where / CL));
    }
    storage_close(before);
    image_free(&img);
}

/* Where the refcount table is wrong, the refcounts of clusters can't be read (L-10). */
Test(qcow2_entries, an_impossible_refcount_block)
{
    struct image img;

    make_4k(&img, "cluster_size=4096", false);
    put64(&img, get64(&img, FIELD(refcount_table_offset)), 512);
    struct diag diag = {0};
    if (image_try_open(&img, &diag) == 0) {
        cr_expect_lt(try_write(&img, 0, CL, 1, 0), 0);
        memset(img.model.bytes, 0, CL);
        cr_expect(as_model(&img));
    } else {
        cr_expect(strlen(diag.text) > 0);
    }
    image_free(&img);
}

/* ---- durability ---- */

static const char *calls_of(struct crash_log *log, uint64_t from, uint64_t *fua)
{
    static char calls[256];
    size_t n = 0;

    *fua = 0;
    for (uint64_t i = from; i < crash_log_count(log) && n + 1 < sizeof calls; i++) {
        struct crash_op op = crash_log_op(log, i);
        calls[n++] = op.kind == CRASH_WRITE ? 'w' : op.kind == CRASH_FLUSH ? 'F' : '?';
        *fua += op.kind == CRASH_WRITE && op.fua;
    }
    calls[n] = 0;
    return calls;
}

Test(qcow2_entries, fua_on_a_clean_mapping_is_one_durable_write)
{
    struct image img;
    uint64_t fua;

    make_4k(&img, "cluster_size=4096", false);
    img.log = crash_log_new(img.mem);
    image_open(&img);
    write_fill(&img, 0, CL, 1);
    cr_assert_eq(block_flush(img.node), 0);
    uint64_t from = crash_log_count(img.log);
    cr_assert_eq(try_write(&img, 512, 512, 2, BLOCK_FUA), 0);
    cr_expect_str_eq(calls_of(img.log, from, &fua), "w");
    cr_expect_eq(fua, 1);

    /* As long as any link is dirty, it may be the mapping of what is written: FUA has to commit. */
    write_fill(&img, 8 * CL, CL, 1);
    from = crash_log_count(img.log);
    cr_assert_eq(try_write(&img, 512, 512, 3, BLOCK_FUA), 0);
    const char *calls = calls_of(img.log, from, &fua);
    cr_expect_eq(calls[strlen(calls) - 1], 'F', "'%s'", calls);
    from = crash_log_count(img.log);
    cr_assert_eq(block_flush(img.node), 0);
    cr_expect_str_eq(calls_of(img.log, from, &fua), "", "that made all of it durable");
    cr_assert_eq(image_close(&img), 0);
    crash_log_free(img.log);
    image_free(&img);
}

/* Does the range survive a power failure right after the request? */
static bool survives(struct image *img, uint64_t off, uint64_t len)
{
    static const struct crash_choice worst = {.policy = CRASH_NONE};
    static const struct node_options none;
    struct storage *left = crash_materialise(img->log, crash_log_count(img->log), &worst);
    uint8_t *got = malloc(len);
    struct node *node;

    cr_assert_eq(node_open(&img->ctx, &qcow2_driver, left, "left", &none, &node, NULL), 0);
    cr_assert_eq(block_read(node, got, off, len), 0);
    bool same = memcmp(got, img->model.bytes + off, len) == 0;
    cr_assert_eq(node_close(node), 0);
    free(got);
    return same;
}

/* Trims, zeroes and writes with FUA, with and without another dirty link. */
Test(qcow2_entries, fua_of_every_kind_of_change)
{
    for (unsigned others = 0; others < 2; others++) {
        struct image img;

        make_4k(&img, "cluster_size=4096", false);
        img.log = crash_log_new(img.mem);
        image_open(&img);
        write_fill(&img, 0, 8 * CL, 1);
        cr_assert_eq(block_flush(img.node), 0);
        if (others)
            write_fill(&img, 20 * CL, CL, 1);
        memset(img.model.bytes, 0, CL);
        cr_assert_eq(block_discard(img.node, 0, CL, BLOCK_FUA), 0);
        cr_expect(survives(&img, 0, CL), "a trim");
        if (others)
            write_fill(&img, 21 * CL, CL, 1);
        zero(&img, CL, CL, BLOCK_FUA);
        cr_expect(survives(&img, CL, CL), "zeroes that keep the allocation");
        zero(&img, 2 * CL, CL, BLOCK_FUA | BLOCK_MAY_UNMAP);
        cr_expect(survives(&img, 2 * CL, CL), "zeroes that don't");
        if (others)
            write_fill(&img, 22 * CL, CL, 1);
        cr_assert_eq(try_write(&img, 30 * CL, CL, 2, BLOCK_FUA), 0);
        cr_expect(survives(&img, 30 * CL, CL), "a write that allocates");
        /* A write in place to a cluster whose link isn't durable yet. */
        write_fill(&img, 40 * CL, CL, 3);
        cr_assert_eq(try_write(&img, 40 * CL, 512, 4, BLOCK_FUA), 0);
        cr_expect(survives(&img, 40 * CL, 512), "a write in place");
        cr_assert_eq(image_close(&img), 0);
        crash_log_free(img.log);
        image_free(&img);
    }
}

/* A flush of links to fresh clusters over zeroes needs one barrier, once the growth of the file is
 * durable. */
Test(qcow2_entries, an_allocating_flush_has_one_barrier)
{
    struct image img;
    uint64_t fua;

    make_4k(&img, "cluster_size=4096", false);
    img.log = crash_log_new(img.mem);
    image_open(&img);
    write_fill(&img, 0, CL, 1);
    cr_assert_eq(block_flush(img.node), 0);
    for (unsigned i = 1; i < 4; i++) {
        write_fill(&img, i * CL, CL, 1);
        uint64_t from = crash_log_count(img.log);
        cr_assert_eq(block_flush(img.node), 0);
        cr_expect_str_eq(calls_of(img.log, from, &fua), "wF", "one L2 page");
    }
    cr_assert_eq(image_close(&img), 0);
    crash_log_free(img.log);
    image_free(&img);
}

/* ---- lazy refcounts ---- */

/* L-03 to L-05, L-08 */
Test(qcow2_entries, lazy_refcounts_are_announced_and_written_when_idle)
{
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096,lazy_refcounts=on",
                                    .size = MIB,
                                    .node.need_check_delay_ns = 5 * SEC});
    image_open(&img);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), 0);
    write_fill(&img, 0, CL, 1);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), INCOMPAT_DIRTY);
    uint64_t host = flushed_entry(&img, 0) & L2_OFFSET;
    cr_expect_eq(refcount_at(&img, host), 0, "not by a flush");
    img.now += 5 * SEC;
    housekeeper_run_due(img.ctx.housekeeper);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), 0);
    cr_expect_eq(refcount_at(&img, host), 1);
    write_fill(&img, 0, CL, 2);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), 0, "in place: no bookkeeping");
    write_fill(&img, CL, CL, 2);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), INCOMPAT_DIRTY);
    close_and_verify(&img);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), 0);
    cr_expect_eq(get64(&img, FIELD(compatible_features)), COMPAT_LAZY_REFCOUNTS, "L-02");
    image_free(&img);
}

/* L-03 */
Test(qcow2_entries, lazy_refcounts_are_given_up_when_the_bit_cant_be_written)
{
    struct image img;
    struct fault_plan plan;

    make(&img, &(struct image_spec){.options = "cluster_size=4096,lazy_refcounts=on",
                                    .size = MIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    fault_plan_fail(&plan, FAULT_WRITE, 1, EIO, FAULT_ONCE);
    write_fill(&img, 0, CL, 1);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), 0);
    uint64_t host = flushed_entry(&img, 0) & L2_OFFSET;
    cr_expect_eq(refcount_at(&img, host), 1, "in order from here on");
    close_and_verify(&img);
    image_free(&img);
    fault_plan_destroy(&plan);
}

/* L-01 */
Test(qcow2_entries, lazy_refcounts_by_choice_of_the_user)
{
    struct image img;

    make(&img, &(struct image_spec){
                   .options = "cluster_size=4096", .size = MIB, .node.lazy_refcounts = 1});
    image_open(&img);
    write_fill(&img, 0, CL, 1);
    cr_expect_eq(get64(&img, FIELD(incompatible_features)), INCOMPAT_DIRTY);
    close_and_verify(&img);
    cr_expect_eq(get64(&img, FIELD(compatible_features)), 0,
                 "the image isn't changed by it");
    image_free(&img);

    make(&img, &(struct image_spec){.options = "cluster_size=4096,compat=0.10",
                                    .size = MIB,
                                    .node.lazy_refcounts = 1});
    image_open(&img);
    cr_expect(node_why_not_lazy(img.node), "version 2 has no bit for it");
    write_fill(&img, 0, CL, 1);
    close_and_verify(&img);
    image_free(&img);
}
