/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking and repairing a qcow2 image, in parts.  Private to this folder.
 *
 * A *pass* (check_pass.c) counts the references to each host cluster: from the header, the L1
 * tables of the disk and the snapshots, their L2 tables, and the bitmaps.  It compares the
 * result with the refcounts in the file, and writes nothing.  Each L2 table is read once; the
 * number of L1 entries that point to it is its weight.  So the work is bounded by the length of
 * the file.
 *
 * A repair alternates passes and fixes.  Each fix is durable before the next begins:
 *   entries    (repair_entries.c)    impossible entries, and one of two that claim a cluster
 *   refcounts  (repair_refcounts.c)  in place; or all of them are written anew at the end of the
 *              (repair_rebuild.c)    file, durably, and then the header points there
 *   flags      (repair_copied.c)     copied flags of the disk's tables
 *   snapshots  (repair_snapshots.c)  a new snapshot table, if needed: it is written, gets its
 *                                    refcounts, and then the header points to it
 *   marks      (check.c)             dirty and corrupt, after a last pass that found nothing
 * A repair that is killed leaves fixes that are complete by themselves, and can be run again.
 * Version 2 has no dirty bit, which would keep writers away until then: so new structures get
 * their refcounts before anything points to them.
 *
 * When two structures claim the same cluster, one of them is believed:
 *   - the header and the disk's L1 table before everything else;
 *   - refcount structures last, because they can be rebuilt;
 *   - bitmaps only if nothing else claims the cluster;
 *   - metadata before guest data, unless most of its entries are impossible, or it has no entries
 *     but other bytes: then it is taken for data;
 *   - of two other tables neither is changed, and the refcounts are set to allow for both. */
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
    uint64_t bytes;        /* length of the entry without its padding */
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t extra_bytes;
    uint16_t id_bytes, name_bytes;
    const char *fault; /* why the place of its L1 table is impossible; NULL: possible */
    bool odd;          /* something is wrong with the entry */
    bool overlaps;     /* its L1 table overlaps other metadata */
    bool extra_wrong;  /* too little or too much extra data */
};

/* An L1 table to walk: the disk's, or one of snapshots. */
struct check_l1 {
    uint64_t offset;
    uint32_t n;                      /* entries that lie inside the file */
    uint64_t weight;                 /* how many snapshots refer to it; 1 for the disk's */
    bool active;                     /* it is the disk's */
    struct check_snapshot *snapshot; /* the first that refers to it */
};

/* What is checked; the file may grow between passes (qrepair_resized). */
struct check_input {
    struct storage *st;
    const struct check_options *options;
    struct diag *diag;
    struct qcow2_header h;
    struct qcow2_geometry geo;
    uint64_t cluster_size, file_size;
    uint64_t n_clusters; /* of the file; the last one may be partial */
    uint64_t max_count;  /* the largest refcount that the width allows */
};

/* Findings that are printed at the end of the pass: NUL-terminated texts in a row. */
struct later_texts {
    char *text;
    size_t bytes, capacity;
};

/* The state of one pass; each begins with an empty one. */
struct check_pass {
    struct check_result found;
    uint64_t impossible;  /* findings that can only be mended by changing an entry */
    uint64_t rewrites;    /* those of them that need a new snapshot table */
    bool rebuild;         /* the refcount structures must be rebuilt */
    const char *hopeless; /* why nothing may be repaired; NULL: repairs are possible */
    bool bitmaps_broken;
    uint64_t wrong_flags; /* wrong copied flags; found.corruptions includes them */
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
    bool rt_unknown; /* some of its blocks can't be read */
    uint8_t *disk;   /* the refcounts in the file, a byte each, at most COUNT_LARGE */
    uint8_t *block;  /* buffer of qcheck_disk_count */
    uint64_t block_offset;

    struct counts refs;      /* the references that were found */
    struct l2_tables tables; /* sorted by offset once all L1 tables have been counted */
    /* Bitmaps of clusters. */
    uint8_t *fixed; /* the header, the LUKS header and the active L1 table */
    uint8_t *meta;  /* these, the snapshot table, L1 tables of snapshots, bitmap tables */
    uint8_t *is_table;  /* L2 tables */
    uint8_t *contested; /* claimed both as metadata and as data */
    uint8_t *bad;       /* claimed as a table, but most of the entries are impossible */

    uint64_t done, total; /* progress, in table entries */
};

