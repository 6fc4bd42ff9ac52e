/* SPDX-License-Identifier: BSD-3-Clause */
/* The exports of a server: who is there, and who is the last to leave one. */
#include "export_table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"

/* A message names so many exports. */
#define NAMES_SHOWN 8

enum life {
    LISTED,  /* found by name; the table is a user */
    REMOVED, /* its users may go on */
    CLOSING, /* by one thread, without the lock */
    CLOSED,  /* somebody still has a pointer to it */
};

void export_table_init(struct export_table *table)
{
    lock_init(&table->lock, RANK_LEAF);
    pthread_cond_init(&table->closed, NULL);
    list_init(&table->exports);
    table->last_serial = 0;
}

void export_table_destroy(struct export_table *table)
{
    pthread_cond_destroy(&table->closed);
    lock_destroy(&table->lock);
}

static struct served_export *export_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct served_export, link);
}

/* Under the lock; an export that is LISTED, or NULL. */
static struct served_export *look_up_name(struct export_table *table, const char *name)
{
    LIST_FOR_EACH (pos, &table->exports) {
        struct served_export *exp = export_at(pos);
        if (exp->life == LISTED && strcmp(exp->name, name) == 0)
            return exp;
    }
    return NULL;
}

/* Under the lock; an export that is LISTED, or NULL. */
static struct served_export *look_up_node(struct export_table *table, const char *node_name)
{
    LIST_FOR_EACH (pos, &table->exports) {
        struct served_export *exp = export_at(pos);
        if (exp->life == LISTED && strcmp(exp->node_name, node_name) == 0)
            return exp;
    }
    return NULL;
}

/* Under the lock. */
static struct served_export *become_user(struct served_export *exp)
{
    if (exp)
        exp->users++;
    return exp;
}

/* ---- the end of an export ---- */

/* Under the lock. */
static void free_unused(struct served_export *exp)
{
    if (exp->life != CLOSED || exp->users > 0)
        return;
    list_remove(&exp->link);
    free(exp);
}

static void close_image(struct served_export *exp)
{
    CLEANUP_FREE char *filename = export_filename(exp);

    int err = export_close(exp);
    if (err)
        log_error("%s: closing: %s: the image must be checked",
                  filename ? filename : "an image", strerror(-err));
}

/* Under the lock, which is let go meanwhile. */
static void close_export(struct export_table *table, struct served_export *exp)
{
    exp->life = CLOSING;
    lock_release(&table->lock);
    close_image(exp);
    lock_acquire(&table->lock);
    exp->life = CLOSED;
    pthread_cond_broadcast(&table->closed);
    free_unused(exp);
}

/* Under the lock, which may be let go meanwhile. */
static void leave_export(struct export_table *table, struct served_export *exp)
{
    exp->users--;
    if (exp->users == 0 && exp->life == REMOVED)
        close_export(table, exp);
    else
        free_unused(exp);
}

void export_put(struct served_export *exp)
{
    if (!exp)
        return;
    struct export_table *table = exp->table;
    LOCK_GUARD(&table->lock);
    leave_export(table, exp);
}

/* ---- adding and removing ---- */

/* The gates in it want their own cache lines, of which malloc knows nothing. */
static struct served_export *new_export(void)
{
    void *memory;

    return posix_memalign(&memory, _Alignof(struct served_export),
                          sizeof(struct served_export)) == 0
               ? memory
               : NULL;
}

/* Under the lock. */
static int check_names_free(struct export_table *table, const struct served_export *exp,
                            struct diag *diag)
{
    if (look_up_name(table, exp->name))
        return diag_set(diag, EEXIST, "export '%.200s': there is one of that name already",
                        exp->name);
    if (look_up_node(table, exp->node_name))
        return diag_set(diag, EEXIST,
                        "export '%.200s': node name '%.200s': is another export's",
                        exp->name, exp->node_name);
    return 0;
}

int export_table_add(struct export_table *table, struct served_export *exp,
                     struct diag *diag)
{
    LOCK_GUARD(&table->lock);
    int err = check_names_free(table, exp, diag);
    if (err)
        return err;
    exp->table = table;
    exp->life = LISTED;
    exp->users = 1;
    exp->serial = ++table->last_serial;
    list_append(&table->exports, &exp->link);
    return 0;
}

int export_table_open(struct export_table *table, const struct export_request *request,
                      const struct block_shared *shared, struct diag *diag)
{
    CLEANUP_FREE struct served_export *exp = new_export();

    if (!exp)
        return diag_errno(diag, ENOMEM, "%s", request->file);
    int err = export_open(exp, request, shared, diag);
    if (err)
        return err;
    err = export_table_add(table, exp, diag);
    if (err) {
        close_image(exp);
        return err;
    }
    exp = NULL; /* the table's */
    return 0;
}

