/* SPDX-License-Identifier: BSD-3-Clause */
/* A bench for jobs: a disk in memory (SOURCE), a second one to copy it to (TARGET), and users of
 * the disk, whose requests are drained and switched to another node as a server would do it.  The
 * events of the jobs are recorded. */
#ifndef JOBS_TESTING_H
#define JOBS_TESTING_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <criterion/criterion.h>

#include "base/checked.h"
#include "fault_storage.h"
#include "jobs/manager.h"
#include "jobs/mirror.h"
#include "mem_storage.h"
#include "raw/raw.h"
#include "rng.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * KIB)

#define MOST_EVENTS 4096u

enum { SOURCE, TARGET };

/* Records all events in order, so that tests can wait for an event. */
struct listener {
    pthread_mutex_t mutex;
    pthread_cond_t more;
    struct job_event events[MOST_EVENTS];
    unsigned n, seen; /* recorded events; those before `seen` were returned by listen_for */
};

struct bench {
    struct block_context ctx;
    struct listener heard;
    struct job_manager *manager;
    struct fault_plan plan[2];
    struct storage *mem[2]; /* the test's handles on both disks */
    struct node *node[2];   /* TARGET: NULL once a job owns it */
    pthread_rwlock_t users; /* read-locked by each request, write-locked by a drain */
    struct node *serving, *replaced;
    struct diag diag;
};

static inline void hear(void *opaque, const struct job_event *event)
{
    struct listener *l = opaque;

    pthread_mutex_lock(&l->mutex);
    cr_assert_lt(l->n, MOST_EVENTS);
    l->events[l->n++] = *event;
    pthread_cond_broadcast(&l->more);
    pthread_mutex_unlock(&l->mutex);
}

static inline void listener_init(struct listener *l)
{
    memset(l, 0, sizeof *l); /* a compound literal would be too large for the stack */
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->more, NULL);
}

/* Waits for the next event of that kind (and for JOB_EVENT_STATUS, of that state) and returns it.
 * Fails the test after a minute. */
static inline struct job_event listen_for(struct listener *l, enum job_event_kind kind,
                                          enum job_state state)
{
    struct timespec until;
    int err = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (l->seen == l->n && !err)
            err = pthread_cond_timedwait(&l->more, &l->mutex, &until);
        cr_assert_eq(err, 0, "no event of kind %d (%s)", kind, job_state_name(state));
        struct job_event event = l->events[l->seen++];
        if (event.kind == kind && (kind != JOB_EVENT_STATUS || event.info.state == state)) {
            pthread_mutex_unlock(&l->mutex);
            return event;
        }
    }
}

/* How many events of a kind there have been. */
static inline unsigned heard_of(struct listener *l, enum job_event_kind kind)
{
    unsigned n = 0;

    pthread_mutex_lock(&l->mutex);
    for (unsigned i = 0; i < l->n; i++)
        n += l->events[i].kind == kind;
    pthread_mutex_unlock(&l->mutex);
    return n;
}

/* ---- users ---- */

static inline void begin_drain(void *opaque)
{
    pthread_rwlock_wrlock(&((struct bench *)opaque)->users);
}

static inline void end_drain(void *opaque)
{
    pthread_rwlock_unlock(&((struct bench *)opaque)->users);
}

static inline int replace_served(void *opaque, struct node *target, struct diag *diag)
{
    struct bench *b = opaque;

    (void)diag;
    b->replaced = b->serving;
    b->serving = target;
    return 0;
}

static inline int user_write(struct bench *b, const void *buf, uint64_t off, uint64_t len)
{
    pthread_rwlock_rdlock(&b->users);
    int err = block_write(b->serving, buf, off, len, 0);
    pthread_rwlock_unlock(&b->users);
    return err;
}

/* ---- setting up ---- */

static inline void bench_open(struct bench *b, int which, uint64_t size)
{
    const struct node_options options = {.lock_off = true};

    fault_plan_init(&b->plan[which]);
    b->mem[which] = mem_storage_new(size);
    cr_assert_eq(
        node_open(&b->ctx, &raw_driver,
                  fault_storage_new(mem_storage_share(b->mem[which]), &b->plan[which]),
                  which == SOURCE ? "the disk" : "the target", &options, &b->node[which],
                  &b->diag),
        0, "%s", b->diag.text);
    cr_assert_eq(node_activate(b->node[which], &b->diag), 0, "%s", b->diag.text);
}

