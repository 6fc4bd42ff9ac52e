/* SPDX-License-Identifier: BSD-3-Clause */
/* A mapping: an L1 table, the L2 tables that it leads to, and who may change them.  An
 * image has a live one; what else has an L1 table of its own (a snapshot that is exported)
 * has another, which is only read.
 *
 * Threads: the lookup (map) from any thread inside the gate, without locks; changes under
 * META, with the table that they go to made ours by mapping_own_table before; the rest
 * alone with the image.  Private to this folder. */
#ifndef MAPPING_MAPPING_H
#define MAPPING_MAPPING_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/lock.h"
#include "block/driver.h"
#include "mcache/mcache.h"
#include "qcow2/geometry.h"
#include "qcow2/l2_entry.h"

#define TABLE_STRIPES 16

struct qcow2;

struct qcow2_mapping {
    struct qcow2 *q;
    const char *name; /* in messages; borrowed */
    struct qcow2_geometry geo;
    /* Replaced only while the caller has the node to itself. */
    _Atomic uint64_t *l1;
    uint32_t l1_size; /* entries */
    _Atomic uint64_t l1_offset;
    struct mcmap *l1_map, *l2_map;
    /* Who makes or copies an L2 table, by L1 index. */
    struct lock table_lock[TABLE_STRIPES];
};

void mapping_init(struct qcow2_mapping *m, struct qcow2 *q, const char *name);
void mapping_destroy(struct qcow2_mapping *m);

/* Reads the L1 table of n entries at `offset`, which was checked to lie inside the file. */
int mapping_read_l1(struct qcow2_mapping *m, uint64_t offset, uint32_t n) MUST_USE;

/* The array, which is the mapping's on success, takes the place of the present one. */
int mapping_set_l1(struct qcow2_mapping *m, _Atomic uint64_t *l1, uint32_t n,
                   uint64_t offset) MUST_USE;

/* As driver->map. */
int mapping_map(struct qcow2_mapping *m, uint64_t off, uint64_t len,
                struct extent *out) MUST_USE;

/* What was decoded from `entry`, with its faults: -EIO, with a message, when it can't be. */
int mapping_judge(struct qcow2_mapping *m, uint64_t entry, uint64_t guest, unsigned faults,
                  const struct cluster *c) MUST_USE;

/* Decodes an entry of the L2 table for `guest` and judges where it points; -EIO, with a
 * message, when it is impossible. */
static inline MUST_USE int mapping_decode(struct qcow2_mapping *m, uint64_t entry,
                                          uint64_t guest, struct cluster *out)
{
    unsigned faults = l2_entry_decode(&m->geo, entry, out);

    return entry == 0 ? 0 : mapping_judge(m, entry, guest, faults, out);
}

/* The same of an extended entry. */
int mapping_decode_extended(struct qcow2_mapping *m, struct mc_pair pair, uint64_t guest,
                            struct cluster *out) MUST_USE;

/* ---- between the files of the mapping ---- */

/* mapping_map where entries are extended; page: of `off`. */
int mapping_map_extended(struct qcow2_mapping *m, struct mc_page *page, uint64_t off,
                         uint64_t len, struct extent *out) MUST_USE;

/* All of an extent but its length; in_cluster: bytes from the cluster's start. */
void mapping_fill_extent(const struct qcow2_mapping *m, const struct cluster *c,
                         uint64_t in_cluster, struct extent *out);

/* Why n clusters at `host` can't be guest data, or NULL. */
const char *mapping_bad_data(struct qcow2 *q, uint64_t host, uint64_t n);

/* The entry of a guest offset, of either width, in its page; judged as mapping_decode does. */
int mapping_decode_at(struct qcow2_mapping *m, const struct mc_page *page, uint64_t guest,
                      struct cluster *out) MUST_USE;

/* ---- table.c: for changes of the live mapping ---- */

/* Makes the L2 table of an L1 entry exist and be ours alone: new, or copied from a shared
 * one. */
int mapping_own_table(struct qcow2_mapping *m, uint32_t l1_index) MUST_USE;

/* The L2 table of an entry, which is empty and ours alone, is let go of. */
int mapping_drop_table(struct qcow2_mapping *m, uint32_t l1_index) MUST_USE;

/* META: the L2 page of a guest offset when it can be stored to, loaded when needed.  META is
 * given back and taken again while that takes place: what was looked at before may have
 * changed. */
int mapping_lock_l2_page(struct qcow2_mapping *m, uint64_t guest,
                         struct mc_page **page) MUST_USE;

/* META, the page from mapping_lock_l2_page: stores an entry; bitmap: its second word, where
 * entries are extended. */
void mapping_store(struct qcow2_mapping *m, struct mc_page *page, uint64_t guest,
                   uint64_t entry, uint64_t bitmap);

/* L1 entry that isn't zero: -EIO, with a message, when it is impossible. */
int mapping_check_l1(struct qcow2_mapping *m, uint32_t l1_index, uint64_t entry) MUST_USE;

#endif
