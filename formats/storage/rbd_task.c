/* SPDX-License-Identifier: BSD-3-Clause */
/* Tasks: blocking functions of Ceph's libraries, which may wait for the cluster without a limit,
 * run on threads of their own, so that the caller can stop waiting at its deadline. */
#include <errno.h>

#include "base/clock.h"
#include "base/thread.h"
#include "storage/rbd_internal.h"

/* The interval at which `give_up` is checked. */
#define LOOK_MS 100u

/* The most abandoned tasks without a link, which open or close an image: each has a thread and a
 * connection. */
#define MAX_ABANDONED 16u
/* The most abandoned tasks of one link. */
#define MAX_LATE 4u

static _Atomic unsigned n_abandoned;

static void destroy_task(struct rbd_task *task)
{
    pthread_cond_destroy(&task->ended);
    lock_destroy(&task->lock);
}

/* True: the task is abandoned, so its own thread has to free it. */
static bool report_end(struct rbd_task *task, int err)
{
    LOCK_GUARD(&task->lock);

    task->err = err;
    task->done = true;
    pthread_cond_signal(&task->ended);
    return task->abandoned;
}

/* Counts a task as abandoned, or (more: false) as ended after that.  Later changes of the image
 * wait for abandoned ones. */
static void count_late(struct rbd_task *task, bool more)
{
    struct rbd_link *link = task->link;

    const unsigned step = more ? 1 : -1u;

    if (!link) {
        atomic_fetch_add(&n_abandoned, step);
        return;
    }
    LOCK_GUARD(&link->lock);
    link->late_tasks += step;
    if (task->changes)
        link->late_changes += step;
    if (!more)
        pthread_cond_broadcast(&link->changed);
}

static void *task_main(void *opaque)
{
    struct rbd_task *task = opaque;
    struct rbd_link *link = task->link;

    int err = task->run(task);
    bool abandoned = report_end(task, err);
    if (abandoned) {
        count_late(task, false);
        destroy_task(task);
        task->free(task);
    }
    if (link)
        rbd_link_leave(link, true);
    return NULL;
}

static bool is_unwanted(const struct rbd_task *task)
{
    return (task->give_up && atomic_load(task->give_up)) ||
           (task->link && atomic_load(&task->link->aborted));
}

/* False: the caller stops waiting, for the reason in *err. */
static bool wait_for_end(struct rbd_task *task, unsigned timeout_ms, int *err)
{
    uint64_t deadline = clock_ms() + timeout_ms;
    LOCK_GUARD(&task->lock);

    for (;;) {
        uint64_t now = clock_ms();
        if (task->done)
            return true;
        *err = now >= deadline ? -ETIMEDOUT : is_unwanted(task) ? -ECANCELED : 0;
        if (*err)
            return false;
        lock_wait_until(&task->lock, &task->ended,
                        (now + MIN(deadline - now, LOOK_MS)) * 1000000);
    }
}

static bool mark_abandoned(struct rbd_task *task)
{
    LOCK_GUARD(&task->lock);

    task->abandoned = !task->done;
    return task->abandoned;
}

/* Counts before it marks: an abandoned task may end at once.  False: the task has just ended. */
static bool abandon(struct rbd_task *task)
{
    count_late(task, true);
    if (mark_abandoned(task))
        return true;
    count_late(task, false);
    return false;
}

bool rbd_too_many_tasks(void)
{
    return atomic_load(&n_abandoned) >= MAX_ABANDONED;
}

bool rbd_link_is_stuck(struct rbd_link *link)
{
    LOCK_GUARD(&link->lock);
    return link->late_tasks >= MAX_LATE;
}

/* Limits the number of threads that wait for a cluster that doesn't answer. */
static int wait_for_room(struct rbd_link *link, unsigned *timeout_ms)
{
    uint64_t now = clock_ns(), deadline = now + (uint64_t)*timeout_ms * 1000000;
    int err = 0;
    LOCK_GUARD(&link->lock);

    while (!err && link->late_tasks >= MAX_LATE) {
        err = rbd_wait_for_change(link, deadline);
        now = clock_ns();
        *timeout_ms = now < deadline ? (unsigned)((deadline - now) / 1000000) : 0;
    }
    return err;
}

static int start_task(struct rbd_task *task, pthread_t *thread)
{
    lock_init(&task->lock, RANK_LEAF);
    cond_init_timed(&task->ended);
    if (task->link)
        rbd_link_enter(task->link);
    int err = thread_start(thread, task_main, task);
    if (!err)
        return 0;
    if (task->link)
        rbd_link_leave(task->link, true);
    destroy_task(task);
    return err;
}

int rbd_task_run(struct rbd_task **owned, unsigned timeout_ms, struct diag *diag)
{
    struct rbd_task *task = *owned;
    pthread_t thread;
    int why = 0;

    int err = task->link ? wait_for_room(task->link, &timeout_ms) : 0;
    if (err)
        return diag_errno(diag, -err, "Ceph has not answered");
    err = start_task(task, &thread);
    if (err)
        return diag_errno(diag, -err, "asking Ceph");
    if (!wait_for_end(task, timeout_ms, &why) && abandon(task)) {
        pthread_detach(thread);
        *owned = NULL;
        return diag_errno(diag, -why, "Ceph has not answered");
    }
    pthread_join(thread, NULL);
    destroy_task(task);
    if (task->err && diag)
        *diag = task->diag;
    return task->err;
}
