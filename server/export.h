/* SPDX-License-Identifier: BSD-3-Clause */
/* An export: one served image, from its opening to its closing.  A job may replace the node that
 * is served while clients go on (export_replace).  The exports of a server share its memory
 * budget, its timers and read-only layers; otherwise they are independent.  export_table.h lists
 * them.
 *
 * The node is used by requests of clients, between export_enter and export_leave, and by jobs,
 * which hold a reference (a seat).  A node that was replaced is closed when all requests and jobs
 * that may still use it have ended.
 *
 * Threads: export_open and export_start before other threads know of the export, export_close when
 * nobody uses it any more, everything else from any thread.  Between export_enter and export_leave
 * a thread may call nothing else of the same export but enter and leave.  Layer: server. */
#ifndef SERVER_EXPORT_H
#define SERVER_EXPORT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/gate.h"
#include "base/list.h"
#include "base/lock.h"
#include "block/node.h"
#include "export_stats.h"
#include "jobs/disk_seat.h"
#include "plugin_config.h"
#include "throttle_group.h"

struct export_table;

struct served_export {
    struct block_context ctx;
    char *name;      /* the NBD export name; "" is the default export */
    char *node_name; /* its name on the control socket */
    /* the view that its name stands for; NULL: the live disk (view.h) */
    char *default_view;
    char *id; /* of an export that a command added; NULL: the node name is the id */
    char *description;   /* shown to clients; NULL: the image's */
    bool never_writable; /* clients can't write, even if the image could be written to */
    struct gate gate;    /* requests that use the node; changing ones are counted apart */
    struct export_stats stats;
    struct node *_Atomic node; /* NULL: sealed, or just being resized */
    /* The node that is served isn't the file of the export's name (dir=) any more.  So the export
     * isn't closed when unused: reopening it by name would serve the wrong file. */
    _Atomic bool moved;
    /* State that closing would lose: bitmaps in memory; choices made by a command (cache,
     * discards). */
    _Atomic bool has_memory, has_choices;
    struct node *sealed;     /* the node that export_seal took away; under the lock */
    _Atomic bool ending;     /* it is about to be sealed: waits under the lock give up */
    _Atomic unsigned drains; /* how many jobs drain; while > 0 changing requests wait */
    _Atomic unsigned references; /* seats of jobs, and a claim; changed under the lock */
    _Atomic bool read_only;      /* nbdkit opened a connection read-only: it has -r */
    /* Limits of clients' requests.  Beside fields that each request reads anyway. */
    struct throttle_member throttle;

    struct lock lock; /* RANK_OPEN; may be held during I/O */
    /* under lock */
    pthread_cond_t drain_ended;
    struct node *replaced; /* a node to be closed when the drain ends */
    struct node *closing;  /* a replaced node whose requests are being waited for */
    /* a replaced node that stays open, as a request on it didn't end */
    struct node *left_open;
    struct list seats;   /* struct disk_seat: seats of jobs */
    uint64_t moves;      /* how many times the node was replaced */
    struct list retired; /* struct retired_node: replaced nodes that jobs may still use */
    /* bitmaps came from another image: to be stored when the drain ends */
    bool bitmaps_moved;
    bool is_open, locks;
    bool claimed;     /* a command changes more than the data: no job may begin */
    unsigned actions; /* running actions (export_enter_action); the node isn't replaced */
    _Atomic bool wanted_writable; /* changed under lock */

    _Atomic bool read_only_told; /* it was logged that it can't be written to */
    /* the control thread's: which events about corruption were sent */
    bool corruption_told, fatal_corruption_told;

    /* export_table.c's, under the table's lock; `table` never changes */
    struct export_table *table; /* NULL: in no table */
    struct list link, same_name, same_node_name;
    int life;
    unsigned users;       /* holders of a pointer, the table included */
    unsigned jobs;        /* jobs on it; while > 0 it can't be removed */
    bool of_folder;       /* closed when unused for the linger time */
    uint64_t idle_since;  /* clock_ms; 0: in use */
    bool looked_at;       /* a client checks whether it is still the file of its name */
    struct diag *failure; /* why it couldn't be opened; for threads that waited for it */
};

