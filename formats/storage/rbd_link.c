/* SPDX-License-Identifier: BSD-3-Clause */
/* A link: its users, and its end. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "storage/rbd_internal.h"

/* The wait for calls and tasks that run, and then for the cluster, when a link is closed. */
#define CLOSE_TIMEOUT_MS 5000u
/* The same for a link whose callers were all told to give up. */
#define ABORTED_TIMEOUT_MS 500u

/* ---- the links of this process ---- */

static struct lock known_lock = {.mutex = PTHREAD_MUTEX_INITIALIZER, .rank = RANK_LEAF};
static struct list known = {.prev = &known, .next = &known}; /* struct rbd_link.known */

void rbd_link_make_known(struct rbd_link *link)
{
    LOCK_GUARD(&known_lock);

    list_append(&known, &link->known);
}

static void make_unknown(struct rbd_link *link)
{
    LOCK_GUARD(&known_lock);

    list_remove(&link->known);
}

bool rbd_link_is_friendly(uint64_t client)
{
    LOCK_GUARD(&known_lock);

    LIST_FOR_EACH (pos, &known) {
        const struct rbd_link *link = CONTAINER_OF(pos, struct rbd_link, known);
        if (link->facts.client == client)
            return !atomic_load(&link->locked);
    }
    return false;
}

/* ---- the handles ---- */

struct rbd_link *rbd_link_new(void)
{
    struct rbd_link *link = calloc(1, sizeof *link);

    if (!link)
        return NULL;
    lock_init(&link->lock, RANK_LEAF);
    cond_init_timed(&link->changed);
    list_init(&link->calls);
    list_init(&link->early.writes);
    cond_init_timed(&link->early.room);
    list_init(&link->known);
    return link;
}

void rbd_link_close_image(struct rbd_link *link)
{
    if (link->watched)
        librbd.update_unwatch(link->image, link->watch);
    link->watched = false;
    if (link->image)
        librbd.close(TAKE(&link->image));
}

void rbd_link_destroy(struct rbd_link *link)
{
    make_unknown(link);
    rbd_link_close_image(link);
    if (link->in_cluster)
        librados.ioctx_destroy(link->io);
    if (link->cluster)
        librados.shutdown(link->cluster);
    rbd_early_drop(link);
    pthread_cond_destroy(&link->early.room);
    pthread_cond_destroy(&link->changed);
    lock_destroy(&link->lock);
    free(link);
}

/* ---- closing, as a task ---- */

struct close_task {
    struct rbd_task task;
    struct rbd_link *link;
};

static int run_close(struct rbd_task *task)
{
    rbd_link_destroy(CONTAINER_OF(task, struct close_task, task)->link);
    return 0;
}

static void free_close(struct rbd_task *task)
{
    free(CONTAINER_OF(task, struct close_task, task));
}

static void *close_orphan(void *opaque)
{
    rbd_link_destroy(opaque);
    return NULL;
}

/* Waits for calls and tasks.  True: some still run, and the last one has to destroy the link.
 * *lost: the number of early writes that haven't succeeded. */
static bool make_orphan(struct rbd_link *link, unsigned *lost)
{
    uint64_t wait_ms = atomic_load(&link->aborted) ? ABORTED_TIMEOUT_MS : CLOSE_TIMEOUT_MS;
    uint64_t deadline = clock_ns() + wait_ms * 1000000;
    LOCK_GUARD(&link->lock);

    while (link->running > 0 && clock_ns() < deadline)
        lock_wait_until(&link->lock, &link->changed, deadline);
    link->orphan = link->running > 0;
    *lost = link->early.count;
    return link->orphan;
}

/* Closes a link without running calls and tasks. */
static void close_idle(struct rbd_link *link)
{
    struct close_task *t = calloc(1, sizeof *t);

    if (!t) {
        rbd_link_destroy(link);
        return;
    }
    *t = (struct close_task){.task = {.run = run_close, .free = free_close}, .link = link};
    struct rbd_task *task = &t->task;
    int err = rbd_task_run(&task, CLOSE_TIMEOUT_MS, NULL);
    if (err == -ETIMEDOUT)
        log_warning("an RBD image is closed without the answer of its cluster");
    if (task)
        free_close(task);
}

unsigned rbd_link_close(struct rbd_link *link)
{
    unsigned lost = 0;

    if (link && !make_orphan(link, &lost))
        close_idle(link);
    return lost;
}

/* ---- the users of the image ---- */

void rbd_link_count_in(struct rbd_link *link)
{
    link->running++;
}

bool rbd_link_count_out(struct rbd_link *link)
{
    link->running--;
    if (link->running == 0)
        pthread_cond_broadcast(&link->changed);
    return link->orphan && link->running == 0;
}

void rbd_link_end_orphan(struct rbd_link *link, bool can_wait)
{
    pthread_t thread;

    if (can_wait)
        rbd_link_destroy(link);
    else if (thread_start(&thread, close_orphan, link) == 0)
        pthread_detach(thread);
}

void rbd_link_enter(struct rbd_link *link)
{
    LOCK_GUARD(&link->lock);

    rbd_link_count_in(link);
}

void rbd_link_leave(struct rbd_link *link, bool can_wait)
{
    lock_acquire(&link->lock);
    bool last = rbd_link_count_out(link);
    lock_release(&link->lock);
    if (last)
        rbd_link_end_orphan(link, can_wait);
}
