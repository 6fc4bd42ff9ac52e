/* SPDX-License-Identifier: BSD-3-Clause */
/* The copier's workers, and their locked ranges.
 *
 * The job's thread gives a range to an idle worker and goes on; the worker only reads and
 * writes.  A range is locked from before its read until the target has it.  Users' writes
 * that are sent to the target wait for that lock, and the copier waits for theirs; so of
 * two writes to one place the later one remains on the target. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/thread.h"
#include "jobs/copier.h"

#define MAX_WORKERS 16

struct copy_worker {
    struct copier *copier;
    pthread_t thread;
    bool started;
    bool taken, going; /* under lock */
    bool flushes;      /* it flushes the target, and copies nothing */
    /* the range to copy; locked from copier_begin to the end of the copy */
    struct locked_range range;
    void *buffer; /* max_range bytes */
};

struct copier {
    struct copier_config config; /* except its source, which may change: */
    struct node *_Atomic source;
    struct range_lock ranges;
    _Atomic uint64_t in_flight; /* bytes of all locked ranges */
    struct lock lock;
    /* under lock */
    pthread_cond_t work, idle; /* work: there is some; idle: a worker became idle */
    uint64_t copying;          /* bytes of workers' ranges */
    bool flushing;
    int flush_result; /* written by the flushing worker; read when `flushing` is false */
    bool stop;
    size_t n_workers;
    struct copy_worker workers[MAX_WORKERS];
};

void copier_set_source(struct copier *copier, struct node *source)
{
    atomic_store(&copier->source, source);
}

/* ---- locked ranges ---- */

void copier_lock_range(struct copier *copier, struct locked_range *range, uint64_t off,
                       uint64_t len)
{
    range_lock_acquire(&copier->ranges, range, off, off + len, RANGE_EXCLUSIVE);
    atomic_fetch_add(&copier->in_flight, len);
}

void copier_unlock_range(struct copier *copier, struct locked_range *range)
{
    atomic_fetch_sub(&copier->in_flight, range->end - range->start);
    range_lock_release(range);
}

uint64_t copier_in_flight(struct copier *copier)
{
    return atomic_load(&copier->in_flight);
}

uint64_t copier_copying(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    return copier->copying;
}

void copier_wait_in_flight(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    while (copier->copying > 0 || copier->flushing)
        lock_wait(&copier->lock, &copier->idle);
}

/* ---- workers ---- */

/* False: the worker must end. */
static bool wait_for_work(struct copy_worker *w)
{
    LOCK_GUARD(&w->copier->lock);
    while (!w->going && !w->copier->stop)
        lock_wait(&w->copier->lock, &w->copier->work);
    return w->going;
}

static void copy_as_configured(struct copy_worker *w, struct copy_result *result)
{
    const struct copier_config *config = &w->copier->config;
    const struct copy_how how = {.source = atomic_load(&w->copier->source),
                                 .target = config->target,
                                 .unmap = config->unmap};
    uint64_t off = w->range.start, len = w->range.end - off;

    *result = (struct copy_result){.off = off, .len = len};
    if (config->copy)
        config->copy(config->opaque, result);
    else
        copy_range(&how, w->buffer, config->max_range, off, len, result);
}

static void copy_or_flush(struct copy_worker *w)
{
    struct copier *copier = w->copier;
    struct copy_result result;

    if (w->flushes) {
        copier->flush_result = block_flush(copier->config.target);
        return;
    }
    copy_as_configured(w, &result);
    copier->config.done(copier->config.opaque, &result);
    copier_unlock_range(copier, &w->range);
}

static void make_idle(struct copy_worker *w)
{
    struct copier *copier = w->copier;
    LOCK_GUARD(&copier->lock);

    if (w->flushes)
        copier->flushing = false;
    else
        copier->copying -= w->range.end - w->range.start;
    w->going = w->taken = w->flushes = false;
    pthread_cond_broadcast(&copier->idle);
}

