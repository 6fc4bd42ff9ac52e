/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of exports: look-up, users, adding, removing and closing. */
#include "export_table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "export_table_internal.h"
#include "image_folder.h"
#include "named_view.h"

/* An error message lists at most this many exports. */
#define NAMES_SHOWN 8

/* How long a withdrawal waits for users that are on their way out, times 1 ms: who iterates, and
 * clients that have left, with whose connection nbdkit is done only a moment after they saw its
 * end. Nothing tells them from clients that stay, so it takes as long to refuse an export in
 * use. */
#define LOOKING_NS    1000000u
#define LOOKING_TIMES 200u

void export_table_init(struct export_table *table)
{
    *table = (struct export_table){0};
    lock_init(&table->lock, RANK_LEAF);
    pthread_cond_init(&table->changed, NULL);
    cond_init_timed(&table->idle);
    list_init(&table->exports);
    name_index_init(&table->names);
    name_index_init(&table->node_names);
    list_init(&table->named);
}

void export_table_set_folder(struct export_table *table, struct image_folder *folder,
                             uint64_t linger_ms)
{
    table->folder = folder;
    table->linger_ms = linger_ms;
}

void export_table_destroy(struct export_table *table)
{
    named_views_destroy(table);
    pthread_cond_destroy(&table->changed);
    pthread_cond_destroy(&table->idle);
    lock_destroy(&table->lock);
}

struct served_export *export_table_look_up_in(struct export_table *table, const char *name,
                                              unsigned lives)
{
    LIST_FOR_EACH (pos, name_index_list(&table->names, name)) {
        struct served_export *exp = CONTAINER_OF(pos, struct served_export, same_name);
        if ((lives & EXPORT_LIFE(exp->life)) && strcmp(exp->name, name) == 0)
            return exp;
    }
    return NULL;
}

struct served_export *export_table_look_up(struct export_table *table, const char *name)
{
    return export_table_look_up_in(table, name, EXPORT_LIFE(EXPORT_LISTED));
}

/* Under the lock: the export with that node name that is listed or being opened (whose name is
 * taken already), or NULL. */
