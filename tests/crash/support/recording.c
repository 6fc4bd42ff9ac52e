/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs requests on a crash storage and records them; see recording.h. */
#include "recording.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "bitmaps.h"
#include "mem_storage.h"
#include "prompter.h"
#include "rng.h"

#define MAX_THREADS 8

static void expect(struct recording *r, int err, const char *what)
{
    if (err && !r->may_fail) {
        fprintf(stderr, "crash tests: %s: %s was refused (errno %d)\n",
                r->subject->config->name, what, -err);
        r->failed = true;
    }
}

/* Notes the end of a request, unless it failed. */
static void answered(struct recording *r, uint32_t version, int err, const char *what)
{
    expect(r, err, what);
    if (!err)
        history_end(&r->history, version);
}

static bool writes_through(const struct recording *r)
{
    const char *name = r->subject->config->cache;

    return name && cache_mode_find(name)->write_through;
}

/* ---- requests that are noted in the history ---- */

void record_write(struct recording *r, struct session *se, uint64_t sector, uint64_t n,
                  unsigned flags)
{
    CLEANUP_FREE void *data = malloc(n * SECTOR_BYTES);
    if (!data)
        abort();

    bool fua = (flags & BLOCK_FUA) || writes_through(r);
    uint32_t version = history_begin(&r->history, REQ_WRITE, sector, n, fua);
    stamp_fill(data, sector, n, version);
    int err = block_write(se->node, data, sector * SECTOR_BYTES, n * SECTOR_BYTES, flags);
    answered(r, version, err, "a write");
}

void record_zero(struct recording *r, struct session *se, uint64_t sector, uint64_t n,
                 unsigned flags)
{
    bool fua = (flags & BLOCK_FUA) || writes_through(r);
    uint32_t version = history_begin(&r->history, REQ_ZERO, sector, n, fua);

    int err = block_zero(se->node, sector * SECTOR_BYTES, n * SECTOR_BYTES, flags);
    answered(r, version, err, "a zero");
}

void record_trim(struct recording *r, struct session *se, uint64_t sector, uint64_t n)
{
    uint32_t version = history_begin(&r->history, REQ_TRIM, sector, n, false);

    int err = block_discard(se->node, sector * SECTOR_BYTES, n * SECTOR_BYTES, 0);
    answered(r, version, err, "a trim");
}

void record_flush(struct recording *r, struct session *se)
{
    uint32_t version = history_begin(&r->history, REQ_FLUSH, 0, 0, false);

    answered(r, version, block_flush(se->node), "a flush");
}

void record_tick(struct recording *r, struct session *se, uint64_t ns)
{
    uint32_t version = history_begin(&r->history, REQ_BACKGROUND, 0, 0, false);

    atomic_fetch_add(&se->now, ns);
    housekeeper_run_due(se->ctx.housekeeper);
    history_end(&r->history, version);
}

void record_grow(struct recording *r, struct session *se, uint64_t n)
{
    /* Growing flushes, but it promises only that the new size is durable, nothing about earlier
     * requests: so it isn't a REQ_FLUSH. */
    uint32_t version = history_begin(&r->history, REQ_BACKGROUND, 0, 0, false);
    int err = se->node->driver->grow(se->node, n * SECTOR_BYTES, NULL);

    answered(r, version, err, "growing");
}

static void record_settle(struct recording *r, struct session *se)
{
    uint32_t version = history_begin(&r->history, REQ_BACKGROUND, 0, 0, false);

    if (node_can(se->node, DRIVER_MARKS))
        expect(r, se->node->driver->clear_mark(se->node), "settling");
    history_end(&r->history, version);
}

/* ---- a random run ---- */

struct worker {
    struct recording *r;
    struct session *se;
    struct workload load;
    struct rng rng;
    unsigned index, requests;
    pthread_t thread;
};

static void choose_range(struct worker *w, uint64_t *sector, uint64_t *n)
{
    uint64_t disk = w->r->subject->n_sectors,
             cluster = w->se->node->cluster_size / SECTOR_BYTES;
    struct rng *rng = &w->rng;

    /* Half of the requests go to one eighth of the disk. */
    *sector = rng_below(rng, rng_one_in(rng, 2) ? MAX(disk / 8, 1) : disk);
    switch (rng_below(rng, 4)) {
    case 0:
        *n = rng_between(rng, 1, 8);
        break;
    case 1:
    case 2:
        *sector = align_down(*sector, cluster);
        *n = cluster * rng_between(rng, 1, MAX(1, MIN(8, w->load.max_sectors / cluster)));
        break;
    default:
        *n = rng_between(rng, 1, w->load.max_sectors);
        break;
    }
    *n = MIN(*n, disk - *sector);
}

