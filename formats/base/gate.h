/* SPDX-License-Identifier: BSD-3-Clause */
/* Who is inside: the one primitive behind memory reclaim, cluster reuse and draining.
 *
 * A request enters the gate before it looks at shared metadata and leaves it when its I/O
 * is done.  Something that was made unreachable (a cache page, a host cluster) is stamped
 * with gate_stamp() and may be reused once gate_passed() says that every request that could
 * still see it has left.  That never waits: reuse is polled.  gate_wait is for the rare one
 * who can't go on before.
 *
 * Some of those inside change something; who only has to wait for them (a drain, or the
 * list of observers) doesn't wait for readers.  They are counted once for both.
 *
 * Why not liburcu: a read-side section here spans I/O, and polling for the end of a grace
 * period came to liburcu only after 0.13, which Debian 12 ships.
 *
 * States: an epoch e and two sets of striped counters, one for each parity of the epoch.
 * Who changes something has an epoch of his own besides, of which the same is true among
 * his like: his counter is that of both parities.
 *   (1) a request inside is counted in the parity of the epoch it entered in;
 *   (2) the epoch advances from e to e+1 only when the counters of e-1 are all zero;
 *   (3) so at epoch s+2 nobody is inside who entered at epoch s or before.
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

/* A gate can have other gates as members: who is inside one of them to read is inside it, too.
 * That costs who enters nothing, and who asks whether all have left a look at each member.
 *   (4) the epoch of a gate with members advances from e to e+1 only when those have left who
 *       were inside of a member at some moment of epoch e. */
struct gate_member {
    struct list link;
    struct gate *gate;
    uint64_t stamp; /* of this round */
};

struct gate {
    _Atomic uint64_t epoch, change_epoch;
    /* Under `busy`, which nobody waits for who only asks; the rest under it, too. */
    _Atomic bool busy;
    _Atomic unsigned n_members;
    struct list members;
    uint64_t round;    /* the epoch in which the members were stamped */
    struct list *next; /* of this round: who was before it has passed */
    struct {
        /* Readers by the parity of epoch, then changers by that and that of change_epoch. */
        _Alignas(64) _Atomic uint32_t inside[6];
    } stripe[GATE_STRIPES];
};

/* What entering returns and gate_leave needs; may be handed to another thread. */
typedef uint32_t gate_ticket;
#define GATE_TICKET_SHIFT 3u

/* Of the thread that entered: what is counted by it meets few others. */
static inline uint32_t gate_ticket_stripe(gate_ticket ticket)
{
    return ticket >> GATE_TICKET_SHIFT;
}

void gate_init(struct gate *gate);

gate_ticket gate_enter(struct gate *gate);
/* As one who is going to change something: gate_wait_for_changers waits for him, too. */
gate_ticket gate_enter_to_change(struct gate *gate);
void gate_leave(struct gate *gate, gate_ticket ticket);

/* From now on who is inside `gate`, which has no members, is inside the group as a reader; until
 * it leaves again, when nobody is inside it who could see what the group's stamps are for.
 * Outside of all locks but those of callers of both. */
void gate_join(struct gate *group, struct gate_member *member, struct gate *gate);
void gate_quit(struct gate *group, struct gate_member *member);

/* To be called after the thing was made unreachable. */
uint64_t gate_stamp(struct gate *gate);

/* Has every request left that was inside when the stamp was taken? */
bool gate_passed(struct gate *gate, uint64_t stamp);

/* Waits until they have.  Outside the gate, and of all that somebody inside could wait for.
 */
void gate_wait(struct gate *gate);

/* As gate_wait, for at most so many milliseconds: true when they have left. */
bool gate_wait_for(struct gate *gate, uint64_t ms) MUST_USE;

/* The same of those who entered to change something, alone. */
uint64_t gate_stamp_changers(struct gate *gate);
bool gate_changers_passed(struct gate *gate, uint64_t stamp);

/* Waits until everybody has left who entered to change something; not for others. */
void gate_wait_for_changers(struct gate *gate);

/* How many are inside, about: they come and go meanwhile. */
uint32_t gate_count(struct gate *gate);

/* Is nobody inside?  The answer is of some moment, unless nobody can enter. */
bool gate_empty(struct gate *gate);

#endif
