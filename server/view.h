/* SPDX-License-Identifier: BSD-3-Clause */
/* Views: what a connection can see of an export instead of the live disk.  The export name that
 * the client asks for chooses it: "snapshot/NAME" is a view of the kind "snapshot" of the export
 * "", and "a/snapshot/NAME" one of the export "a".  Views are read-only.
 *
 * A connection owns its open view.  The view keeps the node on which it was opened from being
 * closed: replacing that node fails with -EBUSY (export.h).  A request on a view is also a
 * request on the export, between export_enter and export_leave.
 *
 * A new kind needs a file with a struct view_kind, and a row in view.c's table.
 *
 * Threads: requests, list and open from any thread, and they may wait for I/O; close when no
 * request on the view is in flight.  Layer: server. */
#ifndef SERVER_VIEW_H
#define SERVER_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "export_table.h"

struct named_view;
struct view_kind;

struct view {
    const struct view_kind *kind;
    struct served_export *exp; /* the connection is its user */
    struct node *node;         /* the node on which it was opened; stays open */
    /* the named view by which it was opened, which it uses; or NULL */
    struct named_view *named;
    /* Set by the kind's open. */
    void *state;
    char *description; /* from malloc; NULL: none */
    uint64_t size;     /* bytes */
};

struct view_status {
    uint64_t length; /* from the asked offset: 1..asked length */
    bool data, zero; /* as in struct block_status */
};

/* Receives one view's name, without the kind's prefix, and its description.  Returns non-zero to
 * stop the listing. */
typedef int view_tell(void *opaque, const char *name, const char *description);

struct view_kind {
    const char *name;

    /* Calls tell for each view of the node.  Stops when it returns non-zero, and returns that.
     * 0 or -ENOMEM otherwise. */
    int (*list)(struct node *node, view_tell *tell, void *opaque);

    /* 0 or -errno with diag.  Called under the export's lock: it may do I/O, but must not wait
     * for requests. */
    int (*open)(struct view *view, const char *name, struct diag *diag);
    void (*close)(struct view *view);

    /* The range lies inside view->size.  0 or -errno. */
    int (*read)(struct view *view, void *buf, uint64_t off, uint64_t len);
    int (*status)(struct view *view, uint64_t off, uint64_t len, struct view_status *out);
    int (*cache)(struct view *view, uint64_t off, uint64_t len); /* optional */
};

/* view_snapshot.c, view_bitmap.c, view_backup.c */
extern const struct view_kind view_of_snapshot, view_of_bitmap, view_of_backup;

/* Finds what a client's export name means.  *exp: the export, of which the caller becomes a
 * user.  *view: a view of it, or NULL for the live disk.  -errno with diag: -ENOENT and which
 * exports there are, or why the view can't be opened. */
int view_find(struct export_table *table, const char *name, struct served_export **exp,
              struct view **view, struct diag *diag) MUST_USE;

/* Opens a view by its name at the export, "snapshot/NAME". */
int view_open(struct served_export *exp, const char *name, struct view **out,
              struct diag *diag) MUST_USE;

/* NULL is allowed.  The caller must still be a user of the export. */
void view_close(struct view *view);

/* Calls tell for all views of an export, with their names there. */
int view_list(struct served_export *exp, view_tell *tell, void *opaque) MUST_USE;

/* Between export_enter and export_leave.  0 or -errno; -EINVAL for a range outside of the view. */
int view_read(struct view *view, void *buf, uint64_t off, uint64_t len) MUST_USE;
int view_status(struct view *view, uint64_t off, uint64_t len,
                struct view_status *out) MUST_USE;
int view_cache(struct view *view, uint64_t off, uint64_t len) MUST_USE;

#endif
