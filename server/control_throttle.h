/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits in the arguments and results of commands.  Layer: server. */
#ifndef SERVER_CONTROL_THROTTLE_H
#define SERVER_CONTROL_THROTTLE_H

#include "control_cmds.h"
#include "throttle.h"

extern const struct control_command control_throttle_commands[];

/* The type of the member "throttling" of blockdev-reopen. */
extern const struct control_type control_throttling;

/* For tables of results: the members of a limit beside its average. */
#define LIMIT_INFO(name)                \
    {name "_max", SIZE, false},         \
    {                                   \
        name "_max_length", SIZE, false \
    }

/* Limits that a command gives, as QEMU's ThrottleLimits, and the group.  Borrows from the
 * JSON. */
struct throttle_choice {
    struct throttle_config config;
    const char *group; /* NULL: not given */
};

/* Reads a value that fits control_throttling.  False with the error set. */
bool control_read_throttling(const json_t *throttling, struct throttle_choice *out,
                             struct control_error *error);

/* Sets the limits; a choice without limits removes those of the disk.  name: the disk's, for
 * a group of its own.  False with the error set. */
bool control_set_limits(struct control_context *ctx, struct served_export *exp,
                        const struct throttle_choice *choice, const char *name,
                        struct control_error *error);

/* Adds the limits, if any, to `inserted` of query-block. */
void control_add_limits(struct served_export *exp, json_t *device);

#endif
