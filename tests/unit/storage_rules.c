/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests storage.c: rules that hold for every kind of storage. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/lock.h"
#include "fault_storage.h"
#include "mem_storage.h"

static struct storage *mine, *st;
static struct fault_plan plan;

static void setup(void)
{
    fault_plan_init(&plan);
    mine = mem_storage_new(0);
    st = fault_storage_new(mem_storage_share(mine), &plan);
}

static void teardown(void)
{
    storage_close(st);
    storage_close(mine);
    fault_plan_destroy(&plan);
}

TestSuite(rules, .init = setup, .fini = teardown, .timeout = 60);

static uint64_t size_of(struct storage *s)
{
    uint64_t size;

    cr_assert_eq(storage_size(s, &size), 0);
    return size;
}

static void write_pattern(uint64_t off, uint64_t len, int byte)
{
    char *buf = malloc(len);

    memset(buf, byte, len);
    cr_assert_eq(storage_write(mine, buf, off, len, 0), 0);
    free(buf);
}

static void expect_pattern(uint64_t off, uint64_t len, int byte)
{
    char *buf = malloc(len);

    cr_assert_eq(storage_read(mine, buf, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        cr_assert_eq(buf[i], (char)byte, "at %lu", (unsigned long)(off + i));
    free(buf);
}

Test(rules, ranges_beyond_int64_are_refused_untouched)
{
    char byte = 1;
    bool data;
    uint64_t run, end = INT64_MAX;

    cr_assert_eq(storage_read(st, &byte, end, 1), -EINVAL);
    cr_assert_eq(storage_write(st, &byte, end, 1, 0), -EINVAL);
    cr_assert_eq(storage_write(st, &byte, UINT64_MAX, 1, 0), -EINVAL);
    cr_assert_eq(storage_zero(st, end, 1, 0), -EINVAL);
    cr_assert_eq(storage_zero(st, 10, UINT64_MAX, 0), -EINVAL);
    cr_assert_eq(storage_discard(st, end, 1), -EINVAL);
    cr_assert_eq(storage_truncate(st, end + 1), -EINVAL);
    cr_assert_eq(storage_extent(st, end, 1, &data, &run), -EINVAL);
    cr_assert_eq(storage_extent(st, 0, 0, &data, &run), -EINVAL);
    cr_assert_eq(storage_preallocate(st, end, 1), -EINVAL);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 0u);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_READ), 0u);
}

Test(rules, iov_lengths_must_not_wrap)
{
    struct iovec iov[2] = {{.iov_base = &plan, .iov_len = SIZE_MAX},
                           {.iov_base = &plan, .iov_len = 2}};

    cr_assert_eq(storage_writev(st, iov, 2, 0, 0), -EINVAL);
    cr_assert_eq(storage_writev(st, iov, -1, 0, 0), -EINVAL);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 0u);
}

Test(rules, a_read_only_store_is_not_changed)
{
    st->read_only = true;
    cr_assert_eq(storage_write(st, "x", 0, 1, 0), -EROFS);
    cr_assert_eq(storage_zero(st, 0, 1, 0), -EROFS);
    cr_assert_eq(storage_discard(st, 0, 1), -EROFS);
    cr_assert_eq(storage_truncate(st, 1), -EROFS);
    cr_assert_eq(storage_preallocate(st, 0, 1), -EROFS);
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(storage_sync(st), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 0u);
}

Test(rules, no_flush_means_no_flush_and_no_fua)
{
    st->no_flush = true;
    cr_assert_eq(storage_write(st, "x", 0, 1, STORAGE_FUA), 0);
    cr_assert_eq(storage_zero(st, 0, 10, STORAGE_FUA), 0);
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 0u);
    cr_assert_eq(fault_plan_fua_writes(&plan), 0u);
    cr_assert_eq(storage_sync(st), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 1u, "a sync is real");
    cr_assert_eq(storage_sync_if_void(st), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 2u);
    st->no_flush = false;
    cr_assert_eq(storage_sync_if_void(st), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 2u);
}

Test(rules, fua_reaches_the_store)
{
    cr_assert_eq(storage_write(st, "x", 0, 1, STORAGE_FUA), 0);
    cr_assert_eq(fault_plan_fua_writes(&plan), 1u);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 0u);
    cr_assert_eq(storage_zero(st, 0, 10, STORAGE_FUA), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 1u, "a zero is followed by a flush");
}

