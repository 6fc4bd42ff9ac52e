/* SPDX-License-Identifier: BSD-3-Clause */
/* External snapshots: a new overlay becomes what is served, and what was served becomes its
 * backing file, which doesn't change any more.
 *
 * The overlay is created, opened and activated while clients write.  The old top is flushed
 * then, too, so that the flush within the drain is short.  That flush makes everything that
 * was answered before durable in the old file; later flushes go to the overlay.  Then the
 * overlay is put on top, and changing requests continue.  What remains to be done to the old
 * file (its marks, its lock) is done while it is being read.
 *
 * The export is claimed from the beginning to the end, so that no job starts in between. */
#include "control_overlays.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "block/chain.h"
#include "control_cmds.h"
#include "control_nodes.h"
#include "control_transaction.h"
#include "export_table.h"
#include "overlay_file.h"
#include "plugin_config.h"
#include "storage/nbd_uri.h"

/* The early flush is repeated until one takes no longer than this, which is acceptable within
 * the drain; but at most so often. */
#define SHORT_FLUSH_MS 5
#define EARLY_FLUSHES  3

static const char *const formats[] = {"qcow2", "qed", "raw", NULL};
static const char *const modes[] = {"existing", "absolute-paths", NULL};

enum { MODE_EXISTING, MODE_ABSOLUTE_PATHS };

struct overlay {
    struct served_export *exp;
    struct node *old;         /* remains what is served while the claim lasts */
    struct node *top;         /* the overlay's node; owned until it is served */
    struct added_node *added; /* held: the overlay is an added node */
    struct node_name *name;   /* held: the node's future name */
    char *made;               /* the file that was created for it */
    bool claimed;
};

/* ---- making and opening it ---- */

/* The overlay will refer to its backing file; the server's `references` policy must allow
 * that, or the next start would fail. */
static int check_reference(const struct overlay *o, const char *file,
                           enum references policy, struct diag *diag)
{
    CLEANUP_REFERENCE struct reference ref = {0};

    return reference_resolve(file, o->old->filename, policy, &ref, diag);
}

/* The overlay must name its backing file, or the next start wouldn't find it. */
static int name_backing(struct overlay *o, enum references policy, struct diag *diag)
{
    struct node *top = o->top;

    if (!top->backing_name)
        return node_set_backing(top, o->old->filename, node_format(o->old), diag);
    CLEANUP_REFERENCE struct reference ref = {0};
    int err = reference_resolve(top->filename, top->backing_name, policy, &ref, diag);
    if (err)
        return err;
    if (node_is_called(o->old, ref.path))
        return 0;
    return diag_set(diag, EINVAL,
                    "%s: names another backing file, %s, than the %s that it is to lie on",
                    top->filename, top->backing_name, o->old->filename);
}

/* After its header was changed, the overlay is closed and opened again. */
static int settle_reference(struct overlay *o, enum references policy, struct diag *diag)
{
    bool had_name = o->top->backing_name;

    int err = had_name ? 0 : check_reference(o, o->top->filename, policy, diag);
    if (!err)
        err = name_backing(o, policy, diag);
    if (err || had_name)
        return err;
    CLEANUP_FREE char *file = strdup(node_location(o->top));
    const char *format = node_format(o->top);
    node_close(o->top);
    o->top = NULL;
    return file ? overlay_open_file(o->old, file, format, policy, &o->top, diag)
                : diag_errno(diag, ENOMEM, "%s", "overlay");
}

static int check_overlay(const struct overlay *o, struct diag *diag)
{
    const struct node *top = o->top;

    if (!node_can(top, DRIVER_BACKING))
        return diag_set(diag, ENOTSUP, "%s: The overlay does not support backing images",
                        top->filename);
    if (top->size < o->old->size)
        return diag_set(diag, EINVAL, "%s: is smaller than the disk", top->filename);
    return 0;
}

/* Checks the opened overlay and makes it ready; activates it if the old top is active. */
static int ready_overlay(struct overlay *o, enum references policy, struct diag *diag)
{
    int err = check_overlay(o, diag);
    if (!err)
        err = settle_reference(o, policy, diag);
    if (err)
        return err;
    o->top->name = TAKE(&o->name);
    err = chain_start(o->top);
    if (err)
        return diag_errno(diag, -err, "%s", o->top->filename);
    return o->old->active ? node_activate(o->top, diag) : 0;
}

