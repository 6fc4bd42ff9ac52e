/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the allocation of clusters in qcow2: when a freed cluster may be reused, how shared
 * clusters are copied, wrong refcounts, and punching. */
#include "fault_storage.h"
#include "qcow2_testing.h"

#define CL 4096u

static void make_4k(struct image *img, uint64_t size)
{
    make(img, &(struct image_spec){.options = "cluster_size=4096", .size = size});
    image_open(img);
}

/* Flushes, and lets the housekeeper punch the unlinked clusters and free them. */
static void flush(struct image *img)
{
    cr_assert_eq(block_flush(img->node), 0);
    housekeeper_run_due(img->ctx.housekeeper);
}

static uint64_t host_of(struct image *img, uint64_t guest)
{
    flush(img);
    return l2_entry(img, guest) & L2_OFFSET;
}

/* Writes a whole cluster and returns the host offset that it got, without a flush. */
static uint64_t place_taken(struct image *img, uint64_t guest, int fill)
{
    struct extent ext;

    write_fill(img, guest, CL, fill);
    gate_ticket ticket = gate_enter(&img->ctx.gate);
    cr_assert_eq(img->node->driver->map(img->node, guest, CL, &ext), 0);
    gate_leave(&img->ctx.gate, ticket);
    cr_assert(ext.file);
    return ext.host_offset;
}

static bool host_is(struct image *img, uint64_t host, int fill)
{
    uint8_t bytes[CL];

    cr_assert_eq(storage_read(img->mem, bytes, host, CL), 0);
    for (unsigned i = 0; i < CL; i++)
        if (bytes[i] != (uint8_t)fill)
            return false;
    return true;
}

/* ---- reuse: invariant 2 of mcache.h ---- */

Test(qcow2_alloc, not_reused_before_the_removal_is_durable)
{
    struct image img;

    make_4k(&img, MIB);
    write_fill(&img, 0, CL, 1);
    uint64_t host = host_of(&img, 0);
    trim(&img, 0, CL);
    for (unsigned i = 1; i < 20; i++)
        cr_assert_neq(place_taken(&img, i * CL, 2), host);
    cr_expect(host_is(&img, host, 1), "nor punched");
    cr_expect_eq(refcount_at(&img, host), 1);
    flush(&img);
    bool reused = false;
    for (unsigned i = 20; i < 24; i++)
        reused |= place_taken(&img, i * CL, 3) == host;
    cr_expect(reused, "now it is free");
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_alloc, not_reused_while_an_older_request_runs)
{
    struct image img;

    make_4k(&img, MIB);
    write_fill(&img, 0, CL, 1);
    uint64_t host = host_of(&img, 0);
    gate_ticket reader = gate_enter(&img.ctx.gate); /* may be using guest cluster 0 */
    trim(&img, 0, CL);
    flush(&img);
    for (unsigned i = 1; i < 20; i++) {
        cr_assert_neq(place_taken(&img, i * CL, 2), host);
        flush(&img);
    }
    cr_expect(host_is(&img, host, 1), "what it reads is still there");
    gate_leave(&img.ctx.gate, reader);
    bool reused = false;
    for (unsigned i = 20; i < 30; i++) {
        reused |= place_taken(&img, i * CL, 3) == host;
        flush(&img);
    }
    cr_expect(reused);
    close_and_verify(&img);
    image_free(&img);
}

Test(qcow2_alloc, not_reused_after_a_commit_that_failed)
{
    struct image img;
    struct fault_plan plan;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = MIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    write_fill(&img, 0, CL, 1);
    uint64_t host = host_of(&img, 0);
    trim(&img, 0, CL);
    fault_plan_fail(&plan, FAULT_WRITE, 1, ENOSPC, FAULT_ONCE);
    cr_assert_eq(block_flush(img.node), -ENOSPC);
    for (unsigned i = 1; i < 20; i++)
        cr_assert_neq(place_taken(&img, i * CL, 2), host);
    cr_expect(host_is(&img, host, 1));
    close_and_verify(&img);
    cr_expect_eq(refcount_at(&img, host), 0, "and not forgotten either");
    image_free(&img);
    fault_plan_destroy(&plan);
}