/* A new export that isn't open.  default_view may be set until it is started.  NULL when memory is
 * short. */
struct served_export *export_new(const char *name, const char *node_name) MUST_USE;
static inline const char *export_id(const struct served_export *exp)
{
    return exp->id ? exp->id : exp->node_name;
}

/* The export must be closed, or never have been opened. */
void export_free(struct served_export *exp);

/* What to open.  Borrowed until export_open returns. */
struct export_request {
    const char *file; /* path or RBD name; or NULL, then this opens the node: */
    int (*open)(void *opaque, struct block_context *ctx, struct node **out,
                struct diag *diag);
    void *opaque;
    const struct storage_folder *folder; /* `file` must lie in it; NULL: anywhere */
    const _Atomic bool *give_up; /* as in struct chain_options; NULL: never given up */
    const struct plugin_config *config; /* options; its `file` is ignored */
};

/* Opens and checks the image and its chain without changing a byte; with writable_now it is then
 * made writable.  `shared` must outlive the export.  Returns 0 or -errno with diag; on failure
 * there is nothing to close. */
int export_open(struct served_export *exp, const struct export_request *request,
                const struct block_shared *shared, struct diag *diag) MUST_USE;

/* Before nbdkit forks: closes connections that wouldn't survive that (to Ceph); an image there
 * that was active is flushed and inactive then.  Until export_start the export isn't used. */
void export_rest(struct served_export *exp);

/* After the fork: connects again, starts the threads of connections to servers, and activates the
 * image if it is wanted writable.  0 or -errno. */
int export_start(struct served_export *exp) MUST_USE;

/* Called for the first writable connection. */
int export_make_writable(struct served_export *exp, struct diag *diag) MUST_USE;

/* For a command that changes the image: makes it writable unless it is.  Fails like
 * export_check_changes. */
int export_open_for_changes(struct served_export *exp, struct diag *diag) MUST_USE;

/* Called for a connection that nbdkit opened read-only. */
void export_note_read_only(struct served_export *exp);

/* Flushes most of what is dirty before a drain, so that the flush within the drain is short.  What
 * was written before the call is durable.  0 or -errno with diag. */
int export_flush(struct served_export *exp, struct diag *diag) MUST_USE;

/* Does the node that is served now have that node name? */
bool export_is_called(struct served_export *exp, const char *node_name);

/* May a job change images of the chain?  Returns 0, or -EROFS with diag when nbdkit has -r.
 * Before the first client that can't be known for certain; then a command line that may contain -r
 * counts. */
int export_check_changes(struct served_export *exp, struct diag *diag) MUST_USE;

/* Is no request between enter and leave? */
bool export_is_idle(struct served_export *exp);

/* At the server's end: requests and jobs that wait for a server that doesn't answer (below the
 * top) fail from now on.  Does nothing if the export isn't open. */
void export_abandon_servers(struct served_export *exp);

/* At the server's end, before export_close: threads that enter from now on never return.  Waits
 * for the requests that are inside. */
void export_seal(struct served_export *exp);

/* The file name of the image that is served now, which differs from the opened one after a job has
 * replaced it.  The caller frees it.  NULL: not open, or no memory. */
char *export_filename(struct served_export *exp);

/* Flushes, closes and frees everything.  Does nothing if the export isn't open.  No request may
 * run and no job may have a seat.  0 or -errno. */
int export_close(struct served_export *exp);

/* ---- requests ---- */

struct export_use {
    struct served_export *exp;
    struct node *node; /* valid until export_leave */
    gate_ticket ticket;
};

struct export_use export_enter(struct served_export *exp);

/* For a request that changes the disk: waits while a job drains changing requests. */
struct export_use export_enter_change(struct served_export *exp);

void export_leave(struct export_use *use);

/* Declares `use`, and leaves the export at the end of the scope. */
#define EXPORT_USE(use, enter) \
    struct export_use use CLEANUP(export_leave) __attribute__((unused)) = enter

/* ---- actions ---- */

/* As export_enter; besides, until it is left, the node isn't replaced and keeps its bitmaps:
 * export_replace waits.  Must be short, and must not be held while waiting for a job. */
struct export_use export_enter_action(struct served_export *exp);
void export_leave_action(struct export_use *use);

