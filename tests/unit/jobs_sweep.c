/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the sweep, in which several threads work through a range: each byte once, results, stops,
 * and the flushes and reports of the caller's thread. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "jobs/sweep.h"

#define PIECE  (1u << 20)
#define PIECES 256u /* in all four times as much as is moved between two flushes */

static struct {
    atomic_uint worked[PIECES];
    atomic_bool held; /* later pieces wait until the first flush is over */
    atomic_bool flushed_once;
    uint64_t moves;    /* bytes that each piece moves */
    unsigned fails_at; /* this piece and all after it fail; 0: none */
    int flush_result;
    unsigned flushes, reports; /* these and the following belong to the caller's thread */
    uint64_t reported;
    pthread_t caller;
    volatile sig_atomic_t stop;
} t;

static void set_up(void)
{
    t.moves = PIECE;
    t.caller = pthread_self();
}

TestSuite(sweep, .init = set_up, .timeout = 60);

static int work(void *opaque, void *buffer, uint64_t off, uint64_t len, uint64_t *moved)
{
    uint64_t piece = off / PIECE;

    (void)opaque;
    cr_assert_not_null(buffer);
    cr_assert_eq(len, PIECE);
    cr_assert_eq(*moved, 0);
    /* If the caller's thread didn't flush meanwhile, this would wait for ever. */
    while (atomic_load(&t.held) && piece >= 2 * SWEEP_FLUSH_BYTES / PIECE &&
           !atomic_load(&t.flushed_once))
        sched_yield();
    atomic_fetch_add(&t.worked[piece], 1);
    *moved = t.moves;
    return t.fails_at && piece >= t.fails_at ? -(int)piece : 0;
}

static int flush(void *opaque)
{
    (void)opaque;
    cr_assert(pthread_equal(pthread_self(), t.caller));
    t.flushes++;
    atomic_store(&t.flushed_once, true);
    return t.flush_result;
}

static void progress(void *opaque, uint64_t done)
{
    (void)opaque;
    cr_assert(pthread_equal(pthread_self(), t.caller));
    cr_assert_geq(done, t.reported);
    t.reported = done;
    t.reports++;
}

static int run(void)
{
    const struct sweep sweep = {
        .end = (uint64_t)PIECES * PIECE,
        .piece = PIECE,
        .threads = 4,
        .buffer_bytes = 4096,
        .work = work,
        .progress = progress,
        .flush = flush,
        .stop = &t.stop,
    };

    return sweep_run(&sweep);
}

/* How many pieces were worked on; none may have been worked on twice. */
static unsigned count_worked(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < PIECES; i++) {
        cr_assert_leq(atomic_load(&t.worked[i]), 1, "piece %u", i);
        n += atomic_load(&t.worked[i]);
    }
    return n;
}

Test(sweep, each_piece_once)
{
    cr_expect_eq(run(), 0);
    cr_expect_eq(count_worked(), PIECES);
    cr_expect_gt(t.reports, 0);
    cr_expect_eq(t.reported, (uint64_t)PIECES * PIECE);
}

Test(sweep, flushes_while_there_is_more_to_move)
{
    atomic_store(&t.held, true);
    cr_expect_eq(run(), 0);
    cr_expect(t.flushes >= 1 && t.flushes <= PIECES / (SWEEP_FLUSH_BYTES / PIECE), "%u",
              t.flushes);
}

Test(sweep, what_moves_nothing_is_not_flushed)
{
    t.moves = 0;
    cr_expect_eq(run(), 0);
    cr_expect_eq(t.flushes, 0);
}

Test(sweep, a_flush_that_fails_ends_it)
{
    atomic_store(&t.held, true);
    t.flush_result = -EIO;
    cr_expect_eq(run(), -EIO);
    cr_expect_eq(t.flushes, 1, "%u", t.flushes);
}

Test(sweep, the_lowest_result_is_told)
{
    t.fails_at = 17;
    cr_expect_eq(run(), -17);
    cr_expect_lt(count_worked(), PIECES);
}

Test(sweep, is_stopped)
{
    t.stop = 1;
    cr_expect_eq(run(), -EINTR);
    cr_expect_eq(count_worked(), 0);
}
