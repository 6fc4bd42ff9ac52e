/* Who is inside: the one primitive behind memory reclaim and cluster reuse.
 *
 * A request enters the gate before it looks at shared metadata and leaves it when its I/O
 * is done.  Something that was made unreachable (a cache page, a host cluster) is stamped
 * with gate_stamp() and may be reused once gate_passed() says that every request that could
 * still see it has left.  That never waits: reuse is polled.  Closing the gate is for the
 * one who needs everybody out.
 *
 * Why not liburcu: a read-side section here spans I/O, and polling for the end of a grace
 * period came to liburcu only after 0.13, which Debian 12 ships.
 *
 * States: an epoch e and two sets of striped counters, one for each parity of the epoch.
 *   (1) a request inside is counted in the parity of the epoch it entered in;
 *   (2) the epoch advances from e to e+1 only when the counters of e-1 are all zero;
 *   (3) so at epoch s+2 nobody is inside who entered at epoch s or before.
 *
 * Threads: every function from any thread; all but enter on a gate that may be closed, and
 * close, under any lock.  Layer: base. */
#ifndef BASE_GATE_H
#define BASE_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/lock.h"

#define GATE_STRIPES 16

struct gate {
    _Atomic uint64_t epoch;
    _Atomic bool closed;
    struct lock lock;
    pthread_cond_t opened; /* with lock */
    struct {
        _Alignas(64) _Atomic uint32_t inside[2];
    } stripe[GATE_STRIPES];
};

/* What gate_enter returns and gate_leave needs; may be handed to another thread. */
typedef uint32_t gate_ticket;

void gate_init(struct gate *gate);
void gate_destroy(struct gate *gate);

/* Waits while the gate is closed; then the caller must hold no lock and be in no gate. */
gate_ticket gate_enter(struct gate *gate);
void gate_leave(struct gate *gate, gate_ticket ticket);

/* To be called after the thing was made unreachable. */
uint64_t gate_stamp(struct gate *gate);

/* Has every request left that was inside when the stamp was taken? */
bool gate_passed(struct gate *gate, uint64_t stamp);

/* Closes the gate and waits until everybody has left; who comes now waits for gate_open.
 * One thread at a time, outside the gate and every lock. */
void gate_close(struct gate *gate);
void gate_open(struct gate *gate);

/* Debug builds of callers: nobody is inside (used by tests and at close). */
bool gate_empty(struct gate *gate);

#endif
