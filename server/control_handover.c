/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks whether a handover is possible; it is carried out on the lane. */
#include "control_handover.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "common/json_text.h"
#include "control_chain.h"
#include "control_lane.h"
#include "export_table.h"
#include "image_folder.h"
#include "jobs/manager.h"
#include "storage/rbd_name.h"

/* ---- does the other server serve everything? ---- */

static bool is_number(const json_t *other, const char *name, uint64_t number)
{
    return arg_size(other, name, UINT64_MAX) == (number & INT64_MAX);
}

static bool is_file(const json_t *other, const char *path)
{
    struct stat st;

    return path && stat(path, &st) == 0 && is_number(other, "device", st.st_dev) &&
           is_number(other, "inode", st.st_ino);
}

/* If the other server gives no identity, the name must match. */
static bool is_rbd(const json_t *other, struct served_export *exp)
{
    CHAIN_USE(chain, exp);
    const struct storage *st = chain.use.node->file;
    const char *place = other ? arg_text(other, "place") : NULL;
    uint64_t device, inode;

    if (!place || strcmp(st->name, place) != 0)
        return false;
    return !arg_is_given(other, "device") ||
           (storage_identity(chain.use.node->file, &device, &inode) == 0 &&
            is_number(other, "device", device) && is_number(other, "inode", inode));
}

static bool is_image(const json_t *other, struct served_export *exp, const char *file)
{
    return file && rbd_name_is_one(file) ? is_rbd(other, exp) : is_file(other, file);
}

/* The element of the list with the export's name; NULL: none. */
static const json_t *find_other(const json_t *list, const struct served_export *exp)
{
    json_t *name = json_from_text(exp->name);
    const json_t *found = NULL;

    for (size_t i = 0; i < json_array_size(list) && !found; i++) {
        const json_t *other = json_array_get(list, i);
        if (name && json_equal(json_object_get(other, "name"), name))
            found = other;
    }
    json_decref(name);
    return found;
}

static bool check_export(struct served_export *exp, const json_t *list,
                         struct control_error *error)
{
    CLEANUP_FREE char *file = export_filename(exp);
    const char *shown = file ? file : "?";

    if (exp->of_folder && atomic_load(&exp->moved))
        control_fail(error, CLASS_GENERIC,
                     "export '%.200s': %s is served, which isn't the file of that name",
                     exp->name, shown);
    else if (!exp->of_folder && exp->id)
        control_fail(
            error, CLASS_GENERIC,
            "export '%.200s' was added by a command, and the other server wouldn't "
            "have it: block-export-del removes it",
            exp->name);
    else if (!exp->of_folder && !is_image(find_other(list, exp), exp, file))
        control_fail(error, CLASS_GENERIC,
                     "export '%.200s': %s is served, and not by the other server",
                     exp->name, shown);
    else
        return true;
    return false;
}

static bool check_all(struct control_context *ctx, const json_t *args,
                      struct control_error *error)
{
    const struct image_folder *folder = ctx->exports->folder;

    if (folder && !is_file(json_object_get(args, "folder"), image_folder_path(folder))) {
        control_fail(error, CLASS_GENERIC,
                     "the images in %s are served, and not by the other server",
                     image_folder_path(folder));
        return false;
    }
    EXPORT_TABLE_EACH (exp, ctx->exports)
        if (!check_export(exp, json_object_get(args, "exports"), error)) {
            export_put(exp);
            return false;
        }
    return true;
}

static bool check_jobs(struct control_context *ctx, struct control_error *error)
{
    struct job_info info;

    if (job_query(ctx->jobs, &info, 1) == 0)
        return true;
    control_fail(error, CLASS_GENERIC,
                 "job '%.200s' would be lost: wait for its end, or cancel it", info.id);
    return false;
}

/* ---- on the lane ---- */

static json_t *carry_out(struct control_context *ctx, const json_t *args,
                         struct control_error *error)
{
    /* Checked again: earlier commands on the lane may have started jobs. */
    if (!check_jobs(ctx, error) || !check_all(ctx, args, error))
        return NULL;
    return ctx->hand_over(ctx->opaque, &ctx->sockets, &error->diag) == 0
               ? json_object()
               : control_fail_diag(error, CLASS_GENERIC);
}

static json_t *undo(struct control_context *ctx, const json_t *args,
                    struct control_error *error)
{
    (void)args;
    (void)error;
    ctx->take_back(ctx->opaque);
    return json_object();
}

static const struct control_command carrying_out = {"x-qimg-handover", NULL, NULL,
                                                    carry_out};
static const struct control_command undoing = {"x-qimg-handover", NULL, NULL, undo};

/* ---- on the control thread ---- */

static json_t *hand_over(struct control_context *ctx, const json_t *args,
                         struct control_error *error)
{
    if (!ctx->hand_over || !ctx->lane)
        return control_fail(error, CLASS_GENERIC, "There is nothing to hand over");
    if (!check_jobs(ctx, error))
        return NULL;
    uint64_t ticket = control_ticket(ctx);
    int err = control_lane_submit(ctx->lane, &carrying_out, args, ticket);
    if (err) {
        diag_errno(&error->diag, -err, "x-qimg-handover");
        return control_fail_diag(error, CLASS_GENERIC);
    }
    ctx->handover_ticket = ticket;
    return control_await(ctx, ticket);
}

void control_note_handover(struct control_context *ctx, const struct control_answer *answer)
{
    if (ctx->take_back_ticket == answer->ticket ||
        (ctx->handover_ticket == answer->ticket && !answer->value))
        ctx->handover_ticket = ctx->take_back_ticket = 0;
}

void control_take_back(struct control_context *ctx)
{
    json_t *none = json_object();

    ctx->take_back_ticket = control_ticket(ctx);
    int err = control_lane_submit(ctx->lane, &undoing, none, ctx->take_back_ticket);
    if (err)
        log_error("the server can't take back what it has handed over: %s", strerror(-err));
    json_decref(none);
}

/* The identity of a file: as much of device and inode as a JSON integer can hold. */
#define FILE_ARGS            \
    {"device", SIZE, false}, \
    {                        \
        "inode", SIZE, false \
    }

/* For an image on Ceph RBD, `place` is its name, and the numbers identify the cluster and the
 * image. */
static const struct control_arg export_args[] = {
    {"name", STRING, true}, FILE_ARGS, {"place", STRING, false}, {0}};

static const struct control_arg folder_args[] = {FILE_ARGS, {0}};

static const struct control_arg handover_args[] = {
    {"exports", LIST_OF(OBJECT(export_args)), false},
    {"folder", OBJECT(folder_args), false},
    {0},
};

const struct control_command control_handover_commands[] = {
    {"x-qimg-handover", OBJECT(handover_args), NULL, hand_over},
    {0},
};
