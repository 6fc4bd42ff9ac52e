/* SPDX-License-Identifier: BSD-3-Clause */
/* Transactions: checks the actions, and takes them through their steps. */
#include "control_transaction.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "control_backup.h"
#include "control_bitmaps.h"
#include "control_chain.h"
#include "control_overlays.h"
#include "control_snapshots.h"
#include "export_table.h"
#include "jobs/job_group.h"

/* An export that some action names. */
struct drained_export {
    struct served_export *exp;
    struct export_use use;
};

struct held {
    struct list link;
    void *what;
    void (*release)(void *what);
};

struct transaction {
    bool grouped;
    struct job_group *group; /* NULL: not grouped */
    size_t n_actions;
    struct transaction_action *actions;
    size_t n_exports;
    struct drained_export *exports; /* room for one per action */
    struct list held;               /* struct held */
};

static bool fail_abort(struct transaction_action *action, struct control_error *error)
{
    (void)action;
    control_fail(error, CLASS_GENERIC, "Transaction aborted using Abort action");
    return false;
}

static const struct transaction_kind abort_kind = {.variant = {"abort", ACTION(NULL)},
                                                   .prepare = fail_abort};

/* All kinds of actions. */
static const struct control_variant *const kinds[] = {
    &bitmap_add_kind.variant,
    &bitmap_remove_kind.variant,
    &bitmap_clear_kind.variant,
    &bitmap_enable_kind.variant,
    &bitmap_disable_kind.variant,
    &bitmap_merge_kind.variant,
    &abort_kind.variant,
    &blockdev_backup_kind.variant,
    &drive_backup_kind.variant,
    &overlay_file_kind.variant,
    &overlay_node_kind.variant,
    &snapshot_internal_kind.variant,
    NULL,
};

/* ---- for actions ---- */

struct job_group *transaction_group(const struct transaction *transaction)
{
    return transaction->group;
}

struct transaction_action *transaction_previous(const struct transaction_action *action)
{
    struct transaction_action *first = action->transaction->actions;

    for (size_t i = (size_t)(action - first); i-- > 0;)
        if (first[i].opened && first[i].kind == action->kind && first[i].exp == action->exp)
            return &first[i];
    return NULL;
}

unsigned transaction_count_jobs(const struct transaction *transaction,
                                const struct served_export *exp)
{
    unsigned n = 0;

    for (size_t i = 0; i < transaction->n_actions; i++) {
        const struct transaction_action *action = &transaction->actions[i];
        n += action->opened && action->kind->starts_job && action->exp == exp;
    }
    return n;
}

bool transaction_hold(struct transaction *transaction, void *what,
                      void (*release)(void *what), struct control_error *error)
{
    struct held *held = malloc(sizeof *held);

    if (!held) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    *held = (struct held){.what = what, .release = release};
    list_append(&transaction->held, &held->link);
    return true;
}

static struct held *find_held(const struct transaction *transaction, const void *what)
{
    LIST_FOR_EACH (pos, &transaction->held)
        if (CONTAINER_OF(pos, struct held, link)->what == what)
            return CONTAINER_OF(pos, struct held, link);
    return NULL;
}

bool transaction_holds(const struct transaction *transaction, const void *what)
{
    return find_held(transaction, what);
}

void transaction_forget(struct transaction *transaction, const void *what)
{
    struct held *held = find_held(transaction, what);

    if (held)
        list_remove(&held->link);
    free(held);
}

static void release_all(struct transaction *transaction)
{
    LIST_FOR_EACH_SAFE (pos, &transaction->held) {
        struct held *held = CONTAINER_OF(pos, struct held, link);
        list_remove(pos);
        held->release(held->what);
        free(held);
    }
}

/* ---- exports ---- */

/* Does the maker's node exist by the time the action is opened?  Actions that start jobs
 * are opened first, so their place in the list doesn't matter. */
static bool is_before(const struct transaction_action *maker,
                      const struct transaction_action *action)
{
    return maker->opened && maker->kind->made &&
           (maker < action || maker->kind->starts_job);
}

/* The node called `name` that an action makes: one that an earlier action will put on top
 * of a disk, or the target of any backup. */
static bool find_made(struct transaction_action *action, const char *name,
                      struct control_error *error)
{
    const struct transaction *transaction = action->transaction;

    for (size_t i = 0; i < transaction->n_actions; i++) {
        const struct transaction_action *maker = &transaction->actions[i];
        action->made = is_before(maker, action) ? maker->kind->made(maker, name) : NULL;
        if (!action->made)
            continue;
        action->exp = control_find_node(action->ctx, maker->exp->node_name, error);
        return true;
    }
    return false;
}

