/* SPDX-License-Identifier: BSD-3-Clause */
/* Queues of queues, each round-robin. */
#include "turns.h"

#include <stddef.h>

static struct turns *turns_at(struct list *link)
{
    return CONTAINER_OF(link, struct turns, link);
}

void turns_init(struct turns *turns, struct turns *above)
{
    turns->above = above;
    list_init(&turns->queue);
    list_init(&turns->link);
}

void turns_add(struct turns *leaf)
{
    for (struct turns *t = leaf; t->above && !turns_waits(t); t = t->above)
        list_append(&t->above->queue, &t->link);
}

struct turns *turns_next(const struct turns *root)
{
    const struct list *queue = &root->queue;
    struct turns *next = NULL;

    while (!list_empty(queue)) {
        next = turns_at(queue->next);
        queue = &next->queue;
    }
    return next;
}

void turns_remove(struct turns *leaf)
{
    for (struct turns *t = leaf; t->above && list_empty(&t->queue); t = t->above)
        list_remove(&t->link);
}

void turns_take(struct turns *leaf)
{
    turns_remove(leaf);
    for (struct turns *t = leaf->above; t->above; t = t->above)
        if (turns_waits(t)) {
            list_remove(&t->link);
            list_append(&t->above->queue, &t->link);
        }
}
