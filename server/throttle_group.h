/* SPDX-License-Identifier: BSD-3-Clause */
/* Disks that share limits, and the requests of their clients that wait for these.
 *
 * Requests wait on the server's own threads: as many as a client may have under way, which is
 * a bound.  Reads and writes wait apart.  Of those who wait the disks of a group take turns, and
 * of a disk its connections.  Who waits is outside of every gate: nothing that is done to a disk
 * waits for it.
 *
 * One lock for all groups: it is taken by requests on disks with limits alone.  Layer: server. */
#ifndef SERVER_THROTTLE_GROUP_H
#define SERVER_THROTTLE_GROUP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/list.h"
#include "base/lock.h"
#include "throttle.h"
#include "turns.h"

/* Of a process. */
struct throttle_groups {
    struct lock lock; /* RANK_LEAF */
    /* under lock */
    struct list list; /* struct throttle_group.link: those that have a member */
    bool lifted;
};

void throttle_groups_init(struct throttle_groups *groups);
/* They have no member any more. */
void throttle_groups_destroy(struct throttle_groups *groups);

/* At the server's end and in other moments in which nobody should wait: all who do go on, and
 * nobody waits until it is lifted no more.  From any thread. */
void throttle_groups_lift(struct throttle_groups *groups, bool lifted);

struct throttle_group;

/* A disk, which is in one group or none.  Requests look at `groups` alone, which is NULL
 * without limits. */
struct throttle_member {
    struct throttle_groups *_Atomic groups;
    /* under their lock */
    struct throttle_group *group;
    struct list link;
    struct turns turns[2]; /* of reads, of writes */
};

void throttle_member_init(struct throttle_member *member);

/* A connection to the disk. */
struct throttle_flow {
    struct turns turns[2];
};

void throttle_flow_init(struct throttle_flow *flow, struct throttle_member *member);

/* Has who sent the request left?  Asked each second while it waits, when its turn has come, and
 * when there is no limit any more; under the groups' lock: it waits for nothing. */
typedef bool throttle_gone(void);

/* Before a request begins: waits until it may.  A limit that is changed or removed wakes it.
 * False: who sent it has left meanwhile, may have asked for the same on another connection, and
 * then for something newer: it mustn't be done any more. */
bool throttle_wait(struct throttle_member *member, struct throttle_flow *flow,
                   bool is_write, uint64_t bytes, throttle_gone *gone) MUST_USE;

static inline bool throttle_is_limited(const struct throttle_member *member)
{
    return UNLIKELY(atomic_load_explicit(&member->groups, memory_order_acquire) != NULL);
}

/* Sets the limits of a group, for all its members, and makes the disk one: of the group of that
 * name, or, NULL, of the one that it is in (without one: of `otherwise`).  The config has limits,
 * and no fault.  0, or -ENOMEM and nothing has changed. */
int throttle_join(struct throttle_groups *groups, struct throttle_member *member,
                  const char *name, const char *otherwise,
                  const struct throttle_config *config) MUST_USE;

/* The disk has no limits any more; others of its group keep theirs. */
void throttle_leave(struct throttle_member *member);

/* Its limits, and the name of its group, the caller's to free (NULL when memory is short).
 * False: it has none. */
bool throttle_look(struct throttle_member *member, struct throttle_config *config,
                   char **name);

#endif
