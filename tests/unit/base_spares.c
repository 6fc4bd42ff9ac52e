/* SPDX-License-Identifier: BSD-3-Clause */
/* Spare objects: only one thread has an object at a time, and returned ones are used again. */
#include <criterion/criterion.h>
#include <pthread.h>

#include "base/spares.h"
#include "base/thread.h"

#define THREADS 8
#define ROUNDS  20000

Test(base_spares, empty_one_full)
{
    static struct spares spares;
    static int objects[SPARES_SLOTS + 1];

    cr_expect_null(spares_take(&spares));
    for (int i = 0; i < SPARES_SLOTS; i++)
        cr_assert(spares_leave(&spares, &objects[i]));
    cr_expect_not(spares_leave(&spares, &objects[SPARES_SLOTS]));
    for (int i = 0; i < SPARES_SLOTS; i++) {
        int *object = spares_take(&spares);
        cr_assert_not_null(object);
        cr_expect_eq(++*object, 1);
    }
    cr_expect_null(spares_take(&spares));
}

Test(base_spares, a_thread_gets_back_what_it_left)
{
    static struct spares spares;
    int a, b;

    cr_assert(spares_leave(&spares, &a));
    cr_expect_eq(spares_take(&spares), &a);
    cr_assert(spares_leave(&spares, &b));
    cr_assert(spares_leave(&spares, &a));
    cr_expect_eq(spares_take(&spares), &b);
}

static struct spares shared;
static _Atomic int made;

static void *use(void *unused)
{
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        int *object = spares_take(&shared); /* not atomic, so that TSan sees a race */
        if (!object) {
            object = calloc(1, sizeof *object);
            atomic_fetch_add(&made, 1);
        }
        ++*object;
        if (!spares_leave(&shared, object))
            abort();
    }
    return NULL;
}

Test(base_spares, many_threads)
{
    pthread_t threads[THREADS];
    int uses = 0, *object;

    for (int i = 0; i < THREADS; i++)
        cr_assert_eq(thread_start(&threads[i], use, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cr_expect_leq(atomic_load(&made), SPARES_SLOTS);
    while ((object = spares_take(&shared))) {
        uses += *object;
        free(object);
    }
    cr_expect_eq(uses, THREADS * ROUNDS);
}