Test(qcow2_alloc, what_an_earlier_session_freed_is_found)
{
    struct image img;

    make_4k(&img, MIB);
    write_fill(&img, 0, 8 * CL, 1);
    uint64_t first = host_of(&img, 2 * CL);
    trim(&img, 2 * CL, 3 * CL);
    cr_assert_eq(image_close(&img), 0);
    uint64_t size = file_size(&img);
    image_open(&img);
    write_fill(&img, 100 * CL, 3 * CL, 2);
    cr_expect_eq(host_of(&img, 100 * CL), first);
    close_and_verify(&img);
    cr_expect_eq(file_size(&img), size, "the file didn't grow");
    image_free(&img);
}

/* Free clusters may hold old bytes, which must never be visible. */
Test(qcow2_alloc, old_bytes_in_free_clusters_dont_show)
{
    struct image img;
    uint8_t junk[3 * CL];

    make_4k(&img, 16 * MIB);
    write_fill(&img, 0, 8 * CL, 1);
    uint64_t first = host_of(&img, 2 * CL);
    trim(&img, 2 * CL, 3 * CL);
    cr_assert_eq(image_close(&img), 0);
    memset(junk, 0xbb, sizeof junk);
    cr_assert_eq(storage_write(img.mem, junk, first, sizeof junk, 0), 0);
    image_open(&img);
    write_fill(&img, 8 * MIB + 512, 512, 2); /* a new L2 table and a part of a cluster */
    cr_expect(as_model(&img));
    close_and_verify(&img);
    image_free(&img);
}

/* Punching many neighbouring clusters costs as much as punching one. */
Test(qcow2_alloc, neighbours_are_punched_together_in_whatever_order_they_were_trimmed)
{
    const unsigned order[] = {5, 2, 7, 0, 3, 6, 1, 4};
    struct fault_plan plan;
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = MIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    write_fill(&img, 0, 8 * CL, 1);
    uint64_t host = host_of(&img, 0);
    cr_assert_eq(host_of(&img, 7 * CL), host + 7 * CL);
    for (unsigned i = 0; i < ARRAY_LEN(order); i++)
        trim(&img, order[i] * CL, CL);
    fault_plan_reset_counters(&plan);
    flush(&img);
    cr_expect_eq(fault_plan_calls(&plan, FAULT_DISCARD), 1);
    for (unsigned i = 0; i < 8; i++)
        cr_expect(host_is(&img, host + i * CL, 0));
    close_and_verify(&img);
    image_free(&img);
    fault_plan_destroy(&plan);
}

Test(qcow2_alloc, discard_ignore_keeps_freed_clusters_unpunched)
{
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096",
                                    .size = MIB,
                                    .snapshot = false,
                                    .node.discard_ignore = true});
    image_open(&img);
    write_fill(&img, 0, 2 * CL, 1);
    uint64_t host = host_of(&img, 0);
    cr_assert_eq(block_discard(img.node, 0, CL, 0), 0);
    zero(&img, CL, CL, BLOCK_MAY_UNMAP);
    flush(&img);
    cr_expect(host_is(&img, host, 1));
    cr_expect(as_model(&img));
    cr_expect_neq(l2_entry(&img, CL) & L2_OFFSET, 0, "allocation stays");
    image_free(&img);
}

/* ---- shared clusters ---- */

/* Makes a cluster and its table shared, as a snapshot does: refcount 2, and no COPIED flags. */
static void share(struct image *img, uint64_t guest)
{
    uint64_t l1_at = l1_entry_at(img, guest), l2_at = l2_entry_at(img, guest);
    uint64_t table = get64(img, l1_at) & L1_OFFSET, data = get64(img, l2_at) & L2_OFFSET;
    uint64_t block = get64(img, get64(img, FIELD(refcount_table_offset)));
    uint8_t two[2] = {0, 2};

    put64(img, l1_at, table);
    put64(img, l2_at, data);
    cr_assert_eq(storage_write(img->mem, two, block + table / CL * 2, 2, 0), 0);
    cr_assert_eq(storage_write(img->mem, two, block + data / CL * 2, 2, 0), 0);
    cr_assert_eq(refcount_at(img, table), 2);
    cr_assert_eq(refcount_at(img, data), 2);
}