Test(rules, long_vectors_are_split_and_synced_once)
{
    struct iovec iov[3 * STORAGE_MAX_IOV + 10];
    int count = (int)ARRAY_LEN(iov), used = 0;
    char bytes[ARRAY_LEN(iov)], back[ARRAY_LEN(iov)];

    for (int i = 0; i < count; i++) {
        bytes[i] = (char)i;
        /* Every fifth element is empty. */
        iov[i] = (struct iovec){.iov_base = &bytes[used], .iov_len = i % 5 ? 1 : 0};
        used += i % 5 != 0;
    }
    cr_assert_eq(storage_writev(st, iov, count, 100, STORAGE_FUA), 0);
    cr_assert_eq(size_of(mine), 100u + (unsigned)used);
    cr_assert_eq(storage_read(mine, back, 100, (unsigned)used), 0);
    cr_assert_eq(memcmp(bytes, back, (unsigned)used), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_WRITE),
                 (uint64_t)(used + STORAGE_MAX_IOV - 1) / STORAGE_MAX_IOV);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 1u);
}

Test(rules, empty_requests_do_nothing)
{
    struct iovec empty[2] = {{0}, {0}};

    cr_assert_eq(storage_write(st, NULL, 4096, 0, STORAGE_FUA), 0);
    cr_assert_eq(storage_writev(st, empty, 2, 4096, 0), 0);
    cr_assert_eq(storage_zero(st, 4096, 0, 0), 0);
    cr_assert_eq(storage_discard(st, 4096, 0), 0);
    cr_assert_eq(size_of(mine), 0u);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 0u);
}

Test(rules, zero_falls_back_to_writing)
{
    uint64_t off = 4095, len = (9u << 20) + 123;

    write_pattern(0, off + len + 5, 'x');
    fault_plan_fail(&plan, FAULT_ZERO, 1, EOPNOTSUPP, FAULT_FROM_THEN_ON);
    cr_assert_eq(storage_zero(st, off, len, STORAGE_MAY_UNMAP), 0);
    cr_assert_eq(fault_plan_bytes_written(&plan), len);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 0u);
    expect_pattern(0, off, 'x');
    expect_pattern(off, len, 0);
    expect_pattern(off + len, 5, 'x');
}

Test(rules, zero_falls_back_without_the_operation)
{
    static struct storage_ops bare;

    bare = *st->ops;
    bare.zero = NULL;
    st->ops = &bare;
    cr_assert_eq(storage_zero(st, 1000, 500, STORAGE_FUA), 0);
    cr_assert_eq(size_of(mine), 1500u, "a zero grows the store");
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 1u);
}

Test(rules, fast_zero_touches_nothing_when_it_cannot)
{
    fault_plan_fail(&plan, FAULT_ZERO, 1, EOPNOTSUPP, FAULT_FROM_THEN_ON);
    cr_assert_eq(storage_zero(st, 0, 4096, STORAGE_FAST | STORAGE_FUA), -ENOTSUP);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_WRITE), 0u);
    cr_assert_eq(size_of(mine), 0u);
}

Test(rules, errors_of_zero_are_passed_on)
{
    fault_plan_fail(&plan, FAULT_ZERO, 1, ENOSPC, FAULT_ONCE);
    cr_assert_eq(storage_zero(st, 0, 4096, 0), -ENOSPC);
    fault_plan_fail(&plan, FAULT_FLUSH, 1, EIO, FAULT_ONCE);
    cr_assert_eq(storage_zero(st, 0, 4096, STORAGE_FUA), -EIO);
    fault_plan_fail(&plan, FAULT_ZERO, 1, ENOTSUP, FAULT_ONCE);
    fault_plan_fail(&plan, FAULT_WRITE, 1, EDQUOT, FAULT_ONCE);
    cr_assert_eq(storage_zero(st, 0, 4096, 0), -EDQUOT);
}

/* Fails as ext4 does: it drops what was last written to the range, so that older bytes show, and
 * then finds that there is no space. */
static int drop_and_fail(struct storage *storage, uint64_t off, uint64_t len,
                         unsigned flags)
{
    char stale[8192];
    bool data;
    uint64_t run;

    (void)flags;
    (void)storage;
    memset(stale, 's', sizeof stale);
    cr_assert_leq(len, sizeof stale);
    cr_assert_eq(storage_extent(mine, off, len, &data, &run), 0);
    if (data)
        cr_assert_eq(storage_write(mine, stale, off, run, 0), 0);
    return -ENOSPC;
}

static int drop_and_fail_discard(struct storage *storage, uint64_t off, uint64_t len)
{
    return drop_and_fail(storage, off, len, 0);
}

