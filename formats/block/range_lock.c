/* SPDX-License-Identifier: BSD-3-Clause */
/* A list of locked guest ranges, and who waits for them. */
#include "base/checked.h"
#include "block/range_lock.h"

void range_lock_init(struct range_lock *rl)
{
    lock_init(&rl->lock, RANK_RANGE);
    list_init(&rl->held);
    rl->waiting = 0;
    pthread_cond_init(&rl->freed, NULL);
}

void range_lock_destroy(struct range_lock *rl)
{
    pthread_cond_destroy(&rl->freed);
    lock_destroy(&rl->lock);
}

/* Under the lock: is there an older hold that overlaps this one? */
static bool must_wait(struct range_lock *rl, const struct range_hold *hold)
{
    LIST_FOR_EACH (pos, &rl->held) {
        const struct range_hold *other = CONTAINER_OF(pos, struct range_hold, link);
        if (other == hold)
            return false;
        if (ranges_overlap(other->start, other->end - other->start, hold->start,
                           hold->end - hold->start))
            return true;
    }
    return false;
}

void range_lock_acquire(struct range_lock *rl, struct range_hold *hold, uint64_t start,
                        uint64_t end)
{
    *hold = (struct range_hold){.owner = rl, .start = start, .end = end};

    LOCK_GUARD(&rl->lock);
    /* In the list before the wait: who comes later waits for us, so nobody starves. */
    list_append(&rl->held, &hold->link);
    while (must_wait(rl, hold)) {
        rl->waiting++;
        lock_wait(&rl->lock, &rl->freed);
        rl->waiting--;
    }
}

void range_lock_release(struct range_hold *hold)
{
    LOCK_GUARD(&hold->owner->lock);
    list_remove(&hold->link);
    if (hold->owner->waiting > 0)
        pthread_cond_broadcast(&hold->owner->freed);
}
