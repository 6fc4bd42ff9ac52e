/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots of an image: states of the disk that lie in the image beside the one
 * that is written.  Each can be opened as a node of its own, of which block_read, block_status
 * and block_cache may be asked like of any other; block_write and its like are -EROFS.  It uses
 * files, keys and backing file of the node that it is a snapshot of, which lives longer.
 *
 * Threads: any; the requests without locks, beside those of the image and of its other
 * snapshots.  Layer: block. */
#ifndef BLOCK_SNAPSHOT_H
#define BLOCK_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "base/lock.h"

struct node;

/* An internal snapshot. */
struct snapshot_info {
    uint64_t key;    /* of this one alone, as long as the image is open */
    char *id, *name; /* owned */
    uint64_t vm_state_bytes;
    uint64_t disk_size;           /* bytes, of the guest's disk */
    uint32_t date_sec, date_nsec; /* since 1970 */
    uint64_t vm_clock_ns;         /* run time of the guest */
    bool has_icount;
    uint64_t icount;
};

struct snapshot_list {
    struct snapshot_info *list; /* in the order of the image's table */
    size_t n;
};

/* The snapshots that there are now; none where the format has no such thing.  The list is the
 * caller's to free.  0 or -ENOMEM. */
int node_snapshots(struct node *node, struct snapshot_list *out) MUST_USE;

/* Where what lies below a layer is to be something else: its snapshots show that where they
 * have nothing of their own, and get no copy of it.  0, or -EBUSY with diag: it has some. */
int node_check_no_snapshots(struct node *layer, struct diag *diag) MUST_USE;

/* Leaves it empty; again, or of an empty one: nothing. */
void snapshot_list_free(struct snapshot_list *list);

#define CLEANUP_SNAPSHOT_LIST CLEANUP(snapshot_list_free)

/* Which one is called so: the only one of that name, else the first of that id.  NULL: none. */
const struct snapshot_info *snapshot_find(const struct snapshot_list *list,
                                          const char *name);

/* What leads snapshot_find to the i-th: its name, or its id when that isn't its alone.  NULL:
 * nothing does. */
const char *snapshot_export_name(const struct snapshot_list *list, size_t i);

/* Opens the one that snapshot_find finds, or the node of it that is open already.  Until it is
 * closed, as often as it was opened, it isn't removed from the image.  0, or -errno with diag:
 * -ENOENT. */
int node_open_snapshot(struct node *of, const char *name, struct node **out,
                       struct diag *diag) MUST_USE;

/* Whoever opened it has no request under way. */
void node_close_snapshot(struct node *snapshot);

/* ---- changing them ---- */

/* TIDY: a DELETE that found no space changed the list, and left the rest of its work to this.
 * COMPLETE: the list says of each snapshot what newer versions of the format want to be said.
 * Of both, -ENOENT: there is nothing to do. */
enum snapshot_kind {
    SNAPSHOT_CREATE,
    SNAPSHOT_DELETE,
    SNAPSHOT_APPLY,
    SNAPSHOT_TIDY,
    SNAPSHOT_COMPLETE,
};

#define SNAPSHOT_NAME_MAX 255 /* bytes, as QEMU has them */

/* DELETE, APPLY: the first with that id and that name, as far as they are given. */
struct snapshot_request {
    enum snapshot_kind kind;
    const char *id, *name; /* CREATE: a name, and the image chooses the id */
    uint32_t date_sec, date_nsec;
    /* CREATE: space is found in begin, as far as can be told, so that prepare takes less time;
     * what isn't needed is let go of. */
    bool ahead;
};

/* A change that is prepared. */
struct snapshot_change {
    struct node *node;
    enum snapshot_kind kind;
    struct snapshot_info info; /* of the snapshot that is made, removed or applied */
    void *state;               /* the driver's */
};

/* Makes a snapshot of the disk, removes one, or gives the disk the contents and the size that
 * one has.  The node is active; one change at a time for each node, by a thread that goes
 *
 *     begin -> prepare -> commit -> finish
 *         |        \---> abort ---/
 *         \----------------------/
 *
 * begin     finds the space that is needed, while the disk is changed; what is dirty
 *           had better be flushed before.
 * prepare   from here to the end of commit nobody changes the disk, which is what CREATE takes;
 *           readers go on, but APPLY is for one who has the node to himself.  Does what can
 *           fail, and writes what the image has to get beside what is there: the image is as
 *           it was.
 * commit    puts it in place in memory.  DELETE and APPLY put it into the image, too, durably;
 *           of CREATE that is done by the next flush, whoever's, before anything else
 *           of it: so changes go on sooner.
 * abort     instead of commit, after a prepare that didn't fail: the disk may be changed again.
 * finish    flushes, if there was a commit; else forgets what was prepared.  Frees the change.
 *           0, or -errno with diag: the image may be as before or as after, and the node
 *           refuses changes.
 *
 * In the image it is one write: after a crash all is as before or all is as after, and space
 * is leaked at most.  begin and prepare: 0, or -errno with diag (which isn't NULL): -ENOENT;
 * -EBUSY when somebody reads what is to be removed; -ERANGE when refcounts can't count it;
 * -ENOTSUP; after begin's there is nothing to finish.  The bitmaps of a disk that is given
 * other contents are the caller's. */
int node_begin_snapshot(struct node *node, const struct snapshot_request *request,
                        struct snapshot_change **out, struct diag *diag) MUST_USE;
int node_prepare_snapshot(struct snapshot_change *change, struct diag *diag) MUST_USE;
void node_commit_snapshot(struct snapshot_change *change);
void node_abort_snapshot(struct snapshot_change *change);
int node_finish_snapshot(struct snapshot_change *change, bool committed, struct diag *diag);

/* All of it, of a node whose disk nobody changes.  info: when it isn't NULL, what the change
 * has; to be freed with snapshot_info_free. */
int node_change_snapshot(struct node *node, const struct snapshot_request *request,
                         struct snapshot_info *info, struct diag *diag) MUST_USE;
void snapshot_info_free(struct snapshot_info *info);
/* Takes the change's info away from it. */
struct snapshot_info snapshot_change_take_info(struct snapshot_change *change);

/* ---- for block/ ---- */

struct snapshot_nodes {
    struct lock lock; /* RANK_LEAF */
    struct list list; /* struct node.snapshot_link */
};

#endif