static struct served_export *look_up_node(struct export_table *table, const char *node_name)
{
    LIST_FOR_EACH (pos, name_index_list(&table->node_names, node_name)) {
        struct served_export *exp = CONTAINER_OF(pos, struct served_export, same_node_name);
        if ((exp->life == EXPORT_LISTED || exp->life == EXPORT_OPENING) &&
            strcmp(exp->node_name, node_name) == 0)
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
    if ((exp->life != EXPORT_CLOSED && exp->life != EXPORT_FAILED) || exp->users > 0)
        return;
    list_remove(&exp->link);
    list_remove(&exp->same_name);
    list_remove(&exp->same_node_name);
    export_free(exp);
}

static void close_image(struct served_export *exp)
{
    CLEANUP_FREE char *filename = export_filename(exp);

    int err = export_close(exp);
    if (err)
        log_error("%s: closing: %s: the image must be checked",
                  filename ? filename : "an image", strerror(-err));
}

void export_table_tell_closed(struct export_table *table,
                              void (*closed)(void *opaque, const char *id), void *opaque)
{
    LOCK_GUARD(&table->lock);
    table->closed = closed;
    table->closed_opaque = opaque;
}

void export_close_unlocked(struct export_table *table, struct served_export *exp)
{
    if (exp->life == EXPORT_LISTED)
        exp->users--; /* the table's own */
    void (*closed)(void *, const char *) =
        exp->life == EXPORT_REMOVED ? table->closed : NULL;
    void *opaque = table->closed_opaque;
    exp->life = EXPORT_CLOSING;
    {
        LOCK_GAP(&table->lock);
        close_image(exp);
        if (closed)
            closed(opaque, export_id(exp));
    }
    exp->life = EXPORT_CLOSED;
    pthread_cond_broadcast(&table->changed);
    free_unused(exp);
}

/* Under the lock: starts the linger time of an unused image of the folder.  A user that only
 * looked at the export doesn't start it anew. */
static void note_idle(struct export_table *table, struct served_export *exp)
{
    if (!export_is_left(exp))
        return;
    if (!exp->idle_since)
        exp->idle_since = clock_ms();
    if (export_is_unused(exp))
        pthread_cond_signal(&table->idle);
}

void export_leave_unlocked(struct export_table *table, struct served_export *exp)
{
    exp->users--;
    note_idle(table, exp);
    if (exp->users == 0 && exp->life == EXPORT_REMOVED)
        export_close_unlocked(table, exp);
    else
        free_unused(exp);
}

void export_put(struct served_export *exp)
{
    if (!exp)
        return;
    struct export_table *table = exp->table;
    LOCK_GUARD(&table->lock);
    export_leave_unlocked(table, exp);
}

/* ---- adding and removing ---- */

int export_table_check_names(struct export_table *table, const struct served_export *exp,
                             struct diag *diag)
{
    if (export_table_look_up(table, exp->name) || named_view_has_name(table, exp->name))
        return diag_set(diag, EEXIST, "export '%.200s': there is one of that name already",
                        exp->name);
    if (look_up_node(table, exp->node_name))
        return diag_set(diag, EEXIST,
                        "export '%.200s': node name '%.200s': is another export's",
                        exp->name, exp->node_name);
    return 0;
}

void export_table_append(struct export_table *table, struct served_export *exp,
                         enum export_life life)
{
    exp->table = table;
    exp->life = (int)life;
    exp->users = 1;
    list_append(&table->exports, &exp->link);
    list_append(name_index_list(&table->names, exp->name), &exp->same_name);
    list_append(name_index_list(&table->node_names, exp->node_name), &exp->same_node_name);
}

int export_table_add(struct export_table *table, struct served_export *exp,
                     struct diag *diag)
{
    LOCK_GUARD(&table->lock);
    int err = export_table_check_names(table, exp, diag);
    if (!err)
        export_table_append(table, exp, EXPORT_LISTED);
    return err;
}

int export_table_open(struct export_table *table, const char *name, const char *node_name,
                      const struct export_request *request,
                      const struct block_shared *shared, struct diag *diag)
{
    struct served_export *exp = export_new(name, node_name);

    if (!exp)
        return diag_errno(diag, ENOMEM, "%s", request->file);
    int err = export_open(exp, request, shared, diag);
    if (!err)
        err = export_table_add(table, exp, diag);
    if (err) {
        close_image(exp);
        export_free(exp);
    }
    return err;
}

void export_wait_for_lookers(struct export_table *table, const unsigned *users)
{
    for (unsigned i = 0; *users > 2 && i < LOOKING_TIMES; i++) {
        LOCK_GAP(&table->lock);
        clock_nap_ns(LOOKING_NS);
    }
}

/* Under the lock. */
static int remove_listed(struct export_table *table, struct served_export *exp,
                         struct diag *diag)
{
    if (exp->jobs > 0)
        return diag_set(diag, EBUSY, "export '%.200s': a job uses it", exp->name);
    exp->life = EXPORT_REMOVED;
    export_leave_unlocked(table, exp);
    return 0;
}

int export_table_withdraw(struct served_export *exp, bool used_too, struct diag *diag)
{
    LOCK_GUARD(&exp->table->lock);
    if (!used_too)
        export_wait_for_lookers(exp->table, &exp->users);
    if (exp->life != EXPORT_LISTED)
        return diag_set(diag, ENOENT, "export '%.200s' is on its way out", export_id(exp));
    if (exp->of_folder && atomic_load(&exp->moved))
        return diag_set(
            diag, EBUSY,
            "export '%.200s': another file is served than the one of that name, "
            "which the next client would get",
            exp->name);
    /* The table and the caller. */
    if (!used_too && exp->users > 2)
        return diag_set(diag, EBUSY, "export '%.200s' still in use", export_id(exp));
    return remove_listed(exp->table, exp, diag);
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
        if (exp->life != EXPORT_LISTED || n++ >= NAMES_SHOWN)
            continue;
        used += (size_t)snprintf(text + used, size - used, "%s\"%.60s\"", n > 1 ? ", " : "",
                                 exp->name);
    }
    if (n > NAMES_SHOWN)
        snprintf(text + used, size - used, " and %u more", n - NAMES_SHOWN);
}

/* Returns the listed export, of which the caller becomes a user, or NULL.  *unused: no client used
 * it; then the caller has to check it (export_check_name_of), and others that ask for the same
 * name wait until that is done. */
static struct served_export *find_listed(struct export_table *table, const char *name,
                                         bool *unused)
{
    struct served_export *exp;
    LOCK_GUARD(&table->lock);

    while ((exp = export_table_look_up(table, name)) && exp->looked_at &&
           !atomic_load(&table->ending))
        lock_wait(&table->lock, &table->changed);
    *unused = exp && exp->idle_since;
    if (exp) {
        exp->looked_at |= *unused;
        exp->idle_since = 0;
    }
    return become_user(exp);
}

static void say_what_there_is(struct export_table *table, const char *name,
                              struct diag *diag)
{
    char names[NAMES_SHOWN * 64 + 32];

    if (table->folder) {
        diag_set(diag, ENOENT,
                 "there is no export '%.200s': no image of that name is in %s", name,
                 image_folder_path(table->folder));
        return;
    }
    LOCK_GUARD(&table->lock);
    list_names(table, names, sizeof names);
    diag_set(diag, ENOENT, "there is no export '%.200s': there is %s", name,
             names[0] ? names : "none at all");
}

/* Without the table's lock: the folder may lie on a disk that doesn't answer. */
static bool is_in_folder(struct export_table *table, const char *name)
{
    return table->folder && image_folder_has(table->folder, name);
}

struct served_export *export_table_find(struct export_table *table, const char *name,
                                        struct diag *diag)
{
    struct served_export *exp;
    bool unused;

    while ((exp = find_listed(table, name, &unused))) {
        int rc = unused ? export_check_name_of(table, exp, diag) : 1;
        if (rc)
            return rc > 0 ? exp : NULL;
    }
    if (is_in_folder(table, name))
        return export_find_in_folder(table, name, diag);
    say_what_there_is(table, name, diag);
    return NULL;
}