static void *worker_main(void *opaque)
{
    struct copy_worker *w = opaque;

    while (wait_for_work(w)) {
        copy_or_flush(w);
        make_idle(w);
        w->copier->config.freed(w->copier->config.opaque);
    }
    return NULL;
}

/* Under the lock. */
static struct copy_worker *find_idle_worker(struct copier *copier)
{
    for (size_t i = 0; i < copier->n_workers; i++)
        if (!copier->workers[i].taken)
            return &copier->workers[i];
    return NULL;
}

static struct copy_worker *take_idle_worker(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    struct copy_worker *w = find_idle_worker(copier);

    if (w)
        w->taken = true;
    return w;
}

static void give_worker_back(struct copy_worker *w)
{
    LOCK_GUARD(&w->copier->lock);
    w->taken = false;
}

static void note_copying(struct copier *copier, uint64_t bytes)
{
    LOCK_GUARD(&copier->lock);
    copier->copying += bytes;
    atomic_fetch_add(&copier->in_flight, bytes);
}

struct copy_worker *copier_begin(struct copier *copier, uint64_t off, uint64_t *len)
{
    struct copy_worker *w = take_idle_worker(copier);

    if (!w)
        return NULL;
    uint64_t end = off + MIN(*len, copier->config.max_range);
    *len = range_lock_try_acquire(&copier->ranges, &w->range, off, end);
    if (*len == 0) {
        give_worker_back(w);
        return NULL;
    }
    note_copying(copier, *len);
    return w;
}

struct copy_worker *copier_begin_flush(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    struct copy_worker *w = copier->flushing ? NULL : find_idle_worker(copier);

    if (w)
        copier->flushing = w->taken = w->flushes = true;
    return w;
}

bool copier_is_flushing(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    return copier->flushing;
}

int copier_flush_result(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    while (copier->flushing)
        lock_wait(&copier->lock, &copier->idle);
    return copier->flush_result;
}

void copier_go(struct copy_worker *worker)
{
    LOCK_GUARD(&worker->copier->lock);
    worker->going = true;
    pthread_cond_broadcast(&worker->copier->work);
}

/* ---- creating and freeing ---- */

static bool start_worker(struct copier *copier, struct copy_worker *w)
{
    w->copier = copier;
    if (posix_memalign(&w->buffer, 4096, copier->config.max_range) != 0)
        return false;
    w->started = thread_start(&w->thread, worker_main, w) == 0;
    return w->started;
}

struct copier *copier_new(const struct copier_config *config)
{
    struct copier *copier = calloc(1, sizeof *copier);

    if (!copier)
        return NULL;
    copier->config = *config;
    atomic_init(&copier->source, config->source);
    lock_init(&copier->lock, RANK_LEAF);
    pthread_cond_init(&copier->work, NULL);
    pthread_cond_init(&copier->idle, NULL);
    range_lock_init(&copier->ranges, RANK_LEAF);
    uint64_t n = MAX(1, MIN(MAX_WORKERS, config->buf_size / config->max_range));
    bool ok = true;
    while (ok && copier->n_workers < n)
        ok = start_worker(copier, &copier->workers[copier->n_workers++]);
    if (!ok) {
        copier_free(copier);
        return NULL;
    }
    return copier;
}

void copier_free(struct copier *copier)
{
    if (!copier)
        return;
    lock_acquire(&copier->lock);
    copier->stop = true;
    pthread_cond_broadcast(&copier->work);
    lock_release(&copier->lock);
    for (size_t i = 0; i < copier->n_workers; i++) {
        if (copier->workers[i].started)
            pthread_join(copier->workers[i].thread, NULL);
        free(copier->workers[i].buffer);
    }
    pthread_cond_destroy(&copier->work);
    pthread_cond_destroy(&copier->idle);
    range_lock_destroy(&copier->ranges);
    lock_destroy(&copier->lock);
    free(copier);
}