int export_table_remove(struct export_table *table, const char *name, struct diag *diag)
{
    LOCK_GUARD(&table->lock);
    struct served_export *exp = look_up_name(table, name);
    if (!exp)
        return diag_set(diag, ENOENT, "export '%.200s': there is none of that name", name);
    if (exp->jobs > 0)
        return diag_set(diag, EBUSY, "export '%.200s': a job uses it", name);
    exp->life = REMOVED;
    leave_export(table, exp);
    return 0;
}

/* ---- looking ---- */

/* Under the lock: '"", "a", "b" and 7 more'. */
static void list_names(struct export_table *table, char *text, size_t size)
{
    unsigned n = 0;
    size_t used = 0;

    text[0] = '\0';
    LIST_FOR_EACH (pos, &table->exports) {
        const struct served_export *exp = export_at(pos);
        if (exp->life != LISTED || n++ >= NAMES_SHOWN)
            continue;
        used += (size_t)snprintf(text + used, size - used, "%s\"%.60s\"", n > 1 ? ", " : "",
                                 exp->name);
    }
    if (n > NAMES_SHOWN)
        snprintf(text + used, size - used, " and %u more", n - NAMES_SHOWN);
}

struct served_export *export_table_find(struct export_table *table, const char *name,
                                        struct diag *diag)
{
    char names[NAMES_SHOWN * 64 + 32];

    LOCK_GUARD(&table->lock);
    struct served_export *exp = look_up_name(table, name);
    if (exp)
        return become_user(exp);
    list_names(table, names, sizeof names);
    diag_set(diag, ENOENT, "there is no export '%.200s': there is %s", name,
             names[0] ? names : "none at all");
    return NULL;
}

struct served_export *export_table_find_node(struct export_table *table,
                                             const char *node_name)
{
    LOCK_GUARD(&table->lock);
    return become_user(look_up_node(table, node_name));
}

const char *export_table_default(struct export_table *table)
{
    LOCK_GUARD(&table->lock);
    return look_up_name(table, "") ? "" : NULL;
}

/* Under the lock: the first behind the serial that lives no longer than `last` says. */
static struct served_export *look_up_next(struct export_table *table, uint64_t serial,
                                          enum life last)
{
    LIST_FOR_EACH (pos, &table->exports) {
        struct served_export *exp = export_at(pos);
        if (exp->serial > serial && exp->life <= (int)last)
            return exp;
    }
    return NULL;
}

static struct served_export *step_to_next(struct export_table *table,
                                          struct served_export *exp, enum life last)
{
    LOCK_GUARD(&table->lock);
    struct served_export *next =
        become_user(look_up_next(table, exp ? exp->serial : 0, last));
    if (exp)
        leave_export(table, exp);
    return next;
}

struct served_export *export_table_next(struct export_table *table,
                                        struct served_export *exp)
{
    return step_to_next(table, exp, LISTED);
}

/* As EXPORT_TABLE_EACH, with those that were removed and are still in use. */
#define EACH_OPEN_EXPORT(exp, table)                                                  \
    for (struct served_export *exp = step_to_next(table, NULL, REMOVED); exp != NULL; \
         (exp) = step_to_next(table, exp, REMOVED))

/* ---- jobs ---- */

bool export_begin_job(struct served_export *exp)
{
    LOCK_GUARD(&exp->table->lock);
    if (exp->life != LISTED)
        return false;
    exp->jobs++;
    return true;
}

void export_end_job(struct served_export *exp)
{
    LOCK_GUARD(&exp->table->lock);
    exp->jobs--;
}

/* ---- the life of the server ---- */

int export_table_start(struct export_table *table)
{
    EXPORT_TABLE_EACH (exp, table) {
        int err = export_start(exp);
        if (err) {
            export_put(exp);
            return err;
        }
    }
    return 0;
}

bool export_table_is_idle(struct export_table *table)
{
    EACH_OPEN_EXPORT (exp, table)
        if (!export_is_idle(exp)) {
            export_put(exp);
            return false;
        }
    return true;
}

void export_table_abandon_servers(struct export_table *table)
{
    EACH_OPEN_EXPORT (exp, table)
        export_abandon_servers(exp);
}

void export_table_seal(struct export_table *table)
{
    EACH_OPEN_EXPORT (exp, table)
        export_seal(exp);
}

/* Under the lock. */
static bool is_any_closing(struct export_table *table)
{
    LIST_FOR_EACH (pos, &table->exports)
        if (export_at(pos)->life == CLOSING)
            return true;
    return false;
}

void export_table_close(struct export_table *table)
{
    struct served_export *exp;

    LOCK_GUARD(&table->lock);
    while ((exp = look_up_next(table, 0, REMOVED))) {
        if (exp->life == LISTED)
            exp->users--; /* the table's own */
        close_export(table, exp);
    }
    while (is_any_closing(table))
        lock_wait(&table->lock, &table->closed);
}
