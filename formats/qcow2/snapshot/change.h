/* SPDX-License-Identifier: BSD-3-Clause */
/* Creating, deleting and applying an internal snapshot.  Private to this folder.
 *
 * Each of these changes refcounts, copied flags, the L1 table and the snapshot table at once, and
 * the file must never have some of the changes without the others: a copied flag that
 * contradicts a refcount is a corruption, and would let a write in place change a snapshot.  So
 * nothing is changed in place.  New structures are written elsewhere in the file:
 *   - refcount blocks with the changed refcounts, and a refcount table that points to them;
 *   - L2 tables of the disk with the changed copied flags, and an L1 table that points to them;
 *   - the new snapshot's L1 table, and the new snapshot table.
 * When all of them are durable, one write within the header's sector makes the header point to
 * them (invariant 11 of mcache.h).  A crash before that write leaks the new structures, one after
 * it the old ones.  The old ones are unlinked and freed like any cluster; therefore a cluster
 * whose last reference was that of a deleted snapshot keeps a refcount of 1 in the new blocks
 * until it is freed.
 *
 * count.c walks the tables whose references are added or removed; counts.c computes the new
 * refcounts; tables.c copies the disk's tables; table.c makes the snapshot table; space.c finds
 * clusters; prepare.c writes the new structures; change.c has the other steps; memory.c changes
 * the state in memory; list_alone.c deletes a snapshot when there is no space for all that.
 *
 * While a snapshot is created the disk's writers wait from `prepare` to `commit`, so nothing is
 * flushed in that time:
 *   - clusters are allocated before, in `begin`;
 *   - the content of dirty pages is taken from memory, and each table or block with a dirty page
 *     is among those that are written;
 *   - the next commit of the metadata cache flushes, and writes the header before anything else
 *     (qcow2_settle_snapshot).  Until then the change is in memory only.
 * After a deletion clusters may be written to in place that the snapshot had, too: there `commit`
 * waits until the change is durable.
 *
 * Threads: one change at a time for each image. */
#ifndef SNAPSHOT_CHANGE_H
#define SNAPSHOT_CHANGE_H

#include <stdint.h>

#include "qcow2/check/check_counts.h"
#include "qcow2/internal.h"

/* The references that a change adds and removes, by host cluster. */
struct shift {
    struct qcow2 *q;
    struct diag *diag;
    struct counts up, down;
    uint64_t n_clusters;
    /* Bitmaps. */
    uint8_t *blocks; /* refcount blocks that count such a cluster */
    uint8_t *single; /* such clusters that will have one reference */
    uint8_t *none;   /* such clusters that will have none */
};

int shift_init(struct shift *s, struct qcow2 *q, struct diag *diag) MUST_USE;
void shift_free(struct shift *s);

/* count.c: adds (up) or removes a reference of everything to which an L1 table of n entries, in
 * host order, leads.  live: it is the disk's.  -EIO and a message for an impossible entry. */
int shift_tables(struct shift *s, const uint64_t *l1, uint32_t n, bool live,
                 bool up) MUST_USE;
/* The same for n clusters at `host`. */
int shift_clusters(struct shift *s, uint64_t host, uint64_t n, bool up) MUST_USE;

/* Reads the L2 table of an L1 entry, in disk byte order.  live: the entry is the disk's; then the
 * content of dirty pages comes from memory, and *unwritten, which may be NULL, says whether there
 * were any. */
int shift_read_table(struct shift *s, uint32_t l1_index, uint64_t entry, bool live,
                     uint8_t *table, bool *unwritten) MUST_USE;

/* counts.c: reads the refcounts that change, checks the new values, and sets `single` and `none`.
 * -ERANGE and a message when a refcount would become too large. */
int shift_judge(struct shift *s) MUST_USE;

/* Changes the refcounts in `raw`, the present content of block b.  Clusters that have no reference
 * left keep a refcount of 1, and are added to `gone`. */
int shift_block(struct shift *s, uint64_t b, uint8_t *raw, struct run_list *gone) MUST_USE;

/* Will one of these clusters have no reference left? */
bool shift_frees(const struct shift *s, uint64_t host, uint64_t bytes);

/* The copied flag that an entry which points to `host` will have; `present`: the flag it has
 * now. */
bool shift_flag(const struct shift *s, uint64_t host, bool present);

