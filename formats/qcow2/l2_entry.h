/* SPDX-License-Identifier: BSD-3-Clause */
/* What an L2 entry says (qcow2.rst, "L2 table entry"): decoding alone, without a look at
 * the file.  Serving, check and repair all decode here.  Private to this folder. */
#ifndef QCOW2_L2_ENTRY_H
#define QCOW2_L2_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "qcow2/geometry.h"

enum cluster_kind { CL_NONE, CL_ZERO, CL_ZERO_ALLOCATED, CL_DATA, CL_COMPRESSED };

/* What is wrong with an L1 or L2 entry by itself; bits. */
#define FAULT_RESERVED   0x01u /* reserved bits are set */
#define FAULT_MISALIGNED 0x02u
#define FAULT_ZERO_V2    0x04u /* zero flag in a version 2 image */
#define FAULT_COPIED     0x08u /* copied flag of a compressed cluster */
#define FAULT_PAST_END   0x10u /* told by who knows the file's end */

struct cluster {
    enum cluster_kind kind;
    bool copied;   /* this entry is the only reference */
    uint64_t host; /* DATA, ZERO_ALLOCATED: where it lies; COMPRESSED: its first byte */
    uint64_t
        compressed_bytes; /* COMPRESSED: what there is for it, to the end of a sector */
};

/* Does it lie at c->host?  (Compressed ones share their place with others.) */
static inline bool cluster_has_place(const struct cluster *c)
{
    return c->kind == CL_DATA || c->kind == CL_ZERO_ALLOCATED;
}

/* The place of a compressed cluster: an offset and a number of further sectors, whose
 * widths the cluster size decides. */
static inline void l2_entry_decode_compressed(const struct qcow2_geometry *geo,
                                              uint64_t entry, struct cluster *out)
{
    uint32_t shift = 62 - (geo->cluster_bits - 8);
    uint64_t more_sectors = entry >> shift & ((1u << (geo->cluster_bits - 8)) - 1);

    out->kind = CL_COMPRESSED;
    out->host = entry & ((1ull << shift) - 1);
    out->compressed_bytes = (more_sectors + 1) * 512 - (out->host & 511);
}

/* Returns what is wrong with it, FAULT_* bits; *out is filled all the same. */
static inline unsigned l2_entry_decode(const struct qcow2_geometry *geo, uint64_t entry,
                                       struct cluster *out)
{
    *out = (struct cluster){.copied = entry & L2_COPIED};
    if (entry == 0)
        return 0;
    if (entry & L2_COMPRESSED) {
        l2_entry_decode_compressed(geo, entry, out);
        return out->copied ? FAULT_COPIED : 0;
    }
    bool zero = entry & L2_ZERO;
    out->host = entry & L2_OFFSET;
    out->kind =
        out->host ? (zero ? CL_ZERO_ALLOCATED : CL_DATA) : (zero ? CL_ZERO : CL_NONE);
    return (entry & L2_RESERVED ? FAULT_RESERVED : 0) |
           (zero && geo->version < 3 ? FAULT_ZERO_V2 : 0) |
           (is_aligned(out->host, geometry_cluster(geo)) ? 0 : FAULT_MISALIGNED);
}

/* The same of an L1 entry. */
static inline unsigned l1_entry_faults(const struct qcow2_geometry *geo, uint64_t entry)
{
    return (entry & L1_RESERVED ? FAULT_RESERVED : 0) |
           (is_aligned(entry & L1_OFFSET, geometry_cluster(geo)) ? 0 : FAULT_MISALIGNED);
}

/* The worst of the faults, for messages. */
const char *entry_fault_text(unsigned faults);

#endif