static bool find_export(struct transaction_action *action, struct control_error *error)
{
    const char *arg = action->kind->export_arg;

    if (!arg)
        return true;
    bool device = strcmp(arg, "device") == 0;
    if (device && !arg_is_given(action->args, arg) &&
        arg_is_given(action->args, "node-name")) {
        arg = "node-name";
        device = false;
    }
    const char *name = arg_text(action->args, arg);
    if (!name)
        control_fail(error, CLASS_GENERIC, "Parameter '%s' is missing", arg);
    else if (action->kind->takes_layers)
        action->exp = control_find_node_of_chain(action->ctx, name, error);
    else if (!action->kind->takes_made || !find_made(action, name, error))
        action->exp = device ? control_find_device(action->ctx, name, error)
                             : control_find_node(action->ctx, name, error);
    return action->exp;
}

static struct drained_export *find_drained(struct transaction *transaction,
                                           const struct served_export *exp)
{
    for (size_t i = 0; i < transaction->n_exports; i++)
        if (transaction->exports[i].exp == exp)
            return &transaction->exports[i];
    return NULL;
}

static void gather_exports(struct transaction *transaction)
{
    for (size_t i = 0; i < transaction->n_actions; i++) {
        struct served_export *exp = transaction->actions[i].exp;
        if (exp && !find_drained(transaction, exp))
            transaction->exports[transaction->n_exports++].exp = exp;
    }
}

/* All exports are drained before any is entered, so that it is one point of all their
 * writes. */
static void enter_exports(struct transaction *transaction, bool drain)
{
    for (size_t i = 0; drain && i < transaction->n_exports; i++)
        export_begin_drain(transaction->exports[i].exp);
    for (size_t i = 0; i < transaction->n_exports; i++)
        transaction->exports[i].use = export_enter_action(transaction->exports[i].exp);
    for (size_t i = 0; i < transaction->n_actions; i++) {
        struct transaction_action *action = &transaction->actions[i];
        if (!action->exp)
            continue;
        action->served = find_drained(transaction, action->exp)->use.node;
        action->node = action->made ? action->made : action->served;
    }
}

static void leave_exports(struct transaction *transaction, bool drained)
{
    for (size_t i = 0; i < transaction->n_exports; i++)
        export_leave_action(&transaction->exports[i].use);
    for (size_t i = 0; drained && i < transaction->n_exports; i++)
        export_end_drain(transaction->exports[i].exp);
}

/* ---- the steps ---- */

/* Opens the actions of kinds that start jobs, or the other ones. */
static bool open_some(struct transaction *transaction, bool jobs,
                      struct control_error *error)
{
    for (size_t i = 0; i < transaction->n_actions; i++) {
        struct transaction_action *action = &transaction->actions[i];
        if (action->kind->starts_job != jobs)
            continue;
        if (!find_export(action, error))
            return false;
        action->opened = true;
        if (action->kind->open && !action->kind->open(action, error))
            return false;
    }
    return true;
}

static bool open_all(struct transaction *transaction, struct control_error *error)
{
    return open_some(transaction, true, error) && open_some(transaction, false, error);
}

/* Prepares the actions of kinds that prepare last, or the other ones. */
static bool prepare_some(struct transaction *transaction, bool last,
                         struct control_error *error)
{
    for (size_t i = 0; i < transaction->n_actions; i++) {
        struct transaction_action *action = &transaction->actions[i];
        if (action->kind->prepares_last != last)
            continue;
        if (action->kind->prepare && !action->kind->prepare(action, error))
            return false;
        action->prepared = true;
    }
    return true;
}

static bool prepare_all(struct transaction *transaction, struct control_error *error)
{
    return prepare_some(transaction, false, error) &&
           prepare_some(transaction, true, error);
}

static void commit_all(struct transaction *transaction)
{
    for (size_t i = 0; i < transaction->n_actions; i++)
        if (transaction->actions[i].kind->commit)
            transaction->actions[i].kind->commit(&transaction->actions[i]);
}

static void abort_some(struct transaction *transaction, bool last)
{
    for (size_t i = transaction->n_actions; i-- > 0;) {
        struct transaction_action *action = &transaction->actions[i];
        if (action->prepared && action->kind->prepares_last == last && action->kind->abort)
            action->kind->abort(action);
    }
}

static void abort_prepared(struct transaction *transaction)
{
    abort_some(transaction, true);
    abort_some(transaction, false);
}

