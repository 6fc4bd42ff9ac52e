/* SPDX-License-Identifier: BSD-3-Clause */
/* The check of a qcow2 image and its repair, in parts; private to this folder.
 *
 * A *pass* (check_pass.c) counts anew what refers to each host cluster, from the header,
 * the L1 tables of the active layer and of the snapshots, their L2 tables and the bitmaps,
 * and compares with the refcounts in the file.  It writes nothing.  Every L2 table is
 * looked at once, with the number of L1 entries that lead to it as its weight, so the work
 * is bounded by the file's size.
 *
 * A repair is passes with fixes between, each of which is durable before the next starts:
 *   entries    (repair_entries.c)   those that can't be right; of two claims on a cluster
 *                                   one;
 *   refcounts  (repair_refcounts.c) in place; or all made anew at the end of the file
 *              (repair_rebuild.c),  durable before the header points there;
 *   flags      (repair_copied.c)    of the active tables
 *   snapshots  (repair_snapshots.c) where their table has to be another: it is written, has its
 *                                   counts, and then the header points there
 *   marks      (check.c)            dirty and corrupt, when a last pass finds nothing
 * Killed in between, each part that was done is right by itself, and the next run does the
 * rest.  Images of version 2 have no mark that keeps writers away until then: what is new has its
 * counts before anything points to it.
 *
 * Who is believed when two claim a cluster: refcount structures last, since they can be
 * made anew; the header and the active L1 table first; bitmaps where nothing else is.
 * Of metadata and guest data it is the metadata, unless it has entries that none would
 * have, or none and something behind: then it is taken for the data.
 * Of two other tables neither is touched; the refcounts are made to allow for both. */
#ifndef CHECK_CHECK_H
#define CHECK_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "block/check.h"
#include "qcow2/check/check_counts.h"
#include "qcow2/check/check_tables.h"
#include "qcow2/header.h"
#include "qcow2/l2_entry.h"
#include "storage/storage.h"

/* An entry of the snapshot table. */
struct check_snapshot {
    uint64_t entry_offset; /* in the file */
    uint64_t bytes;        /* of the entry, without its padding */
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t extra_bytes;
    uint16_t id_bytes, name_bytes;
    const char *fault; /* why its L1 table can't be where it is said to be; NULL: it can */
    bool odd;          /* something is wrong with the entry */
    bool overlaps;     /* it can't, since other metadata is there */
    bool extra_wrong;  /* too little or too much extra data */
};

/* An L1 table to walk: the active one, or that of snapshots. */
struct check_l1 {
    uint64_t offset;
    uint32_t n;      /* entries that lie inside the file */
    uint64_t weight; /* how many refer to it */
    bool active;
    struct check_snapshot *snapshot; /* first of those that refer to it */
};

/* What is checked; the file may grow between passes (qrepair_resized). */
struct check_input {
    struct storage *st;
    const struct check_options *options;
    struct diag *diag;
    struct qcow2_header h;
    struct qcow2_geometry geo;
    uint64_t cluster_size, file_size;
    uint64_t n_clusters; /* of the file, the last one may be partial */
    uint64_t max_count;  /* what a refcount can say */
};

/* Findings that are told when the pass has ended, one after the other, each with its NUL. */
struct later_texts {
    char *text;
    size_t bytes, capacity;
};

/* What one pass finds, from nothing. */
struct check_pass {
    struct check_result found;
    uint64_t impossible;  /* findings that only a change of an entry mends */
    uint64_t rewrites;    /* of those, what a new snapshot table mends */
    bool rebuild;         /* the refcount structures can't be kept */
    const char *hopeless; /* why nothing may be repaired, NULL: it may */
    bool bitmaps_broken;
    uint64_t wrong_flags; /* of found.corruptions: copied flags */
    struct later_texts later;
    uint64_t n_contested;
    uint64_t n_compare; /* clusters to compare: n_clusters, or one more */

    struct check_snapshot *snapshots;
    uint32_t n_snapshots, odd_snapshots;
    uint64_t snapshot_bytes; /* of the snapshot table */
    struct check_l1 *l1s;
    uint32_t n_l1s;

    uint64_t *rt; /* the refcount table */
    uint64_t n_rt;
    bool rt_unknown; /* it has entries whose blocks can't be read */
    uint8_t *disk;   /* refcounts in the file; COUNT_LARGE and more: COUNT_LARGE */
    uint8_t *block;  /* buffer of qcheck_disk_count */
    uint64_t block_offset;

