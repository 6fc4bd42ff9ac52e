/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands of the control socket.  Each is a row of a table: its name, the types of its
 * arguments and result, and its function.  Requests are checked against the row before the
 * function runs; query-commands, query-qmp-schema and error messages use the same rows.
 *
 * No command may wait for a disk, a server or a client on the control thread: commands that
 * start a job leave the opening of files to the job's thread, others run on the slow lane
 * (control_lane.h); both are answered later.
 *
 * Threads: the control thread, unless noted otherwise.  Layer: server. */
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

/* Listening sockets; borrowed from the server. */
struct control_sockets {
    const int *fds;
    unsigned n;
};

/* What commands work on. */
struct control_context {
    struct export_table *exports;
    struct throttle_groups *throttles;
    struct job_manager *jobs; /* of all exports, and those of no disk */
    /* the server's parameters, by which files are opened */
    const struct plugin_config *config;
    struct node_table nodes;           /* nodes added by blockdev-add */
    const struct block_shared *shared; /* for what commands open */
    /* for nodes that blockdev-add opens only to see whether it can */
    struct block_context trial;
    const _Atomic bool *give_up; /* becomes true at the server's end */
    void (*shut_down)(void *opaque);
    /* hand_over lets another server take over: 0 and the sockets to pass on, or -errno with
     * diag.  take_back: the other server has failed.  Both may be NULL; called on the lane. */
    int (*hand_over)(void *opaque, struct control_sockets *out, struct diag *diag);
    void (*take_back)(void *opaque);
    struct control_sockets sockets; /* that hand_over returned */
    uint64_t handover_ticket;  /* ticket of the handover in progress or done; 0: none */
    uint64_t take_back_ticket; /* ticket of the taking back in progress; 0: none */
    void *opaque;              /* for the three callbacks */
    bool quit_came;            /* the command `quit` was run */
    bool nbd_started;          /* nbd-server-start was run; the lane's */
    /* Runs commands that may take long.  NULL (in tests): they run at once, and a job counts
     * as started while it is still opening files. */
    struct control_lane *lane;
    uint64_t last_ticket;
    uint64_t awaited; /* ticket that the last command waits for; 0: it is answered */
};

/* ---- errors ---- */

#define CLASS_GENERIC    "GenericError"
#define CLASS_COMMAND    "CommandNotFound"
#define CLASS_DEVICE     "DeviceNotFound"
#define CLASS_NOT_ACTIVE "DeviceNotActive"

struct control_error {
    const char *class;
    struct diag diag; /* diag.err 0: the error has no errno */
};

/* Sets the error.  Both return NULL, for `return` in a command. */
json_t *control_fail(struct control_error *error, const char *class, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* For an error whose diag was set by a function that failed. */
json_t *control_fail_diag(struct control_error *error, const char *class);

/* Finds the export with this node name, or whose top node has this name.  The caller becomes a
 * user (export_put).  NULL: none.  From any thread. */
struct served_export *control_look_for_disk(struct control_context *ctx, const char *name);
/* The same; on NULL the error is set, in QMP's words for a device or for a node. */
struct served_export *control_find_device(struct control_context *ctx, const char *name,
                                          struct control_error *error) MUST_USE;
struct served_export *control_find_node(struct control_context *ctx, const char *name,
                                        struct control_error *error) MUST_USE;

/* The result of a command that is answered later. */
struct control_answer {
    uint64_t ticket;
    json_t *value; /* owned; NULL: the command failed */
    struct control_error error;
};

/* A new ticket, for work that a command starts and doesn't wait for. */
uint64_t control_ticket(struct control_context *ctx);

/* Returns what a command returns which has started such work. */
json_t *control_await(struct control_context *ctx, uint64_t ticket);

/* ---- the table ---- */

struct control_command {
    const char *name;
    const struct control_type *args;    /* an object; NULL: no arguments */
    const struct control_type *returns; /* NULL: an empty object */
    /* The value of "return", a new reference, or NULL with the error set.  `args` fit their
     * type. */
    json_t *(*run)(struct control_context *ctx, const json_t *args,
                   struct control_error *error);
};

/* The tables of all commands; each ends with a NULL name. */
extern const struct control_command control_server_commands[], control_query_commands[],
    control_start_commands[], control_job_commands[], control_bitmap_commands[],
    control_transaction_commands[], control_node_commands[], control_snapshot_commands[],
    control_backup_commands[], control_overlay_commands[], control_disk_commands[],
    control_create_commands[], control_nbd_server_commands[];

/* Runs a command whose arguments fit. */
json_t *control_run(const struct control_command *command, struct control_context *ctx,
                    const json_t *args, struct control_error *error);

/* Iterates over all commands: the one after `command` (NULL: the first).  NULL at the end. */
const struct control_command *control_next_command(const struct control_command *command);

/* ---- the protocol ---- */

json_t *control_greeting(void);

/* Runs one request (NULL: the input wasn't JSON) and returns the reply.  May set *negotiated.
 * NULL: the answer comes later, with the ticket ctx->awaited; control_reply makes the reply
 * from it. */
json_t *control_execute(struct control_context *ctx, bool *negotiated,
                        const json_t *request);

/* A reply with the result, which is taken over; if that is NULL, with the error.  id NULL: the
 * request had none. */
json_t *control_reply(json_t *result, const struct control_error *error, json_t *id);

/* The reply to input that can't be a request. */
json_t *control_refusal(const char *desc);

#endif
