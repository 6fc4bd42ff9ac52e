/* SPDX-License-Identifier: BSD-3-Clause */
/* The slow lane: a thread that runs commands which may have to wait for requests in flight
 * (to add a bitmap, for example, every write in flight must have seen it).  It runs them
 * one after the other, so that the control thread, and with it all clients, can go on.
 *
 * Threads: new, submit and free on the control thread; `done` is called on the lane's.
 * Layer: server. */
#ifndef SERVER_CONTROL_LANE_H
#define SERVER_CONTROL_LANE_H

#include "control_cmds.h"

/* The result of a command; the callee takes over the answer's value. */
typedef void control_lane_done(void *opaque, struct control_answer *answer);

/* NULL when memory is short.  The context is borrowed. */
struct control_lane *control_lane_new(struct control_context *ctx, control_lane_done *done,
                                      void *opaque) MUST_USE;

/* Queues a command.  Its arguments are copied; its answer will have this ticket.  On -errno
 * there will be no answer. */
int control_lane_submit(struct control_lane *lane, const struct control_command *command,
                        const json_t *args, uint64_t ticket) MUST_USE;

/* Waits for the command that is running; queued ones fail.  NULL is allowed. */
void control_lane_free(struct control_lane *lane);

#endif
