/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that add, remove and list exports.  Layer: server. */
#ifndef SERVER_CONTROL_EXPORTS_H
#define SERVER_CONTROL_EXPORTS_H

#include "control_cmds.h"

/* block-export-add and block-export-del; arguments must fit.  On the lane. */
json_t *control_add_export(struct control_context *ctx, const json_t *args,
                           struct control_error *error);
json_t *control_del_export(struct control_context *ctx, const char *id, bool hard,
                           struct control_error *error);
extern const char *const control_export_del_modes[]; /* "safe", "hard", NULL */

/* Commands that open and close images, which run on the lane; and those that don't wait. */
extern const struct control_command control_export_commands[], control_export_queries[];

#endif
