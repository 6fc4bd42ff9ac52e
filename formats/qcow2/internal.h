/* SPDX-License-Identifier: BSD-3-Clause */
/* The state of an opened qcow2 image, and the functions that its files offer one another.
 * Private to this folder. */
#ifndef QCOW2_INTERNAL_H
#define QCOW2_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty_mark.h"
#include "block/image_info.h"
#include "block/luks_store.h"
#include "block/node.h"
#include "qcow2/alloc/alloc.h"
#include "qcow2/bitmaps.h"
#include "qcow2/geometry.h"
#include "qcow2/header.h"
#include "qcow2/mapping/mapping.h"
#include "qcow2/snapshot_entry.h"

/* One entry of the snapshot table, as it was read; its L1 table was checked to lie inside the
 * file (qcow2.rst, "Snapshots"). */
struct qcow2_snapshot {
    uint64_t key; /* see snapshot.h */
    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t disk_size; /* bytes */
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns, vm_state_bytes;
    uint64_t icount; /* SNAPSHOT_NO_ICOUNT: none */
    char *id, *name;
    unsigned users;  /* number of readers; while there are any it can't be removed */
    bool going;      /* its removal has begun */
    bool incomplete; /* its entry lacks fields that version 3 requires */
};

struct snapshot_change_state; /* snapshot/change.h */

struct qcow2 {
    struct node *node;
    struct lock header_lock; /* serialises header writes and `header`'s feature fields */
    struct qcow2_header header;
    struct qcow2_geometry geo;
    struct qcow2_mapping live;  /* of the disk, as opposed to a snapshot's */
    enum extent_kind data_kind; /* of uncompressed guest data: EXTENT_DATA or encrypted */

    /* Under header_lock. */
    struct qcow2_snapshot *snapshots;
    uint32_t n_snapshots;
    uint64_t snapshot_bytes; /* length of the table in the file */
    uint64_t last_snapshot_key;
    /* A change that was made in memory and isn't in the file yet; see
     * qcow2_settle_snapshot. */
    struct snapshot_change_state *_Atomic unsettled;

    /* Clusters whose refcounts still include references of deleted snapshots.  Used only by
     * the thread that changes snapshots; see snapshot/list_alone.c. */
    struct run_list orphans;

    struct qcow2_bitmaps bitmaps;

    struct alloc alloc;
    struct dirty_mark mark;
    bool lazy; /* refcounts are postponed while the mark is set; fixed once active */
    _Atomic bool corrupt_unwritten; /* the header's corrupt bit must still be written */
};

static inline struct qcow2 *qcow2_of(const struct node *node)
{
    return node->state;
}

static inline uint64_t cluster_size(const struct qcow2 *q)
{
    return 1ull << q->geo.cluster_bits;
}

/* ---- corrupt.c ---- */

/* Notes that an impossible entry was found.  May be called under any lock, because the header
 * is written later, by qcow2_failed. */
void qcow2_mark_corrupt(struct qcow2 *q);

/* Returns err.  If an impossible entry was noted, sets the header's corrupt bit before.  To be
 * called at the end of each request that failed, outside META. */
int qcow2_failed(struct qcow2 *q, int err);

/* ---- write.c ---- */

/* To be called before metadata is changed; dirty_mark_end, under META, ends what it begins.
 * If the dirty mark can't be written, refcounts are no longer postponed. */
void qcow2_begin_change(struct qcow2 *q);
int qcow2_reserve(struct node *node, uint64_t off, uint64_t len, struct reservation *out);
int qcow2_link(struct node *node, const struct reservation *res, bool replaces_zero);
int qcow2_reserve_compressed(struct node *node, uint64_t off, uint32_t bytes,
                             struct reservation *out);
void qcow2_release(struct node *node, const struct reservation *res);

/* META: the clusters that a removed entry referred to lose one reference. */
void qcow2_let_go(struct qcow2 *q, const struct cluster *c);

/* ---- zero.c ---- */
int qcow2_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
               uint64_t *done);
bool qcow2_zero_is_fast(struct node *node, uint64_t off, uint64_t len);

/* ---- metadata.c ---- */

/* Tells the allocator which clusters hold metadata: header, L1 table, refcount table, snapshot
 * tables.  -EINVAL when two of them claim the same cluster: such an image can't be written
 * to.  After a failure nothing has changed. */
int qcow2_collect_metadata(struct qcow2 *q, struct diag *diag) MUST_USE;

/* ---- snapshot.c ---- */

/* Reads the snapshot table; refuses a table that can't be right. */
int qcow2_read_snapshots(struct qcow2 *q, struct diag *diag) MUST_USE;
void qcow2_free_snapshots(struct qcow2 *q);

