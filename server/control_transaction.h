/* SPDX-License-Identifier: BSD-3-Clause */
/* Transactions: several actions at one point of the disks' writes, or none of them.
 *
 * An action goes through these steps:
 *
 *      open -> prepare -> commit -> finish
 *                  \----> abort --/
 *
 *   1.  All actions are opened, while clients write: first those of kinds that start jobs, then
 *       the others.
 *   2.  The changing requests of every export that an action names are drained.
 *   3.  All are prepared, in their order, those of kinds that prepare last behind the others.
 *   4.  If all preparations succeeded, all are committed, in their order.  Otherwise the prepared
 *       ones are aborted in reverse order.
 *   5.  The drains end.  Every action that was opened is finished, in reverse order, those of
 *       kinds that start jobs behind the others.
 *
 * To add a kind of action:
 *
 *   -  Add a row `const struct transaction_kind` beside the command that does the same by itself,
 *      and its address to the list in control_transaction.c.
 *   -  `open` does what may take long or wait for others: files, connections, memory.
 *   -  `prepare` checks what can only be relied on while nobody writes, and may change things that
 *      `abort` undoes.  What a later action builds on (a bitmap that it merges into) must exist
 *      from here on.
 *   -  `commit` can't fail.  Changes that need no undoing are best made here.
 *   -  `finish` frees action->state, and does what may take long after the decision.
 *   -  A thing that nobody else may use from prepare on (a bitmap) is held with transaction_hold.
 *      Later actions of the same transaction may use what an earlier one holds.
 *
 * A command for a single action is control_run_action, which drains only if the kind says so.
 *
 * From prepare to commit or abort the node of an action stays open and stays what is served: a job
 * that wants to replace it waits (export_enter_action).  Commit may put another node on top of it.
 *
 * Threads: the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_TRANSACTION_H
#define SERVER_CONTROL_TRANSACTION_H

#include <stdbool.h>

#include "control_cmds.h"

struct node;
struct transaction;
struct transaction_action;

/* Functions that return bool: false means failure, with the error set. */
struct transaction_kind {
    struct control_variant variant; /* its name, and ACTION(type of its `data`) */
    /* The argument that names the export to be drained: "node" or "device" (instead of which
     * "node-name" may be given).  NULL: the action is about no export. */
    const char *export_arg;
    bool drains_alone; /* drains also when run as a command by itself */
    /* It starts a job; completion-mode=grouped applies to it.  Opened before the others, since
     * these may claim the disk, which tolerates only jobs of the own transaction. */
    bool starts_job;
    /* Prepared after all others and aborted before them: from its prepare to commit or abort
     * nobody may allocate space in its image. */
    bool prepares_last;

    bool takes_made;   /* its node may be one that another action makes */
    bool takes_layers; /* its node may be a layer below the top; `open` looks for it */

    /* Each of the following may be NULL. */
    /* After open: the node of that name which this action will put on top of its export, or which
     * is its job's target.  NULL: neither. */
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
    const json_t *args; /* its `data`; fits the type */
    /* the export that export_arg names; the action is a user; NULL: none */
    struct served_export *exp;
    /* the node that another action makes and this one means; NULL: the export's */
    struct node *made;
    /* From prepare to commit or abort. served: the node that the export serves; node: `made`, or
     * else that. */
    struct node *served, *node;
    bool opened, prepared;
    void *state; /* the kind's own; initially NULL */
};

/* The group of the transaction's jobs if its completion mode is grouped; borrowed.  NULL
 * otherwise. */
struct job_group *transaction_group(const struct transaction *transaction);

/* The last opened action before this one of the same kind on the same export; it is finished after
 * this one.  NULL: none. */
struct transaction_action *transaction_previous(const struct transaction_action *action);

/* How many jobs the transaction's actions have started on the export. */
unsigned transaction_count_jobs(const struct transaction *transaction,
                                const struct served_export *exp);

/* Notes that the transaction holds `what`; release(what) is called after commit or abort.  False:
 * no memory; the error is set. */
bool transaction_hold(struct transaction *transaction, void *what,
                      void (*release)(void *what), struct control_error *error);
bool transaction_holds(const struct transaction *transaction, const void *what);
/* Ends a hold without calling release: the thing is gone, or somebody else's now. */
void transaction_forget(struct transaction *transaction, const void *what);

/* Runs one action as a command.  Returns {}, or NULL with the error set. */
json_t *control_run_action(struct control_context *ctx, const struct transaction_kind *kind,
                           const json_t *args, struct control_error *error);

#endif
