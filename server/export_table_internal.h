/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to the files of the table of exports.  Every function is called under the table's lock,
 * except where it says otherwise. */
#ifndef SERVER_EXPORT_TABLE_INTERNAL_H
#define SERVER_EXPORT_TABLE_INTERNAL_H

#include "export_table.h"

enum export_life {
    EXPORT_LISTED,  /* found by name; the table is a user */
    EXPORT_REMOVED, /* its users go on until they leave */
    EXPORT_CLOSING, /* by one thread, which doesn't hold the lock */
    EXPORT_CLOSED,  /* closed, but somebody still has a pointer to it */
    /* by one thread, which doesn't hold the lock; others find it and wait */
    EXPORT_OPENING,
    EXPORT_FAILED, /* couldn't be opened; threads that waited for it read `failure` */
};

/* For sets of lives. */
#define EXPORT_LIFE(life) (1u << (life))

static inline struct served_export *export_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct served_export, link);
}

/* Is it an image of the folder that only the table uses, and which would be the same file when
 * opened again by its name? */
static inline bool export_is_left(const struct served_export *exp)
{
    return exp->of_folder && exp->life == EXPORT_LISTED && exp->users == 1 &&
           exp->jobs == 0 && !atomic_load(&exp->moved);
}

/* The same, and would closing it lose no state? */
static inline bool export_is_unused(const struct served_export *exp)
{
    return export_is_left(exp) && !atomic_load(&exp->has_memory) &&
           !atomic_load(&exp->has_choices) && !throttle_is_limited(&exp->throttle);
}

/* Waits until *users is at most 2 (the table and the caller), but not longer than a while
 * (LOOKING_NS, LOOKING_TIMES): who iterates over all exports, or has just left, is a user still.
 * Releases the lock meanwhile. */
void export_wait_for_lookers(struct export_table *table, const unsigned *users);

/* named_view.c */
bool named_view_has_name(struct export_table *table, const char *name);

/* The listed export of that name, or NULL; or one whose life is in the set `lives`. */
struct served_export *export_table_look_up(struct export_table *table, const char *name);
struct served_export *export_table_look_up_in(struct export_table *table, const char *name,
                                              unsigned lives);

/* Adds an export whose names are free.  The table becomes its user. */
void export_table_append(struct export_table *table, struct served_export *exp,
                         enum export_life life);

/* -EEXIST with diag when an export or named view has its name or node name. */
int export_table_check_names(struct export_table *table, const struct served_export *exp,
                             struct diag *diag) MUST_USE;

/* As export_put.  May release the lock meanwhile: the last user closes a removed export. */
void export_leave_unlocked(struct export_table *table, struct served_export *exp);

/* Closes an export that nobody else uses, and frees it when its last user has left.  Releases the
 * lock meanwhile.  The caller must not use exp afterwards. */
void export_close_unlocked(struct export_table *table, struct served_export *exp);

/* export_opening.c, called without the lock: opens an image of the folder; the caller becomes a
 * user.  NULL with diag. */
struct served_export *export_find_in_folder(struct export_table *table, const char *name,
                                            struct diag *diag) MUST_USE;

/* export_opening.c, called without the lock by a user that found the export unused and set
 * looked_at: does its name still lead to the same file?  Returns 1 if so.  If not, the caller is a
 * user no longer: 0 when the export was closed, so that the name must be looked up again; -EBUSY
 * with diag when it can't be closed. */
int export_check_name_of(struct export_table *table, struct served_export *exp,
                         struct diag *diag) MUST_USE;

/* export_linger.c, called without the lock: the threads that close unused images. */
int export_closers_start(struct export_table *table) MUST_USE;
/* does nothing if they weren't started */
void export_closers_stop(struct export_table *table);

/* export_linger.c, called without the lock: closes all unused images at once, because descriptors
 * or memory are short. */
void export_close_idle(struct export_table *table);

#endif
