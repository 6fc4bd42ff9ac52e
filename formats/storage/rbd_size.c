/* SPDX-License-Identifier: BSD-3-Clause */
/* The size of an RBD image: known here, and changed by functions of librbd's that wait.
 *
 * One that was left behind at its deadline is a late change as any other (rbd_call.c): what
 * would be written before it could be cut off.  How large the image is afterwards only the
 * cluster knows, so that it is asked before the next change; so it is when it has told that
 * something of the image was changed, maybe by another client: of a write that goes past the
 * end librbd would leave out what lies there, and say nothing. */
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

/* With `growth` locked, as all below. */
static int ask_size(struct rbd_storage *rbd, uint64_t deadline)
{
    uint64_t bytes = 0, before = atomic_load(&rbd->size);

    atomic_store(&rbd->link->size_unknown, false); /* first: it can change meanwhile */
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

/* With no change under way. */
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

/* To be taken before `growth`: else of a cluster that doesn't answer each who waits for that would
 * wait as long again as the one before. */
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

/* In this order: who has seen the number sees to it that the size is known then. */
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

    /* What is tried again later would make it larger again. */
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
