/* SPDX-License-Identifier: BSD-3-Clause */
/* The size of an RBD image: kept here, and changed by a blocking function of librbd.
 *
 * A resize that is abandoned at its deadline is a late change like any other (rbd_call.c): later
 * changes wait for it, because it could cut off what they write.  Only the cluster knows the size
 * then, so it is asked before the next change.  It is also asked after a notification that the
 * image has changed, maybe by another client: librbd silently drops the part of a write that lies
 * past the end. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/log.h"
#include "storage/rbd_internal.h"

struct size_task {
    struct rbd_task task;
    uint64_t bytes;
};

static int run_resize(struct rbd_task *task)
{
    return librbd.resize(task->link->image,
                         CONTAINER_OF(task, struct size_task, task)->bytes);
}

static int run_ask(struct rbd_task *task)
{
    return librbd.get_size(task->link->image,
                           &CONTAINER_OF(task, struct size_task, task)->bytes);
}

static void free_size_task(struct rbd_task *task)
{
    free(CONTAINER_OF(task, struct size_task, task));
}

static int run_task(struct rbd_link *link, struct rbd_task how, uint64_t deadline,
                    uint64_t *bytes)
{
    uint64_t now = clock_ns();

    if (now >= deadline)
        return -ETIMEDOUT;
    struct size_task *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    *t = (struct size_task){.task = how, .bytes = *bytes};
    t->task.free = free_size_task;
    t->task.link = link;
    struct rbd_task *task = &t->task;
    int err = rbd_task_run(&task, (unsigned)((deadline - now) / 1000000), NULL);
    if (!task)
        return err;
    *bytes = t->bytes;
    free_size_task(task);
    return err;
}

/* With `growth` locked, like the functions below. */
static int ask_size(struct rbd_storage *rbd, uint64_t deadline)
{
    uint64_t bytes = 0, before = atomic_load(&rbd->size);

    /* Before it is asked, as the size may change meanwhile. */
    atomic_store(&rbd->link->size_unknown, false);
    int err = run_task(rbd->link, (struct rbd_task){.run = run_ask}, deadline, &bytes);
    if (err) {
        rbd_doubt_size(rbd->link);
        return err;
    }
    if (bytes < before)
        log_warning("%s: somebody has made it smaller: from %" PRIu64 " to %" PRIu64
                    " bytes",
                    rbd->st.name, before, bytes);
    atomic_store(&rbd->size, bytes);
    /* A write that began meanwhile took the old size for known: it has to find out that it may have
     * been cut. */
    if (bytes < before)
        atomic_fetch_add(&rbd->link->doubts, 1);
    return 0;
}

static int change_size(struct rbd_storage *rbd, uint64_t bytes, uint64_t deadline)
{
    struct rbd_task how = {.run = run_resize, .changes = true};

    int err = run_task(rbd->link, how, deadline, &bytes);
    if (!err)
        atomic_store(&rbd->size, bytes);
    else if (err == -ETIMEDOUT || err == -ECANCELED)
        rbd_doubt_size(rbd->link);
    return err;
}

/* While no change is in flight. */
static int set_size_alone(struct rbd_storage *rbd, uint64_t bytes, bool only_larger,
                          uint64_t deadline)
{
    int err = atomic_load(&rbd->link->size_unknown) ? ask_size(rbd, deadline) : 0;
    if (err)
        return err;
    uint64_t size = atomic_load(&rbd->size);
    return size == bytes || (only_larger && size > bytes)
               ? 0
               : change_size(rbd, bytes, deadline);
}

/* To be called before `growth` is locked: otherwise, while the cluster doesn't answer, the
 * callers that wait for the lock would time out one after the other, each after its full
 * timeout. */
static uint64_t deadline_of(const struct rbd_storage *rbd)
{
    return clock_ns() + (uint64_t)rbd->facts.timeout_ms * 1000000;
}

static int set_size(struct rbd_storage *rbd, uint64_t bytes, bool only_larger,
                    uint64_t deadline)
{
    if (!rbd->link)
        return -ENOTCONN;
    int err = rbd_begin_resize(rbd->link, deadline);
    if (err)
        return err;
    err = set_size_alone(rbd, bytes, only_larger, deadline);
    rbd_end_resize(rbd->link);
    return err;
}

/* In this order: a caller that sees the new count then also sees that the size is unknown. */
void rbd_doubt_size(struct rbd_link *link)
{
    atomic_store(&link->size_unknown, true);
    atomic_fetch_add(&link->doubts, 1);
}

bool rbd_size_is_known(const struct rbd_storage *rbd)
{
    return !rbd->link || !atomic_load(&rbd->link->size_unknown);
}

int rbd_truncate_storage(struct storage *st, uint64_t bytes)
{
    struct rbd_storage *rbd = rbd_of(st);

    /* Otherwise early writes that are tried again later could grow the image again. */
    int err = rbd_settle(rbd);
    if (err)
        return err;
    uint64_t deadline = deadline_of(rbd);
    RANGE_LOCK_GUARD(&rbd->growth, 0, UINT64_MAX);
    return rbd_size_is_known(rbd) && bytes == atomic_load(&rbd->size)
               ? 0
               : set_size(rbd, bytes, false, deadline);
}

int rbd_grow_to(struct rbd_storage *rbd, uint64_t bytes)
{
    if (rbd_size_is_known(rbd) && bytes <= atomic_load(&rbd->size))
        return 0;
    uint64_t deadline = deadline_of(rbd);
    RANGE_LOCK_GUARD(&rbd->growth, 0, UINT64_MAX);
    return rbd_size_is_known(rbd) && bytes <= atomic_load(&rbd->size)
               ? 0
               : set_size(rbd, bytes, true, deadline);
}

int rbd_learn_size(struct rbd_storage *rbd)
{
    uint64_t deadline = deadline_of(rbd);
    RANGE_LOCK_GUARD(&rbd->growth, 0, UINT64_MAX);

    return rbd->link ? ask_size(rbd, deadline) : -ENOTCONN;
}
