/* SPDX-License-Identifier: BSD-3-Clause */
/* The states of the mark, and the timer that clears it. */
#include <errno.h>

#include "base/log.h"
#include "block/dirty_mark.h"
#include "block/node.h"

static void on_timer(void *opaque);

void dirty_mark_init(struct dirty_mark *mark, struct node *node,
                     int (*write_bit)(struct node *, bool), bool enabled, bool already_set)
{
    *mark = (struct dirty_mark){
        .node = node,
        .write_bit = write_bit,
        .enabled = enabled,
        .state = already_set ? MARK_DURABLE : MARK_CLEAR,
    };
    pthread_cond_init(&mark->changed, NULL);
    timer_init(&mark->timer, on_timer, mark);
}

void dirty_mark_destroy(struct dirty_mark *mark)
{
    timer_cancel(mark->node->ctx->housekeeper, &mark->timer);
    pthread_cond_destroy(&mark->changed);
}

/* META. */
static void enter_state(struct dirty_mark *mark, enum mark_state state)
{
    mark->state = state;
    pthread_cond_broadcast(&mark->changed);
}

/* META, which is released while the bit is written. */
static int set_bit_locked(struct dirty_mark *mark)
{
    enum mark_state before = mark->state;
    int err;

    enter_state(mark, MARK_WRITING);
    {
        LOCK_GAP(mcache_meta(mark->node->mc));
        err = mark->write_bit(mark->node, true);
    }
    enter_state(mark, err ? before : MARK_SET);
    return err;
}

int dirty_mark_begin(struct dirty_mark *mark)
{
    if (!mark->enabled)
        return 0;

    struct lock *meta = mcache_meta(mark->node->mc);
    LOCK_GUARD(meta);
    while (mark->state == MARK_WRITING || mark->state == MARK_CLEARING)
        lock_wait(meta, &mark->changed);
    if (!mark->given_up && (mark->state == MARK_CLEAR || mark->state == MARK_UNKNOWN)) {
        int err = set_bit_locked(mark);
        if (err)
            return err;
    }
    mark->in_flight++;
    return 0;
}

void dirty_mark_end(struct dirty_mark *mark)
{
    if (!mark->enabled)
        return;
    struct node *node = mark->node;
    mark->last_end_ns = housekeeper_now(node->ctx->housekeeper);
    if (--mark->in_flight > 0)
        return;
    pthread_cond_broadcast(&mark->changed);
    /* While flushes do nothing, the cleared bit could reach the disk before the metadata that
     * it vouches for; so it stays set until the end of the session. */
    if (node->options.need_check_delay_ns != 0 && !node->options.cache->no_flush)
        timer_arm_if_idle(node->ctx->housekeeper, &mark->timer,
                          node->options.need_check_delay_ns);
}

void dirty_mark_frozen(struct dirty_mark *mark)
{
    mark->frozen_set = mark->state == MARK_SET;
}

void dirty_mark_durable(struct dirty_mark *mark)
{
    LOCK_GUARD(mcache_meta(mark->node->mc));
    if (mark->frozen_set && mark->state == MARK_SET)
        enter_state(mark, MARK_DURABLE);
}

bool dirty_mark_needs_barrier(const struct dirty_mark *mark)
{
    return mark->enabled && !mark->given_up && mark->state != MARK_DURABLE;
}

void dirty_mark_give_up(struct dirty_mark *mark)
{
    mark->given_up = true;
}

/* In state CLEARING, so that no allocation is in flight or starts. */
static int commit_all(struct node *node)
{
    int err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);

    return err ? err : block_end_void(node);
}

/* In state CLEARING, after commit_all. */
static int clear_bit(struct dirty_mark *mark)
{
    struct node *node = mark->node;
    int err = mark->write_bit(node, false);

    if (err)
        return err;
    err =
        node->options.no_final_sync ? storage_flush(node->file) : storage_sync(node->file);
    /* A store that keeps unflushed writes has the bit either way, which is MARK_UNKNOWN: the next
     * allocation sets it again. */
    if (err && !node->file->keeps_writes)
        mcache_poison(node->mc);
    return err;
}

/* *after: the mark's new state. */
static int commit_and_clear_bit(struct dirty_mark *mark, enum mark_state *after)
{
    int err = commit_all(mark->node);

    if (err)
        return err;
    err = clear_bit(mark);
    *after = err ? MARK_UNKNOWN : MARK_CLEAR;
    return err;
}

int dirty_mark_clear(struct dirty_mark *mark, bool wait)
{
    struct lock *meta = mcache_meta(mark->node->mc);
    LOCK_GUARD(meta);

    while (mark->state == MARK_WRITING || mark->state == MARK_CLEARING ||
           (mark->in_flight > 0 && wait))
        lock_wait(meta, &mark->changed);
    if (mark->state == MARK_CLEAR)
        return 0;
    if (mark->in_flight > 0)
        return -EBUSY;
    enum mark_state after = mark->state;
    enter_state(mark, MARK_CLEARING);
    int err;
    {
        LOCK_GAP(meta);
        err = commit_and_clear_bit(mark, &after);
    }
    enter_state(mark, after);
    return err;
}

int dirty_mark_finish(struct dirty_mark *mark)
{
    struct node *node = mark->node;

    int err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);
    if (err)
        return err;
    return mark->enabled && !node->options.keep_marks ? dirty_mark_clear(mark, true)
                                                      : block_end_void(node);
}

/* Runs once, `delay` after the allocation for which it was armed; if there was a later one, it
 * arms itself again for that. */
static void on_timer(void *opaque)
{
    struct dirty_mark *mark = opaque;
    struct node *node = mark->node;
    struct housekeeper *hk = node->ctx->housekeeper;
    uint64_t delay = node->options.need_check_delay_ns, last;
    bool busy;

    {
        LOCK_GUARD(mcache_meta(node->mc));
        last = mark->last_end_ns;
        busy = mark->in_flight > 0;
    }
    uint64_t now = housekeeper_now(hk);
    if (busy)
        return; /* the end of that allocation arms it again */
    if (now < last + delay) {
        timer_arm(hk, &mark->timer, last + delay - now);
        return;
    }
    int err = dirty_mark_clear(mark, false);
    if (err && err != -EBUSY)
        log_error("%s: clearing the dirty mark failed (errno %d); it stays set",
                  node->filename, -err);
}