/* Bitmaps are stored only when there was no request between two ticks: so there are three. */
static void record_ticks(struct worker *w)
{
    bool bitmaps = w->r->subject->config->bitmaps;

    for (unsigned i = 0; i < (bitmaps ? 3 : 1); i++)
        record_tick(w->r, w->se, rng_between(&w->rng, 1, 12) * SECOND);
    if (bitmaps && rng_one_in(&w->rng, 2)) {
        uint32_t version = history_begin(&w->r->history, REQ_BACKGROUND, 0, 0, false);
        expect(w->r, kept_bitmaps_shuffle(w->se->node), "changing bitmaps");
        history_end(&w->r->history, version);
    }
}

static void one_request(struct worker *w)
{
    const struct workload *l = &w->load;
    uint64_t sector, n;
    uint64_t dice = rng_below(&w->rng, l->write + l->zero + l->zero_unmap + l->trim +
                                           l->flush + l->fua + l->tick + l->settle);

    choose_range(w, &sector, &n);
    if (dice < l->write)
        record_write(w->r, w->se, sector, n, 0);
    else if ((dice -= l->write) < l->zero)
        record_zero(w->r, w->se, sector, n, rng_one_in(&w->rng, 8) ? BLOCK_FUA : 0);
    else if ((dice -= l->zero) < l->zero_unmap)
        record_zero(w->r, w->se, sector, n,
                    BLOCK_MAY_UNMAP | (rng_one_in(&w->rng, 8) ? BLOCK_FUA : 0));
    else if ((dice -= l->zero_unmap) < l->trim)
        record_trim(w->r, w->se, sector, n);
    else if ((dice -= l->trim) < l->flush)
        record_flush(w->r, w->se);
    else if ((dice -= l->flush) < l->fua)
        record_write(w->r, w->se, sector, n, BLOCK_FUA);
    else if ((dice -= l->fua) < l->tick)
        record_ticks(w);
    else if (w->load.threads <= 1)
        record_settle(w->r, w->se);
}

static void *worker_main(void *opaque)
{
    struct worker *w = opaque;

    for (unsigned i = 0; i < w->requests; i++)
        one_request(w);
    return NULL;
}

static struct workload complete(struct workload load)
{
    if (load.requests == 0)
        load.requests = 250;
    if (load.threads == 0)
        load.threads = 1;
    if (load.max_sectors == 0)
        load.max_sectors = 96;
    if (load.write + load.zero + load.zero_unmap + load.trim + load.flush + load.fua == 0) {
        load.write = 50;
        load.zero = 7;
        load.zero_unmap = 9;
        load.trim = 10;
        load.flush = 8;
        load.fua = 6;
        load.tick = 6;
        load.settle = 1;
    }
    return load;
}

static void run(struct recording *r, struct session *se, const struct workload *load)
{
    struct worker workers[MAX_THREADS] = {0};
    unsigned n = MIN(load->threads, MAX_THREADS);

    for (unsigned i = 0; i < n; i++) {
        workers[i] = (struct worker){
            .r = r, .se = se, .load = *load, .index = i, .requests = load->requests / n};
        if (i > 0) /* only the first worker advances the clock */
            workers[i].load.tick = workers[i].load.settle = 0;
        rng_init(&workers[i].rng, r->seed * MAX_THREADS + i);
    }
    for (unsigned i = 1; i < n; i++)
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]))
            abort();
    worker_main(&workers[0]);
    for (unsigned i = 1; i < n; i++)
        pthread_join(workers[i].thread, NULL);
}

static struct storage *open_file(struct recording *r, unsigned number,
                                 const struct tap *tap)
{
    const struct subject_config *c = r->subject->config;
    struct storage *file = crash_storage_open_file(r->log, number);

    file->fixed_size = number == 0 && c->fixed_size;
    file->no_flush = c->cache && cache_mode_find(c->cache)->no_flush;
    return tap ? tap_storage_open(file, tap) : file;
}

