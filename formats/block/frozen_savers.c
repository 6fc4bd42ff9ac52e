/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads that save granules for requests with a timeout.
 *
 * A request hands over a granule and waits.  When that takes too long it stops waiting, and the
 * granule is saved nevertheless.  The task is freed by the last of the two that uses it. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/thread.h"
#include "block/frozen_internal.h"

#define SAVERS 4

struct task {
    struct list link;
    uint64_t granule;
    int err;
    /* Its saving has ended, well or not; its request has stopped waiting. */
    bool done, abandoned;
};

struct frozen_savers {
    struct frozen_point *point;
    unsigned n_threads;
    pthread_t thread[SAVERS];

    struct lock lock;
    /* under lock */
    pthread_cond_t more, done; /* a task was added; one has ended */
    struct list tasks;         /* not begun yet */
    bool stop;
};

/* ---- the threads ---- */

/* Waits for a task.  NULL: the thread has to end. */
static struct task *next_task(struct frozen_savers *savers)
{
    LOCK_GUARD(&savers->lock);
    while (list_empty(&savers->tasks)) {
        if (savers->stop)
            return NULL;
        lock_wait(&savers->lock, &savers->more);
    }
    struct task *task = CONTAINER_OF(savers->tasks.next, struct task, link);
    list_remove(&task->link);
    return task;
}

static void end_task(struct frozen_savers *savers, struct task *task, int err)
{
    LOCK_GUARD(&savers->lock);
    if (task->abandoned) {
        free(task);
        return;
    }
    task->err = err;
    task->done = true;
    pthread_cond_broadcast(&savers->done);
}

static void *saver_main(void *opaque)
{
    struct frozen_savers *savers = opaque;
    struct task *task;

    while ((task = next_task(savers)))
        end_task(savers, task, frozen_save(savers->point, task->granule));
    return NULL;
}

/* ---- requests ---- */

static void hand_over(struct frozen_savers *savers, struct task *task)
{
    LOCK_GUARD(&savers->lock);
    list_append(&savers->tasks, &task->link);
    pthread_cond_signal(&savers->more);
}

/* Returns the result or -ETIMEDOUT.  Frees the task, or leaves that to the saving thread. */
static int wait_for_task(struct frozen_savers *savers, struct task *task)
{
    uint64_t until = clock_ns() + savers->point->setup.timeout_ms * 1000000ull;
    LOCK_GUARD(&savers->lock);

    while (!task->done && clock_ns() < until)
        lock_wait_until(&savers->lock, &savers->done, until);
    if (!task->done) {
        task->abandoned = true;
        return -ETIMEDOUT;
    }
    int err = task->err;
    free(task);
    return err;
}

int frozen_savers_save(struct frozen_savers *savers, uint64_t granule)
{
    struct task *task = calloc(1, sizeof *task);

    if (!task)
        return -ENOMEM;
    task->granule = granule;
    hand_over(savers, task);
    return wait_for_task(savers, task);
}

/* ---- creating and freeing ---- */

struct frozen_savers *frozen_savers_new(struct frozen_point *point)
{
    struct frozen_savers *savers = calloc(1, sizeof *savers);

    if (!savers)
        return NULL;
    savers->point = point;
    lock_init(&savers->lock, RANK_LEAF);
    cond_init_timed(&savers->done);
    pthread_cond_init(&savers->more, NULL);
    list_init(&savers->tasks);
    for (; savers->n_threads < SAVERS; savers->n_threads++)
        if (thread_start(&savers->thread[savers->n_threads], saver_main, savers)) {
            frozen_savers_free(savers);
            return NULL;
        }
    return savers;
}

static void stop_threads(struct frozen_savers *savers)
{
    LOCK_GUARD(&savers->lock);
    savers->stop = true;
    pthread_cond_broadcast(&savers->more);
}

void frozen_savers_free(struct frozen_savers *savers)
{
    if (!savers)
        return;
    stop_threads(savers);
    for (unsigned i = 0; i < savers->n_threads; i++)
        pthread_join(savers->thread[i], NULL);
    pthread_cond_destroy(&savers->more);
    pthread_cond_destroy(&savers->done);
    lock_destroy(&savers->lock);
    free(savers);
}
