/* SPDX-License-Identifier: BSD-3-Clause */
/* Views: what a connection may see of an export in place of the live disk, chosen by the name
 * that it asks for.  "snapshot/NAME" is a view of the kind "snapshot", of the export whose
 * name is what comes before: of "", or of "a" in "a/snapshot/NAME".  Views are read-only.
 *
 * An open view is its connection's.  It keeps the node that it was opened on from being
 * closed: who would put another in its place gets -EBUSY (export.h).  A request on it is one
 * on the export, too, between export_enter and export_leave.
 *
 * Another kind is a file with a struct view_kind, and a row in view.c's table.
 *
 * Threads: requests from any; list and open from any, which may wait for I/O; closing when no
 * request is under way.  Layer: server. */
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
    struct served_export *exp; /* whose user the connection is */
    struct node *node;         /* on which it was opened; stays open */
    struct named_view *named;  /* whose user it is; NULL: it was found by its own name */
    /* The kind's open sets these. */
    void *state;
    char *description; /* from malloc; NULL: none */
    uint64_t size;     /* bytes */
};

struct view_status {
    uint64_t length; /* from the asked offset on: 1..asked length */
    bool data, zero; /* as in struct block_status */
};

/* A name, without the kind's own, and what it is.  Not 0: no more are wanted. */
typedef int view_tell(void *opaque, const char *name, const char *description);

struct view_kind {
    const char *name;

    /* Tells of each view there is of the node, until that returns other than 0, which is
     * returned.  -ENOMEM. */
    int (*list)(struct node *node, view_tell *tell, void *opaque);

    /* 0 or -errno with diag.  Under the export's lock: it may do I/O, but not wait for
     * requests. */
    int (*open)(struct view *view, const char *name, struct diag *diag);
    void (*close)(struct view *view);

    /* Inside view->size, which was checked.  0 or -errno. */
    int (*read)(struct view *view, void *buf, uint64_t off, uint64_t len);
    int (*status)(struct view *view, uint64_t off, uint64_t len, struct view_status *out);
    int (*cache)(struct view *view, uint64_t off, uint64_t len); /* optional */
};

/* view_snapshot.c, view_bitmap.c, view_backup.c */
extern const struct view_kind view_of_snapshot, view_of_bitmap, view_of_backup;

/* Finds what a client's name means: an export, of which the caller becomes a user, and a view
 * of it, or NULL in *view: its live disk.  -ENOENT with what there is in diag, or what keeps the
 * view from being opened. */
int view_find(struct export_table *table, const char *name, struct served_export **exp,
              struct view **view, struct diag *diag) MUST_USE;

/* One view of an export by its name there, "snapshot/NAME". */
int view_open(struct served_export *exp, const char *name, struct view **out,
              struct diag *diag) MUST_USE;

/* NULL is allowed.  The caller is still a user of the export. */
void view_close(struct view *view);

/* Tells of all views of an export by their names there. */
int view_list(struct served_export *exp, view_tell *tell, void *opaque) MUST_USE;

/* Inside the export.  0 or -errno; -EINVAL for what isn't inside the view. */
int view_read(struct view *view, void *buf, uint64_t off, uint64_t len) MUST_USE;
int view_status(struct view *view, uint64_t off, uint64_t len,
                struct view_status *out) MUST_USE;
int view_cache(struct view *view, uint64_t off, uint64_t len) MUST_USE;

#endif
