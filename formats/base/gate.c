/* SPDX-License-Identifier: BSD-3-Clause */
/* Epochs and striped counters: who is inside, without a lock. */
#include "base/clock.h"
#include "base/gate.h"

/* Threads are spread over the stripes in the order in which they first enter any gate. */
static uint32_t my_stripe(void)
{
    static _Atomic uint32_t next;
    /* Stripe + 1.  In the thread's static area, for this is asked several times for each
     * request, and a call of the loader's for each would cost more than the rest. */
    static _Thread_local uint32_t mine __attribute__((tls_model("initial-exec")));

    if (mine == 0)
        mine = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed) % GATE_STRIPES + 1;
    return mine - 1;
}

void gate_init(struct gate *gate)
{
    /* From 2 on, so that a stamp of 0 is always long past. */
    atomic_init(&gate->epoch, 2);
    for (unsigned i = 0; i < GATE_STRIPES; i++)
        for (unsigned parity = 0; parity < 2; parity++)
            atomic_init(&gate->stripe[i].inside[parity], 0);
}

gate_ticket gate_enter(struct gate *gate)
{
    uint32_t s = my_stripe();

    for (;;) {
        uint64_t epoch = atomic_load(&gate->epoch);
        uint32_t parity = epoch & 1;
        atomic_fetch_add(&gate->stripe[s].inside[parity], 1);
        /* Had the epoch advanced in between, we could be counted in a parity that the next
         * advance no longer looks at. */
        if (LIKELY(atomic_load(&gate->epoch) == epoch))
            return s << 1 | parity;
        atomic_fetch_sub(&gate->stripe[s].inside[parity], 1);
    }
}

void gate_leave(struct gate *gate, gate_ticket ticket)
{
    atomic_fetch_sub_explicit(&gate->stripe[ticket >> 1].inside[ticket & 1], 1,
                              memory_order_release);
}

static bool parity_empty(struct gate *gate, uint32_t parity)
{
    for (unsigned i = 0; i < GATE_STRIPES; i++)
        if (atomic_load(&gate->stripe[i].inside[parity]) != 0)
            return false;
    return true;
}

uint64_t gate_stamp(struct gate *gate)
{
    return atomic_load(&gate->epoch);
}

bool gate_passed(struct gate *gate, uint64_t stamp)
{
    uint64_t epoch = atomic_load(&gate->epoch);

    while (epoch < stamp + 2) {
        if (!parity_empty(gate, (epoch + 1) & 1))
            return false;
        /* When another thread advances first, epoch is reloaded and looked at again. */
        if (atomic_compare_exchange_strong(&gate->epoch, &epoch, epoch + 1))
            epoch++;
    }
    return true;
}

bool gate_empty(struct gate *gate)
{
    return parity_empty(gate, 0) && parity_empty(gate, 1);
}

/* There is nothing to wait on: who leaves doesn't tell. */
bool gate_wait_for(struct gate *gate, uint64_t ms)
{
    uint64_t stamp = gate_stamp(gate), end = ms == UINT64_MAX ? ms : clock_ms() + ms;
    uint32_t nap_ns = 20000;

    while (!gate_passed(gate, stamp)) {
        if (end != UINT64_MAX && clock_ms() >= end)
            return false;
        clock_nap_ns(nap_ns);
        nap_ns = MIN(2 * nap_ns, 2000000);
    }
    return true;
}

void gate_wait(struct gate *gate)
{
    (void)!gate_wait_for(gate, UINT64_MAX);
}
