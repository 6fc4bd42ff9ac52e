/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket: QMP for clients that may open it (qimg-control.pod describes the
 * interface).
 *
 * One thread, the control thread, polls the listening socket and all clients, and runs the
 * commands.  It never waits for a client: what a client doesn't read is queued, and a client
 * whose queue is full is disconnected.  Events come from any thread; they are queued, and
 * the control thread sends them.
 *
 * Commands name an export by its node name.  The server's jobs belong to the socket:
 * commands start them, and they end with it; each keeps its export from being removed.
 *
 * Threads: open, start and close on the main thread; control_event from any.  Layer: server. */
#ifndef SERVER_CONTROL_H
#define SERVER_CONTROL_H

#include <jansson.h>

#include "base/compiler.h"
#include "base/diag.h"

struct control;
struct control_sockets;
struct block_shared;
struct export_table;
struct plugin_config;
struct throttle_groups;

/* Borrowed until control_close. */
struct control_setup {
    const char *path;             /* absolute */
    struct export_table *exports; /* the exports that commands work on; outlives the jobs */
    struct throttle_groups *throttles;
    const struct block_shared *shared;
    const struct plugin_config *config;
    /* For the command `quit`: begins the server's orderly end. */
    void (*shut_down)(void *opaque);
    /* As in struct control_context (control_cmds.h). */
    int (*hand_over)(void *opaque, struct control_sockets *out, struct diag *diag);
    void (*take_back)(void *opaque);
    void *opaque;
};

/* Before the fork: listens on the socket, mode 0600.  Replaces a socket file that a server
 * left there which doesn't run any more, but no other file.  0 or -errno with diag. */
int control_open(const struct control_setup *setup, struct control **out,
                 struct diag *diag) MUST_USE;

/* After the fork: starts the control thread, which serves clients from now on.  0 or -errno. */
int control_start(struct control *control) MUST_USE;

/* The server's end has begun: the control thread stops serving, and does what control_close
 * waits for.  From any thread; may be called again. */
void control_begin_close(struct control *control);

/* Tells clients of the shutdown, cancels all jobs by force, waits for them, and sends what
 * clients take at once.  Requests may still call control_event and control_request_failed.
 * NULL is allowed. */
void control_stop(struct control *control);

/* As control_stop; then removes the socket and frees everything: no request may run.  NULL
 * is allowed. */
void control_close(struct control *control);

/* Sends an event to every client that has negotiated; takes over `data`.  Doesn't block. */
void control_event(struct control *control, const char *name, json_t *data);

/* A client's request failed with EIO.  The control thread checks whether an image was found
 * corrupt, and tells its clients.  From any thread; doesn't block. */
void control_request_failed(struct control *control);

#endif
