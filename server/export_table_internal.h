/* SPDX-License-Identifier: BSD-3-Clause */
/* Between the files of the table of exports; private to them.  All under the table's lock. */
#ifndef SERVER_EXPORT_TABLE_INTERNAL_H
#define SERVER_EXPORT_TABLE_INTERNAL_H

#include "export_table.h"

enum export_life {
    EXPORT_LISTED,  /* found by name; the table is a user */
    EXPORT_REMOVED, /* its users may go on */
    EXPORT_CLOSING, /* by one thread, without the lock */
    EXPORT_CLOSED,  /* somebody still has a pointer to it */
    EXPORT_OPENING, /* by one thread, without the lock; found, and waited for */
    EXPORT_FAILED,  /* could not be opened, which those who waited are about to see */
};

/* For sets of them. */
#define EXPORT_LIFE(life) (1u << (life))

static inline struct served_export *export_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct served_export, link);
}

/* Does nobody but the table know of an image of the folder, and nothing bind it to its name but
 * the file? */
static inline bool export_is_left(const struct served_export *exp)
{
    return exp->of_folder && exp->life == EXPORT_LISTED && exp->users == 1 &&
           exp->jobs == 0 && !atomic_load(&exp->moved);
}

/* And is nothing lost when it is closed? */
static inline bool export_is_unused(const struct served_export *exp)
{
    return export_is_left(exp) && !atomic_load(&exp->has_memory) &&
           !atomic_load(&exp->has_choices) && !throttle_is_limited(&exp->throttle);
}

/* What nobody uses but the table and the caller may have users for a moment who only look at it, as
 * who goes over all does: they are waited for, a while; the lock is let go meanwhile. */
void export_wait_for_lookers(struct export_table *table, const unsigned *users);

/* named_view.c */
bool named_view_has_name(struct export_table *table, const char *name);

/* One that is listed, or NULL; and one that lives so. */
struct served_export *export_table_look_up(struct export_table *table, const char *name);
struct served_export *export_table_look_up_in(struct export_table *table, const char *name,
                                              unsigned lives);

/* Its names are free; the table becomes its user. */
void export_table_append(struct export_table *table, struct served_export *exp,
                         enum export_life life);

/* -EEXIST with diag when there is one of the name or node name. */
int export_table_check_names(struct export_table *table, const struct served_export *exp,
                             struct diag *diag) MUST_USE;

/* The lock may be let go meanwhile: the last user closes what was removed. */
void export_leave_unlocked(struct export_table *table, struct served_export *exp);

/* Takes one that nobody else uses from the table and closes it; the lock is let go
 * meanwhile.  exp isn't to be used any more. */
void export_close_unlocked(struct export_table *table, struct served_export *exp);

/* export_opening.c, without the lock: one of the folder's images, of which the caller becomes a
 * user.  NULL with diag. */
struct served_export *export_find_in_folder(struct export_table *table, const char *name,
                                            struct diag *diag) MUST_USE;

/* The same, without the lock: the caller, a user, found it unused and has set looked_at.  1: it is
 * the file of its name still; 0: it isn't, was closed, and is to be looked for again, the caller
 * being no user any more; or -EBUSY with diag, the same: it can't be closed. */
int export_check_name_of(struct export_table *table, struct served_export *exp,
                         struct diag *diag) MUST_USE;

/* export_linger.c.  Without the lock. */
int export_closers_start(struct export_table *table) MUST_USE;
void export_closers_stop(struct export_table *table); /* not started: does nothing */

/* export_linger.c, without the lock: closes all that nobody uses, for want of what they
 * take. */
void export_close_idle(struct export_table *table);

#endif