static void finish_some(struct transaction *transaction, bool jobs, bool committed)
{
    for (size_t i = transaction->n_actions; i-- > 0;) {
        struct transaction_action *action = &transaction->actions[i];
        if (action->opened && action->kind->starts_job == jobs && action->kind->finish)
            action->kind->finish(action, committed);
    }
}

/* In reverse order: a later action may rely on what an earlier one, or a job, holds. */
static void finish_opened(struct transaction *transaction, bool committed)
{
    finish_some(transaction, false, committed);
    finish_some(transaction, true, committed);
}

/* Within the drain. */
static bool decide(struct transaction *transaction, struct control_error *error)
{
    bool prepared = prepare_all(transaction, error);

    if (prepared)
        commit_all(transaction);
    else
        abort_prepared(transaction);
    return prepared;
}

static bool run_all(struct transaction *transaction, bool drain,
                    struct control_error *error)
{
    bool committed = false;

    list_init(&transaction->held);
    if (open_all(transaction, error)) {
        gather_exports(transaction);
        enter_exports(transaction, drain);
        committed = decide(transaction, error);
        release_all(transaction);
        leave_exports(transaction, drain);
    }
    finish_opened(transaction, committed);
    for (size_t i = 0; i < transaction->n_actions; i++)
        if (transaction->actions[i].exp)
            export_put(transaction->actions[i].exp);
    return committed;
}

json_t *control_run_action(struct control_context *ctx, const struct transaction_kind *kind,
                           const json_t *args, struct control_error *error)
{
    struct transaction_action action = {.kind = kind, .ctx = ctx, .args = args};
    struct drained_export export = {0};
    struct transaction transaction = {
        .n_actions = 1, .actions = &action, .exports = &export};

    action.transaction = &transaction;
    return run_all(&transaction, kind->drains_alone, error) ? json_object() : NULL;
}

/* ---- the command ---- */

static const char *const completion_modes[] = {"individual", "grouped", NULL};

static const struct control_arg properties_args[] = {
    {"completion-mode", WORDS(completion_modes), false},
    {0},
};

static const struct control_arg action_args[] = {{"type", TAG, true}, {0}};

static const struct transaction_kind *find_kind(const char *name)
{
    const struct control_variant *const *kind = kinds;

    while (strcmp((*kind)->name, name) != 0)
        kind++;
    return CONTAINER_OF(*kind, const struct transaction_kind, variant);
}

/* Checks of one action, not yet opened, that its type can't express. */
static bool judge_action(struct transaction_action *action, const json_t *item,
                         struct control_error *error)
{
    action->kind = find_kind(arg_text(item, "type"));
    action->args = json_object_get(item, "data");
    if (!action->transaction->grouped || action->kind->starts_job)
        return true;
    control_fail(error, CLASS_GENERIC,
                 "Action '%s' does not support transaction property completion-mode = "
                 "grouped",
                 action->kind->variant.name);
    return false;
}

static bool judge_all(struct transaction *transaction, struct control_context *ctx,
                      const json_t *list, struct control_error *error)
{
    for (size_t i = 0; i < transaction->n_actions; i++) {
        transaction->actions[i] =
            (struct transaction_action){.transaction = transaction, .ctx = ctx};
        if (!judge_action(&transaction->actions[i], json_array_get(list, i), error))
            return false;
    }
    return true;
}

static json_t *run_transaction(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    const json_t *list = json_object_get(args, "actions");
    const json_t *properties = json_object_get(args, "properties");
    size_t n = json_array_size(list);
    CLEANUP_FREE struct transaction_action *actions = calloc(n + 1, sizeof *actions);
    CLEANUP_FREE struct drained_export *exports = calloc(n + 1, sizeof *exports);

    if (!actions || !exports)
        return control_fail(error, CLASS_GENERIC, "out of memory");
    struct transaction transaction = {
        .grouped = arg_word(properties, "completion-mode", completion_modes, 0) == 1,
        .n_actions = n,
        .actions = actions,
        .exports = exports};
    if (!judge_all(&transaction, ctx, list, error))
        return NULL;
    if (transaction.grouped && !(transaction.group = job_group_new()))
        return control_fail(error, CLASS_GENERIC, "out of memory");
    bool done = run_all(&transaction, true, error);
    job_group_put(transaction.group);
    return done ? json_object() : NULL;
}

static const struct control_arg transaction_args[] = {
    {"actions", LIST_OF(UNION(action_args, "type", kinds)), true},
    {"properties", OBJECT(properties_args), false},
    {0},
};

const struct control_command control_transaction_commands[] = {
    {"transaction", OBJECT(transaction_args), NULL, run_transaction},
    {0},
};
