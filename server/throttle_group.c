/* SPDX-License-Identifier: BSD-3-Clause */
/* Waiting for limits.  In each direction only the waiting request whose turn it is watches the
 * limits; when it begins it wakes the next. */
#include "throttle_group.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { READS, WRITES, DIRECTIONS };

/* How often a waiting request checks whether its client is still connected.  nbdkit can't close
 * a lost connection before. */
#define LOOK_NS UINT64_C(1000000000)

struct throttle_group {
    char *name;
    struct list link;    /* in the groups' list */
    struct list members; /* struct throttle_member.link */
    struct throttle throttle;
    struct turns turns[DIRECTIONS]; /* roots of the queues of waiting requests */
};

/* A waiting request; on its thread's stack. */
struct waiter {
    struct turns turns;
    pthread_cond_t woken;
};

static struct waiter *waiter_of(struct turns *turns)
{
    return CONTAINER_OF(turns, struct waiter, turns);
}

void throttle_groups_init(struct throttle_groups *groups)
{
    *groups = (struct throttle_groups){0};
    lock_init(&groups->lock, RANK_LEAF);
    list_init(&groups->list);
}

void throttle_groups_destroy(struct throttle_groups *groups)
{
    lock_destroy(&groups->lock);
}

void throttle_member_init(struct throttle_member *member)
{
    atomic_store(&member->groups, NULL);
    member->group = NULL;
    list_init(&member->link);
    for (unsigned i = 0; i < DIRECTIONS; i++)
        turns_init(&member->turns[i], NULL);
}

void throttle_flow_init(struct throttle_flow *flow, struct throttle_member *member)
{
    for (unsigned i = 0; i < DIRECTIONS; i++)
        turns_init(&flow->turns[i], &member->turns[i]);
}

/* ---- waiting; all under the lock ---- */

static void wake_next(struct throttle_group *group, unsigned direction)
{
    struct turns *next = turns_next(&group->turns[direction]);

    if (next)
        pthread_cond_signal(&waiter_of(next)->woken);
}

static void wake_both(struct throttle_group *group)
{
    wake_next(group, READS);
    wake_next(group, WRITES);
}

/* Takes all requests of the disk out of the queues.  They look again at what holds now. */
static void send_away(struct throttle_member *member)
{
    for (unsigned i = 0; i < DIRECTIONS; i++)
        for (struct turns *t; (t = turns_next(&member->turns[i]));) {
            turns_remove(t);
            pthread_cond_signal(&waiter_of(t)->woken);
        }
}

enum wait_end { HAD_TURN, SENT_AWAY, IS_GONE };

/* When the waiting request has to look at the limits or at its client next. */
static uint64_t next_look(struct throttle_group *group, const struct waiter *waiter,
                          unsigned direction, uint64_t now)
{
    uint64_t wait = turns_next(&group->turns[direction]) == &waiter->turns
                        ? throttle_wait_ns(&group->throttle, direction == WRITES, now)
                        : LOOK_NS;

    return now + MIN(wait, LOOK_NS);
}

static enum wait_end wait_for_turn(struct throttle_groups *groups,
                                   struct throttle_group *group, struct waiter *waiter,
                                   unsigned direction, throttle_gone *gone)
{
    while (turns_waits(&waiter->turns)) {
        uint64_t now = clock_ns(), until = next_look(group, waiter, direction, now);
        if (until == now) {
            turns_take(&waiter->turns);
            return HAD_TURN;
        }
        lock_wait_until(&groups->lock, &waiter->woken, until);
        if (turns_waits(&waiter->turns) && gone()) {
            turns_remove(&waiter->turns);
            return IS_GONE;
        }
    }
    return SENT_AWAY;
}

