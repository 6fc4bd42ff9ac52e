/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of observers, replaced as a whole. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/observer.h"

/* Immutable once it is visible; a change replaces the whole list. */
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

static int call_guards(const struct observer_list *list, const struct change *change)
{
    int err = 0;

    for (unsigned i = 0; i < list->n && !err; i++)
        if (list->item[i]->guard)
            err = list->item[i]->guard(list->item[i], change);
    return err;
}

int observers_call_before(struct observed *seen, const struct change *change)
{
    int err = call_guards(seen->list, change);

    if (err) {
        seen->list = NULL; /* so that no `after` is called */
        return err;
    }
    for (unsigned i = 0; i < seen->list->n_around; i++)
        seen->token[i] = seen->list->item[i]->before(seen->list->item[i], change);
    return 0;
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

/* Frees a replaced list when no request uses it any more; NULL is allowed. */
static void free_when_unseen(struct observers *observers, struct observer_list *list)
{
    gate_wait_for_changers(observers->gate);
    free(list);
}

static int add_to_list(struct observers *observers, struct observer *const *added,
                       unsigned n_added, struct observer_list **old)
{
    LOCK_GUARD(&observers->lock);
    const struct observer_list *now = atomic_load(&observers->list);
    unsigned n = now ? now->n : 0;

    if (added[0]->before && now && now->n_around == OBSERVERS_AROUND)
        return -EBUSY;
    struct observer_list *list = new_list(n + n_added);
    if (!list)
        return -ENOMEM;
    for (unsigned i = 0; i < n; i++)
        append_observer(list, now->item[i]);
    for (unsigned i = 0; i < n_added; i++)
        append_observer(list, added[i]);
    *old = atomic_exchange(&observers->list, list);
    return 0;
}

int observer_add(struct observers *observers, struct observer *observer)
{
    return observer_add_all(observers, &observer, 1);
}

int observer_add_all(struct observers *observers, struct observer *const *added, unsigned n)
{
    struct observer_list *old;

    int err = n ? add_to_list(observers, added, n, &old) : 0;
    if (!err && n == 0)
        return 0;
    if (err)
        return err;
    free_when_unseen(observers, old);
    return 0;
}

int observer_add_unseen(struct observers *observers, struct observer *const *added,
                        unsigned n)
{
    struct observer_list *old = NULL;

    int err = n ? add_to_list(observers, added, n, &old) : 0;
    if (!err)
        free(old);
    return err;
}

static bool is_one_of(const struct observer *observer, struct observer *const *some,
                      unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (some[i] == observer)
            return true;
    return false;
}

bool observer_is_there(struct observers *observers, const struct observer *observer)
{
    LOCK_GUARD(&observers->lock);
    const struct observer_list *now = atomic_load(&observers->list);

    for (unsigned i = 0; now && i < now->n; i++)
        if (now->item[i] == observer)
            return true;
    return false;
}

static unsigned count_left(const struct observer_list *list,
                           struct observer *const *removed, unsigned n)
{
    unsigned left = 0;

    for (unsigned i = 0; i < list->n; i++)
        left += !is_one_of(list->item[i], removed, n);
    return left;
}

/* False: none of them is in the list. */
static bool remove_from_list(struct observers *observers, struct observer *const *removed,
                             unsigned n, struct observer_list **old)
{
    LOCK_GUARD(&observers->lock);
    const struct observer_list *now = atomic_load(&observers->list);
    unsigned left = now ? count_left(now, removed, n) : 0;

    if (!now || left == now->n)
        return false;
    /* The callers couldn't handle a failure here, so retry until there is memory for a few
     * pointers. */
    struct observer_list *list = NULL;
    while (left > 0 && !(list = new_list(left)))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    for (unsigned i = 0; list && i < now->n; i++)
        if (!is_one_of(now->item[i], removed, n))
            append_observer(list, now->item[i]);
    *old = atomic_exchange(&observers->list, list);
    return true;
}

void observer_remove(struct observers *observers, struct observer *observer)
{
    struct observer_list *old;

    if (remove_from_list(observers, &observer, 1, &old))
        free_when_unseen(observers, old);
}

void observer_remove_unseen(struct observers *observers, struct observer *const *removed,
                            unsigned n)
{
    struct observer_list *old;

    if (remove_from_list(observers, removed, n, &old))
        free(old);
}
