/* SPDX-License-Identifier: BSD-3-Clause */
/* The server in one process: its parameters, its exports and what they share, the control
 * socket; and the order in which they begin and end.
 *
 * Threads: the main one; the end without clients runs on shutdown.c's.  Layer: server. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include "base/compiler.h"
#include "base/diag.h"
#include "block/node.h"
#include "export_table.h"
#include "handover.h"
#include "plugin_config.h"

struct control;

struct server {
    struct plugin_config config;
    struct block_shared shared; /* of all exports: memory and timers */
    struct export_table exports;
    struct throttle_groups throttles; /* limits that exports have, or share */
    struct image_folder *folder;      /* dir=; NULL: none */
    struct view *snapshot;            /* what snapshot= names is kept open; NULL: nothing */
    struct control *control;          /* NULL: none */
    struct handover handover;
    _Atomic bool ending;
};

void server_init(struct server *server);

/* Whatever has happened before; closes what is open. */
void server_free(struct server *server);

/* Before the fork: opens the images, changing no byte, and the control socket, as the
 * parameters say.  0 or -errno with diag; then nothing is open. */
int server_open(struct server *server, struct diag *diag) MUST_USE;

/* Right before the fork: lets go of what it wouldn't survive. */
void server_rest(struct server *server);

/* After the fork: all threads.  0 or -errno. */
int server_start(struct server *server) MUST_USE;

/* When clients have left: ends jobs, and closes everything that is open. */
void server_close(struct server *server);

/* ---- a server that may go on afterwards (handover.h) ---- */

/* What is served by now, in the parameters, for server_reopen_exports.  -EBUSY with diag: other
 * parameters weren't meant for that. */
int server_note_what_is_served(struct server *server, struct diag *diag) MUST_USE;

/* Nobody uses any. */
void server_close_exports(struct server *server);
/* 0, or -errno with diag and what could be opened is served. */
int server_reopen_exports(struct server *server, struct diag *diag) MUST_USE;

#endif