struct snapshot_change_state {
    struct qcow2 *q;
    struct diag *diag;
    struct snapshot_change *change;
    struct qcow2_header header; /* the new header; its texts belong to the present one */
    bool settled;               /* the change is in the file, or failed to get there */
    int result;
    struct shift shift;

    /* The disk's new L1 table, in host order, and its place; l1_host 0: the present one stays. */
    uint64_t *l1;
    uint32_t l1_size;
    uint64_t l1_host;

    struct refcount_table *counts; /* the new refcount table; NULL: no refcount changes */
    uint8_t *table;                /* the new snapshot table */
    size_t table_bytes;
    bool completes;             /* entries get the fields that version 3 requires */
    uint64_t *made_l1;          /* CREATE: the new snapshot's L1 table */
    struct qcow2_snapshot made; /* CREATE: the new entry of the list */
    uint64_t key;               /* DELETE, APPLY: the snapshot's key */
    uint64_t removed_l1;        /* DELETE: the place of its L1 table; 0: it has none */

    /* DELETE without space: references that remain counted, see list_alone.c. */
    struct run_list orphans;
    bool only_judge; /* change_disk_tables writes nothing */

    struct run_list taken; /* clusters allocated for the change; freed if it is aborted */
    struct run_list spare; /* those of them that aren't used yet */
    struct run_list left;  /* clusters that aren't used any more after the change */
    bool held;             /* the allocator is held (alloc_hold) */
    bool late;             /* a cluster was allocated after `begin` */
};

/* tables.c: writes copies of the disk's L2 tables whose copied flags change, and changes state->l1,
 * which is a copy of the present L1 table: its entries get the new flags and point to the
 * copies.  *changed: whether anything changed. */
int change_disk_tables(struct snapshot_change_state *state, bool *changed) MUST_USE;

/* ---- list_alone.c ---- */

/* Prepares a deletion that changes the snapshot table only, when there was no space for the usual
 * way. */
int change_list_alone(struct snapshot_change_state *state) MUST_USE;
/* Includes the removal of orphan references, left by earlier deletions, in this change. */
int change_plan_orphans(struct snapshot_change_state *state) MUST_USE;
/* After the commit: the orphan references of this change replace those of the image. */
void change_set_orphans(struct snapshot_change_state *state);

/* ---- space.c ---- */

/* Allocates the clusters that a new snapshot will need, as far as that is known. */
int change_reserve(struct snapshot_change_state *state) MUST_USE;

/* Takes n contiguous clusters (n 0: *host is 0), or one cluster: reserved ones, or new ones. */
int change_take_table(struct snapshot_change_state *state, uint64_t n,
                      uint64_t *host) MUST_USE;
int change_take_cluster(struct snapshot_change_state *state, uint64_t *host) MUST_USE;

/* Notes that the n clusters at `host` aren't used any more once the change is in the file. */
void change_leave(struct snapshot_change_state *state, uint64_t host, uint64_t n);
void change_leave_spare(struct snapshot_change_state *state);

/* Holds the allocator: from now on nobody else allocates clusters. */
void change_hold(struct snapshot_change_state *state);
void change_end_hold(struct snapshot_change_state *state);

/* Unlinks the runs of clusters, each of which loses a reference; META is not held. */
void change_unlink(struct qcow2 *q, const struct run_list *runs);

static inline uint64_t change_clusters_of(const struct qcow2 *q, uint64_t bytes)
{
    return div_round_up(bytes, 1ull << q->geo.cluster_bits);
}

/* ---- memory.c ---- */

/* Makes the new tables and refcounts those in memory.  After -ENOMEM some may be old and some
 * new. */
int change_use_tables(struct snapshot_change_state *state) MUST_USE;
/* After the header was written: does the same with the list of snapshots, and unlinks the clusters
 * in state->left. */
void change_use_list(struct snapshot_change_state *state);

/* table.c: sets state->table to the present table, to that with another entry, or to that without
 * the entry of snapshot number `index`. */
int change_keep_entries(struct snapshot_change_state *state) MUST_USE;
int change_add_entry(struct snapshot_change_state *state,
                     const struct snapshot_entry *entry) MUST_USE;
int change_remove_entry(struct snapshot_change_state *state, uint32_t index) MUST_USE;

#endif
