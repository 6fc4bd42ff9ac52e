/* SPDX-License-Identifier: BSD-3-Clause */
/* The workers that copy, and what each has claimed.
 *
 * The job's thread hands a range to an idle worker and goes on; workers read and write, and
 * nothing else.  A range is claimed from before it is read until the target has it: writes
 * of users that are sent to the target wait for it, and it waits for theirs, so that of two
 * writes to one place on the target the later one stays. */
#include <pthread.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/list.h"
#include "base/thread.h"
#include "jobs/copier.h"

#define MAX_WORKERS 16

struct copy_worker {
    struct copier *copier;
    pthread_t thread;
    bool started;
    bool taken, going;  /* under lock */
    bool flushes;       /* the target, and copies nothing */
    struct claim claim; /* what to copy, while going */
    void *buffer;       /* max_range bytes */
};

struct copier {
    struct copier_config config;
    struct lock lock;
    /* under lock */
    pthread_cond_t work, unclaimed;
    struct list claims;
    uint64_t in_flight, copying; /* bytes of claims; of those of workers */
    bool flushing;
    int flush_result; /* the flushing worker's, then under the lock */
    bool stop;
    size_t n_workers;
    struct copy_worker workers[MAX_WORKERS];
};

/* ---- copying one range ---- */

/* One run of the source's status, or as much of it as was asked for. */
static int copy_run(struct copy_worker *w, const struct block_status *st, uint64_t off,
                    uint64_t len, struct copy_result *result)
{
    const struct copier_config *c = &w->copier->config;

    if (st->zero) {
        result->write_side = true;
        return block_zero(c->target, off, len, c->unmap ? BLOCK_MAY_UNMAP : 0);
    }
    result->write_side = false;
    int err = block_read(c->source, w->buffer, off, len);
    if (err)
        return err;
    result->write_side = true;
    result->sent += len;
    return block_write(c->target, w->buffer, off, len, 0);
}

static void copy(struct copy_worker *w, struct copy_result *result)
{
    uint64_t off = w->claim.off, end = off + w->claim.len;

    *result = (struct copy_result){.off = off, .len = w->claim.len};
    while (off < end && !result->err) {
        struct block_status st;
        /* What can't be asked is copied as data. */
        if (block_status(w->copier->config.source, off, end - off, &st))
            st = (struct block_status){.length = end - off, .data = true};
        result->err = copy_run(w, &st, off, st.length, result);
        off += st.length;
    }
}

/* ---- claims ---- */

/* Under the lock: the first claim that overlaps the range, or NULL. */
static struct claim *overlap(struct copier *copier, uint64_t off, uint64_t len)
{
    struct claim *first = NULL;

    LIST_FOR_EACH (pos, &copier->claims) {
        struct claim *c = CONTAINER_OF(pos, struct claim, link);
        if (ranges_overlap(c->off, c->len, off, len) && (!first || c->off < first->off))
            first = c;
    }
    return first;
}

/* Under the lock. */
static void add_claim(struct copier *copier, struct claim *claim, uint64_t off,
                      uint64_t len)
{
    claim->off = off;
    claim->len = len;
    list_append(&copier->claims, &claim->link);
    copier->in_flight += len;
}

void copier_lock_range(struct copier *copier, struct claim *claim, uint64_t off,
                       uint64_t len)
{
    LOCK_GUARD(&copier->lock);
    while (overlap(copier, off, len))
        lock_wait(&copier->lock, &copier->unclaimed);
    add_claim(copier, claim, off, len);
}

/* Under the lock. */
static void drop_claim(struct copier *copier, struct claim *claim)
{
    list_remove(&claim->link);
    copier->in_flight -= claim->len;
    pthread_cond_broadcast(&copier->unclaimed);
}

void copier_unlock_range(struct copier *copier, struct claim *claim)
{
    LOCK_GUARD(&copier->lock);
    drop_claim(copier, claim);
}

uint64_t copier_in_flight(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    return copier->in_flight;
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
        lock_wait(&copier->lock, &copier->unclaimed);
}

/* ---- workers ---- */

/* Under the lock. */
static void free_worker(struct copy_worker *w)
{
    struct copier *copier = w->copier;

    if (w->flushes) {
        copier->flushing = false;
        pthread_cond_broadcast(&copier->unclaimed);
    } else {
        copier->copying -= w->claim.len;
        drop_claim(copier, &w->claim);
    }
    w->going = w->taken = w->flushes = false;
}

static void work(struct copy_worker *w)
{
    struct copier *copier = w->copier;
    struct copy_result result;

    if (w->flushes) {
        copier->flush_result = block_flush(copier->config.target);
    } else {
        copy(w, &result);
        copier->config.done(copier->config.opaque, &result);
    }
}

static void *worker_main(void *opaque)
{
    struct copy_worker *w = opaque;
    struct copier *copier = w->copier;

    LOCK_GUARD(&copier->lock);
    for (;;) {
        while (!w->going && !copier->stop)
            lock_wait(&copier->lock, &copier->work);
        if (!w->going)
            return NULL;
        lock_release(&copier->lock);
        work(w);
        lock_acquire(&copier->lock);
        free_worker(w);
        lock_release(&copier->lock);
        copier->config.freed(copier->config.opaque);
        lock_acquire(&copier->lock);
    }
}

static struct copy_worker *idle_worker(struct copier *copier)
{
    for (size_t i = 0; i < copier->n_workers; i++)
        if (!copier->workers[i].taken)
            return &copier->workers[i];
    return NULL;
}

struct copy_worker *copier_begin(struct copier *copier, uint64_t off, uint64_t *len)
{
    LOCK_GUARD(&copier->lock);
    struct claim *other = overlap(copier, off, *len);
    struct copy_worker *w = idle_worker(copier);

    if (other && other->off <= off)
        *len = 0;
    if (*len == 0 || !w)
        return NULL;
    if (other)
        *len = other->off - off;
    *len = MIN(*len, copier->config.max_range);
    add_claim(copier, &w->claim, off, *len);
    copier->copying += *len;
    w->taken = true;
    return w;
}

struct copy_worker *copier_begin_flush(struct copier *copier)
{
    LOCK_GUARD(&copier->lock);
    struct copy_worker *w = copier->flushing ? NULL : idle_worker(copier);

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
        lock_wait(&copier->lock, &copier->unclaimed);
    return copier->flush_result;
}

void copier_go(struct copy_worker *worker)
{
    LOCK_GUARD(&worker->copier->lock);
    worker->going = true;
    pthread_cond_broadcast(&worker->copier->work);
}

/* ---- life ---- */

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
    lock_init(&copier->lock, RANK_LEAF);
    pthread_cond_init(&copier->work, NULL);
    pthread_cond_init(&copier->unclaimed, NULL);
    list_init(&copier->claims);
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
    pthread_cond_destroy(&copier->unclaimed);
    lock_destroy(&copier->lock);
    free(copier);
}
