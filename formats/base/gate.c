/* SPDX-License-Identifier: BSD-3-Clause */
/* The gate: epochs and striped counters, without a lock in the requests' path. */
#include <assert.h>

#include "base/clock.h"
#include "base/gate.h"

#define COUNTERS 6u

#define FIRST_NAP_NS 20000u

/* Threads are spread over the stripes in the order in which they first enter any gate. */
static uint32_t my_stripe(void)
{
    static _Atomic uint32_t next;
    /* Stripe + 1; 0: not chosen yet.  With this TLS model an access is one instruction.  In the
     * default model of shared objects it is a call of __tls_get_addr, and each request asks for
     * its stripe several times. */
    static _Thread_local uint32_t mine __attribute__((tls_model("initial-exec")));

    if (mine == 0)
        mine = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed) % GATE_STRIPES + 1;
    return mine - 1;
}

void gate_init(struct gate *gate)
{
    /* Epochs start at 2, so that a stamp of 0 has always passed. */
    atomic_init(&gate->epoch, 2);
    atomic_init(&gate->change_epoch, 2);
    atomic_init(&gate->busy, false);
    atomic_init(&gate->n_members, 0);
    list_init(&gate->members);
    gate->next = &gate->members;
    gate->round = 0;
    for (unsigned i = 0; i < GATE_STRIPES; i++)
        for (unsigned c = 0; c < COUNTERS; c++)
            atomic_init(&gate->stripe[i].inside[c], 0);
}

gate_ticket gate_enter(struct gate *gate)
{
    uint32_t s = my_stripe();

    for (;;) {
        uint64_t epoch = atomic_load(&gate->epoch);
        uint32_t counter = epoch & 1;
        atomic_fetch_add(&gate->stripe[s].inside[counter], 1);
        /* If the epoch has advanced in between, we may be counted in a parity that the next
         * advance doesn't look at. */
        if (LIKELY(atomic_load(&gate->epoch) == epoch))
            return s << GATE_TICKET_SHIFT | counter;
        atomic_fetch_sub(&gate->stripe[s].inside[counter], 1);
    }
}

gate_ticket gate_enter_to_change(struct gate *gate)
{
    uint32_t s = my_stripe();

    for (;;) {
        uint64_t epoch = atomic_load(&gate->epoch);
        uint64_t change_epoch = atomic_load(&gate->change_epoch);
        uint32_t counter = 2 + 2 * (uint32_t)(change_epoch & 1) + (uint32_t)(epoch & 1);
        atomic_fetch_add(&gate->stripe[s].inside[counter], 1);
        /* As above, for both. */
        if (LIKELY(atomic_load(&gate->epoch) == epoch &&
                   atomic_load(&gate->change_epoch) == change_epoch))
            return s << GATE_TICKET_SHIFT | counter;
        atomic_fetch_sub(&gate->stripe[s].inside[counter], 1);
    }
}

void gate_leave(struct gate *gate, gate_ticket ticket)
{
    uint32_t s = ticket >> GATE_TICKET_SHIFT,
             counter = ticket & ((1 << GATE_TICKET_SHIFT) - 1);

    atomic_fetch_sub_explicit(&gate->stripe[s].inside[counter], 1, memory_order_release);
}

static bool counters_are_zero(struct gate *gate, uint32_t counters)
{
    for (unsigned i = 0; i < GATE_STRIPES; i++)
        for (unsigned c = 0; c < COUNTERS; c++)
            if (counters & 1u << c && atomic_load(&gate->stripe[i].inside[c]) != 0)
                return false;
    return true;
}

/* Advances the epoch `of` (epoch or change_epoch) as far as the stamp requires.  counters: for
 * each parity, a bit mask of the counters in inside[] that belong to it. */
static bool epoch_passed(struct gate *gate, _Atomic uint64_t *of,
                         const uint32_t counters[2], uint64_t stamp)
{
    uint64_t epoch = atomic_load(of);

    while (epoch < stamp + 2) {
        if (!counters_are_zero(gate, counters[(epoch + 1) & 1]))
            return false;
        /* When another thread advances first, epoch is reloaded and looked at again. */
        if (atomic_compare_exchange_strong(of, &epoch, epoch + 1))
            epoch++;
    }
    return true;
}

uint64_t gate_stamp(struct gate *gate)
{
    return atomic_load(&gate->epoch);
}

static const uint32_t everybody[2] = {1 << 0 | 1 << 2 | 1 << 4, 1 << 1 | 1 << 3 | 1 << 5};

/* ---- members ---- */

static bool try_busy(struct gate *group)
{
    return !atomic_exchange(&group->busy, true);
}

