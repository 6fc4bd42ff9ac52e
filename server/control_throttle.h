/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits as commands give them, and as they are told.  Layer: server. */
#ifndef SERVER_CONTROL_THROTTLE_H
#define SERVER_CONTROL_THROTTLE_H

#include "control_cmds.h"
#include "throttle.h"

extern const struct control_command control_throttle_commands[];

/* A member "throttling" of blockdev-reopen. */
extern const struct control_type control_throttling;

/* For tables: what is told of a limit beside its average. */
#define LIMIT_INFO(name)                \
    {name "_max", SIZE, false},         \
    {                                   \
        name "_max_length", SIZE, false \
    }

/* What it says, by the names of QEMU's ThrottleLimits and
 * its group.  Borrowed from the JSON. */
struct throttle_choice {
    struct throttle_config config;
    const char *group; /* NULL: it isn't said */
};

/* Of one that was judged by that type.  False with the error said. */
bool control_read_throttling(const json_t *throttling, struct throttle_choice *out,
                             struct control_error *error);

/* No limits among those chosen: it has none from here on.  `name`: the disk's, for its group.
 * False with the error said. */
bool control_set_limits(struct control_context *ctx, struct served_export *exp,
                        const struct throttle_choice *choice, const char *name,
                        struct control_error *error);

/* For `inserted` of query-block: the limits, if there are any. */
void control_add_limits(struct served_export *exp, json_t *device);

#endif
