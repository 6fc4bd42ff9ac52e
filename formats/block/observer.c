/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of observers, replaced as a whole. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/observer.h"

/* Never changed once it can be seen; replaced as a whole. */
struct observer_list {
    unsigned n, n_around; /* those with `before` come first */
    struct observer *item[];
};

void observers_init(struct observers *observers, struct gate *gate)
{
    observers->gate = gate;
    atomic_init(&observers->list, NULL);
    lock_init(&observers->lock, RANK_LEAF);
}

void observers_destroy(struct observers *observers)
{
    free(atomic_load(&observers->list));
    lock_destroy(&observers->lock);
}

/* ---- requests ---- */

void observers_call_before(struct observed *seen, const struct change *change)
{
    for (unsigned i = 0; i < seen->list->n_around; i++)
        seen->token[i] = seen->list->item[i]->before(seen->list->item[i], change);
}

void observers_call_after(struct observed *seen, const struct change *change, int err)
{
    const struct observer_list *list = seen->list;

    for (unsigned i = 0; i < list->n; i++)
        list->item[i]->wrote(list->item[i], change->off, change->len);
    for (unsigned i = list->n_around; i-- > 0;)
        list->item[i]->after(list->item[i], change, seen->token[i], err);
}

static void call_flushed(struct observers *observers)
{
    gate_ticket ticket = gate_enter_to_change(observers->gate);
    const struct observer_list *list = atomic_load(&observers->list);

    for (unsigned i = 0; list && i < list->n; i++)
        if (list->item[i]->flushed)
            list->item[i]->flushed(list->item[i]);
    gate_leave(observers->gate, ticket);
}

void observers_flushed(struct observers *observers)
{
    if (UNLIKELY(atomic_load_explicit(&observers->list, memory_order_relaxed)))
        call_flushed(observers);
}

/* ---- changes of the list ---- */

static struct observer_list *new_list(unsigned n)
{
    struct observer_list *list;

    list = malloc(sizeof *list + n * sizeof list->item[0]);
    if (list) {
        list->n = 0;
        list->n_around = 0;
    }
    return list;
}

static void append_observer(struct observer_list *list, struct observer *observer)
{
    unsigned at = list->n;

    if (observer->before) {
        at = list->n_around++;
        list->item[list->n] = list->item[at];
    }
    list->item[at] = observer;
    list->n++;
}

static void publish(struct observers *observers, struct observer_list *list)
{
    struct observer_list *old = atomic_exchange(&observers->list, list);

    lock_release(&observers->lock);
    gate_wait_for_changers(observers->gate); /* who could see what was replaced */
    free(old);
}

int observer_add(struct observers *observers, struct observer *observer)
{
    lock_acquire(&observers->lock);
    struct observer_list *old = atomic_load(&observers->list);
    unsigned n = old ? old->n : 0;
    struct observer_list *list = NULL;
    int err = 0;

    if (observer->before && old && old->n_around == OBSERVERS_AROUND)
        err = -EBUSY;
    else if (!(list = new_list(n + 1)))
        err = -ENOMEM;
    if (err) {
        lock_release(&observers->lock);
        return err;
    }
    for (unsigned i = 0; i < n; i++)
        append_observer(list, old->item[i]);
    append_observer(list, observer);
    publish(observers, list);
    return 0;
}

/* The place of an observer, or n. */
static unsigned index_of(const struct observer_list *list, const struct observer *observer)
{
    unsigned i = 0;

    while (i < list->n && list->item[i] != observer)
        i++;
    return i;
}

void observer_remove(struct observers *observers, struct observer *observer)
{
    lock_acquire(&observers->lock);
    struct observer_list *old = atomic_load(&observers->list);
    if (!old || index_of(old, observer) == old->n) {
        lock_release(&observers->lock);
        return;
    }
    /* Nobody could deal with a failure here: the memory for a few pointers is waited for.
     */
    struct observer_list *list = NULL;
    while (old->n > 1 && !(list = new_list(old->n - 1)))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    for (unsigned i = 0; list && i < old->n; i++)
        if (old->item[i] != observer)
            append_observer(list, old->item[i]);
    publish(observers, list);
}