static int flush_early(struct overlay *o, struct diag *diag)
{
    for (int i = 0; i < EARLY_FLUSHES; i++) {
        uint64_t began = clock_ms();
        int err = block_flush(o->old);
        if (err)
            return diag_errno(diag, -err, "%s: flushing", o->old->filename);
        if (clock_ms() - began <= SHORT_FLUSH_MS)
            return 0;
    }
    return 0;
}

/* ---- the actions ---- */

/* Allocates the state, which is action->state from here on, and claims the export. */
static struct overlay *claim_disk(struct transaction_action *action, struct diag *diag)
{
    struct overlay *o = calloc(1, sizeof *o);

    if (!o) {
        diag_errno(diag, ENOMEM, "snapshot");
        return NULL;
    }
    action->state = o;
    o->exp = action->exp;
    unsigned own = transaction_count_jobs(action->transaction, o->exp);
    if (export_check_changes(o->exp, diag) || export_claim(o->exp, own, &o->old, diag))
        return NULL;
    o->claimed = true;
    return o;
}

/* Using one of the disk's own layers as an overlay would make a loop. */
static int check_is_other(const struct overlay *o, const char *file, struct diag *diag)
{
    return chain_has_file(o->old, file)
               ? diag_set(diag, EBUSY, "%s: is part of the disk", file)
               : 0;
}

static int make_overlay(struct overlay *o, const char *file, const char *format,
                        struct diag *diag)
{
    o->made = strdup(file);
    if (!o->made)
        return diag_errno(diag, ENOMEM, "%s", file);
    int err = overlay_make_file(o->old, file, format, diag);
    if (err) { /* overlay_make_file has removed it if it had created it */
        free(o->made);
        o->made = NULL;
    }
    return err;
}

static int make_or_open(struct overlay *o, const json_t *args, enum references policy,
                        struct diag *diag)
{
    const char *file = arg_text(args, "snapshot-file");
    const char *format = formats[arg_word(args, "format", formats, 0)];
    int err = 0;

    if (file[0] != '/')
        return diag_set(diag, EINVAL, "snapshot-file: '%s' must be an absolute path", file);
    err = check_is_other(o, file, diag);
    if (!err && arg_word(args, "mode", modes, MODE_ABSOLUTE_PATHS) == MODE_ABSOLUTE_PATHS) {
        err = check_reference(o, file, policy, diag);
        if (!err)
            err = make_overlay(o, file, format, diag);
    }
    return err ? err : overlay_open_file(o->old, file, format, policy, &o->top, diag);
}

static bool done_or_said(int err, struct control_error *error)
{
    if (err)
        control_fail_diag(error, CLASS_GENERIC);
    return !err;
}

static int give_name(struct overlay *o, struct control_context *ctx, const char *name,
                     struct diag *diag)
{
    if (!name)
        return 0;
    if (control_name_is_taken(ctx, name))
        return diag_set(diag, EEXIST, "Duplicate nodes with node-name='%s'", name);
    o->name = node_table_give_name(&ctx->nodes, name, diag);
    return o->name ? 0 : -diag->err;
}

static bool open_new_file(struct transaction_action *action, struct control_error *error)
{
    enum references policy = action->ctx->config->references;
    struct diag *diag = &error->diag;
    struct overlay *o = claim_disk(action, diag);

    int err =
        o ? give_name(o, action->ctx, arg_text(action->args, "snapshot-node-name"), diag)
          : -EBUSY;
    if (!err)
        err = make_or_open(o, action->args, policy, diag);
    if (!err)
        err = ready_overlay(o, policy, diag);
    if (!err)
        err = flush_early(o, diag);
    return done_or_said(err, error);
}

static int open_added_overlay(struct overlay *o, struct control_context *ctx,
                              const char *name, struct diag *diag)
{
    const struct node_opening how = {.ctx = o->old->ctx,
                                     .references = ctx->config->references,
                                     .give_up = ctx->give_up,
                                     .alone = true,
                                     .as_target = true};

    o->added = node_table_find(&ctx->nodes, name);
    if (!o->added)
        return diag_set(diag, ENOENT, "Cannot find device='%.200s' nor node-name='%.200s'",
                        name, name);
    const struct added_node *meant = added_node_meant(o->added);
    if (meant->below || meant->disk || meant->as_image_says)
        return diag_set(diag, EINVAL,
                        "The overlay '%s' already has a backing image: say "
                        "\"backing\": null when it is added",
                        name);
    const char *file = added_node_target(o->added);
    int err = nbd_uri_is_one(file) ? 0 : check_is_other(o, file, diag);
    return err ? err : added_node_open(o->added, &how, &o->top, diag);
}

