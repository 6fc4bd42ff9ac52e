/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the gate (base/gate.h), alone and with threads. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/gate.h"

Test(gate, empty_gate_lets_everything_pass)
{
    struct gate gate;

    gate_init(&gate);
    cr_assert(gate_empty(&gate));
    cr_assert(gate_passed(&gate, gate_stamp(&gate)));
    cr_assert(gate_passed(&gate, 0), "a stamp of 0 is long past");
}

Test(gate, who_is_inside_holds_the_stamp_back)
{
    struct gate gate;

    gate_init(&gate);
    gate_ticket ticket = gate_enter(&gate);
    uint64_t stamp = gate_stamp(&gate);
    cr_assert_not(gate_empty(&gate));
    for (int i = 0; i < 10; i++)
        cr_assert_not(gate_passed(&gate, stamp));
    gate_leave(&gate, ticket);
    cr_assert(gate_passed(&gate, stamp));
    cr_assert(gate_empty(&gate));
}

Test(gate, later_requests_hold_nothing_back)
{
    struct gate gate;

    gate_init(&gate);
    gate_ticket before = gate_enter(&gate);
    uint64_t stamp = gate_stamp(&gate);
    cr_assert_not(gate_passed(&gate, stamp));
    /* Enters after the stamp, when the epoch can't move any further. */
    gate_ticket after = gate_enter(&gate);
    gate_leave(&gate, before);
    cr_assert(gate_passed(&gate, stamp), "only those inside before the stamp count");
    gate_leave(&gate, after);
}

Test(gate, a_ticket_may_be_handed_over_in_any_order)
{
    struct gate gate;

    gate_init(&gate);
    gate_ticket a = gate_enter(&gate), b = gate_enter(&gate);
    uint64_t stamp = gate_stamp(&gate);
    gate_leave(&gate, a);
    cr_assert_not(gate_passed(&gate, stamp));
    gate_leave(&gate, b);
    cr_assert(gate_passed(&gate, stamp));
}

/* ---- requests that change something ---- */

static void *wait_for_changers(void *opaque)
{
    gate_wait_for_changers(opaque);
    return NULL;
}

static bool ends_soon(pthread_t thread)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

Test(gate, changers_are_waited_for_and_readers_are_not)
{
    struct gate gate;
    pthread_t thread;

    gate_init(&gate);
    gate_ticket reader = gate_enter(&gate), changer = gate_enter_to_change(&gate);
    cr_assert_eq(pthread_create(&thread, NULL, wait_for_changers, &gate), 0);
    cr_expect_not(ends_soon(thread), "somebody changes something");
    gate_leave(&gate, changer);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_expect_not(gate_empty(&gate));
    gate_leave(&gate, reader);
    cr_expect(gate_empty(&gate));
}

/* A request that changes something is waited for by both kinds of waiters, whatever the parities
 * of the two epochs are when it enters. */
Test(gate, everybody_is_waited_for_once_for_both)
{
    struct gate gate;

    gate_init(&gate);
    for (unsigned i = 0; i < 8; i++) {
        if (i & 1)
            gate_wait(&gate);
        if (i & 2)
            gate_wait_for_changers(&gate);
        gate_ticket changer = gate_enter_to_change(&gate);
        uint64_t stamp = gate_stamp(&gate);
        cr_expect_not(gate_passed(&gate, stamp), "a changer is somebody, too");
        cr_expect_not(gate_wait_for(&gate, 1));
        gate_leave(&gate, changer);
        cr_expect(gate_passed(&gate, stamp));
        cr_expect(gate_empty(&gate));
    }
}

/* Readers use the object that a pointer points to.  The writer replaces the object, waits until the
 * gate says that no reader can still use the old one, poisons it and frees it.  A reader that
 * finds poison (or, under a sanitizer, freed memory) proves that the gate didn't wait. */

#define READERS 4
#define GOOD    0x600d600d600d600dULL
#define POISON  0xdeaddeaddeaddeadULL

struct garden {
    struct gate gate;
    _Atomic(_Atomic uint64_t *) current;
    atomic_bool stop;
    _Atomic uint64_t bad, looks;
};

