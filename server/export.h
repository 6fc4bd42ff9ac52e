/* SPDX-License-Identifier: BSD-3-Clause */
/* An image that is served, from its opening to its end; and which node that is, for a job
 * may put another in its place while clients go on (export_replace).  The exports of a
 * server share its memory and its timers, and nothing else; export_table.h knows them all.
 *
 * Who uses the node: a request of a client, between export_enter and export_leave; a job,
 * which has a reference.  A node that was replaced is closed when all who could have seen it
 * have left.
 *
 * Threads: open and start before others know of it, close when nobody uses it any more, the
 * rest from any.  Nothing of an export may be called between its export_enter and
 * export_leave on the same thread, but enter and leave.  Layer: server. */
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
    char *name;          /* for clients: "" is the default */
    char *node_name;     /* on the control socket */
    char *default_view;  /* what its name means: NULL: the live disk; view.h */
    char *id;            /* of one that a command added; NULL: its node name is its id */
    char *description;   /* for clients; NULL: that of the image */
    bool never_writable; /* clients only read it, whatever the image allows */
    struct gate gate;    /* who uses the node, to change it or not */
    struct export_stats stats;
    struct node *_Atomic node; /* NULL: sealed, or being resized */
    /* Another file is served than the one that its name means: who closed it for being unused
     * would serve that one next. */
    _Atomic bool moved;
    /* What a closing would forget: it has bitmaps in memory; a command said how it is open. */
    _Atomic bool has_memory, has_choices;
    struct node *sealed;         /* what it was before; under the lock */
    _Atomic bool ending;         /* it is going to be sealed: nobody waits under the lock */
    _Atomic unsigned drains;     /* by so many jobs: changing requests wait */
    _Atomic unsigned references; /* of jobs, and of a claim; taken under lock */
    _Atomic bool read_only;      /* a client was told so: nbdkit has -r */
    /* Limits of what clients do: near what requests read anyway. */
    struct throttle_member throttle;

    struct lock lock; /* RANK_OPEN, spans I/O */
    /* under lock */
    pthread_cond_t drain_ended;
    struct node *replaced;  /* to be closed when the drain ends */
    struct node *closing;   /* replaced, and its users are waited for */
    struct node *left_open; /* replaced, but not closed: a request would not leave */
    struct list seats;      /* struct disk_seat: of jobs */
    uint64_t moves;         /* how often the node was replaced */
    struct list retired;    /* struct retired_node: replaced, and jobs may still use them */
    bool bitmaps_moved;     /* to be kept in the new image when the drain ends */
    bool is_open, locks;
    bool claimed;                 /* by who changes more than the disk: no job begins */
    unsigned actions;             /* nothing is replaced meanwhile */
    _Atomic bool wanted_writable; /* changed under lock */

    _Atomic bool read_only_told; /* that it can't be written to, in the log */
    /* the control thread's: what clients were told of */
    bool corruption_told, fatal_corruption_told;

    /* export_table.c's, under the lock of the table, which doesn't change */
    struct export_table *table; /* NULL: in none */
    struct list link, same_name, same_node_name;
    int life;
    unsigned users;       /* who has a pointer to it, the table included */
    unsigned jobs;        /* while there are any it isn't removed */
    bool of_folder;       /* closed when nobody has used it for a while */
    uint64_t idle_since;  /* clock_ms; 0: it is used */
    bool looked_at;       /* by who found it unused: is it the file of its name still? */
    struct diag *failure; /* why it could not be opened, for who waited for that */
};

/* One of that name (default_view may be set until it is started), which isn't open; NULL when
 * memory is short. */
struct served_export *export_new(const char *name, const char *node_name) MUST_USE;
static inline const char *export_id(const struct served_export *exp)
{
    return exp->id ? exp->id : exp->node_name;
}

/* It is closed, or was never open. */
void export_free(struct served_export *exp);

/* What is opened.  Borrowed until export_open returns. */
struct export_request {
    const char *file; /* or NULL, and this opens it, in the context: */
    int (*open)(void *opaque, struct block_context *ctx, struct node **out,
                struct diag *diag);
    void *opaque;
    const struct storage_folder *folder; /* the file lies in there; NULL: anywhere */
    const _Atomic bool *give_up;         /* as chain_options'; NULL: none */
    const struct plugin_config *config;  /* how; its `file` isn't looked at */
};

/* Opens and validates the image and its chain without changing a byte; writable_now: and
 * makes it writable.  `shared` lives longer than the export.  0 or -errno with diag; then
 * there is nothing to close. */
int export_open(struct served_export *exp, const struct export_request *request,
                const struct block_shared *shared, struct diag *diag) MUST_USE;

/* Before the fork: nothing is asked of servers, and nobody relies on what they have, until
 * export_start. */
void export_rest(struct served_export *exp);

/* After the fork: what is read from servers gets its threads, and what was writable is so again.
 * 0 or -errno. */
int export_start(struct served_export *exp) MUST_USE;

/* On the first writable connection. */
int export_make_writable(struct served_export *exp, struct diag *diag) MUST_USE;

/* For a command that changes the image: it is writable already, or can be made so.  As
 * export_check_changes. */
int export_open_for_changes(struct served_export *exp, struct diag *diag) MUST_USE;

/* On a connection that nbdkit says is read-only. */
void export_note_read_only(struct served_export *exp);

/* Most of what is dirty is written, so that who is to wait for the rest doesn't wait long; what
 * was written before is durable. */
int export_flush(struct served_export *exp, struct diag *diag) MUST_USE;

/* Is that the name of the node that is served now? */
bool export_is_called(struct served_export *exp, const char *node_name);