Test(qcow2_alloc, shared_data_and_tables_are_copied_before_a_write)
{
    struct image img;
    uint8_t old_table[CL], still[CL];

    make_4k(&img, MIB);
    write_fill(&img, 0, CL, 1);
    cr_assert_eq(image_close(&img), 0);
    uint64_t l2_at = l2_entry_at(&img, 0), table = align_down(l2_at, CL);
    uint64_t data = get64(&img, l2_at) & L2_OFFSET;
    share(&img, 0);
    cr_assert_eq(storage_read(img.mem, old_table, table, CL), 0);

    image_open(&img);
    write_fill(&img, 512, 512, 2);
    cr_expect(as_model(&img));
    cr_assert_eq(image_close(&img), 0);
    cr_expect(host_is(&img, data, 1), "the snapshot's data");
    cr_assert_eq(storage_read(img.mem, still, table, CL), 0);
    cr_expect_arr_eq(old_table, still, CL);
    cr_expect_eq(refcount_at(&img, table), 1);
    cr_expect_eq(refcount_at(&img, data), 1);
    cr_expect_neq(l2_entry_at(&img, 0), l2_at);
    cr_expect(get64(&img, l1_entry_at(&img, 0)) & L1_COPIED);
    cr_expect(l2_entry(&img, 0) & L2_COPIED);
    image_free(&img);
}

Test(qcow2_alloc, zeroing_shared_clusters_leaves_the_other_owner_alone)
{
    struct image img;

    for (unsigned flags = 0; flags <= BLOCK_MAY_UNMAP; flags += BLOCK_MAY_UNMAP) {
        make_4k(&img, MIB);
        write_fill(&img, 0, CL, 1);
        cr_assert_eq(image_close(&img), 0);
        uint64_t data = l2_entry(&img, 0) & L2_OFFSET;
        share(&img, 0);
        image_open(&img);
        zero(&img, 0, CL, flags);
        cr_expect(as_model(&img));
        cr_assert_eq(image_close(&img), 0);
        cr_expect(host_is(&img, data, 1));
        cr_expect_eq(refcount_at(&img, data), 1);
        image_free(&img);
    }
}

/* The COPIED flag is missing, but the refcount is 1, as another program may leave it. */
Test(qcow2_alloc, a_table_of_our_own_without_the_flag)
{
    struct image img;

    make_4k(&img, MIB);
    write_fill(&img, 0, CL, 1);
    cr_assert_eq(image_close(&img), 0);
    uint64_t l2_at = l2_entry_at(&img, 0);
    put64(&img, l1_entry_at(&img, 0), get64(&img, l1_entry_at(&img, 0)) & L1_OFFSET);
    image_open(&img);
    write_fill(&img, 4 * CL, CL, 2);
    close_and_verify(&img);
    cr_expect_eq(l2_entry_at(&img, 0), l2_at, "it isn't copied");
    image_free(&img);
}

/* ---- refcounts that can't be right ---- */

static uint64_t first_block(struct image *img)
{
    return get64(img, get64(img, 48));
}

/* If these refcounts were believed, guest data would overwrite the header. */
Test(qcow2_alloc, l10_metadata_with_a_refcount_of_0)
{
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 8 * MIB});
    image_open(&img);
    write_fill(&img, 0, 64 * KIB, 1);
    cr_assert_eq(image_close(&img), 0);
    cr_assert_eq(storage_zero(img.mem, first_block(&img), 4096, 0), 0);
    struct storage *before = mem_storage_clone(img.mem);
    uint8_t was[4096] = {1}, is[4096];

    image_open(&img);
    cr_expect_eq(block_write(img.node, was, 4 * MIB, 4096, 0), -EIO);
    cr_expect_eq(block_write(img.node, was, 0, 4096, 0), -EIO);
    cr_expect(as_model(&img));
    cr_expect_neq(image_close(&img), 0);
    cr_expect(get64(&img, 72) & 2, "marked corrupt");
    for (uint64_t at = 0; at < 64 * KIB; at += 4096) {
        cr_assert_eq(storage_read(before, was, at, 4096), 0);
        cr_assert_eq(storage_read(img.mem, is, at, 4096), 0);
        is[79] = was[79]; /* the dirty and corrupt bits may differ */
        cr_expect_arr_eq(is, was, 4096, "at %llu", (unsigned long long)at);
    }
    storage_close(before);
    image_free(&img);
}