/* Under header_lock: the snapshot with that key, or NULL. */
struct qcow2_snapshot *qcow2_snapshot_of(struct qcow2 *q, uint64_t key);

/* Copies the description of one snapshot, or of all; under header_lock.  0 or -ENOMEM; the
 * caller frees *to or *out in both cases. */
int qcow2_copy_snapshot(const struct qcow2_snapshot *from,
                        struct snapshot_info *to) MUST_USE;
int qcow2_copy_snapshots(const struct qcow2 *q, struct snapshot_list *out) MUST_USE;

/* ---- snapshot/change.c: see driver.h ---- */
int qcow2_begin_snapshot(struct snapshot_change *change,
                         const struct snapshot_request *request, struct diag *diag);
int qcow2_prepare_snapshot(struct snapshot_change *change, struct diag *diag);
void qcow2_commit_snapshot(struct snapshot_change *change);
void qcow2_abort_snapshot(struct snapshot_change *change);
int qcow2_finish_snapshot(struct snapshot_change *change, bool committed,
                          struct diag *diag);

/* Removes the remaining references of deleted snapshots; when that fails, the log tells how
 * much leaks. */
void qcow2_tidy_at_end(struct qcow2 *q);

/* The `settle` hook of the metadata cache: writes a snapshot change that so far was made in
 * memory only, before a commit freezes its group. */
int qcow2_settle_snapshot(void *owner);

/* ---- snapshot_view.c: see driver.h ---- */
int qcow2_snapshots(struct node *node, struct snapshot_list *out);
int qcow2_open_snapshot(struct node *snapshot, struct diag *diag);
void qcow2_close_snapshot(struct node *snapshot);

/* ---- unlock.c ---- */

/* Where the LUKS header lies; the image has one. */
struct luks_place qcow2_luks_place(const struct qcow2 *q);
int qcow2_unlock(struct node *node, const void *passphrase, size_t len, struct diag *diag);

/* ---- info.c ---- */
int qcow2_info(struct node *node, struct image_info *info);

/* ---- resize.c ---- */

/* Under header_lock: has `write` write the header h, which differs from the present one in a
 * table's place or a size; a new table is durable by then.  After a failure either header may
 * be in the file, so that neither table may be changed or cut off: the node refuses writes
 * from then on. */
int qcow2_point_header(struct qcow2 *q, const struct qcow2_header *h,
                       int (*write)(struct storage *st,
                                    const struct qcow2_header *h)) MUST_USE;

/* Frees the clusters of the guest range [start, end), whose ends are cluster aligned; the image
 * is active. */
int qcow2_cut_clusters(struct qcow2 *q, uint64_t start, uint64_t end) MUST_USE;
/* 0, or -ENOTSUP and a message when this image can't be resized. */
int qcow2_check_resize(const struct qcow2 *q, struct diag *diag) MUST_USE;
/* Sets the virtual size in the header, durably, and in the node. */
int qcow2_write_size(struct qcow2 *q, uint64_t size) MUST_USE;

/* ---- create.c, rebase.c, resize.c, shrink.c, open.c ---- */
extern const struct create_option_info qcow2_create_options[];
int qcow2_check_create(const struct create_request *req, struct diag *diag);
int qcow2_create(struct storage *st, struct storage *data, const struct create_request *req,
                 struct diag *diag);
int qcow2_set_backing(struct node *node, const char *name, const char *format,
                      struct diag *diag);
int qcow2_grow(struct node *node, uint64_t size, struct diag *diag);
int qcow2_shrink(struct node *node, uint64_t size, struct diag *diag);
int qcow2_make_empty(struct node *node, struct diag *diag);
void qcow2_free_state(void *state);

/* ---- amend.c, amend_refcounts.c, amend_keys.c ---- */
struct amend_request;
extern const struct create_option_info qcow2_amend_options[];
int qcow2_amend_disk(struct node *node, const struct amend_request *req, struct diag *diag);
int qcow2_amend(struct node *node, const struct amend_request *req, struct diag *diag);

/* Gives a closed image refcounts of 2^order bits.  The new ones are durable before the header
 * points to them.  *h becomes the new header. */
int qcow2_amend_refcounts(struct storage *st, struct qcow2_header *h, uint32_t order,
                          struct diag *diag) MUST_USE;
/* Changes the key slots of a closed LUKS image. */
int qcow2_amend_keys(struct storage *st, const struct qcow2_header *h,
                     const struct amend_request *req, struct diag *diag) MUST_USE;

struct image_measure;
int qcow2_measure(const struct create_request *req, struct node *source,
                  struct image_measure *out, struct diag *diag);

/* To be called before the first change of an active image: clears the header's autoclear bits
 * of what this program doesn't keep up to date.  Durable on return.  Not under header_lock. */
int qcow2_first_change(struct node *node) MUST_USE;

#endif
