/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes state from exports that only this process knows, and gives it back. */
#include "handover_kept.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/dirty_bitmap.h"
#include "export_table.h"

struct kept_export {
    struct list link;
    char *name, *file, *group;
    bool is_limited, has_choices;
    struct throttle_config limits;
    struct export_choices choices;
    struct dirty_bitmap **bitmap; /* n_bitmaps of them; owned */
    unsigned n_bitmaps;

    /* `closed` is the file's state at closing; else the file counts as changed */
    bool is_known;
    struct stat closed;
};

void handover_kept_init(struct handover_kept *kept)
{
    list_init(&kept->exports);
}

static void free_export(struct kept_export *e)
{
    for (unsigned i = 0; i < e->n_bitmaps; i++)
        dirty_bitmap_free(e->bitmap[i]);
    free(e->bitmap);
    free(e->name);
    free(e->file);
    free(e->group);
    free(e);
}

static struct kept_export *kept_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct kept_export, link);
}

void handover_kept_free(struct handover_kept *kept)
{
    LIST_FOR_EACH_SAFE (pos, &kept->exports) {
        list_remove(pos);
        free_export(kept_at(pos));
    }
}

/* ---- taking ---- */

static int take_bitmaps(struct kept_export *e, struct node *node)
{
    struct dirty_bitmap *bitmap;

    while ((bitmap = node_bitmap_take_unkept(node))) {
        void *more = realloc(e->bitmap, (e->n_bitmaps + 1) * sizeof(struct dirty_bitmap *));
        if (!more) {
            dirty_bitmap_free(bitmap);
            return -ENOMEM;
        }
        e->bitmap = more;
        e->bitmap[e->n_bitmaps++] = bitmap;
    }
    return 0;
}

static void read_choices(struct kept_export *e, struct served_export *exp,
                         const struct node *node)
{
    e->has_choices = atomic_load(&exp->has_choices);
    e->choices = (struct export_choices){
        .cache = node->options.cache,
        .discard_ignore = node->options.discard_ignore,
        .detect_zeroes = node->options.detect_zeroes,
    };
}

/* For use outside of the gate: node_bitmap_take_unkept must not be called inside. */
static struct node *node_of(struct served_export *exp)
{
    EXPORT_USE(use, export_enter(exp));

    return use.node;
}

static int take_all(struct kept_export *e, struct served_export *exp)
{
    struct node *node = node_of(exp);

    e->name = strdup(exp->name);
    e->file = node_is_remote(node) || node->data_file ? NULL : strdup(node_location(node));
    e->is_limited = throttle_look(&exp->throttle, &e->limits, &e->group);
    read_choices(e, exp, node);
    int err = take_bitmaps(e, node);
    return !e->name || (e->is_limited && !e->group) ? -ENOMEM : err;
}

static bool is_worth_keeping(const struct kept_export *e)
{
    return e->name && (e->is_limited || e->has_choices || e->n_bitmaps > 0);
}

static void take_export(struct handover_kept *kept, struct served_export *exp)
{
    struct kept_export *e = calloc(1, sizeof *e);

    if (!e || take_all(e, exp))
        log_error("export '%.200s': out of memory: what commands said of it is forgotten",
                  exp->name);
    if (e && is_worth_keeping(e))
        list_append(&kept->exports, &e->link);
    else if (e)
        free_export(e);
}

void handover_kept_take(struct handover_kept *kept, struct export_table *table)
{
    EXPORT_TABLE_EACH (exp, table)
        take_export(kept, exp);
}

/* ---- was the file changed? ---- */

void handover_kept_note_files(struct handover_kept *kept)
{
    LIST_FOR_EACH (pos, &kept->exports) {
        struct kept_export *e = kept_at(pos);
        e->is_known =
            e->file && stat(e->file, &e->closed) == 0 && S_ISREG(e->closed.st_mode);
    }
}

static bool is_same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool is_unchanged(const struct kept_export *e)
{
    const struct stat *closed = &e->closed;
    struct stat now;

    return e->is_known && stat(e->file, &now) == 0 && now.st_dev == closed->st_dev &&
           now.st_ino == closed->st_ino && now.st_size == closed->st_size &&
           is_same_time(&now.st_mtim, &closed->st_mtim) &&
           /* the change time can't be set back by anybody */
           is_same_time(&now.st_ctim, &closed->st_ctim);
}

/* ---- giving back ---- */

static int give_limits(const struct kept_export *e, struct served_export *exp,
                       struct throttle_groups *groups, struct diag *diag)
{
    int err = e->is_limited
                  ? throttle_join(groups, &exp->throttle, e->group, e->group, &e->limits)
                  : 0;

    return err ? diag_errno(diag, -err, "its limits") : 0;
}

static int give_choices(const struct kept_export *e, struct served_export *exp,
                        struct diag *diag)
{
    int err = e->has_choices ? export_set_choices(exp, &e->choices, diag) : 0;

    if (!err && e->has_choices)
        atomic_store(&exp->has_choices, true);
    return err;
}

/* The image is open again, and even a reader's lock keeps other writers out since then.  On RBD it
 * doesn't: there is_known is false, and everything is marked once more when the image is reopened
 * for writing (node_bitmaps_distrust). */
static int give_bitmaps(struct kept_export *e, struct served_export *exp, struct diag *diag)
{
    struct node *node = node_of(exp);
    bool changed = !is_unchanged(e);

    for (unsigned i = 0; i < e->n_bitmaps; i++) {
        struct dirty_bitmap *bitmap = e->bitmap[i];
        int err = node_bitmap_add(node, bitmap, diag);
        if (err)
            return err;
        e->bitmap[i] = NULL;
        atomic_store(&exp->has_memory, true);
        if (changed && dirty_bitmap_enabled(bitmap))
            dirty_bitmap_set(bitmap, 0, dirty_bitmap_size(bitmap));
    }
    return 0;
}

static int give_back(struct kept_export *e, struct export_table *table,
                     struct throttle_groups *groups, struct diag *diag)
{
    CLEANUP_EXPORT struct served_export *exp = export_table_find(table, e->name, diag);

    if (!exp)
        return -diag->err;
    int err = give_limits(e, exp, groups, diag);
    if (!err)
        err = give_choices(e, exp, diag);
    return err ? err : give_bitmaps(e, exp, diag);
}

void handover_kept_give_back(struct handover_kept *kept, struct export_table *table,
                             struct throttle_groups *groups)
{
    LIST_FOR_EACH (pos, &kept->exports) {
        struct kept_export *e = kept_at(pos);
        struct diag diag = {0};
        if (give_back(e, table, groups, &diag))
            log_error(
                "export '%.200s': something that commands said of it is forgotten: %s",
                e->name, diag.text);
    }
    handover_kept_free(kept);
}
