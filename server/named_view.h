/* SPDX-License-Identifier: BSD-3-Clause */
/* Views that commands gave names of their own: a client that asks for "vda" gets the view
 * "backup/JOB" of an export, and "vda/bitmap/NAME" is "backup/JOB/bitmap/NAME" of it, for the
 * bitmaps that were named.  When the view isn't there any more nobody can connect to it; its name
 * stays until it is withdrawn.
 *
 * Whoever has a pointer to one is its user: the table of exports, whose lock is used here, a
 * connection, a command.  The last frees it.
 * Threads: any.  Layer: server. */
#ifndef SERVER_NAMED_VIEW_H
#define SERVER_NAMED_VIEW_H

#include <jansson.h>

#include "export_table.h"

struct named_view {
    struct list link; /* under the table's lock, as these: */
    bool listed;
    unsigned users;
    /* never changed */
    struct export_table *table;
    char *id, *name;
    char *node_name;   /* of what the view is of, for commands */
    char *description; /* NULL: the view's own */
    char *exp_name;    /* the export's, and the view's there */
    char *view_name;
    json_t *bitmaps; /* an array of names */
};

/* Borrowed. */
struct named_view_params {
    const char *id, *name, *node_name, *description, *exp_name, *view_name;
    json_t *bitmaps;
};

/* -EEXIST when an export or another view has the name.  0 or -errno with diag. */
int named_view_add(struct export_table *table, const struct named_view_params *params,
                   struct diag *diag) MUST_USE;

/* Nobody finds it any more: the caller, one of its users, sees to that.  -EBUSY with diag while
 * somebody is connected, unless they may go on. */
int named_view_withdraw(struct named_view *named, bool used_too,
                        struct diag *diag) MUST_USE;

/* The caller becomes a user; NULL: there is none.  By a name that clients use: *view_name is what
 * it means at the export, which the caller frees; it is NULL when memory is short. */
struct named_view *named_view_find(struct export_table *table, const char *name,
                                   char **view_name) MUST_USE;
struct named_view *named_view_find_id(struct export_table *table, const char *id) MUST_USE;

/* To go over all: as export_table_next. */
struct named_view *named_view_next(struct export_table *table,
                                   struct named_view *named) MUST_USE;

#define NAMED_VIEW_EACH(named, table)                                            \
    for (struct named_view *named = named_view_next(table, NULL); named != NULL; \
         (named) = named_view_next(table, named))

void named_view_put(struct named_view *named); /* NULL is allowed */

static inline void cleanup_named_view(struct named_view **named)
{
    named_view_put(*named);
}
#define CLEANUP_NAMED_VIEW CLEANUP(cleanup_named_view)

/* At the end of the table: nobody is a user any more. */
void named_views_destroy(struct export_table *table);

#endif
