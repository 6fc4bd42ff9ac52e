/* SPDX-License-Identifier: BSD-3-Clause */
/* x-qimg-handover: another server asks for the disks and sockets of this one.  While that
 * starts, this one waits, either for `quit`, or for the end of the asking client's connection;
 * in that case it takes everything back.  Layer: server. */
#ifndef SERVER_CONTROL_HANDOVER_H
#define SERVER_CONTROL_HANDOVER_H

#include "control_cmds.h"

extern const struct control_command control_handover_commands[];

/* The command has ended; its answer is about to be sent. */
void control_note_handover(struct control_context *ctx,
                           const struct control_answer *answer);

/* The client that asked has left: the server takes everything back, on the lane. */
void control_take_back(struct control_context *ctx);

#endif