void recording_start(struct recording *r, const struct subject *s, struct session *se,
                     const struct tap *tap)
{
    *r = (struct recording){.subject = s};
    r->log = crash_log_new(s->base.image);
    if (s->base.data)
        crash_log_add_file(r->log, s->base.data);
    history_init(&r->history, r->log, s->initial, s->n_sectors, s->next_version);
    struct files files = {.image = open_file(r, 0, tap),
                          .data = s->base.data ? open_file(r, 1, tap) : NULL};
    expect(r, session_open(se, s, files, true), "opening");
    if (r->failed)
        abort();
    r->n_repair = crash_log_count(r->log);
    if (s->config->bitmaps)
        expect(r, kept_bitmaps_begin(se->node), "making bitmaps");
}

void recording_end(struct recording *r, struct session *se, bool kill)
{
    if (kill) {
        /* The changes made by closing come after the last crash point. */
        history_index(&r->history);
        r->n_points = crash_log_count(r->log);
        session_close(se);
        return;
    }
    uint32_t version = history_begin(&r->history, REQ_FLUSH, 0, 0, false);
    answered(r, version, session_close(se), "closing");
    history_index(&r->history);
    r->n_points = crash_log_count(r->log);
}

/* ---- a storage that fails ---- */

struct failing {
    struct rng rng;
    pthread_mutex_t mutex;
    const struct workload *load;
};

static bool dice(struct failing *f, unsigned one_in)
{
    pthread_mutex_lock(&f->mutex);
    bool hit = one_in && rng_one_in(&f->rng, one_in);
    pthread_mutex_unlock(&f->mutex);
    return hit;
}

static int fail_write(void *opaque, uint64_t off, uint64_t len, bool *done)
{
    struct failing *f = opaque;

    (void)off;
    if (!dice(f, f->load->failing))
        return 0;
    *done = len > 0 && dice(f, 3); /* a truncate (len 0) that fails does nothing */
    return -ENOSPC;
}

static int fail_flush(void *opaque)
{
    struct failing *f = opaque;

    return dice(f, f->load->failing_flush) ? -EIO : 0;
}

static void run_failing(struct recording *r, struct session *se,
                        const struct workload *load, struct tap *tap)
{
    struct failing f = {.load = load};

    rng_init(&f.rng, r->seed ^ 0xfa11);
    pthread_mutex_init(&f.mutex, NULL);
    r->may_fail = true;
    tap->opaque = &f;
    tap->before_write = fail_write;
    tap->before_flush = fail_flush;
    run(r, se, load);
    tap->before_write = NULL;
    tap->before_flush = NULL;
    pthread_mutex_destroy(&f.mutex);
}

/* ---- another client ---- */

/* A request of the other client: half of them are flushes. */
static void prompted_request(void *opaque)
{
    struct worker *w = opaque;

    if (rng_one_in(&w->rng, 2))
        record_flush(w->r, w->se);
    else
        one_request(w);
}

static void run_prompted(struct recording *r, struct session *se,
                         const struct workload *load, struct tap *tap)
{
    struct worker other = {.r = r, .se = se, .load = *load};

    other.load.tick = other.load.settle = 0;
    other.load.max_sectors = MIN(load->max_sectors, 16);
    rng_init(&other.rng, r->seed ^ 0x0fed);
    struct prompter *p = prompter_new(r->seed, load->prompted, prompted_request, &other);
    crash_log_set_hook(r->log, prompter_hook, p);
    tap->opaque = p;
    tap->before_read = prompter_before_read;
    tap->before_write = prompter_before_write;
    run(r, se, load);
    tap->before_read = NULL;
    tap->before_write = NULL;
    crash_log_set_hook(r->log, NULL, NULL);
    prompter_free(p);
}

void recording_make(struct recording *r, const struct subject *s, uint64_t seed)
{
    struct workload load = complete(s->config->load);
    struct tap tap = {0};
    struct session se;

    bool fails = load.failing || load.failing_flush;
    recording_start(r, s, &se, load.prompted || fails ? &tap : NULL);
    r->seed = seed;
    if (load.prompted)
        run_prompted(r, &se, &load, &tap);
    else if (fails)
        run_failing(r, &se, &load, &tap);
    else
        run(r, &se, &load);
    recording_end(r, &se, load.end_with_kill || seed % 4 == 0);
}

void recording_free(struct recording *r)
{
    history_free(&r->history);
    crash_log_free(r->log);
}
