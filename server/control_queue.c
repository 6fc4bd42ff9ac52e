/* SPDX-License-Identifier: BSD-3-Clause */
/* The queue from other threads to the control thread. */
#include "control_queue.h"

#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"

/* Limit of queued events, as the control thread may be busy with a command. */
#define MAX_EVENTS 4096

struct entry {
    struct list link;
    struct control_note note;
};

void control_queue_init(struct control_queue *queue)
{
    lock_init(&queue->lock, RANK_LEAF);
    list_init(&queue->notes);
    queue->n_notes = queue->dropped = 0;
}

void control_queue_destroy(struct control_queue *queue)
{
    struct control_note note;

    while (control_queue_take(queue, &note)) {
        json_decref(note.answer.value);
        free(note.event);
    }
    lock_destroy(&queue->lock);
}

/* Under the lock; takes over the entry. */
static void append_entry(struct control_queue *queue, struct entry *entry)
{
    list_append(&queue->notes, &entry->link);
    queue->n_notes++;
}

void control_queue_add_event(struct control_queue *queue, char *text)
{
    struct entry *entry = malloc(sizeof *entry);

    if (entry) {
        LOCK_GUARD(&queue->lock);
        if (queue->n_notes < MAX_EVENTS) {
            *entry = (struct entry){.note.event = text};
            append_entry(queue, entry);
            return;
        }
        queue->dropped++;
    }
    free(entry);
    free(text);
}

void control_queue_add_answer(struct control_queue *queue,
                              const struct control_answer *answer)
{
    struct entry *entry = malloc(sizeof *entry);

    if (!entry) {
        log_error("control socket: out of memory: a command isn't answered");
        json_decref(answer->value);
        return;
    }
    *entry = (struct entry){.note.answer = *answer};
    LOCK_GUARD(&queue->lock);
    append_entry(queue, entry);
}

bool control_queue_take(struct control_queue *queue, struct control_note *out)
{
    LOCK_GUARD(&queue->lock);
    if (list_empty(&queue->notes))
        return false;
    CLEANUP_FREE struct entry *entry = CONTAINER_OF(queue->notes.next, struct entry, link);
    list_remove(&entry->link);
    queue->n_notes--;
    *out = entry->note;
    return true;
}

unsigned control_queue_take_dropped(struct control_queue *queue)
{
    LOCK_GUARD(&queue->lock);
    unsigned dropped = queue->dropped;
    queue->dropped = 0;
    return dropped;
}
