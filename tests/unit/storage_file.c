/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests storages on local files.  Each test runs buffered and with O_DIRECT. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage_testing.h"

static void open_either(bool direct)
{
    open_it(&(struct storage_open){.direct = direct});
}

#define BOTH(name) BOTH_WAYS(file, name, 120, open_either)

static uint64_t allocated_now(void)
{
    uint64_t bytes;

    cr_assert_eq(storage_flush(st), 0); /* without it delayed allocations aren't counted */
    cr_assert_eq(storage_allocated(st, &bytes), 0);
    return bytes;
}

static void fill(uint64_t off, uint64_t len, int byte)
{
    char *buf = malloc(len);

    memset(buf, byte, len);
    cr_assert_eq(storage_write(st, buf, off, len, 0), 0);
    free(buf);
}

static void expect(uint64_t off, uint64_t len, int byte)
{
    char *buf = malloc(len);

    memset(buf, ~byte, len);
    cr_assert_eq(storage_read(st, buf, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        cr_assert_eq(buf[i], (char)byte, "at %lu: %d", (unsigned long)(off + i), buf[i]);
    free(buf);
}

BOTH(reads_past_the_end_are_zero)
{
    expect(0, 5000, 0);
    fill(0, 1000, 'x');
    expect(0, 1000, 'x');
    expect(1000, 5000, 0);
    expect(1u << 30, 5000, 0);
    cr_assert_eq(size_now(), 1000u, "reading doesn't grow");
}

BOTH(the_size_is_exactly_what_was_written)
{
    static const uint64_t ends[] = {1, 511, 513, 4095, 4096, 4097, 100001, 1048576};

    for (unsigned i = 0; i < ARRAY_LEN(ends); i++) {
        fill(ends[i] - 1, 1, 'e');
        cr_assert_eq(size_now(), ends[i]);
    }
    /* Within the file, up to its unaligned end, the size doesn't change. */
    cr_assert_eq(storage_truncate(st, 5000), 0);
    fill(4500, 400, 'x');
    cr_assert_eq(size_now(), 5000u);
    fill(4500, 500, 'x');
    cr_assert_eq(size_now(), 5000u);
    fill(4500, 501, 'x');
    cr_assert_eq(size_now(), 5001u);
}

BOTH(neighbours_of_unaligned_writes_stay)
{
    fill(0, 20000, 'a');
    for (uint64_t off = 100; off < 18000; off += 1237) {
        fill(off, 33, 'b');
        expect(off - 40, 40, 'a');
        expect(off, 33, 'b');
        expect(off + 33, 40, 'a');
    }
    fill(4000, 9000, 'c');
    expect(3950, 50, 'a');
    expect(4000, 9000, 'c');
    cr_assert_eq(size_now(), 20000u);
}

/* Vectors longer than the bounce buffers, at odd offsets, with odd lengths and addresses. */
BOTH(long_vectors_arrive_whole)
{
    enum { PIECES = 100, PIECE = 40001 };
    struct iovec iov[PIECES];
    char *buf = malloc(PIECES * PIECE + 1), *back = malloc(PIECES * PIECE + 1);

    for (size_t i = 0; i < PIECES * PIECE + 1; i++)
        buf[i] = (char)(i * 2654435761u >> 13);
    for (int i = 0; i < PIECES; i++)
        iov[i] = (struct iovec){.iov_base = buf + 1 + i * PIECE, .iov_len = PIECE};
    cr_assert_eq(storage_writev(st, iov, PIECES, 777, STORAGE_FUA), 0);
    cr_assert_eq(storage_read(st, back + 1, 777, PIECES * PIECE), 0);
    cr_assert_eq(memcmp(buf + 1, back + 1, PIECES * PIECE), 0);
    cr_assert_eq(size_now(), 777u + PIECES * PIECE);
    free(buf);
    free(back);
}

/* Offsets, lengths and addresses of every alignment that a block size could require. */
BOTH(any_alignment_reads_what_it_wrote)
{
    static const uint64_t edges[] = {0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 12289};
    static _Alignas(4096) char buf[32768], back[32768];

    for (unsigned o = 0; o < ARRAY_LEN(edges); o++)
        for (unsigned l = 1; l < ARRAY_LEN(edges); l++)
            for (unsigned m = 0; m < 3; m++) {
                size_t shift = m == 0 ? 0 : m == 1 ? 512 : 7;
                memset(buf + shift, (int)(o * 16 + l + m), edges[l]);
                cr_assert_eq(storage_write(st, buf + shift, edges[o], edges[l], 0), 0);
                cr_assert_eq(storage_read(st, back + shift, edges[o], edges[l]), 0);
                cr_assert_eq(memcmp(buf + shift, back + shift, edges[l]), 0);
            }
    cr_assert_eq(size_now(), 2u * 12289);
}

BOTH(zero_within_unaligned)
{
    for (unsigned flags = 0; flags <= STORAGE_MAY_UNMAP; flags += STORAGE_MAY_UNMAP) {
        fill(0, 300000, 'x');
        cr_assert_eq(storage_zero(st, 1001, 250000, flags), 0);
        expect(0, 1001, 'x');
        expect(1001, 250000, 0);
        expect(251001, 300000 - 251001, 'x');
        cr_assert_eq(size_now(), 300000u);
    }
}

BOTH(zero_grows)
{
    uint64_t end = 5000;

    fill(0, end, 'x');
    for (unsigned flags = 0; flags <= STORAGE_MAY_UNMAP; flags += STORAGE_MAY_UNMAP) {
        /* Across the end of the file, and entirely beyond it. */
        cr_assert_eq(storage_zero(st, end - 10, 9000, flags), 0);
        end += 8990;
        cr_assert_eq(size_now(), end);
        cr_assert_eq(storage_zero(st, end + 100, 7, flags | STORAGE_FUA), 0);
        end += 107;
        cr_assert_eq(size_now(), end);
    }
    expect(0, 4990, 'x');
    expect(4990, end - 4990, 0);
}

BOTH(unmapping_gives_blocks_back)
{
    fill(0, 4 << 20, 'x');
    uint64_t before = allocated_now();
    cr_assert_eq(storage_zero(st, 1 << 20, 1 << 20, STORAGE_MAY_UNMAP), 0);
    uint64_t between = allocated_now();
    if (between >= before)
        cr_skip_test("the filesystem can't punch holes");
    cr_assert_leq(between, before - (1 << 20));
    cr_assert_eq(storage_discard(st, 2 << 20, 1 << 20), 0);
    cr_assert_leq(allocated_now(), before - (2 << 20));
    cr_assert_eq(storage_zero(st, 1 << 20, 1 << 20, 0), 0);
    cr_assert_geq(allocated_now(), before - (1 << 20), "without MAY_UNMAP blocks stay");
    expect(1 << 20, 2 << 20, 0);
}

BOTH(discard_never_grows_and_stays_inside)
{
    fill(0, 20000, 'x');
    cr_assert_eq(storage_discard(st, 15001, 1 << 20), 0);
    cr_assert_eq(storage_discard(st, 1 << 20, 1 << 20), 0);
    cr_assert_eq(storage_discard(st, 101, 5000), 0);
    cr_assert_eq(size_now(), 20000u);
    expect(0, 101, 'x');
    expect(5101, 15001 - 5101, 'x');
}

BOTH(extents_tell_data_from_holes)
{
    enum { MIB = 1 << 20 };
    bool data;
    uint64_t run;

    cr_assert_eq(storage_truncate(st, 3 * MIB), 0);
    fill(MIB, MIB, 'x');
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(storage_extent(st, 0, 10 * MIB, &data, &run), 0);
    if (data)
        cr_skip_test("the filesystem doesn't tell holes");
    cr_assert_eq(run, (uint64_t)MIB);
    cr_assert_eq(storage_extent(st, MIB / 2, 1000, &data, &run), 0);
    cr_assert(!data && run == 1000);
    cr_assert_eq(storage_extent(st, MIB + 5, 10 * MIB, &data, &run), 0);
    cr_assert(data && run == MIB - 5);
    cr_assert_eq(storage_extent(st, 2 * MIB, 10 * MIB, &data, &run), 0);
    cr_assert(!data && run == 10 * MIB, "past the end all is hole");
    cr_assert_eq(storage_extent(st, 5 * MIB, 1, &data, &run), 0);
    cr_assert(!data && run == 1);
}

/* The storage remembers the extent of data it found last; that must end where a hole is made. */
BOTH(extents_are_asked_for_again)
{
    enum { MIB = 1 << 20 };
    bool data;
    uint64_t run;

    fill(0, 4 * MIB, 'x');
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(storage_extent(st, 0, 10 * MIB, &data, &run), 0);
    cr_assert(data && run == 4 * MIB);
    cr_assert_eq(storage_extent(st, MIB + 1, MIB, &data, &run), 0);
    cr_assert(data && run == MIB);
    fill(4 * MIB, MIB, 'y');
    cr_assert_eq(storage_extent(st, 4 * MIB, 10 * MIB, &data, &run), 0);
    cr_assert(data && run == MIB);
    cr_assert_eq(storage_discard(st, MIB, MIB), 0);
    cr_assert_eq(storage_extent(st, MIB, 10 * MIB, &data, &run), 0);
    if (data)
        cr_skip_test("the filesystem can't punch holes, or doesn't tell");
    cr_assert_eq(run, (uint64_t)MIB);
    cr_assert_eq(storage_extent(st, MIB / 2, 10 * MIB, &data, &run), 0);
    cr_assert(data && run == MIB / 2);
    cr_assert_eq(storage_extent(st, 3 * MIB, 10 * MIB, &data, &run), 0);
    cr_assert(data && run == 2 * MIB);
    cr_assert_eq(storage_truncate(st, 3 * MIB), 0);
    cr_assert_eq(storage_truncate(st, 5 * MIB), 0);
    cr_assert_eq(storage_extent(st, 3 * MIB, 10 * MIB, &data, &run), 0);
    cr_assert(!data, "it was cut");
}

BOTH(truncate_cuts_and_grows_with_zeroes)
{
    fill(0, 10000, 'x');
    cr_assert_eq(storage_truncate(st, 5001), 0);
    cr_assert_eq(size_now(), 5001u);
    cr_assert_eq(storage_truncate(st, 10000), 0);
    expect(0, 5001, 'x');
    expect(5001, 4999, 0);
    /* With O_DIRECT the last block is read, changed and written back. */
    cr_assert_eq(storage_truncate(st, 5001), 0);
    fill(100, 10, 'y');
    fill(5000, 1, 'y');
    cr_assert_eq(size_now(), 5001u);
}

BOTH(preallocation_reserves_and_keeps_contents)
{
    fill(0, 5000, 'x');
    int err = storage_preallocate(st, 1000, 4 << 20);
    if (err == -ENOTSUP)
        cr_skip_test("the filesystem can't preallocate");
    cr_assert_eq(err, 0);
    cr_assert_eq(size_now(), 1000u + (4 << 20));
    cr_assert_geq(allocated_now(), 4u << 20);
    expect(0, 5000, 'x');
    expect(5000, 10000, 0);
    fill(1000 + (4 << 20) - 3, 3, 'z');
    cr_assert_eq(size_now(), 1000u + (4 << 20));
}

BOTH(identity_is_the_file)
{
    const struct storage_open how = {.read_only = true};
    uint64_t dev, ino, dev2, ino2;
    struct storage *again, *other;
    char *link = scratch_path(&scratch, "link"), *another = scratch_path(&scratch, "other");

    cr_assert_eq(symlink(path, link), 0);
    cr_assert_eq(storage_open_file(link, &how, &again, NULL), 0);
    cr_assert_eq(storage_create_file(another, &other, NULL), 0);
    cr_assert_eq(storage_identity(st, &dev, &ino), 0);
    cr_assert_eq(storage_identity(again, &dev2, &ino2), 0);
    cr_assert(dev == dev2 && ino == ino2);
    cr_assert_eq(storage_identity(other, &dev2, &ino2), 0);
    cr_assert_neq(ino, ino2);
    storage_close(again);
    storage_close(other);
    free(link);
    free(another);
}

BOTH(prefetch_and_sync_are_harmless)
{
    fill(0, 100000, 'x');
    storage_prefetch(st, 0, 1 << 30);
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(storage_sync(st), 0);
    expect(0, 100000, 'x');
}

/* A FAST request is carried out completely, or fails and changes nothing. */
BOTH(fast_zero_is_all_or_nothing)
{
    for (unsigned flags = 0; flags <= STORAGE_MAY_UNMAP; flags += STORAGE_MAY_UNMAP) {
        fill(0, 1 << 20, 'x');
        int err = storage_zero(st, 100, 500000, flags | STORAGE_FAST);
        cr_assert(err == 0 || err == -ENOTSUP);
        expect(0, 100, 'x');
        expect(100, 500000, err ? 'x' : 0);
        expect(500100, 1000, 'x');
    }
}
