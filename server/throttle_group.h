/* SPDX-License-Identifier: BSD-3-Clause */
/* Groups of disks that share limits, and the waiting of clients' requests for them.
 *
 * A request waits on its nbdkit thread, so at most as many wait as nbdkit has threads.  Reads and
 * writes wait in separate queues.  The disks of a group take turns, and so do the connections of
 * a disk.  A request waits before it enters a gate, so nothing that is done to a disk waits for
 * it.
 *
 * All groups share one lock, which only requests on disks with limits take.  Layer: server. */
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

/* All groups of the process. */
struct throttle_groups {
    struct lock lock; /* RANK_LEAF */
    /* under lock */
    struct list list; /* struct throttle_group.link: the groups that have a member */
    bool lifted;
};

void throttle_groups_init(struct throttle_groups *groups);
/* No group may have a member. */
void throttle_groups_destroy(struct throttle_groups *groups);

/* While lifted nobody waits for limits; requests that wait continue.  For the server's end and
 * handovers.  From any thread. */
void throttle_groups_lift(struct throttle_groups *groups, bool lifted);

struct throttle_group;

/* A disk's membership, in one group or none.  Requests read `groups` only, which is NULL while
 * the disk has no limits. */
struct throttle_member {
    struct throttle_groups *_Atomic groups;
    /* under the groups' lock */
    struct throttle_group *group;
    struct list link;
    struct turns turns[2]; /* queues of reads and of writes */
};

void throttle_member_init(struct throttle_member *member);

/* A connection's place in the queues of its disk. */
struct throttle_flow {
    struct turns turns[2];
};

void throttle_flow_init(struct throttle_flow *flow, struct throttle_member *member);

/* Has the client that sent the request disconnected?  Called once a second while the request
 * waits, when its turn has come, and when limits were removed.  Called under the groups' lock:
 * must not wait. */
typedef bool throttle_gone(void);

/* Waits until the limits allow the request to begin.  A change or removal of limits wakes it.
 * False: the client has disconnected.  Then the request must not be done: the client may have
 * repeated it on another connection and written something newer since. */
bool throttle_wait(struct throttle_member *member, struct throttle_flow *flow,
                   bool is_write, uint64_t bytes, throttle_gone *gone) MUST_USE;

static inline bool throttle_is_limited(const struct throttle_member *member)
{
    return UNLIKELY(atomic_load_explicit(&member->groups, memory_order_acquire) != NULL);
}

/* Sets the limits of a group, for all its members, and makes the disk a member.  The group: the
 * one called `name`, which is created if necessary; if name is NULL, the disk's present group,
 * or, without one, `otherwise`.  The config must have limits and no fault.  0, or -ENOMEM, with
 * nothing changed. */
int throttle_join(struct throttle_groups *groups, struct throttle_member *member,
                  const char *name, const char *otherwise,
                  const struct throttle_config *config) MUST_USE;

/* Removes the disk's limits; other members of its group keep theirs. */
void throttle_leave(struct throttle_member *member);

/* Returns the disk's limits and the name of its group, which the caller frees (NULL when memory
 * is short).  False: it has none. */
bool throttle_look(struct throttle_member *member, struct throttle_config *config,
                   char **name);

#endif