/* On a device, space that no refcount block covers counts as free.  An image with metadata there
 * is refused for writing. */
Test(qcow2_alloc, metadata_that_no_block_covers_on_a_device)
{
    static const struct node_options none;
    struct image img;
    struct diag diag = {0};

    make(&img, &(struct image_spec){.options = "cluster_size=4096", .size = 8 * MIB});
    cr_assert_eq(storage_truncate(img.mem, 2 * MIB), 0);
    put64(&img, get64(&img, 48), 0);
    struct storage *device = mem_storage_share(img.mem);
    device->fixed_size = true;
    cr_assert_eq(
        node_open(&img.ctx, &qcow2_driver, device, "device", &none, &img.node, NULL), 0);
    cr_expect_eq(node_activate(img.node, &diag), -EINVAL);
    cr_expect(strstr(diag.text, "no refcount block"), "%s", diag.text);
    cr_assert_eq(image_close(&img), 0);
    image_free(&img);
}

static void open_with_plan(struct image *img, struct fault_plan *plan)
{
    make(img, &(struct image_spec){.options = "cluster_size=4096", .size = 4 * MIB});
    fault_plan_init(plan);
    img->plan = plan;
    image_open(img);
}

/* Punching scattered clusters can take seconds: no request waits for all of it. */
Test(qcow2_alloc, holes_are_punched_in_slices_and_after_the_flush)
{
    struct fault_plan plan;
    struct image img;

    open_with_plan(&img, &plan);
    write_fill(&img, 0, 800 * CL, 1);
    flush(&img);
    for (unsigned i = 0; i < 800; i += 2)
        trim(&img, i * CL, CL);
    fault_plan_reset_counters(&plan);
    cr_assert_eq(block_flush(img.node), 0);
    cr_expect_eq(fault_plan_calls(&plan, FAULT_DISCARD), 0,
                 "not while a flush is waited for");
    write_fill(&img, 900 * CL, CL, 2);
    cr_expect_leq(fault_plan_calls(&plan, FAULT_DISCARD), 16, "a slice for who needs one");
    housekeeper_run_due(img.ctx.housekeeper);
    cr_expect_eq(fault_plan_calls(&plan, FAULT_DISCARD), 400);
    close_and_verify(&img);
    image_free(&img);
    fault_plan_destroy(&plan);
}

/* A clean close punches what is left, as far as it has time; the rest becomes free unpunched. */
Test(qcow2_alloc, what_was_not_punched_yet_is_freed_by_the_clean_end)
{
    struct image img;

    make_4k(&img, 4 * MIB);
    write_fill(&img, 0, 800 * CL, 1);
    cr_assert_eq(block_flush(img.node), 0);
    for (unsigned i = 0; i < 800; i += 2)
        trim(&img, i * CL, CL);
    close_and_verify(&img);
    image_free(&img);
}

/* A clean close has no time for many holes.  If it fails and the image stays open, punching goes
 * on. */
Test(qcow2_alloc, holes_are_punched_after_an_end_that_failed)
{
    struct fault_plan plan;
    struct image img;

    open_with_plan(&img, &plan);
    write_fill(&img, 0, 8 * CL, 1);
    uint64_t host = host_of(&img, 0);
    fault_plan_fail(&plan, FAULT_TRUNCATE, 1, EIO, FAULT_ONCE);
    cr_assert_eq(node_freeze(img.node), -EIO);
    img.now += 10 * SEC;
    trim(&img, 0, 8 * CL);
    flush(&img);
    cr_expect(host_is(&img, host, 0));
    close_and_verify(&img);
    image_free(&img);
    fault_plan_destroy(&plan);
}

