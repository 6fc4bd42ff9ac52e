/* SPDX-License-Identifier: BSD-3-Clause */
/* Who wants to know of changes to a node: dirty bitmaps, and jobs that copy it.
 *
 * A changing request takes the node's list once, when it has entered the gate to change
 * something and before it does; what it took it uses to its end.  So
 *   (1) when observer_add has returned, every request that changes anything from then on
 *       calls the observer, and all that don't have ended;
 *   (2) when observer_remove has returned nobody calls the observer, or ever will.
 * Both wait for changes in flight, not for readers, and without a lock; so they must not be
 * called inside the gate, nor by anybody that a hook waits for.
 *
 * A node that nobody changes any more, for the disk is another now, may keep observers that are
 * gone: it calls none.  (A flush that is under way is waited for like a change, by who
 * removes an observer from the other node.)
 *
 * Threads: the list is read inside the gate, without a lock; add and remove from any thread
 * outside it.  Hooks run on the thread of the request, inside the gate, without ranked
 * locks, many at once.  Layer: block. */
#ifndef BLOCK_OBSERVER_H
#define BLOCK_OBSERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/gate.h"
#include "base/lock.h"

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_DISCARD };

/* What a request asked for; not empty, inside the node's size. */
struct change {
    enum change_kind kind;
    unsigned flags; /* BLOCK_* */
    uint64_t off, len;
    const void *buf; /* CHANGE_WRITE */
};

/* Embedded in its owner, and not changed while it is added. */
struct observer {
    /* The range has changed, or may have: after the change, before its reply, also when it
     * failed.  Doesn't wait. */
    void (*wrote)(struct observer *observer, uint64_t off, uint64_t len);

    /* Optional: when nothing has changed yet, of any request.  May wait, and may do I/O, and
     * may refuse: the change is not made then, and its request fails with what is returned.
     * All guards of a node come before any `before`. */
    int (*guard)(struct observer *observer, const struct change *change);

    /* Optional, both or none, for who has to do something around a change (the
     * write-blocking mirror).  `before` runs when nothing has changed yet and may wait;
     * what it returns is handed to `after`, which runs after every `wrote`, once for each
     * `before`, and may do I/O.  err: how the change ended. */
    void *(*before)(struct observer *observer, const struct change *change);
    void (*after)(struct observer *observer, const struct change *change, void *token,
                  int err);

    /* Optional: a user's flush has made durable what was changed; before its reply.  May do
     * I/O. */
    void (*flushed)(struct observer *observer);
};

/* At most so many have `before` and `after`. */
#define OBSERVERS_AROUND 4u

struct observer_list; /* private */

struct observers {
    struct gate *gate;                    /* of the node's requests */
    _Atomic(struct observer_list *) list; /* NULL: nobody */
    struct lock lock;                     /* who changes the list */
};

void observers_init(struct observers *observers, struct gate *gate);

/* Nobody may be inside the gate. */
void observers_destroy(struct observers *observers);

/* 0, -ENOMEM, or -EBUSY: too many that have `before`. */
int observer_add(struct observers *observers, struct observer *observer) MUST_USE;

/* The same of n that have no `before`, all at once. */
int observer_add_all(struct observers *observers, struct observer *const *added,
                     unsigned n) MUST_USE;

/* The same two while nobody changes the node or flushes it, nor will before they are called: they
 * wait for nobody. */
int observer_add_unseen(struct observers *observers, struct observer *const *added,
                        unsigned n) MUST_USE;
void observer_remove_unseen(struct observers *observers, struct observer *const *removed,
                            unsigned n);

/* Harmless when it wasn't added. */
void observer_remove(struct observers *observers, struct observer *observer);

/* Was it added, and not removed? */
bool observer_is_there(struct observers *observers, const struct observer *observer);

/* ---- for the engine ---- */

/* A request's own view. */
struct observed {
    struct observer_list *list;
    void *token[OBSERVERS_AROUND];
};

int observers_call_before(struct observed *seen, const struct change *change) MUST_USE;
void observers_call_after(struct observed *seen, const struct change *change, int err);

/* Outside the gate, after a flush. */
void observers_flushed(struct observers *observers);

/* Inside the gate, before anything has changed.  0, or -errno of who refuses it: nobody else
 * hears of it, and nothing may be changed. */
static inline int observers_before(struct observers *observers, struct observed *seen,
                                   const struct change *change)
{
    seen->list = atomic_load_explicit(&observers->list, memory_order_acquire);
    return UNLIKELY(seen->list) ? observers_call_before(seen, change) : 0;
}

/* Inside the gate still, once the change has ended. */
static inline void observers_after(struct observed *seen, const struct change *change,
                                   int err)
{
    if (UNLIKELY(seen->list))
        observers_call_after(seen, change, err);
}

#endif
