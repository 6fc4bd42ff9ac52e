/* SPDX-License-Identifier: BSD-3-Clause */
/* x-qimg-handover: another server asks for the disks and the sockets of this one.  While it
 * starts this one waits: for `quit`, or for the end of the connection that asked, upon which it
 * takes all back.  Layer: server. */
#ifndef SERVER_CONTROL_HANDOVER_H
#define SERVER_CONTROL_HANDOVER_H

#include "control_cmds.h"

extern const struct control_command control_handover_commands[];

/* What came of the command is known: its answer is about to be sent. */
void control_note_handover(struct control_context *ctx,
                           const struct control_answer *answer);

/* Who asked is gone: on the lane the server takes all back. */
void control_take_back(struct control_context *ctx);

#endif
