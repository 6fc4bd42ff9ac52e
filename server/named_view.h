/* SPDX-License-Identifier: BSD-3-Clause */
/* Views that a command gave a name of their own.  If "vda" is such a name for the view
 * "backup/JOB" of an export, then "vda/bitmap/NAME" means "backup/JOB/bitmap/NAME" of it, for the
 * bitmaps that the command listed.  When the view doesn't exist any more, the name remains until
 * it is withdrawn, but clients can't connect to it.
 *
 * Every holder of a pointer is a user: the table of exports, a connection, a command.  The last
 * one frees it.  The table's lock protects these fields.  Threads: any.  Layer: server. */
#ifndef SERVER_NAMED_VIEW_H
#define SERVER_NAMED_VIEW_H

#include <jansson.h>

#include "export_table.h"

struct named_view {
    struct list link; /* under the table's lock, like the next two */
    bool listed;
    unsigned users;
    /* never changed */
    struct export_table *table;
    char *id, *name;
    char *node_name;   /* as the command named the node: that of the job's target */
    char *description; /* NULL: the view's own */
    char *exp_name;    /* the export's name, and the view's name there */
    char *view_name;
    json_t *bitmaps; /* array of names */
};

/* Borrowed. */
struct named_view_params {
    const char *id, *name, *node_name, *description, *exp_name, *view_name;
    json_t *bitmaps;
};

/* -EEXIST when an export or another named view has the name.  0 or -errno with diag. */
int named_view_add(struct export_table *table, const struct named_view_params *params,
                   struct diag *diag) MUST_USE;

/* From now on the name isn't found.  The caller is one of its users.  -EBUSY with diag while a
 * client is connected, unless used_too. */
int named_view_withdraw(struct named_view *named, bool used_too,
                        struct diag *diag) MUST_USE;

/* Finds a named view by a client's export name; the caller becomes a user.  *view_name: the
 * view's name at the export, which the caller frees; NULL when memory is short.  Returns NULL if
 * there is none. */
struct named_view *named_view_find(struct export_table *table, const char *name,
                                   char **view_name) MUST_USE;
struct named_view *named_view_find_id(struct export_table *table, const char *id) MUST_USE;

/* Iterates, as export_table_next does. */
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

/* At the end of the table, when nobody else uses any. */
void named_views_destroy(struct export_table *table);

#endif