static bool open_node(struct transaction_action *action, struct control_error *error)
{
    struct control_context *ctx = action->ctx;
    struct diag *diag = &error->diag;
    struct overlay *o = claim_disk(action, diag);

    int err =
        o ? open_added_overlay(o, ctx, arg_text(action->args, "overlay"), diag) : -EBUSY;
    if (!err)
        o->name = node_name_get(o->added->name);
    if (!err) {
        node_name_put(o->top->name);
        o->top->name = NULL;
        err = ready_overlay(o, ctx->config->references, diag);
    }
    if (!err)
        err = flush_early(o, diag);
    return done_or_said(err, error);
}

static struct node *made_overlay(const struct transaction_action *action, const char *name)
{
    const struct overlay *o = action->state;

    return o && o->top && o->top->name && strcmp(o->top->name->text, name) == 0 ? o->top
                                                                                : NULL;
}

static bool prepare_overlay(struct transaction_action *action, struct control_error *error)
{
    struct overlay *o = action->state;

    int err = block_flush(o->old);
    if (err)
        diag_errno(&error->diag, -err, "%s: flushing", o->old->filename);
    return done_or_said(err, error);
}

static void commit_overlay(struct transaction_action *action)
{
    struct overlay *o = action->state;
    struct node *top = o->top;

    export_put_on_top(o->exp, TAKE(&o->top));
    /* Readers look up a frozen point of the old top at the disk's top node. */
    frozen_move_shown(o->old, top);
}

/* What fails here is tried again when the image is closed. */
static void freeze_old(const struct overlay *o)
{
    int err = node_freeze(o->old);

    if (err)
        log_error("%s: ending its use for writing: %s", o->old->filename, strerror(-err));
}

static void finish_overlay(struct transaction_action *action, bool committed)
{
    struct overlay *o = action->state;

    if (!o)
        return;
    if (committed)
        freeze_old(o);
    node_close(o->top);
    if (!committed && o->made)
        overlay_remove_file(o->made);
    if (o->claimed)
        export_end_claim(o->exp);
    added_node_put(o->added);
    node_name_put(o->name);
    free(o->made);
    free(o);
}

/* ---- the tables ---- */

static const struct control_arg file_args[] = {
    {"device", STRING, false},
    {"node-name", STRING, false},
    {"snapshot-file", STRING, true},
    {"snapshot-node-name", STRING, false},
    {"format", WORDS(formats), false},
    {"mode", WORDS(modes), false},
    {0},
};

static const struct control_arg node_args[] = {
    {"node", STRING, true},
    {"overlay", STRING, true},
    {0},
};

const struct transaction_kind overlay_file_kind = {
    .variant = {"blockdev-snapshot-sync", ACTION(file_args)},
    .export_arg = "device",
    .drains_alone = true,
    .made = made_overlay,
    .open = open_new_file,
    .prepare = prepare_overlay,
    .commit = commit_overlay,
    .finish = finish_overlay,
};

const struct transaction_kind overlay_node_kind = {
    .variant = {"blockdev-snapshot", ACTION(node_args)},
    .export_arg = "node",
    .drains_alone = true,
    .made = made_overlay,
    .open = open_node,
    .prepare = prepare_overlay,
    .commit = commit_overlay,
    .finish = finish_overlay,
};

static json_t *snapshot_sync(struct control_context *ctx, const json_t *args,
                             struct control_error *error)
{
    return control_run_action(ctx, &overlay_file_kind, args, error);
}

static json_t *snapshot(struct control_context *ctx, const json_t *args,
                        struct control_error *error)
{
    return control_run_action(ctx, &overlay_node_kind, args, error);
}

const struct control_command control_overlay_commands[] = {
    {"blockdev-snapshot-sync", OBJECT(file_args), NULL, snapshot_sync},
    {"blockdev-snapshot", OBJECT(node_args), NULL, snapshot},
    {0},
};
