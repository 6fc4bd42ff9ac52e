/* SPDX-License-Identifier: BSD-3-Clause */
/* The exports of a server, by name.  Exports can be added and removed while others run.
 *
 * Every holder of a pointer to an export is one of its users: a client's connection, a command
 * that looks at it, the table itself.  An export that was removed from the table is closed by
 * its last user; closing writes, and may take long.  A job isn't a user, but keeps its export
 * from being removed.
 *
 * Names come from clients: any bytes except NUL.
 *
 * Threads: any, except where a function says otherwise.  The table's lock is a leaf; nothing
 * under it waits for an image.  Layer: server. */
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
    struct lock lock; /* RANK_LEAF */
    /* the images of this folder are exports, too; NULL: none */
    struct image_folder *folder;
    uint64_t linger_ms;  /* how long an image of the folder stays open when unused */
    _Atomic bool ending; /* set under lock; a thread that opens an image gives up */
    /* under lock */
    pthread_cond_t changed; /* an export has been opened or closed, or has failed to open */
    pthread_cond_t idle;    /* an export lost its last user; or the closers must stop */
    struct list exports;    /* struct served_export.link: in the order of their adding */
    struct name_index names;      /* struct served_export.same_name */
    struct name_index node_names; /* struct served_export.same_node_name */
    struct list named;            /* struct named_view.link */
    /* Called on the thread that closed a removed export or freed a named view.  May be NULL. */
    void (*closed)(void *opaque, const char *id);
    void *closed_opaque;
    struct export_closers *closers; /* export_linger.c's; NULL: not started */
};

void export_table_init(struct export_table *table);

/* Main thread, after export_table_close. */
void export_table_destroy(struct export_table *table);

/* Opens an image like export_open, and adds it under the name and node name.  0, or -errno
 * with diag; -EEXIST when an export has one of the names. */
int export_table_open(struct export_table *table, const char *name, const char *node_name,
                      const struct export_request *request,
                      const struct block_shared *shared, struct diag *diag) MUST_USE;

/* Adds an open export.  On success it belongs to the table, which closes and frees it.  On
 * -EEXIST, with diag, it remains the caller's. */
int export_table_add(struct export_table *table, struct served_export *exp,
                     struct diag *diag) MUST_USE;

/* Before the table is used by other threads: makes the images of a folder exports.  Each is
 * opened by the first client that asks for its name, and closed after it was unused for
 * linger_ms milliseconds.  The folder is borrowed until export_table_close. */
void export_table_set_folder(struct export_table *table, struct image_folder *folder,
                             uint64_t linger_ms);

/* Sets the callback for exports and named views that are closed from now on. */
void export_table_tell_closed(struct export_table *table,
                              void (*closed)(void *opaque, const char *id), void *opaque);

/* Takes an export from the table: it isn't found any more, and is closed when its last user
 * leaves.  The caller is one of its users.  -EBUSY with diag while a job uses it, or, unless
 * used_too, anybody else does. */
int export_table_withdraw(struct served_export *exp, bool used_too,
                          struct diag *diag) MUST_USE;

/* Finds an export by name; the caller becomes a user.  An image of the folder is opened if it
 * isn't open: one thread does that, the others that ask for the same name wait, and fail with
 * the same message if it fails.  Requests for other names don't wait.  Returns NULL with diag:
 * ENOENT and which exports there are, or why the image couldn't be opened. */
struct served_export *export_table_find(struct export_table *table, const char *name,
                                        struct diag *diag) MUST_USE;
/* The same by node name, without opening anything; NULL: there is none. */
struct served_export *export_table_find_node(struct export_table *table,
                                             const char *node_name) MUST_USE;

/* The name of the export that a client gets which names none: "" if there is such an export,
 * else NULL. */
const char *export_table_default(struct export_table *table);

/* The caller is a user no longer.  NULL is allowed. */
void export_put(struct served_export *exp);

static inline void cleanup_export(struct served_export **exp)
{
    export_put(*exp);
}

/* The caller is a user until the end of the scope; NULL is allowed. */
#define CLEANUP_EXPORT CLEANUP(cleanup_export)

/* Iterates over all exports: returns the export added after `exp` (NULL: the first).  The
 * caller becomes its user, and is a user of `exp` no longer.  NULL at the end.  Exports that
 * are added or removed meanwhile may be missed. */
struct served_export *export_table_next(struct export_table *table,
                                        struct served_export *exp) MUST_USE;

/* The caller is a user of the loop's variable.  `break` and `return` leave the caller a user. */
#define EXPORT_TABLE_EACH(exp, table)                                             \
    for (struct served_export *exp = export_table_next(table, NULL); exp != NULL; \
         (exp) = export_table_next(table, exp))

/* For a user that starts a job on the export: until export_end_job the export can't be
 * removed, and the job may use it.  False: it was removed just now. */
bool export_begin_job(struct served_export *exp) MUST_USE;
/* Doesn't block. */
void export_end_job(struct served_export *exp);

/* ---- start and end of the server ---- */

/* Before the fork: export_rest for each. */
void export_table_rest(struct export_table *table);

/* After the fork: export_start for each, and starts the threads that close unused images.  0
 * or -errno. */
int export_table_start(struct export_table *table) MUST_USE;

/* Is no request in flight on any export? */
bool export_table_is_idle(struct export_table *table);

/* Call export_abandon_servers or export_seal for each export, removed ones that are still open
 * included.  From then on none is opened; an opening in progress fails. */
void export_table_abandon_servers(struct export_table *table);
void export_table_seal(struct export_table *table);

/* Closes all exports, whoever is a user of them: no request may run, or the exports must be
 * sealed.  Errors are logged with the image's name.  A second call does nothing. */
void export_table_close(struct export_table *table);

/* ---- a server that may continue after closing its exports (handover.h) ---- */

/* Is any export used?  That is: it has a user besides the table (`kept` may have one more), a
 * job, or is being opened or closed. */
bool export_table_is_used(struct export_table *table, const struct served_export *kept);

/* No export may be in use: closes them all.  None is opened until export_table_open_again. */
void export_table_close_all(struct export_table *table);
void export_table_open_again(struct export_table *table);

#endif