#define EXPORT_ACTION(use, exp) \
    struct export_use use CLEANUP(export_leave_action) = export_enter_action(exp)

/* ---- jobs ---- */

/* A seat lets a job use the node outside of requests.  The seat's state says whether another job
 * may replace the node and move this one (jobs/disk_seat.h).  take returns the node.  catch_up
 * says that the job uses no earlier node any more; it and leave close nodes that became unused. */
struct node *export_take_seat(struct served_export *exp, struct disk_seat *seat) MUST_USE;
void export_set_seat(struct served_export *exp, struct disk_seat *seat,
                     enum disk_seat_state state);
void export_catch_up(struct served_export *exp, struct disk_seat *seat);
void export_leave_seat(struct served_export *exp, struct disk_seat *seat);

/* For a command that changes what jobs rely on.  Returns -EBUSY with diag if more than `own`
 * references exist (those of the caller's own jobs, which don't run yet).  While claimed,
 * export_take_seat waits; so a claim must be short. */
int export_claim(struct served_export *exp, unsigned own, struct node **node,
                 struct diag *diag) MUST_USE;
void export_end_claim(struct served_export *exp);

/* The caller has the claim and drains changing requests.  From now on `overlay`, which becomes the
 * export's, is served, with the old node below it.  The overlay must not be smaller, and must be
 * active if the old node is.  Seats stay on the old node (disk_seat.below). */
void export_put_on_top(struct served_export *exp, struct node *overlay);

/* Options that can be changed while clients use the image.  Waits for changing requests.  -EBUSY
 * while a job uses the image. */
struct export_choices {
    const struct cache_mode *cache;
    bool discard_ignore;
    enum detect_zeroes detect_zeroes;
};
int export_set_choices(struct served_export *exp, const struct export_choices *choices,
                       struct diag *diag) MUST_USE;

/* Grows the disk; all requests wait meanwhile.  Existing connections keep the size that they were
 * told.  -EBUSY while a job uses the image, or if a request doesn't end in time. */
int export_resize(struct served_export *exp, uint64_t size, struct diag *diag) MUST_USE;

/* From begin on changing requests wait; it returns when those in flight have ended.  It doesn't
 * wait for reads, which may hang on a backing file's server.  Several jobs may drain at once;
 * changing requests continue when the last drain has ended.  export_end_drain also closes what
 * export_replace has replaced, on the calling thread. */
void export_begin_drain(struct served_export *exp);
void export_end_drain(struct served_export *exp);

/* A job no longer needs the writer's lock that it has on an image of the chain: turns it into a
 * reader's lock, unless the image is open for clients that write. */
void export_downgrade_lock(struct served_export *exp, struct node *node);

/* Serves new_node from now on.  The caller drains changing requests, and doesn't use the old node
 * after success; then new_node is the export's.
 *
 * new_node must not be smaller (what lies behind the old size is for new connections).  It
 * inherits the old node's choices for caching, discards and zeroes, and its bitmaps
 * (node_bitmaps_move).  A seat that FOLLOWS is moved; the caller's own is IDLE; a seat that LEAVES
 * is waited for, for ten seconds at most (-EBUSY).  -EBUSY also if a client has a view of a node
 * that would be closed.  The nodes of the old chain that aren't part of the new one are closed by
 * export_end_drain, when the requests that use them have ended. */
int export_replace(struct served_export *exp, struct node *new_node,
                   struct diag *diag) MUST_USE;

/* May images below the top be taken out?  Returns -EBUSY with diag if a job reads one of them, or
 * may use a replaced image that has some of them below it. */
int export_check_layers(struct served_export *exp, struct diag *diag) MUST_USE;

/* Replaces what lies below `layer`, a layer of the served chain, by `below` (NULL: nothing).
 * `below` may be part of what lies there now; on success it is the export's.  -EBUSY with diag: a
 * client has a view of a node that would be closed, or a job other than the caller's relies on
 * more of the chain than its top (export_check_layers).  Waits until no request uses what was
 * taken out, and closes that. */
int export_replace_backing(struct served_export *exp, struct node *layer,
                           struct node *below, struct diag *diag) MUST_USE;

#endif
