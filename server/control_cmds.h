/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands of the control socket.  Each is a row of a table: its name, what arguments
 * it takes, what it returns, and the function that does it.  What a request says is checked
 * against the row before the function sees it; query-commands, query-qmp-schema and error
 * messages read the same rows.
 *
 * Nothing here may wait for a disk, a server or a client: commands that start a job leave
 * the opening of files to its thread, others go to the slow lane; both are answered later.
 *
 * Threads: the control thread.  Layer: server. */
#ifndef SERVER_CONTROL_CMDS_H
#define SERVER_CONTROL_CMDS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "control_types.h"
#include "node_table.h"

struct control_lane;
struct export_table;
struct job_manager;
struct plugin_config;
struct served_export;
struct throttle_groups;

/* Of whom they are borrowed. */
struct control_sockets {
    const int *fds;
    unsigned n;
};

/* What commands work on. */
struct control_context {
    struct export_table *exports;
    struct throttle_groups *throttles;
    struct job_manager *jobs;           /* of all exports */
    const struct plugin_config *config; /* what is opened is opened as it says */
    struct node_table nodes;            /* that were added */
    const struct block_shared *shared;  /* of what is opened */
    struct block_context trial;  /* of nodes that are opened to see whether they can be */
    const _Atomic bool *give_up; /* becomes true at the server's end */
    void (*shut_down)(void *opaque);
    /* Another server takes over: 0, and which sockets it is to have; or -errno with diag.  And
     * nothing came of it.  May be NULL; on the lane. */
    int (*hand_over)(void *opaque, struct control_sockets *out, struct diag *diag);
    void (*take_back)(void *opaque);
    struct control_sockets sockets; /* that were handed over */
    uint64_t handover_ticket;       /* one began, and may be over; 0: it isn't */
    uint64_t take_back_ticket;      /* its end; 0: it hasn't begun */
    void *opaque;                   /* of all three */
    bool quit_came;                 /* the command */
    bool nbd_started;               /* by nbd-server-start; the lane's */
    /* Who carries out what may take long; NULL: it is waited for, and a job that is being
     * opened counts as started. */
    struct control_lane *lane;
    uint64_t last_ticket;
    uint64_t awaited; /* by the command that ran last; 0: nothing */
};

/* ---- errors ---- */

#define CLASS_GENERIC    "GenericError"
#define CLASS_COMMAND    "CommandNotFound"
#define CLASS_DEVICE     "DeviceNotFound"
#define CLASS_NOT_ACTIVE "DeviceNotActive"

struct control_error {
    const char *class;
    struct diag diag; /* err 0: there is no errno to tell */
};

/* Both return NULL, for `return` in a command. */
json_t *control_fail(struct control_error *error, const char *class, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* error->diag was set by a function that failed. */
json_t *control_fail_diag(struct control_error *error, const char *class);

/* The export that a command names as its device, or by a node: the caller becomes one of
 * its users (export_put).  NULL: there is none.  From any thread. */
struct served_export *control_look_for_disk(struct control_context *ctx, const char *name);
/* The same; NULL with the error said. */
struct served_export *control_find_device(struct control_context *ctx, const char *name,
                                          struct control_error *error) MUST_USE;
struct served_export *control_find_node(struct control_context *ctx, const char *name,
                                        struct control_error *error) MUST_USE;

/* What comes of a command whose answer isn't there at once. */
struct control_answer {
    uint64_t ticket;
    json_t *value; /* owned; NULL: it failed */
    struct control_error error;
};

/* A new ticket, for work that a command begins and doesn't wait for. */
uint64_t control_ticket(struct control_context *ctx);

/* For `return` in a command that has begun such work. */
json_t *control_await(struct control_context *ctx, uint64_t ticket);

/* ---- the table ---- */

struct control_command {
    const char *name;
    const struct control_type *args;    /* an object; NULL: none are taken */
    const struct control_type *returns; /* NULL: an empty object */
    /* The value of "return", new, or NULL with the error set.  `args` fit. */
    json_t *(*run)(struct control_context *ctx, const json_t *args,
                   struct control_error *error);
};

/* Tables that end with a NULL name. */
extern const struct control_command control_server_commands[], control_query_commands[],
    control_start_commands[], control_job_commands[], control_bitmap_commands[],
    control_transaction_commands[], control_node_commands[], control_snapshot_commands[],
    control_backup_commands[], control_overlay_commands[], control_disk_commands[],
    control_create_commands[], control_nbd_server_commands[];

/* Carries it out, with arguments that fit. */
json_t *control_run(const struct control_command *command, struct control_context *ctx,
                    const json_t *args, struct control_error *error);

/* The next of all commands; NULL: the first, and at the end. */
const struct control_command *control_next_command(const struct control_command *command);

/* ---- the protocol ---- */

json_t *control_greeting(void);

/* The reply to one request, which is NULL when it wasn't JSON.  Changes *negotiated.  NULL:
 * ctx->awaited is the ticket of the answer, from which control_reply makes one. */
json_t *control_execute(struct control_context *ctx, bool *negotiated,
                        const json_t *request);

/* A reply with the result, which is taken over, or the error when that is NULL; id NULL:
 * the request had none. */
json_t *control_reply(json_t *result, const struct control_error *error, json_t *id);

/* The reply to what can't be a request. */
json_t *control_refusal(const char *desc);

#endif
