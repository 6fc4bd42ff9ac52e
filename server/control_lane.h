/* SPDX-License-Identifier: BSD-3-Clause */
/* The slow lane: commands that may have to wait for requests of the disk's users (a bitmap
 * is added when every write under way has been seen) are carried out one after the other on
 * a thread of their own, so that the control thread, and with it all clients, goes on.
 *
 * Threads: new, submit and free on the control thread; `done` is called on the lane's.
 * Layer: server. */
#ifndef SERVER_CONTROL_LANE_H
#define SERVER_CONTROL_LANE_H

#include "control_cmds.h"

/* What came of it; the answer is taken over. */
typedef void control_lane_done(void *opaque, struct control_answer *answer);

/* NULL when memory is short.  The context is borrowed. */
struct control_lane *control_lane_new(struct control_context *ctx, control_lane_done *done,
                                      void *opaque) MUST_USE;

/* Queues a command, whose arguments are copied, under a ticket that its answer will have. 0
 * or -errno: then there will be no answer. */
int control_lane_submit(struct control_lane *lane, const struct control_command *command,
                        const json_t *args, uint64_t ticket) MUST_USE;

/* Waits for the command that is being carried out; those that aren't are refused.  NULL is
 * allowed. */
void control_lane_free(struct control_lane *lane);

#endif
