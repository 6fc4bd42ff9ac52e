/* SPDX-License-Identifier: BSD-3-Clause */
/* Holds on ranges of whole blocks, for accesses that are not atomic. */
#include "storage/block_lock.h"

void block_lock_init(struct block_lock *bl)
{
    lock_init(&bl->lock, RANK_LEAF);
    list_init(&bl->holds);
    bl->waiting = 0;
    pthread_cond_init(&bl->released, NULL);
}

void block_lock_destroy(struct block_lock *bl)
{
    pthread_cond_destroy(&bl->released);
    lock_destroy(&bl->lock);
}

/* Under the lock: does a hold that came earlier exclude this one? */
static bool excluded(const struct block_lock *bl, const struct block_hold *hold)
{
    for (const struct list *pos = bl->holds.next; pos != &hold->link; pos = pos->next) {
        const struct block_hold *other = CONTAINER_OF(pos, struct block_hold, link);
        if (hold->mode == HOLD_SHARED && other->mode == HOLD_SHARED)
            continue;
        if (hold->start < other->end && other->start < hold->end)
            return true;
    }
    return false;
}

void block_lock_acquire(struct block_lock *bl, struct block_hold *hold, uint64_t start,
                        uint64_t end, enum hold_mode mode)
{
    LOCK_GUARD(&bl->lock);

    *hold = (struct block_hold){.start = start, .end = end, .mode = mode};
    list_append(&bl->holds, &hold->link);
    while (excluded(bl, hold)) {
        bl->waiting++;
        lock_wait(&bl->lock, &bl->released);
        bl->waiting--;
    }
}

void block_lock_release(struct block_lock *bl, struct block_hold *hold)
{
    LOCK_GUARD(&bl->lock);

    list_remove(&hold->link);
    if (bl->waiting > 0)
        pthread_cond_broadcast(&bl->released);
}
