/* SPDX-License-Identifier: BSD-3-Clause */
/* The sizes of an image's tables, derived once from its header.  Private to this folder. */
#ifndef QCOW2_GEOMETRY_H
#define QCOW2_GEOMETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "qcow2/qcow2_format.h"

/* L2 entries are cached in pages of this size, or of a table if that is smaller. */
#define L2_PAGE_LOG 12

struct qcow2_geometry {
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t refcount_order;
    /* log2 of the 64-bit words in an L2 entry: 0, or 1 for extended entries, whose second word
     * is the bitmap of subclusters. */
    uint32_t word_bits;
    uint32_t l2_bits;         /* log2 of the entries in an L2 table */
    uint32_t page_bits;       /* log2 of the entries in a page of it */
    uint32_t subcluster_bits; /* log2 of bytes; equal to cluster_bits without subclusters */
    bool external;            /* guest data lies in an external data file */
};

/* The arguments come from a header that was checked. */
static inline struct qcow2_geometry qcow2_geometry(uint32_t version, uint32_t cluster_bits,
                                                   uint32_t refcount_order, bool extended,
                                                   bool external)
{
    uint32_t entry_log = extended ? 4 : 3;

    return (struct qcow2_geometry){
        .version = version,
        .cluster_bits = cluster_bits,
        .refcount_order = refcount_order,
        .word_bits = extended,
        .l2_bits = cluster_bits - entry_log,
        .page_bits = MIN(cluster_bits, L2_PAGE_LOG) - entry_log,
        .subcluster_bits = cluster_bits - (extended ? SUBCLUSTERS_LOG : 0),
        .external = external,
    };
}

static inline uint64_t geometry_cluster(const struct qcow2_geometry *geo)
{
    return 1ull << geo->cluster_bits;
}

/* log2 of the guest bytes that an L2 table maps. */
static inline uint32_t geometry_table_bits(const struct qcow2_geometry *geo)
{
    return geo->cluster_bits + geo->l2_bits;
}

/* How many L1 entries a disk of `size` bytes needs. */
static inline uint64_t geometry_l1_entries(const struct qcow2_geometry *geo, uint64_t size)
{
    return div_round_up(size, 1ull << geometry_table_bits(geo));
}

static inline uint32_t geometry_l1_index(const struct qcow2_geometry *geo, uint64_t guest)
{
    return (uint32_t)(guest >> geometry_table_bits(geo));
}

/* The guest offset behind the last byte that the L2 table of `guest` maps. */
static inline uint64_t geometry_table_end(const struct qcow2_geometry *geo, uint64_t guest)
{
    return align_up(guest + 1, 1ull << geometry_table_bits(geo));
}

/* The index of the page that holds the L2 entry of a guest offset; below, the entry's first
 * word in that page. */
static inline uint64_t geometry_l2_page(const struct qcow2_geometry *geo, uint64_t guest)
{
    return guest >> (geo->cluster_bits + geo->page_bits);
}

static inline uint32_t geometry_l2_word(const struct qcow2_geometry *geo, uint64_t guest)
{
    return ((uint32_t)(guest >> geo->cluster_bits) & ((1u << geo->page_bits) - 1))
           << geo->word_bits;
}

#endif
