/* SPDX-License-Identifier: BSD-3-Clause */
/* Making, removing and applying a snapshot.
 *
 * Each changes refcounts, copied flags, the L1 table and the snapshot table at once, and no
 * two of them may be seen without the others: a copied flag that contradicts its count is
 * an error of the image, and would let a writer change a snapshot.  So nothing is changed in
 * its place.  Beside what is there are written
 *   the refcount blocks whose counts change, and a refcount table that leads to them;
 *   the L2 tables of the disk whose copied flags change, and an L1 table that leads to them;
 *   the new snapshot's L1 table, and the new snapshot table;
 * and when all that is durable, one write within the header's sector puts all of it in the
 * place of the old (invariant 11 of mcache.h).  A crash before it leaks what is new, a crash
 * after it what is old, which goes the usual way of what lost a reference: so a cluster
 * whose last reference was a removed snapshot's keeps a count of 1 in the new blocks.
 *
 * count.c walks the tables that gain or lose references; counts.c makes the new counts;
 * tables.c copies the disk's tables; table.c the snapshot table; space.c finds places;
 * prepare.c writes what is needed, change.c has the other steps, memory.c what becomes of
 * memory; list_alone.c deletes where there is no space for all that.
 *
 * Whoever takes a snapshot holds up the disk's writers from prepare to commit.  So nothing is
 * flushed there: space is found in begin; what isn't in the file yet of tables and blocks
 * (dirty pages) is taken from memory, and becomes part of those that are written, as every
 * table and block is that has any; and the next commit of the cache flushes and writes the
 * header before all else (qcow2_settle_snapshot).  Until then memory has what the image doesn't.
 * Where something is removed its clusters may be written to in place from then on, and so
 * commit waits for the image.
 *
 * Threads: one change at a time for each image.  Private to this folder. */
#ifndef SNAPSHOT_CHANGE_H
#define SNAPSHOT_CHANGE_H

#include <stdint.h>

#include "qcow2/check/check_counts.h"
#include "qcow2/internal.h"

/* References that are added and taken away, by host cluster. */
struct shift {
    struct qcow2 *q;
    struct diag *diag;
    struct counts up, down;
    uint64_t n_clusters;
    uint8_t *blocks; /* bit: the refcount block counts one of them */
    uint8_t *single; /* bit: of those, who has one reference afterwards */
    uint8_t *none;   /* bit: who has none */
};

int shift_init(struct shift *s, struct qcow2 *q, struct diag *diag) MUST_USE;
void shift_free(struct shift *s);

/* count.c: an L1 table of n entries in host order, with all that it leads to, gains a
 * reference each, or loses one.  -EIO with a sentence when an entry can't be right. */
int shift_tables(struct shift *s, const uint64_t *l1, uint32_t n, bool live,
                 bool up) MUST_USE;
/* Clusters at `host` by themselves. */
int shift_clusters(struct shift *s, uint64_t host, uint64_t n, bool up) MUST_USE;

/* Reads an L2 table, in disk order.  live: an entry of the disk's own; then what isn't in the
 * file yet comes from memory, and *unwritten, which may be NULL, says whether there was any. */
int shift_read_table(struct shift *s, uint32_t l1_index, uint64_t entry, bool live,
                     uint8_t *table, bool *unwritten) MUST_USE;

/* counts.c: reads the counts that change, and judges what becomes of them; sets `single` and
 * `none`.  -ERANGE with a sentence: a count would not fit. */
int shift_judge(struct shift *s) MUST_USE;

/* Block b as it is becomes what it is to be; what has no reference left keeps a
 * count of 1, and is added to `gone`. */
int shift_block(struct shift *s, uint64_t b, uint8_t *raw, struct run_list *gone) MUST_USE;

/* Would one of these clusters have no reference left? */
bool shift_frees(const struct shift *s, uint64_t host, uint64_t bytes);

/* The copied flag that an entry with that place is to have. */
bool shift_flag(const struct shift *s, uint64_t host, bool present);