struct served_export *export_table_find_node(struct export_table *table,
                                             const char *node_name)
{
    LOCK_GUARD(&table->lock);
    struct served_export *exp = look_up_node(table, node_name);
    return exp && exp->life == EXPORT_LISTED ? become_user(exp) : NULL;
}

const char *export_table_default(struct export_table *table)
{
    LOCK_GUARD(&table->lock);
    return export_table_look_up(table, "") ? "" : NULL;
}

/* Under the lock: the first export after `exp` (NULL: of all) whose life is `last` or an earlier
 * one of the enum.  `exp` has a user, so it is in the list. */
static struct served_export *look_up_next(struct export_table *table,
                                          struct served_export *exp, enum export_life last)
{
    struct list *pos = exp ? exp->link.next : table->exports.next;

    for (; pos != &table->exports; pos = pos->next)
        if (export_at(pos)->life <= (int)last)
            return export_at(pos);
    return NULL;
}

static struct served_export *step_to_next(struct export_table *table,
                                          struct served_export *exp, enum export_life last)
{
    LOCK_GUARD(&table->lock);
    struct served_export *next = become_user(look_up_next(table, exp, last));
    if (exp)
        export_leave_unlocked(table, exp);
    return next;
}

struct served_export *export_table_next(struct export_table *table,
                                        struct served_export *exp)
{
    return step_to_next(table, exp, EXPORT_LISTED);
}

/* As EXPORT_TABLE_EACH, but also visits removed exports that are still in use. */
#define EACH_OPEN_EXPORT(exp, table)                                            \
    for (struct served_export *exp = step_to_next(table, NULL, EXPORT_REMOVED); \
         exp != NULL; (exp) = step_to_next(table, exp, EXPORT_REMOVED))

/* ---- jobs ---- */

bool export_begin_job(struct served_export *exp)
{
    LOCK_GUARD(&exp->table->lock);
    if (exp->life != EXPORT_LISTED)
        return false;
    exp->jobs++;
    exp->idle_since = 0;
    return true;
}

void export_end_job(struct served_export *exp)
{
    LOCK_GUARD(&exp->table->lock);
    exp->jobs--;
    note_idle(exp->table, exp);
}

/* ---- the life of the server ---- */

void export_table_rest(struct export_table *table)
{
    EXPORT_TABLE_EACH (exp, table)
        export_rest(exp);
}

int export_table_start(struct export_table *table)
{
    EXPORT_TABLE_EACH (exp, table) {
        int err = export_start(exp);
        if (err) {
            export_put(exp);
            return err;
        }
    }
    return table->folder ? export_closers_start(table) : 0;
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

static void refuse_to_open(struct export_table *table)
{
    LOCK_GUARD(&table->lock);
    atomic_store(&table->ending, true);
    pthread_cond_broadcast(&table->changed);
}

void export_table_abandon_servers(struct export_table *table)
{
    refuse_to_open(table);
    EACH_OPEN_EXPORT (exp, table)
        export_abandon_servers(exp);
}

void export_table_seal(struct export_table *table)
{
    refuse_to_open(table);
    EACH_OPEN_EXPORT (exp, table)
        export_seal(exp);
}

/* Under the lock. */
static bool is_any(const struct export_table *table, enum export_life life)
{
    LIST_FOR_EACH (pos, &table->exports)
        if (export_at(pos)->life == (int)life)
            return true;
    return false;
}

/* Under the lock: waits until no export has this life. */
static void wait_while_any(struct export_table *table, enum export_life life)
{
    while (is_any(table, life))
        lock_wait(&table->lock, &table->changed);
}

static void close_all(struct export_table *table)
{
    struct served_export *exp;
    LOCK_GUARD(&table->lock);

    wait_while_any(table, EXPORT_OPENING); /* openings that began before refuse_to_open */
    while ((exp = look_up_next(table, NULL, EXPORT_REMOVED)))
        export_close_unlocked(table, exp);
    wait_while_any(table, EXPORT_CLOSING);
}

void export_table_close(struct export_table *table)
{
    refuse_to_open(table);
    export_closers_stop(table);
    close_all(table);
}

/* ---- a server that may go on afterwards ---- */

/* Under the lock. */
static bool is_used(const struct served_export *exp, const struct served_export *kept)
{
    unsigned users = exp->life == EXPORT_LISTED ? 1 : 0;

    return exp->users > (exp == kept ? users + 1 : users) || exp->jobs > 0 ||
           exp->life == EXPORT_OPENING || exp->life == EXPORT_CLOSING;
}

bool export_table_is_used(struct export_table *table, const struct served_export *kept)
{
    LOCK_GUARD(&table->lock);
    LIST_FOR_EACH (pos, &table->exports)
        if (is_used(export_at(pos), kept))
            return true;
    return false;
}

void export_table_close_all(struct export_table *table)
{
    refuse_to_open(table);
    close_all(table);
}

void export_table_open_again(struct export_table *table)
{
    LOCK_GUARD(&table->lock);
    atomic_store(&table->ending, false);
}
