/* SPDX-License-Identifier: BSD-3-Clause */
/* The gate counts the requests in flight ("inside").  Memory reclaim, cluster reuse and draining
 * all rest on it; it is a form of epoch-based reclamation.
 *
 * A request enters the gate before it looks at shared metadata, and leaves it when its I/O is
 * done.  Something that was made unreachable (a cache page, a host cluster) is stamped with
 * gate_stamp(), and may be reused once gate_passed() says that every request that could still see
 * it has left.  Callers normally poll gate_passed(); the few that can't go on before call
 * gate_wait().
 *
 * Requests that change something enter with gate_enter_to_change() and are counted apart, so that a
 * drain, or a change to the list of observers, needn't wait for readers.  For both kinds a request
 * adds to one counter only.
 *
 * Why not liburcu: a read-side section here spans I/O, and polling for the end of a grace
 * period came to liburcu only after 0.13, which Debian 12 ships.
 *
 * States: an epoch e, and two sets of striped counters, one for each parity of the epoch.
 * Changers have a second epoch with the same rules; the counter of a changer stands for a pair of
 * parities, that of each epoch.
 *   (1) a request inside is counted in the parity of the epoch it entered in;
 *   (2) the epoch advances from e to e+1 only when the counters of e-1 are all zero;
 *   (3) so at epoch s+2 no request is inside that entered at epoch s or before.
 *
 * Threads: every function from any thread, and under any lock but those that wait.
 * Layer: base. */
#ifndef BASE_GATE_H
#define BASE_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/list.h"

#define GATE_STRIPES 16

/* A gate can have other gates as members: a reader inside a member counts as inside the group's
 * gate.  Entering a member costs nothing more; gate_passed() on the group looks at each member.
 *   (4) the epoch of a gate with members advances from e to e+1 only when all requests have left
 *       that were inside a member at some moment of epoch e. */
struct gate_member {
    struct list link;
    struct gate *gate;
    uint64_t stamp; /* of `gate`, taken in the group's present round */
};

struct gate {
    _Atomic uint64_t epoch, change_epoch;
    /* A spin lock for what follows; gate_passed() gives up instead of waiting for it. */
    _Atomic bool busy;
    _Atomic unsigned n_members;
    struct list members;
    uint64_t round;    /* the epoch in which the members were stamped */
    struct list *next; /* the first member that hasn't passed in this round */
    struct {
        /* [0,2): readers by the parity of `epoch`; [2,6): changers by the parities of `epoch` and
         * `change_epoch`. */
        _Alignas(64) _Atomic uint32_t inside[6];
    } stripe[GATE_STRIPES];
};

/* What entering returns and gate_leave needs; may be handed to another thread. */
typedef uint32_t gate_ticket;
#define GATE_TICKET_SHIFT 3u

/* The stripe of the thread that entered, for other striped counters. */
static inline uint32_t gate_ticket_stripe(gate_ticket ticket)
{
    return ticket >> GATE_TICKET_SHIFT;
}

void gate_init(struct gate *gate);

gate_ticket gate_enter(struct gate *gate);
/* For a request that is going to change something: gate_wait_for_changers waits for it. */
gate_ticket gate_enter_to_change(struct gate *gate);
void gate_leave(struct gate *gate, gate_ticket ticket);

/* gate_join makes `gate`, which has no members itself, a member of the group.  gate_quit ends that,
 * when no request inside `gate` can still see anything that the group protects.  To be called
 * without locks, except one that serialises the callers of both. */
void gate_join(struct gate *group, struct gate_member *member, struct gate *gate);
void gate_quit(struct gate *group, struct gate_member *member);

/* To be called after the thing was made unreachable. */
uint64_t gate_stamp(struct gate *gate);

/* Have all requests left that were inside when the stamp was taken? */
bool gate_passed(struct gate *gate, uint64_t stamp);

/* Waits until all requests have left that are inside now.  The caller must not be inside the gate,
 * nor hold anything that a request inside could wait for. */
void gate_wait(struct gate *gate);

/* As gate_wait, for at most `ms` milliseconds: true if they have left. */
bool gate_wait_for(struct gate *gate, uint64_t ms) MUST_USE;

/* As gate_stamp and gate_passed, for requests that entered to change something. */
uint64_t gate_stamp_changers(struct gate *gate);
bool gate_changers_passed(struct gate *gate, uint64_t stamp);

/* As gate_wait, for requests that entered to change something. */
void gate_wait_for_changers(struct gate *gate);

/* How many requests are inside.  An estimate: they come and go meanwhile. */
uint32_t gate_count(struct gate *gate);

/* Is no request inside?  Outdated at once, unless none can enter. */
bool gate_empty(struct gate *gate);

#endif