static void be_busy(struct gate *group)
{
    while (!try_busy(group))
        clock_nap_ns(FIRST_NAP_NS);
}

static void end_busy(struct gate *group)
{
    atomic_store(&group->busy, false);
}

void gate_join(struct gate *group, struct gate_member *member, struct gate *gate)
{
    assert(atomic_load(&gate->n_members) == 0);
    member->gate = gate;
    /* Has passed: this round needn't wait for the member.  Objects that are stamped from now on
     * wait for the next round as well. */
    member->stamp = 0;
    be_busy(group);
    list_append(&group->members, &member->link);
    atomic_fetch_add(&group->n_members, 1);
    end_busy(group);
}

void gate_quit(struct gate *group, struct gate_member *member)
{
    be_busy(group);
    if (group->next == &member->link)
        group->next = member->link.next;
    list_remove(&member->link);
    atomic_fetch_sub(&group->n_members, 1);
    end_busy(group);
}

/* Under `busy`: have all requests left that were inside a member when the round of this epoch
 * began?  A round continues at the member where the last call stopped, so a member with a long
 * request is looked at once per call. */
static bool members_passed(struct gate *group, uint64_t epoch)
{
    if (group->round != epoch) {
        group->round = epoch;
        group->next = group->members.next;
        LIST_FOR_EACH (pos, &group->members) {
            struct gate_member *member = CONTAINER_OF(pos, struct gate_member, link);
            member->stamp = gate_stamp(member->gate);
        }
    }
    for (; group->next != &group->members; group->next = group->next->next) {
        struct gate_member *member = CONTAINER_OF(group->next, struct gate_member, link);
        if (!gate_passed(member->gate, member->stamp))
            return false;
    }
    return true;
}

/* Rule (4) of gate.h.  Under `busy`. */
static bool group_passed(struct gate *group, uint64_t stamp)
{
    uint64_t epoch = atomic_load(&group->epoch);

    while (epoch < stamp + 2) {
        if (!counters_are_zero(group, everybody[(epoch + 1) & 1]) ||
            !members_passed(group, epoch))
            return false;
        /* This can fail if the first member joined a moment ago: another thread that still saw
         * no members may be in epoch_passed. */
        if (atomic_compare_exchange_strong(&group->epoch, &epoch, epoch + 1))
            epoch++;
    }
    return true;
}

bool gate_passed(struct gate *gate, uint64_t stamp)
{
    if (UNLIKELY(atomic_load(&gate->n_members) > 0)) {
        if (atomic_load(&gate->epoch) >= stamp + 2)
            return true;
        if (!try_busy(gate))
            return false;
        bool passed = group_passed(gate, stamp);
        end_busy(gate);
        return passed;
    }
    return epoch_passed(gate, &gate->epoch, everybody, stamp);
}

uint64_t gate_stamp_changers(struct gate *gate)
{
    return atomic_load(&gate->change_epoch);
}

bool gate_changers_passed(struct gate *gate, uint64_t stamp)
{
    static const uint32_t changers[2] = {1 << 2 | 1 << 3, 1 << 4 | 1 << 5};

    return epoch_passed(gate, &gate->change_epoch, changers, stamp);
}

uint32_t gate_count(struct gate *gate)
{
    uint32_t count = 0;

    for (unsigned i = 0; i < GATE_STRIPES; i++)
        for (unsigned c = 0; c < COUNTERS; c++)
            count += atomic_load_explicit(&gate->stripe[i].inside[c], memory_order_relaxed);
    return count;
}

bool gate_empty(struct gate *gate)
{
    return counters_are_zero(gate, (1 << COUNTERS) - 1);
}

/* Leaving requests signal nothing (that would cost them time), so waiting is polling: sleeps,
 * longer each time, up to 2 ms. */
static void nap_longer(uint32_t *ns)
{
    clock_nap_ns(*ns);
    *ns = MIN(2 * *ns, 2000000);
}

bool gate_wait_for(struct gate *gate, uint64_t ms)
{
    uint64_t stamp = gate_stamp(gate), end = ms == UINT64_MAX ? ms : clock_ms() + ms;
    uint32_t nap_ns = FIRST_NAP_NS;

    while (!gate_passed(gate, stamp)) {
        if (end != UINT64_MAX && clock_ms() >= end)
            return false;
        nap_longer(&nap_ns);
    }
    return true;
}

void gate_wait(struct gate *gate)
{
    (void)!gate_wait_for(gate, UINT64_MAX);
}

void gate_wait_for_changers(struct gate *gate)
{
    uint64_t stamp = gate_stamp_changers(gate);
    uint32_t nap_ns = FIRST_NAP_NS;

    while (!gate_changers_passed(gate, stamp))
        nap_longer(&nap_ns);
}
