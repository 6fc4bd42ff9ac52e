/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the crash storage itself: what is durable at which crash point, and what each policy
 * leaves. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "crash_storage.h"
#include "mem_storage.h"
#include "rng.h"
#include "scratch.h"

static struct crash_log *log_;
static struct storage *st;

static void setup(void)
{
    log_ = crash_log_new(NULL);
    st = crash_storage_open(log_);
}

static void teardown(void)
{
    storage_close(st);
    crash_log_free(log_);
}

TestSuite(crash, .init = setup, .fini = teardown, .timeout = 120);

static void put(uint64_t off, const char *text)
{
    cr_assert_eq(storage_write(st, text, off, strlen(text), 0), 0);
}

static void flush(void)
{
    cr_assert_eq(storage_flush(st), 0);
}

static struct storage *after(uint64_t point, struct crash_choice choice)
{
    return crash_materialise(log_, point, &choice);
}

static uint64_t size_of(struct storage *image)
{
    uint64_t size;

    cr_assert_eq(storage_size(image, &size), 0);
    return size;
}

/* Checks bytes and size of the image and closes it. */
static void expect(struct storage *image, uint64_t size, uint64_t off, const char *bytes,
                   size_t n)
{
    char got[64];

    cr_assert_eq(size_of(image), size, "size %lu", (unsigned long)size_of(image));
    cr_assert_eq(storage_read(image, got, off, n), 0);
    cr_assert_eq(memcmp(got, bytes, n), 0, "got %.*s", (int)n, got);
    storage_close(image);
}

#define NONE ((struct crash_choice){.policy = CRASH_NONE})
#define ALL  ((struct crash_choice){.policy = CRASH_ALL})

Test(crash, only_flushed_changes_are_durable)
{
    put(0, "a"); /* entry 0 */
    flush();     /* 1 */
    put(1, "b"); /* 2 */
    cr_assert_eq(crash_log_count(log_), 3u);
    expect(after(0, NONE), 0, 0, "\0", 1);
    expect(after(1, NONE), 0, 0, "\0", 1);
    expect(after(1, ALL), 1, 0, "a", 1);
    expect(after(2, NONE), 1, 0, "a", 1);
    expect(after(3, NONE), 1, 0, "a", 1);
    expect(after(3, ALL), 2, 0, "ab", 2);
    /* Goes back to an earlier point, before the end of the kept durable prefix. */
    expect(after(1, NONE), 0, 0, "\0", 1);
    cr_assert_eq(crash_pending(log_, 3, &NONE), 1u);
}

Test(crash, live_contents_are_what_was_written)
{
    char got[2];

    put(0, "ab");
    cr_assert_eq(storage_read(st, got, 0, 2), 0);
    cr_assert_eq(memcmp(got, "ab", 2), 0);
    struct storage *live = crash_log_live(log_);
    expect(live, 2, 0, "ab", 2);
}

static void flush_inside(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len)
{
    (void)opaque;
    (void)off;
    (void)len;
    if (kind == CRASH_WRITE)
        flush();
}

Test(crash, a_write_in_flight_is_not_covered_by_the_flush)
{
    put(0, "a"); /* 0: ended before the flush */
    crash_log_set_hook(log_, flush_inside, NULL);
    put(1, "b"); /* 1; entry 2 is the flush that the hook makes within it */
    crash_log_set_hook(log_, NULL, NULL);
    cr_assert_eq(crash_log_op(log_, 2).kind, CRASH_FLUSH);
    expect(after(3, NONE), 1, 0, "a", 1);
    cr_assert_eq(crash_pending(log_, 3, &NONE), 1u);
    flush(); /* 3 */
    expect(after(4, NONE), 2, 0, "ab", 2);
}

static void write_inside(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len)
{
    (void)opaque;
    (void)off;
    (void)len;
    if (kind == CRASH_FLUSH)
        put(1, "b");
}

Test(crash, a_write_that_ends_during_the_flush_stays_pending)
{
    put(0, "a"); /* 0 */
    crash_log_set_hook(log_, write_inside, NULL);
    flush(); /* 1: the write that the hook makes within it; 2: the flush */
    cr_assert_eq(crash_log_op(log_, 1).kind, CRASH_WRITE);
    expect(after(3, NONE), 1, 0, "a", 1);
    expect(after(2, NONE), 0, 0, "\0", 1);
}

Test(crash, fua_is_durable_for_itself_alone)
{
    put(0, "a");
    cr_assert_eq(storage_write(st, "b", 1, 1, STORAGE_FUA), 0);
    expect(after(2, NONE), 2, 0, "\0b", 2);
    expect(after(1, NONE), 0, 0, "\0\0", 2);
    struct crash_choice broken = {.policy = CRASH_NONE, .ignore_fua = true};
    expect(after(2, broken), 0, 0, "\0\0", 2);
}

static bool is_second(void *opaque, uint64_t nth)
{
    (void)opaque;
    return nth == 2;
}