/* May a job change images of the chain?  0, or -EROFS with diag: nbdkit has -r, or may have
 * it for all that is known before the first client. */
int export_check_changes(struct served_export *exp, struct diag *diag) MUST_USE;

/* Is no request between enter and leave? */
bool export_is_idle(struct served_export *exp);

/* At the end: who reads from servers which don't answer, for a request or a job, fails from
 * here on.  Harmless when the export isn't open. */
void export_abandon_servers(struct served_export *exp);

/* At the end, before export_close: who enters from here on never returns; those who are
 * inside are waited for. */
void export_seal(struct served_export *exp);

/* The file name of the image that is served now, which isn't what was opened after a job's
 * end; the caller's to free; NULL: none, or no memory. */
char *export_filename(struct served_export *exp);

/* Everything flushed, closed and freed; again, or after a failed open: nothing.  No request
 * may run and no job have a reference. */
int export_close(struct served_export *exp);

/* ---- requests ---- */

struct export_use {
    struct served_export *exp;
    struct node *node; /* valid until export_leave */
    gate_ticket ticket;
};

struct export_use export_enter(struct served_export *exp);

/* For a request that changes the disk: waits while a job drains such requests. */
struct export_use export_enter_change(struct served_export *exp);

void export_leave(struct export_use *use);

/* Declares `use`, which is left at the end of the scope. */
#define EXPORT_USE(use, enter) \
    struct export_use use CLEANUP(export_leave) __attribute__((unused)) = enter

/* ---- actions ---- */

/* As export_enter; and until it is left the node stays what is served, and keeps its bitmaps: who
 * is to replace it waits.  Not for long, and not by who waits for a job. */
struct export_use export_enter_action(struct served_export *exp);
void export_leave_action(struct export_use *use);

#define EXPORT_ACTION(use, exp) \
    struct export_use use CLEANUP(export_leave_action) = export_enter_action(exp)

/* ---- jobs ---- */

/* With a seat the node may be used outside of requests; as its state says it keeps the node from
 * being replaced by another job, or goes along (jobs/disk_seat.h).  Leaving one, and catching
 * up, closes what nobody uses any more. */
struct node *export_take_seat(struct served_export *exp, struct disk_seat *seat) MUST_USE;
void export_set_seat(struct served_export *exp, struct disk_seat *seat,
                     enum disk_seat_state state);
void export_catch_up(struct served_export *exp, struct disk_seat *seat);
void export_leave_seat(struct served_export *exp, struct disk_seat *seat);

/* As a reference, for who changes what jobs rely on: -EBUSY when there is another job than the
 * `own` that the caller holds back, and who wants a reference waits until the claim has ended.
 * Not for long. */
int export_claim(struct served_export *exp, unsigned own, struct node **node,
                 struct diag *diag) MUST_USE;
void export_end_claim(struct served_export *exp);

/* By the holder of the claim, with changing requests drained: serves `overlay`, which it takes
 * over, from here on, with what was served until now below it.  It is no smaller, and active
 * if that is.  Who has a seat keeps the node that it has. */
void export_put_on_top(struct served_export *exp, struct node *overlay);

/* What may change of the image that is served while clients use it; changing requests wait.
 * -EBUSY while a job uses it. */
struct export_choices {
    const struct cache_mode *cache;
    bool discard_ignore;
    enum detect_zeroes detect_zeroes;
};
int export_set_choices(struct served_export *exp, const struct export_choices *choices,
                       struct diag *diag) MUST_USE;

/* Grows the disk: all requests wait for the moment.  Connections that are there go on with the
 * size that they know.  -EBUSY while a job uses it, or a request doesn't end. */
int export_resize(struct served_export *exp, uint64_t size, struct diag *diag) MUST_USE;

/* Changing requests wait from here on; returns when those in flight are done, and doesn't
 * wait for others, which may hang on a backing file.  Several jobs may drain at once:
 * requests go on when the last has ended its drain.  What export_replace has replaced is closed
 * then, by the thread that releases. */
void export_begin_drain(struct served_export *exp);
void export_end_drain(struct served_export *exp);

/* A job has the lock of a writer on an image of the chain, and needs it no longer: it's a
 * reader's again, unless the image is open for users who write. */
void export_downgrade_lock(struct served_export *exp, struct node *node);

/* Serves new_node from here on, as the user wanted the old served: its options for caching,
 * discards and zeroes are the new one's.  It can't be smaller (what is behind the old size
 * is for new connections); on success it is the export's. Its bitmaps go along
 * (node_bitmaps_move). All who
 * have a seat must follow, or be IDLE, as the caller is; those who follow are moved, and who LEAVES
 * is waited for, ten seconds at most (-EBUSY).  Nobody may have a view of what is to be closed
 * (-EBUSY).  The caller drains changing requests, and touches the old node no more.  What
 * isn't part of the new chain is closed by export_end_drain, when the requests that use it
 * have left. */
int export_replace(struct served_export *exp, struct node *new_node,
                   struct diag *diag) MUST_USE;

/* May images below the top be taken out?  0, or -EBUSY with diag: a job relies on one, or on
 * an image that was replaced and may have some of them below it. */
int export_check_layers(struct served_export *exp, struct diag *diag) MUST_USE;

/* Puts `below` (NULL: nothing), which it takes over on success and which may be part of what
 * is there, in the place of what lies below a layer of
 * the chain that is served; nobody may have a view of what
 * is to be closed (-EBUSY), and no job but the caller's rely on more of the chain than its top
 * (export_check_layers, -EBUSY). */
int export_replace_backing(struct served_export *exp, struct node *layer,
                           struct node *below, struct diag *diag) MUST_USE;

#endif
