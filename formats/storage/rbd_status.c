/* SPDX-License-Identifier: BSD-3-Clause */
/* Data and holes of an image: which of its objects exist in the cluster. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "storage/rbd_internal.h"

/* The most bytes that one query covers; runs are rarely longer. */
#define STATUS_MAX (UINT64_C(1) << 30)

/* Ends librbd's iteration at the end of the run. */
#define ENOUGH (-ECANCELED)

struct status_task {
    struct rbd_task task;
    uint64_t object;
    uint64_t off, end; /* the queried range; off may lie inside an object */
    /* results */
    bool data;
    uint64_t run_end; /* off: nothing yet */
};

/* Called for ranges that exist, in rising order; what lies between is a hole. */
static int on_run(uint64_t off, size_t len, int exists, void *opaque)
{
    struct status_task *t = opaque;
    uint64_t end = off + len;

    if (!exists || end <= t->off)
        return 0;
    bool first = t->run_end == t->off;
    if (first && off > t->off) {
        t->run_end = MIN(off, t->end);
        return ENOUGH; /* a hole, up to here */
    }
    if (!first && off > t->run_end)
        return ENOUGH; /* data, up to before */
    t->data = true;
    t->run_end = MIN(end, t->end);
    return t->run_end == t->end ? ENOUGH : 0;
}

static int run_status(struct rbd_task *task)
{
    struct status_task *t = CONTAINER_OF(task, struct status_task, task);
    uint64_t flags, start = align_down(t->off, t->object);

    int err = librbd.get_flags(task->link->image, &flags);
    if (!err && flags & RBD_FLAG_FAST_DIFF_INVALID)
        return -ENOTSUP;
    /* librbd before version 17 reports wrong offsets when the range begins inside an object. */
    if (!err)
        err = librbd.diff_iterate2(task->link->image, NULL, start, t->end - start, 1, 1,
                                   on_run, t);
    return err == ENOUGH ? 0 : err;
}

static void free_status(struct rbd_task *task)
{
    free(CONTAINER_OF(task, struct status_task, task));
}

/* off lies inside the image. */
static int ask_status(struct rbd_storage *rbd, uint64_t off, uint64_t end, bool *data,
                      uint64_t *run)
{
    struct status_task *t = calloc(1, sizeof *t);

    if (!t)
        return -ENOMEM;
    *t = (struct status_task){
        .task = {.run = run_status, .free = free_status, .link = rbd->link},
        .object = rbd->facts.object_size,
        .off = off,
        .end = end,
        .run_end = off,
    };
    struct rbd_task *task = &t->task;
    int err = rbd_task_run(&task, rbd->facts.timeout_ms, NULL);
    if (!err) {
        *data = t->data;
        *run = (t->run_end > off ? t->run_end : end) - off;
    }
    if (task)
        free_status(task);
    return err;
}

int rbd_find_extent(struct rbd_storage *rbd, uint64_t off, uint64_t len, bool *data,
                    uint64_t *run)
{
    uint64_t size;

    int err = rbd_settle_past_end(rbd, off + len, &size);
    if (err)
        return err;
    if (off >= size) {
        *data = false;
        *run = len;
        return 0;
    }
    if (!rbd->facts.tells_status)
        return -ENOTSUP;
    if (!rbd->link)
        return -ENOTCONN;
    /* -ENOTSUP makes the caller take everything for data, which is never wrong. */
    if (rbd_link_is_stuck(rbd->link) || rbd_settle(rbd) != 0)
        return -ENOTSUP;
    return ask_status(rbd, off, off + MIN(MIN(len, STATUS_MAX), size - off), data, run);
}