Test(crash, flushes_can_be_ignored)
{
    put(0, "a");
    flush();
    put(1, "b");
    flush();
    struct crash_choice broken = {.policy = CRASH_NONE, .ignore_flush = is_second};
    expect(after(4, NONE), 2, 0, "ab", 2);
    expect(after(4, broken), 1, 0, "a\0", 2);
    put(2, "c");
    flush();
    expect(after(6, broken), 3, 0, "abc", 3);
}

Test(crash, one_or_all_but_one)
{
    put(0, "a");
    put(1, "b");
    put(2, "c");
    expect(after(3, (struct crash_choice){.policy = CRASH_ALL_BUT_ONE, .one = 1}), 3, 0,
           "a\0c", 3);
    expect(after(3, (struct crash_choice){.policy = CRASH_ONLY_ONE, .one = 1}), 2, 0, "\0b",
           2);
}

Test(crash, growth_that_is_missing_is_made_by_a_later_write)
{
    put(0, "a");
    flush();
    cr_assert_eq(storage_truncate(st, 10000), 0); /* 2 */
    put(5000, "b");                               /* 3 */
    /* Without the truncate the write grows the file to the end of the write. */
    struct crash_choice no_growth = {.policy = CRASH_ALL_BUT_ONE, .one = 0};
    expect(after(4, no_growth), 5001, 4999, "\0b", 2);
    struct crash_choice only_growth = {.policy = CRASH_ONLY_ONE, .one = 0};
    expect(after(4, only_growth), 10000, 0, "a", 1);
}

Test(crash, a_cut_that_is_missing_leaves_old_bytes)
{
    put(0, "abcd");
    flush();
    cr_assert_eq(storage_truncate(st, 1), 0); /* 2 */
    put(2, "x");                              /* 3 */
    expect(after(4, (struct crash_choice){.policy = CRASH_ONLY_ONE, .one = 1}), 4, 0,
           "abxd", 4);
    expect(after(4, ALL), 3, 0, "a\0x", 3);
}

Test(crash, zero_and_discard_may_be_missing)
{
    put(0, "abcd");
    flush();
    cr_assert_eq(storage_zero(st, 0, 2, 0), 0);
    cr_assert_eq(storage_discard(st, 2, 1), 0);
    expect(after(4, NONE), 4, 0, "abcd", 4);
    expect(after(4, ALL), 4, 0, "\0\0\0d", 4);
    expect(after(4, (struct crash_choice){.policy = CRASH_ONLY_ONE, .one = 1}), 4, 0,
           "ab\0d", 4);
}

/* With many seeds all four combinations of two pending writes, each there or lost, must occur. */
Test(crash, subsets_reach_every_combination)
{
    unsigned seen = 0;

    put(0, "a");
    put(1, "b");
    for (uint64_t seed = 0; seed < 64; seed++) {
        struct storage *image =
            after(2, (struct crash_choice){.policy = CRASH_SUBSET, .seed = seed});
        char got[2];
        cr_assert_eq(storage_read(image, got, 0, 2), 0);
        cr_assert(got[0] == 'a' || got[0] == 0);
        seen |= 1u << ((got[0] == 'a') | (got[1] == 'b') << 1);
        storage_close(image);
    }
    cr_assert_eq(seen, 15u);
}

Test(crash, torn_writes_break_at_sectors_only)
{
    char buf[4 * 512], got[4 * 512];
    bool torn = false, none = false, all = false;

    memset(buf, 'o', sizeof buf);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), 0);
    flush();
    memset(buf, 'n', sizeof buf);
    cr_assert_eq(storage_write(st, buf, 100, 3 * 512, 0), 0);
    for (uint64_t seed = 0; seed < 64; seed++) {
        struct storage *image =
            after(3, (struct crash_choice){.policy = CRASH_TORN, .seed = seed});
        cr_assert_eq(storage_read(image, got, 0, sizeof got), 0);
        unsigned new_sectors = 0;
        for (unsigned s = 0; s < 4; s++) {
            unsigned from = s == 0 ? 100 : s * 512, until = s == 3 ? 1636 : (s + 1) * 512;
            for (unsigned i = from; i < until; i++)
                cr_assert_eq(got[i], got[from], "torn inside of a sector");
            new_sectors += got[from] == 'n';
        }
        cr_assert(got[99] == 'o' && got[1636] == 'o');
        none |= new_sectors == 0;
        all |= new_sectors == 4;
        torn |= new_sectors > 0 && new_sectors < 4;
        storage_close(image);
    }
    cr_assert(torn && none && all);
}

Test(crash, the_same_seed_gives_the_same_image)
{
    struct rng rng;
    char buf[3000];

    rng_init(&rng, 5);
    for (int i = 0; i < 40; i++) {
        rng_fill(&rng, buf, sizeof buf);
        cr_assert_eq(storage_write(st, buf, rng_below(&rng, 100000), sizeof buf, 0), 0);
        if (i % 7 == 6)
            flush();
    }
    struct crash_choice choice = {.policy = CRASH_TORN, .seed = 9};
    struct storage *one = after(44, choice);
    /* Once by way of another point's kept prefix, and once from the start. */
    storage_close(after(20, choice));
    struct storage *two = after(44, choice);
    cr_assert(mem_storage_equal(one, two, NULL));
    storage_close(one);
    storage_close(two);
}

