/* SPDX-License-Identifier: BSD-3-Clause */
/* Decoding of L1 and L2 entries (qcow2.rst, "Cluster mapping" and "Extended L2 Entries").
 * These functions look at the entry alone; whether its place can be right is for the caller to
 * check.  Serving, check and repair share them.  Private to this folder. */
#ifndef QCOW2_L2_ENTRY_H
#define QCOW2_L2_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "qcow2/geometry.h"

enum cluster_kind { CL_NONE, CL_ZERO, CL_ZERO_ALLOCATED, CL_DATA, CL_COMPRESSED };

/* What is wrong with an L1 or L2 entry; bits. */
#define FAULT_RESERVED   0x01u /* reserved bits are set */
#define FAULT_MISALIGNED 0x02u
#define FAULT_ZERO_V2    0x04u /* zero flag in a version 2 image */
#define FAULT_COPIED     0x08u /* copied flag of a compressed cluster */
#define FAULT_PAST_END   0x10u /* set by callers that know the length of the file */
/* Extended entries: a subcluster is both allocated and zero, or is allocated in a cluster
 * without a place, or the entry of a compressed cluster has subcluster bits. */
#define FAULT_SUBCLUSTERS 0x20u
/* A compressed cluster in an image with an external data file. */
#define FAULT_COMPRESSED_EXTERNAL 0x40u
/* Set by callers that know the guest offset: in an external data file a cluster must lie at
 * its guest offset. */
#define FAULT_PLACE 0x80u

struct cluster {
    enum cluster_kind kind;
    bool copied; /* this entry is the only reference to the cluster */
    /* CL_COMPRESSED: bytes from `host` to the end of the last sector. */
    uint32_t compressed_bytes;
    /* Host offset: of the cluster (CL_DATA, CL_ZERO_ALLOCATED), or of the first compressed
     * byte (CL_COMPRESSED). */
    uint64_t host;
    /* Extended entries: bitmaps of subclusters, bit x for subcluster x.  `kind` is then
     * CL_DATA if the cluster has a place, else CL_NONE or CL_COMPRESSED; cluster_kind_of tells
     * the kind of one subcluster. */
    uint32_t allocated, zero;
};

#define ALL_SUBCLUSTERS UINT32_MAX

/* Does the cluster own the host cluster at c->host?  (Compressed ones share it with others.) */
static inline bool cluster_has_place(const struct cluster *c)
{
    return c->kind == CL_DATA || c->kind == CL_ZERO_ALLOCATED;
}

/* The entry of a compressed cluster holds an offset of this many bits, and above it the number
 * of sectors after the first. */
static inline uint32_t l2_compressed_shift(const struct qcow2_geometry *geo)
{
    return 62 - (geo->cluster_bits - 8);
}

static inline void l2_entry_decode_compressed(const struct qcow2_geometry *geo,
                                              uint64_t entry, struct cluster *out)
{
    uint32_t shift = l2_compressed_shift(geo);
    uint32_t more_sectors =
        (uint32_t)(entry >> shift) & ((1u << (geo->cluster_bits - 8)) - 1);

    out->kind = CL_COMPRESSED;
    out->host = entry & ((1ull << shift) - 1);
    out->compressed_bytes = (more_sectors + 1) * 512 - (uint32_t)(out->host & 511);
}

/* The entry for a compressed cluster of `bytes` bytes at `host`, below l2_compressed_end. */
static inline uint64_t l2_entry_compressed(const struct qcow2_geometry *geo, uint64_t host,
                                           uint32_t bytes)
{
    uint64_t more_sectors = (host + bytes - 1) / 512 - host / 512;

    return L2_COMPRESSED | more_sectors << l2_compressed_shift(geo) | host;
}

static inline uint64_t l2_compressed_end(const struct qcow2_geometry *geo)
{
    return 1ull << MIN(l2_compressed_shift(geo), 56);
}

/* Offset 0 means "no place" except in an external data file, where the copied flag tells the
 * two apart. */
static inline bool l2_entry_has_place(const struct qcow2_geometry *geo, uint64_t entry)
{
    return entry & (L2_OFFSET | (geo->external ? L2_COPIED : 0));
}

/* Decodes a standard entry.  Returns FAULT_* bits, 0 if nothing is wrong; fills *out in any
 * case. */