Test(rules, without_space_what_has_blocks_is_zeroed)
{
    static struct storage_ops full;

    full = *st->ops;
    full.zero = drop_and_fail;
    full.discard = drop_and_fail_discard;
    st->ops = &full;
    write_pattern(0, 8192, 'x');
    cr_assert_eq(storage_zero(st, 4096, 4096, 0), 0);
    expect_pattern(0, 4096, 'x');
    expect_pattern(4096, 4096, 0);

    /* A hole reads as zeroes, but the call fails if blocks can't be allocated for it.  A caller
     * that allows holes gets no error. */
    write_pattern(0, 8192, 'y');
    cr_assert_eq(storage_truncate(mine, 65536), 0);
    cr_assert_eq(storage_zero(st, 4096, 8192, 0), -ENOSPC);
    expect_pattern(4096, 8192, 0);
    write_pattern(0, 8192, 'z');
    cr_assert_eq(storage_zero(st, 4096, 8192, STORAGE_MAY_UNMAP), 0);
    expect_pattern(4096, 8192, 0);

    write_pattern(0, 8192, 'w');
    cr_assert_eq(storage_discard(st, 0, 4096), 0);
    expect_pattern(0, 4096, 0);
    expect_pattern(4096, 4096, 'w');
}

Test(rules, discard_is_advisory)
{
    static struct storage_ops bare;

    bare = *st->ops;
    fault_plan_fail(&plan, FAULT_DISCARD, 1, ENOTSUP, FAULT_ONCE);
    cr_assert_eq(storage_discard(st, 0, 4096), 0);
    fault_plan_fail(&plan, FAULT_DISCARD, 1, EIO, FAULT_ONCE);
    cr_assert_eq(storage_discard(st, 0, 4096), -EIO);
    bare.discard = NULL;
    st->ops = &bare;
    cr_assert_eq(storage_discard(st, 0, 4096), 0);
}

Test(rules, a_fixed_size_is_kept)
{
    cr_assert_eq(storage_truncate(mine, 8192), 0);
    st->fixed_size = true;
    cr_assert_eq(storage_zero(st, 8000, 193, 0), -ENOSPC);
    cr_assert_eq(storage_preallocate(st, 8000, 193), -ENOSPC);
    cr_assert_eq(storage_truncate(st, 8193), -ENOSPC);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 0u);
    cr_assert_eq(storage_truncate(st, 100), 0);
    cr_assert_eq(storage_zero(st, 8000, 192, 0), 0);
    cr_assert_eq(size_of(mine), 8192u);
}

Test(rules, a_store_without_extents_is_data_up_to_its_end)
{
    static struct storage_ops bare;
    bool data;
    uint64_t run;

    bare = *st->ops;
    bare.extent = NULL;
    st->ops = &bare;
    cr_assert_eq(storage_truncate(mine, 10000), 0);
    cr_assert_eq(storage_extent(st, 100, 5000, &data, &run), 0);
    cr_assert(data && run == 5000);
    cr_assert_eq(storage_extent(st, 9000, 5000, &data, &run), 0);
    cr_assert(data && run == 1000);
    cr_assert_eq(storage_extent(st, 10000, 5000, &data, &run), 0);
    cr_assert(!data && run == 5000);
}

Test(rules, preallocation_without_support_writes_past_the_end_only)
{
    write_pattern(0, 1000, 'x');
    fault_plan_fail(&plan, FAULT_PREALLOCATE, 1, ENOTSUP, FAULT_FROM_THEN_ON);
    cr_assert_eq(storage_preallocate(st, 999, 10000), -ENOTSUP);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_WRITE), 0u);
    cr_assert_eq(storage_preallocate(st, 1000, 10000), 0);
    cr_assert_eq(fault_plan_bytes_written(&plan), 10000u);
    cr_assert_eq(size_of(mine), 11000u);
    expect_pattern(0, 1000, 'x');
}

Test(rules, what_a_store_has_not_got_is_said)
{
    static struct storage_ops bare;
    uint64_t x, y;

    bare = *mine->ops;
    bare.allocated = NULL;
    bare.prefetch = NULL;
    mine->ops = &bare;
    cr_assert_eq(storage_allocated(mine, &x), -ENOTSUP);
    cr_assert_eq(storage_identity(mine, &x, &y), -ENOTSUP);
    storage_prefetch(mine, 0, 100);
    storage_close(NULL);
}

#ifndef NDEBUG
Test(rules, io_under_the_meta_lock_aborts, .signal = SIGABRT)
{
    struct lock meta;

    lock_init(&meta, RANK_META);
    lock_acquire(&meta);
    cr_assert_eq(storage_flush(st), 0);
}
#endif
