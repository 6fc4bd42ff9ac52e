/* SPDX-License-Identifier: BSD-3-Clause */
/* What the control thread has yet to hand out: events for everybody, and answers that one
 * client awaits.  Threads: any, but init and destroy.  Nothing waits; the lock is a leaf.
 * Layer: server. */
#ifndef SERVER_CONTROL_QUEUE_H
#define SERVER_CONTROL_QUEUE_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/list.h"
#include "base/lock.h"
#include "control_cmds.h"

struct control_queue {
    struct lock lock; /* RANK_LEAF */
    /* under lock */
    struct list notes;
    unsigned n_notes, dropped;
};

/* One of the two; the caller's. */
struct control_note {
    char *event; /* JSON text; NULL: an answer */
    struct control_answer answer;
};

void control_queue_init(struct control_queue *queue);

/* Drops what nobody has taken. */
void control_queue_destroy(struct control_queue *queue);

/* Takes over the text; it is dropped, and counted, when too many wait. */
void control_queue_add_event(struct control_queue *queue, char *text);

/* Takes over the answer's value.  None is dropped for those that wait. */
void control_queue_add_answer(struct control_queue *queue,
                              const struct control_answer *answer);

/* The oldest; false: there is none. */
bool control_queue_take(struct control_queue *queue, struct control_note *out) MUST_USE;

/* How many events were dropped since the last call. */
unsigned control_queue_take_dropped(struct control_queue *queue);

#endif
