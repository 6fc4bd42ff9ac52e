/* SPDX-License-Identifier: BSD-3-Clause */
/* The exports of a server, by name.  Some may be added and removed while others run.
 *
 * Whoever has a pointer to an export is one of its users: a client's connection, a command
 * that looks at it, the table itself.  It is closed by the last, when it was removed from
 * the table; closing it writes, and may take long.  A job isn't a user by itself, but keeps
 * its export from being removed.
 *
 * Names come from clients: any bytes but NUL.
 *
 * Threads: any, but where it says so.  The lock of the table is a leaf, and nobody waits
 * for an image under it.  Layer: server. */
#ifndef SERVER_EXPORT_TABLE_H
#define SERVER_EXPORT_TABLE_H

#include <pthread.h>
#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "base/lock.h"
#include "export.h"
#include "name_index.h"

struct image_folder;

struct export_table {
    struct lock lock;            /* RANK_LEAF */
    struct image_folder *folder; /* whose images are exports, too; NULL: none */
    uint64_t linger_ms;          /* how long these stay open when nobody uses them */
    _Atomic bool ending;         /* set under lock; whoever opens one gives up */
    /* under lock */
    pthread_cond_t changed; /* one isn't being opened, or closed, any more */
    pthread_cond_t idle;    /* one has lost its last user; or the end */
    struct list exports;    /* struct served_export.link: in the order in which they came */
    struct name_index names;      /* struct served_export.same_name */
    struct name_index node_names; /* struct served_export.same_node_name */
    struct list named;            /* struct named_view.link */
    /* One that was removed is closed, or a named view gone; on the thread that did it.  NULL:
     * nobody wants to know. */
    void (*closed)(void *opaque, const char *id);
    void *closed_opaque;
    struct export_closers *closers; /* export_linger.c's; NULL: not started */
};

void export_table_init(struct export_table *table);

/* Main thread, after export_table_close. */
void export_table_destroy(struct export_table *table);

/* Opens an image as export_open does, and adds it under that name and node name.  -EEXIST when
 * there is one of either.  0 or -errno with diag. */
int export_table_open(struct export_table *table, const char *name, const char *node_name,
                      const struct export_request *request,
                      const struct block_shared *shared, struct diag *diag) MUST_USE;

/* Adds one that is open already, which is the table's from then on: it closes and frees it.
 * -EEXIST with diag: it is the caller's still. */
int export_table_add(struct export_table *table, struct served_export *exp,
                     struct diag *diag) MUST_USE;

/* Before it is used by others: the images of a folder are exports by their names there, each
 * opened by
 * the first who asks for it, and closed when nobody has used it for linger_ms.  Borrowed until
 * export_table_close. */
void export_table_set_folder(struct export_table *table, struct image_folder *folder,
                             uint64_t linger_ms);

/* Of exports that are removed from here on. */
void export_table_tell_closed(struct export_table *table,
                              void (*closed)(void *opaque, const char *id), void *opaque);

/* The caller, one of its users, takes it from the table: it isn't found any more, and is
 * closed when its last user
 * leaves.  -EBUSY while a job uses it and, unless it may be, anybody else. */
int export_table_withdraw(struct served_export *exp, bool used_too,
                          struct diag *diag) MUST_USE;

/* The caller becomes a user.  An image of the folder is opened for it, by one of those who ask
 * for it at the same time: the others wait, and are told the same when that fails; who asks
 * for another
 * waits for nobody.  NULL, with ENOENT and what there is in diag, when there is none of the
 * name, or with what keeps it from being opened. */
struct served_export *export_table_find(struct export_table *table, const char *name,
                                        struct diag *diag) MUST_USE;
/* The same by node name; NULL: there is none. */
struct served_export *export_table_find_node(struct export_table *table,
                                             const char *node_name) MUST_USE;

/* Of whoever names none: "" when there is such an export, else NULL. */
const char *export_table_default(struct export_table *table);

/* The caller is no user any more. */
void export_put(struct served_export *exp);

static inline void cleanup_export(struct served_export **exp)
{
    export_put(*exp);
}

/* A user until the end of the scope; NULL is allowed. */
#define CLEANUP_EXPORT CLEANUP(cleanup_export)

/* To go over all: the one that was added after `exp` (NULL: the first), of which the caller
 * becomes a user; it is none of `exp` any more.  NULL: that was the last.  What is added or
 * removed meanwhile may be missed. */
struct served_export *export_table_next(struct export_table *table,
                                        struct served_export *exp) MUST_USE;

/* The loop's variable is the caller's while it lasts; `break` and `return` leave it a user. */
#define EXPORT_TABLE_EACH(exp, table)                                             \
    for (struct served_export *exp = export_table_next(table, NULL); exp != NULL; \
         (exp) = export_table_next(table, exp))

/* A user starts a job on it: it isn't removed before export_end_job, and the job may use it
 * until then.  False: it was removed just now. */
bool export_begin_job(struct served_export *exp) MUST_USE;
/* Waits for nothing. */
void export_end_job(struct served_export *exp);

/* ---- the life of the server ---- */

/* Before the fork: export_rest for each. */
void export_table_rest(struct export_table *table);

/* After the fork: export_start for each, and the threads that close what nobody uses.  0 or
 * -errno. */
int export_table_start(struct export_table *table) MUST_USE;

/* Is no request under way, on any? */
bool export_table_is_idle(struct export_table *table);

/* export_abandon_servers and export_seal, for each, also those that were removed.  From then
 * on none is opened, and who does so just now fails. */
void export_table_abandon_servers(struct export_table *table);
void export_table_seal(struct export_table *table);

/* Closes all, whoever is a user of them: no request may run, or they must be sealed.  What
 * can't be made durable is logged with the name of the image.  Again: does nothing. */
void export_table_close(struct export_table *table);

/* ---- a server that may go on afterwards ---- */

/* Is there a user of any, but the table, and of `kept` one more; a job; or one that is being
 * opened or closed? */
bool export_table_is_used(struct export_table *table, const struct served_export *kept);

/* None is in use: closes them all, and none is opened until the table is opened again. */
void export_table_close_all(struct export_table *table);
void export_table_open_again(struct export_table *table);

#endif
