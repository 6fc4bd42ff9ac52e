/* SPDX-License-Identifier: BSD-3-Clause */
/* A mapping from guest offsets to host offsets: an L1 table and the L2 tables that it leads
 * to.  An open image has a live mapping, that of its disk.  Each internal snapshot that is
 * exported has a mapping of its own, which is only read.
 *
 * Threads: mapping_map from any thread inside the gate, without locks.  Entries are changed
 * under META, in a table that mapping_own_table has made exclusive to the live mapping.  All
 * other functions need exclusive access to the image.  Private to this folder. */
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
    /* The array is replaced only while its thread has exclusive access to the node. */
    _Atomic uint64_t *l1;
    uint32_t l1_size; /* entries */
    _Atomic uint64_t l1_offset;
    struct mcmap *l1_map, *l2_map;
    /* Held while an L2 table is created or copied; striped by L1 index. */
    struct lock table_lock[TABLE_STRIPES];
};

void mapping_init(struct qcow2_mapping *m, struct qcow2 *q, const char *name);
void mapping_destroy(struct qcow2_mapping *m);

/* Reads the L1 table of n entries at `offset`; the caller has checked that it lies inside the
 * file. */
int mapping_read_l1(struct qcow2_mapping *m, uint64_t offset, uint32_t n) MUST_USE;

/* Replaces the L1 array by `l1`, which the mapping owns on success. */
int mapping_set_l1(struct qcow2_mapping *m, _Atomic uint64_t *l1, uint32_t n,
                   uint64_t offset) MUST_USE;

/* As driver->map. */
int mapping_map(struct qcow2_mapping *m, uint64_t off, uint64_t len,
                struct extent *out) MUST_USE;

/* Checks what was decoded from `entry`: its faults, and whether its place can hold guest data.
 * 0, or -EIO and a log message. */
int mapping_judge(struct qcow2_mapping *m, uint64_t entry, uint64_t guest, unsigned faults,
                  const struct cluster *c) MUST_USE;

/* Decodes the L2 entry of `guest` and checks it with mapping_judge. */
static inline MUST_USE int mapping_decode(struct qcow2_mapping *m, uint64_t entry,
                                          uint64_t guest, struct cluster *out)
{
    unsigned faults = l2_entry_decode(&m->geo, entry, out);

    return entry == 0 ? 0 : mapping_judge(m, entry, guest, faults, out);
}

/* The same for an extended entry. */
int mapping_decode_extended(struct qcow2_mapping *m, struct mc_pair pair, uint64_t guest,
                            struct cluster *out) MUST_USE;

/* ---- between the files of the mapping ---- */

/* mapping_map for images with extended entries; `page` holds the entry of `off`. */
int mapping_map_extended(struct qcow2_mapping *m, struct mc_page *page, uint64_t off,
                         uint64_t len, struct extent *out) MUST_USE;

/* Fills in all of an extent but its length; in_cluster: the offset inside the cluster. */
void mapping_fill_extent(const struct qcow2_mapping *m, const struct cluster *c,
                         uint64_t in_cluster, struct extent *out);

/* The reason why the n host clusters at `host` can't hold guest data, or NULL. */
const char *mapping_bad_data(struct qcow2 *q, uint64_t host, uint64_t n);

/* Decodes and checks the entry of a guest offset, of either width, in its page. */
int mapping_decode_at(struct qcow2_mapping *m, const struct mc_page *page, uint64_t guest,
                      struct cluster *out) MUST_USE;

/* ---- table.c: for changes of the live mapping ---- */

/* Ensures that the L1 entry has an L2 table that no snapshot shares: creates one, or copies a
 * shared one. */
int mapping_own_table(struct qcow2_mapping *m, uint32_t l1_index) MUST_USE;

/* Frees the L2 table of an L1 entry; the table is empty and not shared. */
int mapping_drop_table(struct qcow2_mapping *m, uint32_t l1_index) MUST_USE;

/* META: returns the L2 page of a guest offset, ready to be stored to.  When the page must be
 * loaded first, META is released and taken again: the caller must look again at whatever it
 * read before. */
int mapping_lock_l2_page(struct qcow2_mapping *m, uint64_t guest,
                         struct mc_page **page) MUST_USE;

/* META, with the page from mapping_lock_l2_page: stores an entry.  `bitmap` is the second word
 * of an extended entry, and ignored for a standard one. */
void mapping_store(struct qcow2_mapping *m, struct mc_page *page, uint64_t guest,
                   uint64_t entry, uint64_t bitmap);

/* Checks an L1 entry that isn't zero: 0, or -EIO and a log message. */
int mapping_check_l1(struct qcow2_mapping *m, uint32_t l1_index, uint64_t entry) MUST_USE;

#endif
