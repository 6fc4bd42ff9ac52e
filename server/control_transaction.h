/* SPDX-License-Identifier: BSD-3-Clause */
/* Transactions: several actions at one point of the disks' writes, or none of them.
 *
 * An action goes through
 *
 *     open -> prepare -> commit -> finish
 *                 \----> abort --/
 *
 * All are opened first, while clients write (those of a kind that starts jobs before the
 * others).  Then the changing requests of every export
 * that an action names are drained, and all are prepared in their order (those of a kind that
 * prepares last behind the others).  When each could
 * be, each is committed, in the same order; else those that were prepared are aborted,
 * the last first.  The drains end, and every action that was opened is finished, the last first,
 * and those of a kind that starts jobs behind the others.
 *
 * To add a kind of action:
 *   - a row `const struct transaction_kind` beside the command that does the same by itself,
 *     and its address in the list of control_transaction.c;
 *   - `open` does what may take long or wait for others: files, connections, memory;
 *   - `prepare` judges what only holds while nobody writes, and may change things that
 *     `abort` undoes.  What a later action builds on (a bitmap that it merges into) has to
 *     be there from here on;
 *   - `commit` can't fail.  What needs no undoing when done here, where all was judged, is
 *     done here;
 *   - `finish` frees action->state, and does what may take long once it is decided;
 *   - whatever must be nobody else's from prepare on (a bitmap) is held:
 *     transaction_hold.  An action finds what an earlier one of its transaction holds free
 *     for itself.
 * A command that does one action by itself is control_run_action: nothing is drained then,
 * unless the kind says so.
 *
 * An action's node stays what is served, and open, from prepare to commit or abort: a job that
 * ends waits with its own (export_enter_action).  Commit may put another on top of it.
 *
 * Threads: the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_TRANSACTION_H
#define SERVER_CONTROL_TRANSACTION_H

#include <stdbool.h>

#include "control_cmds.h"

struct node;
struct transaction;
struct transaction_action;

/* Functions that return a bool: false when it failed, with the error said. */
struct transaction_kind {
    struct control_variant variant; /* its name, and ACTION(what `data` takes) */
    /* Which argument names the export whose changes are drained: "node" or "device" (for
     * which "node-name" can stand); NULL: none is. */
    const char *export_arg;
    bool drains_alone; /* and also where it is a command by itself */
    /* It starts a job, which completion-mode=grouped is about.  Opened before the others, which
     * may claim the disk: only such jobs are let be then. */
    bool starts_job;
    /* Prepared after all others, and aborted before them: from then on to commit or abort
     * nobody gets space in its image. */
    bool prepares_last;

    bool takes_made;   /* its node may be one that another action makes */
    bool takes_layers; /* or a layer below the top, which `open` looks for */

    /* Each is optional. */
    /* Opened: the node of that name that it is to put on top of its export, or to which its job
     * is to write; NULL: none. */
    struct node *(*made)(const struct transaction_action *action, const char *name);
    bool (*open)(struct transaction_action *action, struct control_error *error);
    bool (*prepare)(struct transaction_action *action, struct control_error *error);
    void (*commit)(struct transaction_action *action);
    void (*abort)(struct transaction_action *action); /* undoes prepare */
    void (*finish)(struct transaction_action *action, bool committed);
};

#define ACTION(table) \
    OBJECT(((const struct control_arg[]){{"data", OBJECT(table), true}, {0}}))

struct transaction_action {
    const struct transaction_kind *kind;
    struct transaction *transaction;
    struct control_context *ctx;
    const json_t *args;        /* its `data`, which fits */
    struct served_export *exp; /* that export_arg names; a user of it; NULL: none */
    struct node *made; /* NULL, or what is meant is this, which another action makes */
    /* From prepare to commit or abort: what is served of exp; and that, or `made`. */
    struct node *served, *node;
    bool opened, prepared;
    void *state; /* the kind's own; NULL at first */
};

/* Whose jobs end together, as the completion mode is grouped; borrowed.  NULL: it isn't. */
struct job_group *transaction_group(const struct transaction *transaction);

/* The last one before it of its kind on the same export, which was opened and is finished behind it;
 * NULL: there is none. */
struct transaction_action *transaction_previous(const struct transaction_action *action);

/* How many jobs its actions have begun on the export. */
unsigned transaction_count_jobs(const struct transaction *transaction,
                                const struct served_export *exp);

/* Calls release(what) when all is finished (after commit or abort).  False: no memory, and
 * the error is said. */
bool transaction_hold(struct transaction *transaction, void *what,
                      void (*release)(void *what), struct control_error *error);
bool transaction_holds(const struct transaction *transaction, const void *what);
/* It is not released: what was held is gone. */
void transaction_forget(struct transaction *transaction, const void *what);

/* One action, as a command: {} or NULL with the error said. */
json_t *control_run_action(struct control_context *ctx, const struct transaction_kind *kind,
                           const json_t *args, struct control_error *error);

#endif