struct snapshot_change_state {
    struct qcow2 *q;
    struct diag *diag;
    struct snapshot_change *change;
    struct qcow2_header header; /* as it is to be; texts are the present one's */
    bool settled;               /* it is in the image, or failed to be */
    int result;
    struct shift shift;

    /* The disk's L1 table, in host order; l1_host 0: the present one stays. */
    uint64_t *l1;
    uint32_t l1_size;
    uint64_t l1_host;

    struct refcount_table *counts; /* NULL: none changes */
    uint8_t *table;                /* the snapshot table, to be written */
    size_t table_bytes;
    bool completes;             /* entries that say too little for version 3 say more */
    uint64_t *made_l1;          /* CREATE: the new snapshot's L1 table */
    struct qcow2_snapshot made; /* CREATE: what is to be added to the list */
    uint64_t key;               /* DELETE, APPLY: which one */
    uint64_t removed_l1;        /* DELETE: where its L1 table lies; 0: it has none */

    /* DELETE, in the list alone: references that are left, see list_alone.c. */
    struct run_list orphans;
    bool only_judge; /* change_disk_tables writes nothing */

    struct run_list taken; /* new clusters: released when it comes to nothing */
    struct run_list spare; /* of these, what isn't used yet */
    struct run_list left;  /* what is not used any more afterwards */
    bool held;             /* the allocator is */
    bool late;             /* something was taken that wasn't reserved */
};

/* tables.c: the disk's tables as they are to be: state->l1, whose entries have the old flags,
 * gets new ones, and leads to copies of tables whose entries do; *changed: there were any.
 * The copies are written. */
int change_disk_tables(struct snapshot_change_state *state, bool *changed) MUST_USE;

/* ---- list_alone.c ---- */

/* DELETE, after there was no space for anything else. */
int change_list_alone(struct snapshot_change_state *state) MUST_USE;
/* The references that earlier ones left are taken away, too. */
int change_plan_orphans(struct snapshot_change_state *state) MUST_USE;
/* In place: those that this one leaves are the ones there are. */
void change_set_orphans(struct snapshot_change_state *state);

/* ---- space.c ---- */

/* What a new snapshot will need, as far as can be told. */
int change_reserve(struct snapshot_change_state *state) MUST_USE;

/* n clusters in a row, or one: of what was reserved, or new ones.  n 0: none, at 0. */
int change_take_table(struct snapshot_change_state *state, uint64_t n,
                      uint64_t *host) MUST_USE;
int change_take_cluster(struct snapshot_change_state *state, uint64_t *host) MUST_USE;

/* [host, host + n clusters) isn't used any more when the change is in the image. */
void change_leave(struct snapshot_change_state *state, uint64_t host, uint64_t n);
void change_leave_spare(struct snapshot_change_state *state);

/* Nothing more is taken by others. */
void change_hold(struct snapshot_change_state *state);
void change_end_hold(struct snapshot_change_state *state);

/* META not held: the runs lose a reference, the usual way. */
void change_unlink(struct qcow2 *q, const struct run_list *runs);

static inline uint64_t change_clusters_of(const struct qcow2 *q, uint64_t bytes)
{
    return div_round_up(bytes, 1ull << q->geo.cluster_bits);
}

/* ---- memory.c ---- */

/* Tables and counts are those of the change from here on.  -ENOMEM: they may be neither. */
int change_use_tables(struct snapshot_change_state *state) MUST_USE;
/* And so is the list, when the header is; what was left is let go of. */
void change_use_list(struct snapshot_change_state *state);

/* table.c: state->table becomes the present table, with an entry more, or without that of the
 * index-th snapshot. */
int change_keep_entries(struct snapshot_change_state *state) MUST_USE;
int change_add_entry(struct snapshot_change_state *state,
                     const struct snapshot_entry *entry) MUST_USE;
int change_remove_entry(struct snapshot_change_state *state, uint32_t index) MUST_USE;

#endif
