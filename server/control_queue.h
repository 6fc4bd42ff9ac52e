/* SPDX-License-Identifier: BSD-3-Clause */
/* What the control thread has yet to send: events for all clients, and answers for one.
 * Threads: any; init and destroy when no other thread uses it.  Nothing blocks; the lock is
 * a leaf.  Layer: server. */
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

/* An event or an answer; whoever takes it owns it. */
struct control_note {
    char *event; /* JSON text, from malloc; NULL: this is an answer */
    struct control_answer answer;
};

void control_queue_init(struct control_queue *queue);

/* Frees what wasn't taken. */
void control_queue_destroy(struct control_queue *queue);

/* Takes over the text.  If too many events are queued, it is dropped and counted. */
void control_queue_add_event(struct control_queue *queue, char *text);

/* Takes over the answer's value.  Answers are never dropped because of the queue's length. */
void control_queue_add_answer(struct control_queue *queue,
                              const struct control_answer *answer);

/* Takes the oldest; false: the queue is empty. */
bool control_queue_take(struct control_queue *queue, struct control_note *out) MUST_USE;

/* How many events were dropped since the last call. */
unsigned control_queue_take_dropped(struct control_queue *queue);

#endif
