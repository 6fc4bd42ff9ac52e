/* SPDX-License-Identifier: BSD-3-Clause */
/* Transactions: several actions at one point of the disks' writes, or none of them.
 *
 * An action goes through
 *
 *     open -> prepare -> commit -> finish
 *                 \----> abort --/
 *
 * All are opened first, while clients write.  Then the changing requests of every export
 * that an action names are drained, and all are prepared in their order (those of a kind that
 * prepares last behind the others).  When each could
 * be, each is committed, in the same order; else those that were prepared are aborted,
 * the last first.  The drains end, and every action that was opened is finished.
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
 * An action's node stays open from prepare to commit or abort.  Another may take its place meanwhile,
 * at a job's end, unless the action takes a reference to the export.  Commit may put
 * another in its place itself (export_replace): the old one is closed after the drain.
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
    bool groups;       /* it starts a job, which completion-mode=grouped is about */
    /* Prepared after all others, and aborted before them: from then on to commit or abort
     * nobody gets space in its image. */
    bool prepares_last;

    /* Each is optional. */
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
    struct node *node;         /* of exp; from prepare to commit or abort */
    bool prepared;
    void *state; /* the kind's own; NULL at first */
};

/* Is the completion mode grouped: does the failure of one job cancel the others? */
bool transaction_is_grouped(const struct transaction *transaction);

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
