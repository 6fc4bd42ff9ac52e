/* SPDX-License-Identifier: BSD-3-Clause */
/* The thread for commands that may wait. */
#include "control_lane.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "base/list.h"
#include "base/lock.h"
#include "base/thread.h"

struct task {
    struct list link;
    const struct control_command *command;
    json_t *args; /* a copy of its own */
    uint64_t ticket;
};

struct control_lane {
    struct control_context *ctx;
    control_lane_done *done;
    void *opaque;
    pthread_t thread;
    bool started; /* when the first command is submitted */

    struct lock lock; /* RANK_LEAF */
    /* under lock */
    pthread_cond_t more;
    struct list tasks;
    bool stop;
};

struct control_lane *control_lane_new(struct control_context *ctx, control_lane_done *done,
                                      void *opaque)
{
    struct control_lane *lane = calloc(1, sizeof *lane);

    if (!lane)
        return NULL;
    lane->ctx = ctx;
    lane->done = done;
    lane->opaque = opaque;
    lock_init(&lane->lock, RANK_LEAF);
    pthread_cond_init(&lane->more, NULL);
    list_init(&lane->tasks);
    return lane;
}

/* ---- the thread ---- */

static struct task *next_task(struct control_lane *lane)
{
    LOCK_GUARD(&lane->lock);
    while (list_empty(&lane->tasks)) {
        if (lane->stop)
            return NULL;
        lock_wait(&lane->lock, &lane->more);
    }
    struct task *task = CONTAINER_OF(lane->tasks.next, struct task, link);
    list_remove(&task->link);
    return task;
}

static bool is_stopping(struct control_lane *lane)
{
    LOCK_GUARD(&lane->lock);
    return lane->stop;
}

static void run_task(struct control_lane *lane, struct task *task)
{
    struct control_answer answer = {.ticket = task->ticket,
                                    .error = {.class = CLASS_GENERIC}};

    if (is_stopping(lane))
        control_fail(&answer.error, CLASS_GENERIC, "The server is shutting down");
    else
        answer.value = control_run(task->command, lane->ctx, task->args, &answer.error);
    lane->done(lane->opaque, &answer);
    json_decref(task->args);
    free(task);
}

static void *lane_main(void *opaque)
{
    struct control_lane *lane = opaque;

    for (struct task *task; (task = next_task(lane));)
        run_task(lane, task);
    return NULL;
}

/* ---- the control thread ---- */

static int start_thread(struct control_lane *lane)
{
    if (lane->started)
        return 0;
    int err = thread_start(&lane->thread, lane_main, lane);
    lane->started = err == 0;
    return err;
}

int control_lane_submit(struct control_lane *lane, const struct control_command *command,
                        const json_t *args, uint64_t ticket)
{
    int err = start_thread(lane);
    if (err)
        return err;
    struct task *task = calloc(1, sizeof *task);
    json_t *copy = json_deep_copy(args);
    if (!task || !copy) {
        json_decref(copy);
        free(task);
        return -ENOMEM;
    }
    *task = (struct task){.command = command, .args = copy, .ticket = ticket};
    LOCK_GUARD(&lane->lock);
    list_append(&lane->tasks, &task->link);
    pthread_cond_signal(&lane->more);
    return 0;
}

void control_lane_free(struct control_lane *lane)
{
    if (!lane)
        return;
    lock_acquire(&lane->lock);
    lane->stop = true;
    pthread_cond_signal(&lane->more);
    lock_release(&lane->lock);
    if (lane->started)
        pthread_join(lane->thread, NULL);
    pthread_cond_destroy(&lane->more);
    lock_destroy(&lane->lock);
    free(lane);
}