bool throttle_wait(struct throttle_member *member, struct throttle_flow *flow,
                   bool is_write, uint64_t bytes, throttle_gone *gone)
{
    unsigned direction = is_write ? WRITES : READS;
    struct throttle_groups *groups = atomic_load(&member->groups);
    struct waiter waiter;
    enum wait_end end = HAD_TURN;

    if (!groups)
        return true;
    cond_init_timed(&waiter.woken);
    turns_init(&waiter.turns, &flow->turns[direction]);
    {
        LOCK_GUARD(&groups->lock);
        while (member->group && !groups->lifted) {
            struct throttle_group *group = member->group;
            turns_add(&waiter.turns);
            end = wait_for_turn(groups, group, &waiter, direction, gone);
            if (end == SENT_AWAY)
                continue;
            if (end == HAD_TURN && gone())
                end = IS_GONE;
            if (end == HAD_TURN)
                throttle_account(&group->throttle, is_write, bytes);
            wake_next(group, direction);
            break;
        }
        /* The limits were removed.  Not checked when all limits are lifted at the server's end:
         * then the request is answered. */
        if (end == SENT_AWAY && !groups->lifted && gone())
            end = IS_GONE;
    }
    pthread_cond_destroy(&waiter.woken);
    return end != IS_GONE;
}

void throttle_groups_lift(struct throttle_groups *groups, bool lifted)
{
    LOCK_GUARD(&groups->lock);
    groups->lifted = lifted;
    LIST_FOR_EACH (pos, &groups->list) {
        struct throttle_group *group = CONTAINER_OF(pos, struct throttle_group, link);
        LIST_FOR_EACH (at, &group->members)
            send_away(CONTAINER_OF(at, struct throttle_member, link));
    }
}

/* ---- groups; all under the lock ---- */

static struct throttle_group *find_group(struct throttle_groups *groups, const char *name)
{
    LIST_FOR_EACH (pos, &groups->list) {
        struct throttle_group *group = CONTAINER_OF(pos, struct throttle_group, link);
        if (strcmp(group->name, name) == 0)
            return group;
    }
    return NULL;
}

static struct throttle_group *new_group(struct throttle_groups *groups, const char *name)
{
    struct throttle_group *group = calloc(1, sizeof *group);

    if (!group)
        return NULL;
    group->name = strdup(name);
    if (!group->name) {
        free(group);
        return NULL;
    }
    list_init(&group->members);
    for (unsigned i = 0; i < DIRECTIONS; i++)
        turns_init(&group->turns[i], NULL);
    list_append(&groups->list, &group->link);
    return group;
}

static void leave_group(struct throttle_member *member)
{
    struct throttle_group *group = member->group;

    if (!group)
        return;
    send_away(member);
    member->group = NULL;
    list_remove(&member->link);
    if (list_empty(&group->members)) {
        list_remove(&group->link);
        free(group->name);
        free(group);
        return;
    }
    wake_both(group); /* the one whose turn it was may have left */
}

static void join_group(struct throttle_member *member, struct throttle_group *group)
{
    if (member->group == group)
        return;
    leave_group(member);
    member->group = group;
    list_append(&group->members, &member->link);
    for (unsigned i = 0; i < DIRECTIONS; i++)
        member->turns[i].above = &group->turns[i];
}

int throttle_join(struct throttle_groups *groups, struct throttle_member *member,
                  const char *name, const char *otherwise,
                  const struct throttle_config *config)
{
    LOCK_GUARD(&groups->lock);
    struct throttle_group *group = member->group;

    if (name || !group) {
        const char *wanted = name ? name : otherwise;
        group = find_group(groups, wanted);
        if (!group)
            group = new_group(groups, wanted);
        if (!group)
            return -ENOMEM;
    }
    join_group(member, group);
    throttle_set(&group->throttle, config, clock_ns());
    atomic_store(&member->groups, groups);
    wake_both(group);
    return 0;
}

void throttle_leave(struct throttle_member *member)
{
    struct throttle_groups *groups = atomic_load(&member->groups);

    if (!groups)
        return;
    LOCK_GUARD(&groups->lock);
    leave_group(member);
    atomic_store(&member->groups, NULL);
}

bool throttle_look(struct throttle_member *member, struct throttle_config *config,
                   char **name)
{
    struct throttle_groups *groups = atomic_load(&member->groups);

    if (!groups)
        return false;
    LOCK_GUARD(&groups->lock);
    if (!member->group)
        return false;
    *config = member->group->throttle.config;
    *name = strdup(member->group->name);
    return true;
}