/* If a page of refcounts can't be read, its free clusters can't be used, but others can be
 * allocated. */
Test(qcow2_alloc, a_page_of_refcounts_that_fails_is_left_alone)
{
    struct fault_plan plan;
    struct image img;

    make(&img, &(struct image_spec){.options = "cluster_size=4096",
                                    .size = 64 * MIB,
                                    .cache_bytes = 64 * KIB});
    fault_plan_init(&plan);
    img.plan = &plan;
    image_open(&img);
    write_fill(&img, 0, 32 * MIB, 1);
    flush(&img);
    trim(&img, 0, 64 * CL);
    flush(&img);
    for (uint64_t off = 0; off < 32 * MIB; off += 2 * MIB) /* evicts the page */
        cr_assert(as_model(&img));
    fault_plan_fail(&plan, FAULT_READ, 1, EIO, FAULT_ONCE);
    int err = try_write(&img, 40 * MIB, CL, 2, 0);
    if (err) /* then the failed read was that of the L2 table */
        write_fill(&img, 40 * MIB, CL, 2);
    write_fill(&img, 40 * MIB + CL, CL, 3);
    cr_expect(as_model(&img));
    cr_assert_eq(image_close(&img), 0);
    image_free(&img);
    fault_plan_destroy(&plan);
}

/* ---- races ---- */

static void *punch(void *opaque)
{
    struct image *img = opaque;

    housekeeper_run_due(img->ctx.housekeeper);
    return NULL;
}

/* M-60: a freed cluster may be written to at once: it must not be punched after that. */
Test(qcow2_alloc, a_punch_doesnt_come_after_its_cluster_was_reused, .timeout = 60)
{
    struct fault_plan plan;
    struct image img;
    pthread_t puncher;

    open_with_plan(&img, &plan);
    write_fill(&img, 0, 400 * CL, 1);
    flush(&img);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 400; i += 2)
            trim(&img, i * CL, CL);
        cr_assert_eq(block_flush(img.node), 0);
        fault_plan_delay_discards(&plan, 1000000);
        cr_assert_eq(pthread_create(&puncher, NULL, punch, &img), 0);
        for (unsigned i = 0; i < 200; i++)
            write_fill(&img, (500 + 200 * round + i) * CL, CL, 3);
        pthread_join(puncher, NULL);
        fault_plan_delay_discards(&plan, 0);
        cr_expect(as_model(&img));
        for (unsigned i = 0; i < 400; i += 2)
            write_fill(&img, i * CL, CL, 4);
        cr_expect(as_model(&img));
    }
    cr_expect_geq(fault_plan_calls(&plan, FAULT_DISCARD), 200);
    close_and_verify(&img);
    image_free(&img);
    fault_plan_destroy(&plan);
}

/* M-60: copying a shared table fails at each of its writes in turn.  The clusters that were meant
 * for the copy must not be allocated twice afterwards. */
Test(qcow2_alloc, a_table_copy_that_fails_gives_its_clusters_away_once, .timeout = 60)
{
    uint64_t injected = 1;

    for (unsigned nth = 1; injected; nth++) {
        struct fault_plan plan;
        struct image img;

        make_4k(&img, 4 * MIB);
        write_fill(&img, 0, CL, 1);
        cr_assert_eq(image_close(&img), 0);
        share(&img, 0);
        fault_plan_init(&plan);
        img.plan = &plan;
        image_open(&img);
        fault_plan_reset_counters(&plan);
        fault_plan_fail(&plan, FAULT_CHANGE, nth, EIO, FAULT_ONCE);
        (void)!try_write(&img, 512, 512, 2, 0);
        injected = fault_plan_injected(&plan);
        fault_plan_heal(&plan);
        for (unsigned i = 0; i < 40; i++)
            write_fill(&img, i * CL, CL, (int)(3 + i));
        cr_expect(as_model(&img), "after failure %u", nth);
        cr_expect_eq(image_close(&img), 0);
        image_open(&img);
        cr_expect(as_model(&img), "opened again, after failure %u", nth);
        cr_assert_eq(image_close(&img), 0);
        image_free(&img);
        fault_plan_destroy(&plan);
    }
}
