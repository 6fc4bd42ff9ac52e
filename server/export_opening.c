/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens images of a folder as exports.  The thread of the first client that asks for a name
 * opens the image, without holding the table's lock; other clients that ask for the same name
 * wait for it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "export_table_internal.h"
#include "image_folder.h"

/* Under the lock: an export of that name whose image is, may be, or will be open.  A removed
 * export that clients still use counts: its image is open. */
static struct served_export *look_up_known(struct export_table *table, const char *name)
{
    unsigned lives = EXPORT_LIFE(EXPORT_LISTED) | EXPORT_LIFE(EXPORT_OPENING) |
                     EXPORT_LIFE(EXPORT_CLOSING);
    struct served_export *exp = export_table_look_up_in(table, name, lives);

    if (exp)
        return exp;
    exp = export_table_look_up_in(table, name, EXPORT_LIFE(EXPORT_REMOVED));
    return exp && exp->of_folder ? exp : NULL;
}

static bool is_shortage(int err)
{
    return err == -EMFILE || err == -ENFILE || err == -ENOMEM;
}

/* Without the lock. */
static int open_image(struct export_table *table, struct served_export *exp,
                      struct diag *diag)
{
    int err = image_folder_open_image(table->folder, exp, &table->ending, diag);

    if (!is_shortage(err))
        return err;
    export_close_idle(table);
    return image_folder_open_image(table->folder, exp, &table->ending, diag);
}

/* Lets threads that wait for the export fail with the same message. */
static void note_failure(struct export_table *table, struct served_export *exp,
                         const struct diag *diag)
{
    exp->failure = malloc(sizeof *exp->failure);
    if (exp->failure)
        *exp->failure = *diag;
    exp->life = EXPORT_FAILED;
    exp->users--; /* the table's own */
    pthread_cond_broadcast(&table->changed);
    export_leave_unlocked(table, exp);
}

/* Under the lock, which is released meanwhile. */
static struct served_export *open_export(struct export_table *table,
                                         struct served_export *exp, struct diag *diag)
{
    int err;

    exp->of_folder = true;
    export_table_append(table, exp, EXPORT_OPENING);
    exp->users++; /* the caller */
    {
        LOCK_GAP(&table->lock);
        err = open_image(table, exp, diag);
    }
    if (err) {
        note_failure(table, exp, diag);
        return NULL;
    }
    exp->life = EXPORT_LISTED;
    pthread_cond_broadcast(&table->changed);
    return exp;
}

/* Under the lock. */
static struct served_export *open_new(struct export_table *table, const char *name,
                                      struct diag *diag)
{
    /* The image's name is also its node name, by which commands find it. */
    struct served_export *exp = export_new(name, name);

    if (!exp) {
        diag_errno(diag, ENOMEM, "export '%.200s'", name);
        return NULL;
    }
    if (export_table_check_names(table, exp, diag)) {
        export_free(exp);
        return NULL;
    }
    return open_export(table, exp, diag);
}

/* ---- an image that was open and unused ---- */

static bool is_other_file(struct export_table *table, struct served_export *exp)
{
    uint64_t device, inode;
    EXPORT_USE(use, export_enter(exp));

    return storage_identity(use.node->file, &device, &inode) == 0 &&
           image_folder_has_other(table->folder, exp->name, device, inode);
}

/* Under the lock, which is released meanwhile.  Other users only look at the export. */
static int close_other_file(struct export_table *table, struct served_export *exp,
                            struct diag *diag)
{
    export_wait_for_lookers(table, &exp->users);
    exp->users--; /* the caller */
    if (export_is_unused(exp)) {
        exp->looked_at = false;
        export_close_unlocked(table, exp);
        return 0;
    }
    exp->users++;
    return diag_set(diag, EBUSY,
                    "export '%.200s': another file has its name by now, but a job, or what "
                    "commands said of it, keeps open the one that had it: block-export-del "
                    "closes that",
                    exp->name);
}

int export_check_name_of(struct export_table *table, struct served_export *exp,
                         struct diag *diag)
{
    bool other = is_other_file(table, exp);
    LOCK_GUARD(&table->lock);
    int rc = other ? close_other_file(table, exp, diag) : 1;

    if (rc) {
        exp->looked_at = false;
        pthread_cond_broadcast(&table->changed);
    }
    if (rc < 0)
        export_leave_unlocked(table, exp);
    return rc;
}

/* ---- opening ---- */

/* Under the lock, which is released meanwhile.  Waits until an export that is being opened or
 * closed has become something else.  Returns it if it is listed now; the caller is a user
 * then.  Otherwise NULL: with *failed, and diag, if it couldn't be opened; else it was closed
 * and the name must be looked up again. */
static struct served_export *wait_for_export(struct export_table *table,
                                             struct served_export *exp, bool *failed,
                                             struct diag *diag)
{
    exp->users++;
    exp->idle_since = 0;
    while ((exp->life == EXPORT_OPENING || exp->life == EXPORT_CLOSING) &&
           !atomic_load(&table->ending))
        lock_wait(&table->lock, &table->changed);
    if (exp->life == EXPORT_LISTED)
        return exp;
    *failed = exp->life == EXPORT_FAILED;
    if (*failed && exp->failure)
        *diag = *exp->failure;
    else if (*failed)
        diag_errno(diag, ENOMEM, "export '%.200s'", exp->name);
    export_leave_unlocked(table, exp);
    return NULL;
}

struct served_export *export_find_in_folder(struct export_table *table, const char *name,
                                            struct diag *diag)
{
    bool failed = false;

    LOCK_GUARD(&table->lock);
    while (!atomic_load(&table->ending)) {
        struct served_export *exp = look_up_known(table, name);
        if (!exp)
            return open_new(table, name, diag);
        if (exp->life == EXPORT_REMOVED) {
            diag_set(diag, EBUSY, "export '%.200s' is on its way out: clients still use it",
                     name);
            return NULL;
        }
        exp = wait_for_export(table, exp, &failed, diag);
        if (exp || failed)
            return exp;
    }
    diag_set(diag, ESHUTDOWN, "the server ends");
    return NULL;
}
