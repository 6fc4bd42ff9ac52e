/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads that take piece after piece. */
#include "jobs/sweep.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/lock.h"
#include "base/thread.h"
#include "jobs/ratelimit.h"

#define PAGE    4096
#define LARGEST (64ull << 20)
#define NAP_NS  50000000ull
/* a range is divided into at least so many pieces, if it is large enough */
#define PIECES_EACH    64
#define FEWEST_THREADS 4

struct sweeping {
    const struct sweep *sweep;
    struct lock lock;
    /* under lock */
    pthread_cond_t changed;  /* a piece is done, or a thread has ended */
    uint64_t next, done;     /* next: where the next piece begins; done: bytes */
    uint64_t moved, flushed; /* bytes in all; its value when the last flush began */
    unsigned running;
    int result; /* of the piece at result_at, the lowest that had one */
    uint64_t result_at;
    struct ratelimit limit;
};

unsigned sweep_threads(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    return n < FEWEST_THREADS ? FEWEST_THREADS : (unsigned)MIN(n, SWEEP_MAX_THREADS);
}

uint64_t sweep_piece(uint64_t bytes, uint64_t least)
{
    uint64_t piece = least;

    while (piece < LARGEST && piece * 2 * PIECES_EACH <= bytes)
        piece *= 2;
    return piece;
}

static bool is_stopped(const struct sweep *sweep)
{
    return sweep->stop && *sweep->stop;
}

static bool take_piece(struct sweeping *s, uint64_t *off, uint64_t *len)
{
    const struct sweep *sweep = s->sweep;
    LOCK_GUARD(&s->lock);

    if (s->next >= sweep->end || s->result || is_stopped(sweep))
        return false;
    *off = s->next;
    *len = MIN(sweep->piece, sweep->end - s->next);
    s->next += *len;
    return true;
}

/* Returns how long (ns) to sleep before the next piece. */
static uint64_t note_piece(struct sweeping *s, uint64_t off, uint64_t len, uint64_t moved,
                           int result)
{
    LOCK_GUARD(&s->lock);

    s->done += len;
    s->moved += moved;
    if (result && (!s->result || off < s->result_at)) {
        s->result = result;
        s->result_at = off;
    }
    pthread_cond_signal(&s->changed);
    return ratelimit_account(&s->limit, moved, clock_ns());
}

/* Sleeps in short naps, to notice a stop. */
static void sleep_unless_stopped(const struct sweep *sweep, uint64_t ns)
{
    for (uint64_t n; ns > 0 && !is_stopped(sweep); ns -= n) {
        n = MIN(ns, NAP_NS);
        nanosleep(&(struct timespec){.tv_nsec = (long)n}, NULL);
    }
}

static void work_on_pieces(struct sweeping *s, void *buffer)
{
    const struct sweep *sweep = s->sweep;

    for (uint64_t off, len; take_piece(s, &off, &len);) {
        uint64_t moved = 0;
        int result = sweep->work(sweep->opaque, buffer, off, len, &moved);
        sleep_unless_stopped(sweep, note_piece(s, off, len, moved, result));
    }
}

static void *sweep_main(void *opaque)
{
    struct sweeping *s = opaque;
    void *buffer = NULL;
    int err =
        s->sweep->buffer_bytes ? posix_memalign(&buffer, PAGE, s->sweep->buffer_bytes) : 0;

    if (!err)
        work_on_pieces(s, buffer);
    free(buffer);
    LOCK_GUARD(&s->lock);
    if (err && !s->result)
        s->result = -err;
    s->running--;
    pthread_cond_signal(&s->changed);
    return NULL;
}

/* Under the lock, which is released meanwhile. */
static void tell_progress(struct sweeping *s)
{
    uint64_t done = s->done;

    if (!s->sweep->progress)
        return;
    LOCK_GAP(&s->lock);
    s->sweep->progress(s->sweep->opaque, done);
}

static int flush_unlocked(struct sweeping *s)
{
    LOCK_GAP(&s->lock);
    return s->sweep->flush(s->sweep->opaque);
}

/* Under the lock, which is released meanwhile.  A piece's result takes precedence over the
 * flush's. */
static void flush_early(struct sweeping *s)
{
    if (!s->sweep->flush || s->result || s->moved - s->flushed < SWEEP_FLUSH_BYTES)
        return;
    s->flushed = s->moved;
    int result = flush_unlocked(s);
    if (result && !s->result) {
        s->result = result;
        s->result_at = UINT64_MAX;
    }
}

/* Waits until all threads have ended. */
static void watch(struct sweeping *s)
{
    LOCK_GUARD(&s->lock);

    for (uint64_t seen = 0; s->running > 0;) {
        if (s->done == seen) {
            lock_wait(&s->lock, &s->changed);
            continue;
        }
        seen = s->done;
        tell_progress(s);
        flush_early(s);
    }
    tell_progress(s);
}

static unsigned start_threads(struct sweeping *s, pthread_t *threads)
{
    unsigned n = 0;

    LOCK_GUARD(&s->lock);
    while (n < s->sweep->threads && thread_start(&threads[n], sweep_main, s) == 0)
        n++;
    s->running = n;
    return n;
}

int sweep_run(const struct sweep *sweep)
{
    struct sweeping s = {.sweep = sweep, .next = sweep->start};
    pthread_t threads[SWEEP_MAX_THREADS];

    if (sweep->start >= sweep->end)
        return 0;
    lock_init(&s.lock, RANK_LEAF);
    pthread_cond_init(&s.changed, NULL);
    ratelimit_set_speed(&s.limit, sweep->speed, clock_ns());
    unsigned n = start_threads(&s, threads);
    watch(&s);
    for (unsigned i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    pthread_cond_destroy(&s.changed);
    lock_destroy(&s.lock);
    if (n == 0)
        return -EAGAIN;
    if (s.result)
        return s.result;
    return s.done < sweep->end - sweep->start ? -EINTR : 0;
}
