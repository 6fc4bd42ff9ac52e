/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that add, remove and list exports.  Layer: server. */
#ifndef SERVER_CONTROL_EXPORTS_H
#define SERVER_CONTROL_EXPORTS_H

#include "control_cmds.h"

/* block-export-add and -del, with arguments that fit.  On the lane. */
json_t *control_add_export(struct control_context *ctx, const json_t *args,
                           struct control_error *error);
json_t *control_del_export(struct control_context *ctx, const char *id, bool hard,
                           struct control_error *error);
extern const char *const control_export_del_modes[]; /* "safe", "hard", NULL */

/* For the lane, as they open and close images; and those that wait for nothing. */
extern const struct control_command control_export_commands[], control_export_queries[];

#endif
