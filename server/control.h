/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket: QMP for whoever may open it (interfaces in qimg-control.pod).
 *
 * One thread polls the listening socket and all clients, and runs the commands.  Nobody
 * waits for a client: what it doesn't read is queued, and when the queue is full it is
 * closed.  Events come from any thread; they are noted, and handed out by the thread.
 *
 * Commands name an export by its node name.  The jobs of the server belong to the socket:
 * they are started by commands and end with it; each keeps its export from being removed.
 *
 * Threads: open, start and close on the main thread; control_event from any.  Layer:
 * server. */
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
    struct export_table *exports; /* what commands are about; outlives the jobs */
    struct throttle_groups *throttles;
    const struct block_shared *shared;
    const struct plugin_config *config;
    void (*shut_down)(
        void *opaque); /* the command `quit`: begins the server's orderly end */
    /* As in control_cmds.h. */
    int (*hand_over)(void *opaque, struct control_sockets *out, struct diag *diag);
    void (*take_back)(void *opaque);
    void *opaque;
};

/* Before the fork: listens on the socket, mode 0600.  What a server that is gone left there
 * is replaced, anything else is not. */
int control_open(const struct control_setup *setup, struct control **out,
                 struct diag *diag) MUST_USE;

/* After the fork: serves clients from now on. */
int control_start(struct control *control) MUST_USE;

/* The end has begun: has the control thread do what control_close waits for.  From any
 * thread, or twice. */
void control_begin_close(struct control *control);

/* Tells clients of the shutdown, cancels all jobs by force and waits for them, and hands out
 * what can be at once.  What calls it from requests is still allowed.  NULL is, too. */
void control_stop(struct control *control);

/* As control_stop, and removes the socket and frees everything: no request may run. */
void control_close(struct control *control);

/* Sends an event to every client that negotiated; `data` is taken over.  Doesn't block. */
void control_event(struct control *control, const char *name, json_t *data);

/* A client's request failed with EIO: clients are told when that is because the image is
 * corrupt.  From any thread; doesn't block. */
void control_request_failed(struct control *control);

#endif
