/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots: earlier states of the disk that are kept in the image.  Each can be
 * opened as a node, which supports block_read, block_status and block_cache; writes return
 * -EROFS.  It uses the files, keys and backing file of the image's node, which must outlive it.
 *
 * Threads: any.  Requests take no locks, and run concurrently with those of the image and of
 * other snapshots.  Layer: block. */
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
    uint64_t key;    /* unique while the image is open */
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

/* Lists the present snapshots; none if the format has no snapshots.  The caller frees the list.
 * Returns 0 or -ENOMEM. */
int node_snapshots(struct node *node, struct snapshot_list *out) MUST_USE;

/* For changes of the backing file of `layer`: its snapshots show the backing file where they
 * have no data of their own, and would change with it.  Returns 0, or -EBUSY with diag if there
 * are snapshots. */
int node_check_no_snapshots(struct node *layer, struct diag *diag) MUST_USE;

/* Leaves it empty; may be called again. */
void snapshot_list_free(struct snapshot_list *list);

#define CLEANUP_SNAPSHOT_LIST CLEANUP(snapshot_list_free)

/* Finds a snapshot: the only one with this name, otherwise the first one with this id.  NULL:
 * none. */
const struct snapshot_info *snapshot_find(const struct snapshot_list *list,
                                          const char *name);

/* The word by which snapshot_find finds the i-th snapshot: its name, or its id if the name
 * isn't unique.  NULL: neither leads to it. */
const char *snapshot_export_name(const struct snapshot_list *list, size_t i);

/* Opens the snapshot that snapshot_find finds, or returns its node if it is open already.  It
 * can't be deleted until it was closed as often as it was opened.  Returns 0, or -errno with
 * diag: -ENOENT. */
int node_open_snapshot(struct node *of, const char *name, struct node **out,
                       struct diag *diag) MUST_USE;

/* The caller has no request in flight. */
void node_close_snapshot(struct node *snapshot);

/* ---- changing snapshots ---- */

/* TIDY does the work that was left when a DELETE found no space (it then changes the snapshot
 * table only).  COMPLETE adds fields to the entries of the snapshot table that newer versions
 * of the format require.  Both return -ENOENT if there is nothing to do. */
enum snapshot_kind {
    SNAPSHOT_CREATE,
    SNAPSHOT_DELETE,
    SNAPSHOT_APPLY,
    SNAPSHOT_TIDY,
    SNAPSHOT_COMPLETE,
};

#define SNAPSHOT_NAME_MAX 255 /* bytes, as in QEMU */

/* DELETE, APPLY: the first snapshot with this id and this name, of which one may be NULL. */
struct snapshot_request {
    enum snapshot_kind kind;
    const char *id, *name; /* CREATE: a name only; the driver chooses the id */
    uint32_t date_sec, date_nsec;
    /* CREATE: begin reserves the space that is probably needed, so that prepare takes less
     * time; unused space is given back. */
    bool ahead;
};

/* A change in progress. */
struct snapshot_change {
    struct node *node;
    enum snapshot_kind kind;
    struct snapshot_info info; /* of the snapshot that is created, deleted or applied */
    void *state;               /* the driver's */
};

/* Creates a snapshot of the disk, deletes one, or gives the disk the contents and the size of
 * one.  The node is active.  One change at a time for each node, by one thread, in these steps:
 *
 *     begin -> prepare -> commit -> finish
 *         |        \---> abort ---/
 *         \----------------------/
 *
 * begin     finds the space that is needed, while users change the disk.  The caller should
 *           flush before, so that little is dirty.
 * prepare   From here to the end of commit nobody may change the disk: its state now is what
 *           CREATE keeps.  Reads go on, but APPLY needs the node to itself.  Does everything
 *           that can fail, and writes new tables to free clusters: the image is unchanged.
 * commit    puts the new tables in place in memory.  DELETE and APPLY also put them into the
 *           image, durably.  For CREATE the next flush does that, whichever caller asks for
 *           it, before anything else: so changes of the disk can continue sooner.
 * abort     instead of commit, after a prepare that succeeded: the disk may be changed again.
 * finish    flushes, if there was a commit; otherwise drops what was prepared.  Frees the
 *           change.  Returns 0, or -errno with diag: the image may be as before or as after
 *           the change, and the node refuses writes.
 *
 * The image is changed by one write: after a crash everything is as before or as after; at
 * most, space is leaked.  begin and prepare return 0, or -errno with diag (which must not be
 * NULL): -ENOENT; -EBUSY: the snapshot to be deleted is open; -ERANGE: refcounts can't count
 * it; -ENOTSUP.  After a failed begin there is nothing to finish.  The caller handles the
 * bitmaps of a disk to which a snapshot is applied. */
int node_begin_snapshot(struct node *node, const struct snapshot_request *request,
                        struct snapshot_change **out, struct diag *diag) MUST_USE;
int node_prepare_snapshot(struct snapshot_change *change, struct diag *diag) MUST_USE;
void node_commit_snapshot(struct snapshot_change *change);
void node_abort_snapshot(struct snapshot_change *change);
int node_finish_snapshot(struct snapshot_change *change, bool committed, struct diag *diag);

/* Does all the steps, on a node whose disk nobody changes.  info (NULL: not wanted): receives
 * the change's info; to be freed with snapshot_info_free. */
int node_change_snapshot(struct node *node, const struct snapshot_request *request,
                         struct snapshot_info *info, struct diag *diag) MUST_USE;
void snapshot_info_free(struct snapshot_info *info);
/* Moves the info out of the change; the caller frees it. */
struct snapshot_info snapshot_change_take_info(struct snapshot_change *change);

/* ---- for block/ ---- */

struct snapshot_nodes {
    struct lock lock; /* RANK_LEAF */
    struct list list; /* struct node.snapshot_link */
};

#endif