Test(crash, rebase_and_marks_and_files)
{
    struct scratch scratch;
    scratch_make(&scratch);
    char *path = scratch_path(&scratch, "crashed");
    struct storage *back;

    put(0, "image");
    crash_log_rebase(log_);
    cr_assert_eq(crash_log_count(log_), 0u);
    put(0, "I");
    crash_log_mark(log_, 77);
    cr_assert_eq(crash_log_op(log_, 1).kind, CRASH_MARK);
    cr_assert_eq(crash_log_op(log_, 1).off, 77u);
    expect(after(2, NONE), 5, 0, "image", 5);
    cr_assert_eq(crash_materialise_to(log_, 2, &ALL, path), 0);
    cr_assert_eq(mem_storage_load(path, &back), 0);
    expect(back, 5, 0, "Image", 5);
    free(path);
    scratch_remove(&scratch);
}

Test(crash, a_base_is_copied)
{
    struct storage *base = mem_storage_new(0);

    cr_assert_eq(storage_write(base, "base", 0, 4, 0), 0);
    struct crash_log *other = crash_log_new(base);
    cr_assert_eq(storage_write(base, "BASE", 0, 4, 0), 0);
    expect(crash_materialise(other, 0, &NONE), 4, 0, "base", 4);
    crash_log_free(other);
    storage_close(base);
}

/* Many threads: if a write had returned before its thread called flush, the value must be there at
 * every crash point after the mark that the thread makes when the flush has returned. */

#define WRITERS 4
#define ROUNDS  50

static void *write_and_flush(void *opaque)
{
    uint64_t me = (uintptr_t)opaque;

    for (uint64_t round = 1; round <= ROUNDS; round++) {
        cr_assert_eq(storage_write(st, &round, me * 512, sizeof round, 0), 0);
        flush();
        crash_log_mark(log_, me << 32 | round);
    }
    return NULL;
}

Test(crash, what_was_flushed_is_there_with_many_threads)
{
    pthread_t threads[WRITERS];
    uint64_t flushed[WRITERS] = {0};

    for (uintptr_t i = 0; i < WRITERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, write_and_flush, (void *)i), 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t p = 1; p <= crash_log_count(log_); p++) {
        struct crash_op op = crash_log_op(log_, p - 1);
        if (op.kind == CRASH_MARK)
            flushed[op.off >> 32] = op.off & 0xffffffff;
        struct storage *image = after(p, NONE);
        for (unsigned i = 0; i < WRITERS; i++) {
            uint64_t value;
            cr_assert_eq(storage_read(image, &value, i * 512, sizeof value), 0);
            cr_assert_geq(value, flushed[i]);
        }
        storage_close(image);
    }
}

/* ---- two files ---- */

static void put_to(struct storage *to, uint64_t off, const char *text)
{
    cr_assert_eq(storage_write(to, text, off, strlen(text), 0), 0);
}

static void expect_files(uint64_t point, struct crash_choice choice, const char *first,
                         const char *second)
{
    struct storage *files[CRASH_FILES];

    crash_materialise_files(log_, point, &choice, files);
    expect(files[0], strlen(first), 0, first, strlen(first));
    expect(files[1], strlen(second), 0, second, strlen(second));
}

Test(crash, a_flush_covers_its_own_file)
{
    crash_log_add_file(log_, NULL);
    struct storage *other = crash_storage_open_file(log_, 1);

    put(0, "a");                           /* entry 0 */
    put_to(other, 0, "x");                 /* 1 */
    flush();                               /* 2 */
    put(1, "b");                           /* 3 */
    cr_assert_eq(storage_flush(other), 0); /* 4 */
    put_to(other, 1, "y");                 /* 5 */
    cr_expect_eq(crash_log_op(log_, 5).file, 1u);
    expect_files(2, NONE, "", "");
    expect_files(3, NONE, "a", "");
    expect_files(3, ALL, "a", "x");
    expect_files(5, NONE, "a", "x");
    expect_files(6, NONE, "a", "x");
    expect_files(6, ALL, "ab", "xy");
    expect_files(3, NONE, "a", ""); /* before the end of the kept prefix */
    cr_expect_eq(crash_pending(log_, 6, &NONE), 2u);
    for (unsigned one = 0; one < 2; one++)
        expect_files(6, (struct crash_choice){.policy = CRASH_ONLY_ONE, .one = one},
                     one == 0 ? "ab" : "a", one == 0 ? "x" : "xy");
    crash_log_rebase(log_);
    expect_files(0, NONE, "ab", "xy");
    storage_close(other);
}
