/* SPDX-License-Identifier: BSD-3-Clause */
/* Observers of a node are told of each change: dirty bitmaps, and jobs that copy the node.
 *
 * A changing request reads the node's list of observers once, after it has entered the gate as
 * a changer and before it changes anything, and uses that list to its end.  So
 *   (1) when observer_add has returned, every request that changes anything from then on calls
 *       the observer, and all requests that don't have ended;
 *   (2) when observer_remove has returned, no request calls the observer, or ever will.
 * Both wait for the changes in flight, but not for readers, and hold no lock meanwhile.  So
 * they must not be called inside the gate, nor by a thread for which a hook waits.
 *
 * A node that no request changes any more, because the disk has moved to another node, may keep
 * pointers to observers that no longer exist: it never calls them.  (A flush in flight counts
 * as a change: removing the observer from the new node waits for it.)
 *
 * Threads: the list is read inside the gate, without a lock; add and remove from any thread
 * outside it.  Hooks run on the thread of the request, inside the gate, without ranked locks,
 * many at the same time.  Layer: block. */
#ifndef BLOCK_OBSERVER_H
#define BLOCK_OBSERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/gate.h"
#include "base/lock.h"

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_DISCARD };

/* A change as requested; not empty, inside the node's size. */
struct change {
    enum change_kind kind;
    unsigned flags; /* BLOCK_* */
    uint64_t off, len;
    const void *buf; /* CHANGE_WRITE */
};

/* Embedded in its owner.  Not changed while it is in a list. */
struct observer {
    /* The range has changed, or may have: called after the change, before its reply, also when
     * the change failed.  Must not wait. */
    void (*wrote)(struct observer *observer, uint64_t off, uint64_t len);

    /* Optional.  Called before the change, and before any `before`, for all observers.  May
     * wait and do I/O, and may refuse the change by returning -errno: then nothing is changed
     * and the request fails with that. */
    int (*guard)(struct observer *observer, const struct change *change);

    /* Optional, both or none, for an observer that acts before and after a change (the
     * write-blocking mirror).  `before` runs when nothing has changed yet and may wait; its
     * result is the token for `after`. `after` runs after every `wrote`, once for each
     * `before`, and may do I/O.  err: the result of the change. */
    void *(*before)(struct observer *observer, const struct change *change);
    void (*after)(struct observer *observer, const struct change *change, void *token,
                  int err);

    /* Optional: a user's flush has made earlier changes durable.  Called before its reply.  May
     * do I/O. */
    void (*flushed)(struct observer *observer);
};

/* The largest number of observers with `before` and `after`. */
#define OBSERVERS_AROUND 4u

struct observer_list; /* private */

struct observers {
    struct gate *gate;                    /* of the node; its requests enter it */
    _Atomic(struct observer_list *) list; /* NULL: no observers */
    struct lock lock;                     /* for changing the list */
};

void observers_init(struct observers *observers, struct gate *gate);

/* No request may be inside the gate. */
void observers_destroy(struct observers *observers);

/* Returns 0, -ENOMEM, or -EBUSY: there are OBSERVERS_AROUND with `before` already. */
int observer_add(struct observers *observers, struct observer *observer) MUST_USE;

/* Adds n observers without `before`, all at once.  Returns 0 or -ENOMEM. */
int observer_add_all(struct observers *observers, struct observer *const *added,
                     unsigned n) MUST_USE;

/* Add and remove without waiting.  Only while no request changes or flushes the node, and none
 * can before the call has returned. */
int observer_add_unseen(struct observers *observers, struct observer *const *added,
                        unsigned n) MUST_USE;
void observer_remove_unseen(struct observers *observers, struct observer *const *removed,
                            unsigned n);

/* Does nothing if it isn't in the list. */
void observer_remove(struct observers *observers, struct observer *observer);

/* Is it in the list? */
bool observer_is_there(struct observers *observers, const struct observer *observer);

/* ---- for the engine ---- */

/* One request's list and tokens. */
struct observed {
    struct observer_list *list;
    void *token[OBSERVERS_AROUND];
};

int observers_call_before(struct observed *seen, const struct change *change) MUST_USE;
void observers_call_after(struct observed *seen, const struct change *change, int err);

/* Outside the gate, after a flush: calls `flushed` of all observers. */
void observers_flushed(struct observers *observers);

/* Inside the gate, before anything has changed: calls guard and before.  Returns 0, or -errno
 * if an observer refuses the change: then no `before` was called, and nothing may be changed. */
static inline int observers_before(struct observers *observers, struct observed *seen,
                                   const struct change *change)
{
    seen->list = atomic_load_explicit(&observers->list, memory_order_acquire);
    return UNLIKELY(seen->list) ? observers_call_before(seen, change) : 0;
}

/* Inside the gate, when the change has ended: calls wrote and after. */
static inline void observers_after(struct observed *seen, const struct change *change,
                                   int err)
{
    if (UNLIKELY(seen->list))
        observers_call_after(seen, change, err);
}

#endif