static inline unsigned l2_entry_decode(const struct qcow2_geometry *geo, uint64_t entry,
                                       struct cluster *out)
{
    *out = (struct cluster){.copied = entry & L2_COPIED};
    if (entry == 0)
        return 0;
    if (entry & L2_COMPRESSED) {
        l2_entry_decode_compressed(geo, entry, out);
        return (out->copied ? FAULT_COPIED : 0) |
               (geo->external ? FAULT_COMPRESSED_EXTERNAL : 0);
    }
    bool zero = entry & L2_ZERO;
    out->host = entry & L2_OFFSET;
    out->kind = l2_entry_has_place(geo, entry) ? (zero ? CL_ZERO_ALLOCATED : CL_DATA)
                                               : (zero ? CL_ZERO : CL_NONE);
    return (entry & L2_RESERVED ? FAULT_RESERVED : 0) |
           (zero && geo->version < 3 ? FAULT_ZERO_V2 : 0) |
           (is_aligned(out->host, geometry_cluster(geo)) ? 0 : FAULT_MISALIGNED);
}

/* The same for an extended entry: bit x of `bitmap`, its second word, says that subcluster x is
 * allocated, bit 32 + x that it reads as zeroes. */
static inline unsigned l2_extended_decode(const struct qcow2_geometry *geo, uint64_t entry,
                                          uint64_t bitmap, struct cluster *out)
{
    *out = (struct cluster){.copied = entry & L2_COPIED,
                            .allocated = (uint32_t)bitmap,
                            .zero = (uint32_t)(bitmap >> SUBCLUSTERS)};
    if (entry & L2_COMPRESSED) {
        l2_entry_decode_compressed(geo, entry, out);
        return (out->copied ? FAULT_COPIED : 0) | (bitmap ? FAULT_SUBCLUSTERS : 0) |
               (geo->external ? FAULT_COMPRESSED_EXTERNAL : 0);
    }
    out->host = entry & L2_OFFSET;
    out->kind = l2_entry_has_place(geo, entry) ? CL_DATA : CL_NONE;
    bool odd = (out->allocated & out->zero) || (out->allocated && out->kind == CL_NONE);
    return (entry & (L2_RESERVED | L2_ZERO) ? FAULT_RESERVED : 0) |
           (odd ? FAULT_SUBCLUSTERS : 0) |
           (is_aligned(out->host, geometry_cluster(geo)) ? 0 : FAULT_MISALIGNED);
}

/* The same for an entry of either width; `bitmap` is ignored for standard ones. */
static inline unsigned l2_any_decode(const struct qcow2_geometry *geo, uint64_t entry,
                                     uint64_t bitmap, struct cluster *out)
{
    return geo->word_bits ? l2_extended_decode(geo, entry, bitmap, out)
                          : l2_entry_decode(geo, entry, out);
}

/* The kind of one subcluster of an extended entry. */
static inline enum cluster_kind cluster_kind_of(const struct cluster *c,
                                                uint32_t subcluster)
{
    uint32_t bit = 1u << subcluster;

    if (c->kind == CL_COMPRESSED)
        return CL_COMPRESSED;
    if (c->zero & bit)
        return c->kind == CL_DATA ? CL_ZERO_ALLOCATED : CL_ZERO;
    return c->allocated & bit ? CL_DATA : CL_NONE;
}

/* A bitmap of the subclusters of the cluster at guest offset `start` that lie in [off, end).
 * Where `off` and `end` lie inside the cluster they are subcluster aligned. */
static inline uint32_t l2_subclusters_of(const struct qcow2_geometry *geo, uint64_t start,
                                         uint64_t off, uint64_t end)
{
    uint64_t from = MAX(off, start) - start;
    uint64_t to = MIN(end, start + geometry_cluster(geo)) - start;
    uint32_t first = (uint32_t)(from >> geo->subcluster_bits);
    uint32_t n = (uint32_t)((to - from) >> geo->subcluster_bits);

    return n == SUBCLUSTERS ? ALL_SUBCLUSTERS : ((1u << n) - 1) << first;
}

static inline uint64_t l2_extended_bitmap(uint32_t allocated, uint32_t zero)
{
    return allocated | (uint64_t)zero << SUBCLUSTERS;
}

/* What is wrong with an L1 entry. */
static inline unsigned l1_entry_faults(const struct qcow2_geometry *geo, uint64_t entry)
{
    return (entry & L1_RESERVED ? FAULT_RESERVED : 0) |
           (is_aligned(entry & L1_OFFSET, geometry_cluster(geo)) ? 0 : FAULT_MISALIGNED);
}

/* The worst of the faults, for messages. */
const char *entry_fault_text(unsigned faults);

#endif