    struct counts refs;      /* references found */
    struct l2_tables tables; /* in the order of the file once all L1 tables are counted */
    /* Bitmaps of clusters. */
    uint8_t *fixed; /* the header, the LUKS header and the active L1 table */
    uint8_t *meta;  /* these, the snapshot table, L1 tables of snapshots, bitmap tables */
    uint8_t *is_table;  /* L2 tables */
    uint8_t *contested; /* claimed as metadata and as data */
    uint8_t *bad;       /* what metadata would not be like: most of its entries are odd */

    uint64_t done, total; /* table entries, for the progress */
};

/* Over all passes of a repair. */
struct check_repair_state {
    bool wrote;
    bool was_dirty;  /* the dirty bit was there before */
    bool dropped;    /* mappings were lost */
    uint64_t flags;  /* copied flags that were set right */
    uint64_t missed; /* what could not be read, in passes and in the repairs between them */
    /* A snapshot table that is written and that nothing points to yet: passes count it. */
    uint64_t new_snapshots, new_snapshot_bytes;
};

struct check_progress {
    unsigned stage, stages; /* passes */
    uint64_t reported;
};

struct check {
    struct check_input in;
    struct check_pass pass;
    struct check_repair_state repair;
    struct check_progress progress;
};

/* ---- check_pass.c ---- */

/* with_refcounts false: the refcount structures are not counted, nor compared.  0 or -errno
 * with a sentence; what can't be read is counted in found.check_errors. */
int qcheck_pass(struct check *c, bool with_refcounts) MUST_USE;
void qcheck_forget(struct check *c);

/* Findings are told of the first pass; those after it, within a repair, find them again. */

