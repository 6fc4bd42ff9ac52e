/* SPDX-License-Identifier: BSD-3-Clause */
/* An intrusive circular doubly linked list.  The head is a `struct list` that belongs to no
 * item.  Layer: base. */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/compiler.h"

struct list {
    struct list *prev, *next;
};

static inline void list_init(struct list *head)
{
    head->prev = head->next = head;
}

static inline bool list_empty(const struct list *head)
{
    return head->next == head;
}

static inline void list_append(struct list *head, struct list *item)
{
    item->prev = head->prev;
    item->next = head;
    head->prev->next = item;
    head->prev = item;
}

static inline void list_remove(struct list *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    item->prev = item->next = item;
}

#define LIST_FOR_EACH(pos, head) \
    for (struct list *pos = (head)->next; pos != (head); pos = pos->next)

/* As LIST_FOR_EACH; the body may remove `pos`. */
#define LIST_FOR_EACH_SAFE(pos, head)                                             \
    for (struct list *pos = (head)->next, *pos##_next = pos->next; pos != (head); \
         pos = pos##_next, pos##_next = pos->next)

#endif