/* Makes a new target for the next job. */
static inline void bench_new_target(struct bench *b, uint64_t size)
{
    storage_close(b->mem[TARGET]);
    fault_plan_destroy(&b->plan[TARGET]);
    bench_open(b, TARGET, size);
}

/* Fills the disk with bytes other than zero. */
static inline void bench_fill(struct bench *b)
{
    uint64_t size = b->node[SOURCE]->size;
    unsigned char *bytes = malloc(size + 1);

    for (uint64_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(1 + i % 251);
    cr_assert_eq(block_write(b->node[SOURCE], bytes, 0, size, 0), 0);
    free(bytes);
}

static inline void bench_init(struct bench *b, uint64_t size)
{
    pthread_rwlockattr_t attr;

    memset(b, 0, sizeof *b);
    listener_init(&b->heard);
    cr_assert_eq(block_context_init(&b->ctx, 1 << 20, NULL, NULL), 0);
    b->manager = job_manager_new(hear, &b->heard);
    bench_open(b, SOURCE, size);
    bench_open(b, TARGET, size);
    b->serving = b->node[SOURCE];
    /* Without this a drain could wait for ever, while new requests keep coming. */
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&b->users, &attr);
    pthread_rwlockattr_destroy(&attr);
}

static inline void bench_fini(struct bench *b)
{
    job_manager_free(b->manager);
    node_close(b->serving);
    node_close(b->replaced);
    node_close(b->node[TARGET]);
    for (int i = 0; i < 2; i++) {
        storage_close(b->mem[i]);
        fault_plan_destroy(&b->plan[i]);
    }
    block_context_destroy(&b->ctx);
    pthread_rwlock_destroy(&b->users);
}

/* ---- jobs ---- */

static inline struct mirror_params bench_params(struct bench *b)
{
    return (struct mirror_params){
        .job = {.id = "job"},
        .source = b->serving,
        .target = b->node[TARGET],
        .pivot = {.begin_drain = begin_drain,
                  .end_drain = end_drain,
                  .replace = replace_served,
                  .opaque = b},
    };
}

static inline int bench_start(struct bench *b, const struct mirror_params *params)
{
    int err = mirror_start(b->manager, params, &b->diag);

    b->node[TARGET] = NULL; /* the job owns it now, even if it couldn't be started */
    return err;
}

static inline void bench_must_start(struct bench *b, const struct mirror_params *params)
{
    int err = bench_start(b, params);

    cr_assert_eq(err, 0, "%s", b->diag.text);
}

static inline struct job_event bench_ready(struct bench *b)
{
    return listen_for(&b->heard, JOB_EVENT_READY, 0);
}

static inline struct job_event bench_status(struct bench *b, enum job_state state)
{
    return listen_for(&b->heard, JOB_EVENT_STATUS, state);
}

static inline struct job_event bench_end(struct bench *b, enum job_event_kind kind)
{
    struct job_event event = listen_for(&b->heard, kind, 0);

    bench_status(b, JOB_NULL);
    return event;
}

/* Cancels a job that is ready, softly: it ends with a complete copy. */
static inline void bench_cancel(struct bench *b)
{
    cr_assert_eq(job_cancel(b->manager, "job", false, &b->diag), 0, "%s", b->diag.text);
    struct job_event event = bench_end(b, JOB_EVENT_COMPLETED);
    cr_assert_str_empty(event.info.error);
}

static inline struct job_info bench_look(struct bench *b)
{
    struct job_info info = {0};

    cr_assert_eq(job_query(b->manager, &info, 1), 1);
    return info;
}

static inline void bench_same(struct bench *b)
{
    uint64_t where = 0;

    cr_assert(mem_storage_equal(b->mem[SOURCE], b->mem[TARGET], &where), "differ at %lu",
              (unsigned long)where);
}

static inline void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

#endif
