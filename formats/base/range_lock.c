/* SPDX-License-Identifier: BSD-3-Clause */
/* A list of ranges, locked and waiting, in order of arrival. */
#include "base/range_lock.h"
#include "base/compiler.h"

void range_lock_init(struct range_lock *rl, enum lock_rank rank)
{
    lock_init(&rl->lock, rank);
    list_init(&rl->ranges);
    rl->waiting = 0;
    pthread_cond_init(&rl->released, NULL);
}

void range_lock_destroy(struct range_lock *rl)
{
    pthread_cond_destroy(&rl->released);
    lock_destroy(&rl->lock);
}

static bool exclude_each_other(const struct locked_range *a, const struct locked_range *b)
{
    return (a->mode == RANGE_EXCLUSIVE || b->mode == RANGE_EXCLUSIVE) &&
           a->start < b->end && b->start < a->end;
}

/* Under the lock: does an earlier range conflict with this one? */
static bool must_wait(const struct range_lock *rl, const struct locked_range *range)
{
    for (const struct list *pos = rl->ranges.next; pos != &range->link; pos = pos->next)
        if (exclude_each_other(CONTAINER_OF(pos, struct locked_range, link), range))
            return true;
    return false;
}

void range_lock_acquire(struct range_lock *rl, struct locked_range *range, uint64_t start,
                        uint64_t end, enum range_mode mode)
{
    *range = (struct locked_range){.owner = rl, .start = start, .end = end, .mode = mode};

    LOCK_GUARD(&rl->lock);
    /* Listed before it waits, so that later requests wait for this one. */
    list_append(&rl->ranges, &range->link);
    while (must_wait(rl, range)) {
        rl->waiting++;
        lock_wait(&rl->lock, &rl->released);
        rl->waiting--;
    }
}

uint64_t range_lock_try_acquire(struct range_lock *rl, struct locked_range *range,
                                uint64_t start, uint64_t end)
{
    *range = (struct locked_range){
        .owner = rl, .start = start, .end = end, .mode = RANGE_EXCLUSIVE};

    LOCK_GUARD(&rl->lock);
    LIST_FOR_EACH (pos, &rl->ranges) {
        const struct locked_range *other = CONTAINER_OF(pos, struct locked_range, link);
        if (exclude_each_other(other, range))
            range->end = MAX(start, other->start);
    }
    if (range->end > start)
        list_append(&rl->ranges, &range->link);
    return range->end - start;
}

void range_lock_release(struct locked_range *range)
{
    LOCK_GUARD(&range->owner->lock);
    list_remove(&range->link);
    if (range->owner->waiting > 0)
        pthread_cond_broadcast(&range->owner->released);
}