/* The state of a repair, which all its passes share. */
struct check_repair_state {
    bool wrote;
    bool was_dirty;  /* the dirty bit was set before the repair */
    bool dropped;    /* mappings were lost */
    uint64_t flags;  /* how many copied flags were corrected */
    uint64_t missed; /* how many tables couldn't be read, in passes and repairs */
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

/* Runs a pass.  with_refcounts false: refcount structures are neither counted nor compared.  0, or
 * -errno and a message; tables that can't be read are counted in found.check_errors. */
int qcheck_pass(struct check *c, bool with_refcounts) MUST_USE;
void qcheck_forget(struct check *c);

/* Reporting findings.  Only those of the first pass are printed, as later passes of a repair find
 * the same again. */

/* A corruption that counts `weight` times. */
void qcheck_corrupt(struct check *c, uint64_t weight, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* A corruption that can only be mended by changing an entry. */
void qcheck_impossible(struct check *c, uint64_t weight, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Leaked clusters, which don't count as corruption. */
void qcheck_leak(struct check *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* A copied flag that contradicts the refcount in the file; printed at the end of the pass, as QEMU
 * does. */
void qcheck_wrong_flag(struct check *c, uint64_t weight, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Counts a reference to each cluster of a range.  When the range ends a cluster or more behind the
 * end of the file, that is a finding, nothing is counted, and *inside is false.  0 or -ENOMEM. */
int qcheck_add_range(struct check *c, uint64_t offset, uint64_t bytes, uint64_t weight,
                     const char *what, bool *inside) MUST_USE;
/* Sets the bits of a range's clusters, as far as they lie in the file. */
void qcheck_mark(struct check *c, uint8_t *bits, uint64_t offset, uint64_t bytes);
/* The same as qcheck_add_range for metadata: the range is marked in `meta`, too. */
int qcheck_add_meta(struct check *c, uint64_t offset, uint64_t bytes, uint64_t weight,
                    const char *what, bool *inside) MUST_USE;

/* Is the bit of any cluster of the range set?  Clusters behind the end of the file don't count. */
bool qcheck_any(const struct check *c, const uint8_t *bits, uint64_t offset,
                uint64_t bytes);

void qcheck_progress(struct check *c, uint64_t done);

/* Prints a message about a repair. */
#define qcheck_say(c, ...) check_message((c)->in.options, __VA_ARGS__)

/* ---- check_entry.c ---- */

/* An L2 entry as it is in a table; `bitmap` is the second word of an extended entry, else 0. */
struct l2_words {
    uint64_t entry, bitmap;
};

/* The guest offset of an L2 entry.  It is unknown when more than one L1 entry points to the table,
 * as one of them may be wrong. */
#define UNKNOWN_GUEST UINT64_MAX

static inline uint64_t qcheck_guest(const struct check *c, const struct l2_table *table,
                                    uint64_t entry)
{
    uint64_t first = (uint64_t)table->index << geometry_table_bits(&c->in.geo);

    return table->weight == 1 ? first + (entry << c->in.h.cluster_bits) : UNKNOWN_GUEST;
}

/* The number of words in an entry, and (below) the entry that begins with a word. */
static inline uint32_t qcheck_step(const struct check *c)
{
    return 1u << c->in.geo.word_bits;
}

static inline struct l2_words qcheck_words(const struct check *c, const uint64_t *at)
{
    return (struct l2_words){at[0], c->in.geo.word_bits ? at[1] : 0};
}

/* What is wrong with an entry, FAULT_* bits of l2_entry.h.  They include FAULT_PAST_END unless data
 * lies in an external data file.  qcheck_decode also decodes the entry into *out; with the guest
 * offset, qcheck_decode_at includes FAULT_PLACE. */
unsigned qcheck_l1_faults(const struct check *c, uint64_t entry);
unsigned qcheck_decode(const struct check *c, struct l2_words words, struct cluster *out);
unsigned qcheck_decode_at(const struct check *c, struct l2_words words, uint64_t guest,
                          struct cluster *out);

/* Formats an entry for messages.  `text` has WORDS_TEXT bytes, and is returned. */
#define WORDS_TEXT 64
const char *qcheck_words_text(const struct check *c, struct l2_words words, char *text);

/* Does a range end a cluster or more behind the end of the file?  QEMU checks the same; it allows
 * for the file's last cluster being partial. */
bool qcheck_past_end(const struct check *c, uint64_t offset, uint64_t bytes);

/* ---- check_l1.c ---- */

/* Calls `visit` for each L1 entry that isn't zero; stops when it returns -errno.  The table is read
 * in pieces. */
struct l1_walk {
    struct check *c;
    const struct check_l1 *l1;
    uint64_t *entries; /* the present piece, in host order */
    uint32_t first, n; /* the index of its first entry, and their number */
    bool changed;      /* set by `visit`: the piece is written back */
};
typedef int l1_visit(struct l1_walk *walk, uint32_t index, void *opaque);
int qcheck_walk_l1(struct check *c, const struct check_l1 *l1, l1_visit *visit,
                   void *opaque) MUST_USE;

/* Counts the references of all L1 tables. */
int qcheck_l1_tables(struct check *c) MUST_USE;

/* ---- check_l2.c ---- */

/* Reads an L2 table, in host order.  A failure counts in found.check_errors. */
int qcheck_read_table(struct check *c, uint64_t offset, uint64_t *table) MUST_USE;
int qcheck_l2_tables(struct check *c) MUST_USE;

/* *cluster: the L2 table of an L1 entry; false when there is none that can be read. */
bool qcheck_table_of(const struct check *c, uint64_t l1_entry, uint64_t *cluster);

/* ---- check_snapshots.c ---- */

/* Reads the snapshot table and collects the L1 tables to be walked. */
int qcheck_snapshots(struct check *c) MUST_USE;

/* ---- check_bitmaps.c ---- */
int qcheck_bitmaps(struct check *c) MUST_USE;

/* ---- check_refcounts.c ---- */

int qcheck_load_refcounts(struct check *c) MUST_USE;
/* Counts the references to the refcount structures. */
int qcheck_count_refcounts(struct check *c) MUST_USE;
void qcheck_compare(struct check *c);

/* *count: the refcount in the file; false: it is unknown. */
bool qcheck_disk_count(struct check *c, uint64_t cluster, uint64_t *count);

/* The offset of the refcount block of that index; 0: there is none that can be used. */
uint64_t qcheck_block_offset(const struct check *c, uint64_t index);
static inline uint32_t qcheck_block_bits(const struct check *c)
{
    return c->in.h.cluster_bits + 3 - c->in.h.refcount_order;
}

/* Entry `index` of a refcount block. */
uint64_t qcheck_unpack(uint32_t order, const uint8_t *block, uint64_t index);

/* ---- repairs: 0 or -errno with a sentence ---- */

/* To be called before the first write.  Clears unknown autoclear bits, and sets the dirty bit until
 * the repair has ended, so that nobody writes to the image while refcounts are wrong. */
int qrepair_begin(struct check *c) MUST_USE;
int qrepair_write(struct check *c, const void *buf, uint64_t offset, uint64_t bytes,
                  const char *what) MUST_USE;
/* An L2 table of one cluster, in host byte order, which it swaps in place. */
int qrepair_write_table(struct check *c, uint64_t *table, uint64_t offset) MUST_USE;
int qrepair_flush(struct check *c) MUST_USE;

/* First cluster of an area that nothing uses, behind `used` and, where the file can grow,
 * behind its end. */
uint64_t qrepair_end(const struct check *c, uint64_t used);
/* The offset of n clusters there; -ENOSPC on a store of fixed size that has no room. */
int qrepair_room(struct check *c, uint64_t n, uint64_t used, uint64_t *offset) MUST_USE;
/* To be called when the file may have grown, before the next pass. */
int qrepair_resized(struct check *c) MUST_USE;

int qrepair_entries(struct check *c) MUST_USE;
/* After a pass that found the refcounts right: replaces the snapshot table if needed.  The
 * clusters of the old table are leaks then. */
int qrepair_snapshots(struct check *c) MUST_USE;
int qrepair_refcounts(struct check *c, bool raise) MUST_USE;
/* Corrects the refcounts that the last pass found wrong, in place or by rebuilding all. */
int qrepair_counts(struct check *c) MUST_USE;
/* `used`: first cluster after all that is in use, the old refcount structures included. */
int qrepair_rebuild(struct check *c, uint64_t used) MUST_USE;
int qrepair_copied(struct check *c) MUST_USE;

int qcow2_check(struct storage *st, const struct check_options *options,
                struct check_result *result, struct diag *diag);

#endif
