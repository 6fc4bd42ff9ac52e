/* SPDX-License-Identifier: BSD-3-Clause */
/* The server of one process: its parameters, its exports and what they share, the control
 * socket; and the order in which these are opened, started and closed.
 *
 * Threads: the main thread; but when the process ends while clients are still connected,
 * server_close runs on shutdown.c's thread.  Layer: server. */
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
    struct block_shared shared; /* shared by all exports: memory budget, timers */
    struct export_table exports;
    struct throttle_groups throttles; /* groups of limits; an export is in one at most */
    struct image_folder *folder;      /* of dir=; NULL: none */
    struct view *snapshot;            /* the snapshot of snapshot=, kept open; NULL: none */
    struct control *control;          /* NULL: none */
    struct handover handover;
    _Atomic bool ending;
};

void server_init(struct server *server);

/* In any state, also after a failed open.  Closes what is still open. */
void server_free(struct server *server);

/* Before nbdkit forks: opens the images (without changing a byte) and the control socket, as
 * the parameters say.  Returns 0 or -errno with diag; on failure nothing stays open. */
int server_open(struct server *server, struct diag *diag) MUST_USE;

/* Right before the fork: closes connections that wouldn't survive it (export_rest). */
void server_rest(struct server *server);

/* After the fork: starts all threads.  0 or -errno. */
int server_start(struct server *server) MUST_USE;

/* When clients have left: ends jobs, then closes everything that is open. */
void server_close(struct server *server);

/* ---- a server that hands over its disks and may take them back (handover.h) ---- */

/* Writes the set of exports that is served now into `config`, for server_reopen_exports.
 * Returns -EBUSY with diag when the parameters can't express it. */
int server_note_what_is_served(struct server *server, struct diag *diag) MUST_USE;

/* Nobody may use any of them. */
void server_close_exports(struct server *server);
/* Serves what server_note_what_is_served noted.  On -errno, with diag, those exports that could
 * be opened are served. */
int server_reopen_exports(struct server *server, struct diag *diag) MUST_USE;

#endif