static _Atomic uint64_t *plant(void)
{
    _Atomic uint64_t *p = malloc(sizeof *p);

    cr_assert_not_null(p);
    *p = GOOD;
    return p;
}

static void *reader(void *opaque)
{
    struct garden *g = opaque;

    while (!g->stop) {
        gate_ticket ticket =
            g->looks & 1 ? gate_enter_to_change(&g->gate) : gate_enter(&g->gate);
        _Atomic uint64_t *p = g->current;
        for (int i = 0; i < 20; i++)
            if (*p != GOOD)
                g->bad++;
        gate_leave(&g->gate, ticket);
        g->looks++;
    }
    return NULL;
}

Test(gate, nothing_is_reused_under_a_reader, .timeout = 120)
{
    static struct garden g;
    pthread_t threads[READERS];

    gate_init(&g.gate);
    g.current = plant();
    for (int i = 0; i < READERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, reader, &g), 0);
    while (g.looks == 0)
        sched_yield();
    for (int i = 0; i < 3000; i++) {
        _Atomic uint64_t *old = atomic_exchange(&g.current, plant());
        uint64_t stamp = gate_stamp(&g.gate);
        if (i % 3 == 0)
            gate_wait_for_changers(&g.gate);
        while (!gate_passed(&g.gate, stamp))
            sched_yield();
        *old = POISON;
        free((void *)old);
    }
    g.stop = true;
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(g.bad, 0u, "%lu looks at something reused", (unsigned long)g.bad);
    cr_assert(gate_empty(&g.gate));
    free((void *)g.current);
}

Test(gate, a_group_waits_for_who_is_inside_of_a_member)
{
    struct gate group, a, b;
    struct gate_member in_a, in_b;

    gate_init(&group);
    gate_init(&a);
    gate_init(&b);
    gate_join(&group, &in_a, &a);
    gate_join(&group, &in_b, &b);
    cr_assert(gate_passed(&group, gate_stamp(&group)));
    gate_ticket first = gate_enter(&a), second = gate_enter(&b);
    uint64_t stamp = gate_stamp(&group);
    for (int i = 0; i < 10; i++)
        cr_assert_not(gate_passed(&group, stamp));
    gate_leave(&a, first);
    for (int i = 0; i < 10; i++)
        cr_assert_not(gate_passed(&group, stamp));
    gate_leave(&b, second);
    cr_assert(gate_passed(&group, stamp));
    gate_quit(&group, &in_a);
    gate_quit(&group, &in_b);
}

/* The member's round began before the group's stamp: a request that entered in between must still
 * be waited for. */
Test(gate, a_round_that_is_under_way_is_not_enough_for_a_group)
{
    struct gate group, a;
    struct gate_member in_a;

    gate_init(&group);
    gate_init(&a);
    gate_join(&group, &in_a, &a);
    gate_ticket before = gate_enter(&a);
    cr_assert_not(gate_passed(&group, gate_stamp(&group)));
    cr_assert_not(gate_passed(&a, gate_stamp(&a)), "its epoch moves as far as it can");
    gate_ticket between = gate_enter(&a);
    uint64_t stamp = gate_stamp(&group);
    gate_leave(&a, before);
    for (int i = 0; i < 10; i++)
        cr_assert_not(gate_passed(&group, stamp));
    gate_leave(&a, between);
    cr_assert(gate_passed(&group, stamp));
    gate_quit(&group, &in_a);
}

Test(gate, who_quits_a_group_holds_it_back_no_more)
{
    struct gate group, a, b;
    struct gate_member in_a, in_b;

    gate_init(&group);
    gate_init(&a);
    gate_init(&b);
    gate_join(&group, &in_a, &a);
    gate_join(&group, &in_b, &b);
    gate_ticket ticket = gate_enter(&a);
    uint64_t stamp = gate_stamp(&group);
    cr_assert_not(gate_passed(&group, stamp));
    gate_quit(&group, &in_a); /* its request can't use anything of the group any more */
    cr_assert(gate_passed(&group, stamp));
    gate_leave(&a, ticket);
    gate_quit(&group, &in_b);
    cr_assert(gate_passed(&group, gate_stamp(&group)));
}