/* A finding of that weight. */
void qcheck_corrupt(struct check *c, uint64_t weight, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* One that only a change of the entry mends. */
void qcheck_impossible(struct check *c, uint64_t weight, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Clusters that nothing refers to: a finding, and no corruption. */
void qcheck_leak(struct check *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* A copied flag that contradicts the refcount in the file; told at the end, as QEMU does. */
void qcheck_wrong_flag(struct check *c, uint64_t weight, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Counts a reference to the clusters of a range; false when the range ends past the end of
 * the file by a cluster or more (a finding, nothing is counted).  -errno: memory. */
int qcheck_add_range(struct check *c, uint64_t offset, uint64_t bytes, uint64_t weight,
                     const char *what, bool *inside) MUST_USE;
/* Marks the clusters of a range in a bitmap, as far as they are in the file. */
void qcheck_mark(struct check *c, uint8_t *bits, uint64_t offset, uint64_t bytes);
/* As qcheck_add_range, for metadata: also marks the range in `meta`. */
int qcheck_add_meta(struct check *c, uint64_t offset, uint64_t bytes, uint64_t weight,
                    const char *what, bool *inside) MUST_USE;

/* Is any cluster of the range, as far as it is in the file, marked in the bitmap? */
bool qcheck_any(const struct check *c, const uint8_t *bits, uint64_t offset,
                uint64_t bytes);

void qcheck_progress(struct check *c, uint64_t done);

/* A message about a repair. */
#define qcheck_say(c, ...) check_message((c)->in.options, __VA_ARGS__)

/* ---- check_entry.c ---- */

/* An L2 entry as it stands in a table; the bitmap is that of an extended one, else 0. */
struct l2_words {
    uint64_t entry, bitmap;
};

/* The guest offset of an L2 table's entry; of a table that more than one L1 entry leads to, and
 * maybe wrongly, nobody knows it. */
#define UNKNOWN_GUEST UINT64_MAX

static inline uint64_t qcheck_guest(const struct check *c, const struct l2_table *table,
                                    uint64_t entry)
{
    uint64_t first = (uint64_t)table->index << geometry_table_bits(&c->in.geo);

    return table->weight == 1 ? first + (entry << c->in.h.cluster_bits) : UNKNOWN_GUEST;
}

/* How many words of a table are one entry, and the entry whose first word that is. */
static inline uint32_t qcheck_step(const struct check *c)
{
    return 1u << c->in.geo.word_bits;
}

static inline struct l2_words qcheck_words(const struct check *c, const uint64_t *at)
{
    return (struct l2_words){at[0], c->in.geo.word_bits ? at[1] : 0};
}

/* What is wrong with an entry, FAULT_* bits (l2_entry.h), the end of the file included,
 * unless the data lies in another one.  The latter decodes into *out; the last may know which
 * guest cluster it is, and so where in another file it has to be. */
unsigned qcheck_l1_faults(const struct check *c, uint64_t entry);
unsigned qcheck_decode(const struct check *c, struct l2_words words, struct cluster *out);
unsigned qcheck_decode_at(const struct check *c, struct l2_words words, uint64_t guest,
                          struct cluster *out);

/* For messages: the words, in text of that many bytes, which it returns. */
#define WORDS_TEXT 64
const char *qcheck_words_text(const struct check *c, struct l2_words words, char *text);

/* Does a range end past the end of the file by a cluster or more?  That is QEMU's measure,
 * and lenient with what isn't aligned. */
bool qcheck_past_end(const struct check *c, uint64_t offset, uint64_t bytes);

/* ---- check_l1.c ---- */

/* Calls `visit` for the L1 entries that aren't zero.  Stops at -errno. */
struct l1_walk {
    struct check *c;
    const struct check_l1 *l1;
    uint64_t *entries; /* of the present piece, host order */
    uint32_t first, n; /* which they are */
    bool changed;      /* set by the callback: the piece is written back */
};
typedef int l1_visit(struct l1_walk *walk, uint32_t index, void *opaque);
int qcheck_walk_l1(struct check *c, const struct check_l1 *l1, l1_visit *visit,
                   void *opaque) MUST_USE;

/* Counts the references of all L1 tables. */
int qcheck_l1_tables(struct check *c) MUST_USE;

/* ---- check_l2.c ---- */

/* Reads an L2 table, in host order.  A failure is counted. */
int qcheck_read_table(struct check *c, uint64_t offset, uint64_t *table) MUST_USE;
int qcheck_l2_tables(struct check *c) MUST_USE;

/* The L2 table of an L1 entry, when it has one that can be looked at. */
bool qcheck_table_of(const struct check *c, uint64_t l1_entry, uint64_t *cluster);

/* ---- check_snapshots.c ---- */

/* Reads the snapshot table and lists the L1 tables. */
int qcheck_snapshots(struct check *c) MUST_USE;

/* ---- check_bitmaps.c ---- */
int qcheck_bitmaps(struct check *c) MUST_USE;

/* ---- check_refcounts.c ---- */

int qcheck_load_refcounts(struct check *c) MUST_USE;
/* Counts the references to the refcount structures. */
int qcheck_count_refcounts(struct check *c) MUST_USE;
void qcheck_compare(struct check *c);

/* The refcount in the file; false: unknown. */
bool qcheck_disk_count(struct check *c, uint64_t cluster, uint64_t *count);

/* Where the refcount block of that index lies; 0: there is none that can be used. */
uint64_t qcheck_block_offset(const struct check *c, uint64_t index);
static inline uint32_t qcheck_block_bits(const struct check *c)
{
    return c->in.h.cluster_bits + 3 - c->in.h.refcount_order;
}

/* Entry `index` of a refcount block. */
uint64_t qcheck_unpack(uint32_t order, const uint8_t *block, uint64_t index);

/* ---- repairs: 0 or -errno with a sentence ---- */

/* To be called before the first write.  Unknown autoclear bits are cleared; and the image
 * is marked dirty until the repair has ended, so that nobody writes to it while refcounts
 * are wrong. */
int qrepair_begin(struct check *c) MUST_USE;
int qrepair_write(struct check *c, const void *buf, uint64_t offset, uint64_t bytes,
                  const char *what) MUST_USE;
int qrepair_flush(struct check *c) MUST_USE;

/* First cluster of an area that nothing uses, behind `used` and, where the file can grow,
 * behind its end. */
uint64_t qrepair_end(const struct check *c, uint64_t used);
/* The offset of n clusters there; -ENOSPC on a store of fixed size that has no room. */
int qrepair_room(struct check *c, uint64_t n, uint64_t used, uint64_t *offset) MUST_USE;
/* To be called when the file may have grown, before the next pass. */
int qrepair_resized(struct check *c) MUST_USE;

int qrepair_entries(struct check *c) MUST_USE;
/* After a pass that found the refcounts right: the snapshot table anew, when there is need.  What
 * the old one took is a leak then. */
int qrepair_snapshots(struct check *c) MUST_USE;
int qrepair_refcounts(struct check *c, bool raise) MUST_USE;
/* What the last pass found of the refcounts is mended, in place or by rebuilding them. */
int qrepair_counts(struct check *c) MUST_USE;
/* `used`: first cluster after all that is in use, the old refcount structures included. */
int qrepair_rebuild(struct check *c, uint64_t used) MUST_USE;
int qrepair_copied(struct check *c) MUST_USE;

int qcow2_check(struct storage *st, const struct check_options *options,
                struct check_result *result, struct diag *diag);

#endif
