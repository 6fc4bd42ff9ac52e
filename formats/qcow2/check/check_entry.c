/* SPDX-License-Identifier: BSD-3-Clause */
/* What the entries of L1 and L2 tables say, and what can't be right about them. */
#include "base/checked.h"
#include "qcow2/check/check.h"

bool qcheck_past_end(const struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes; /* both are below 2^62 */

    return end > c->file_size && end - c->file_size >= c->cluster_size;
}

void qcheck_compressed(const struct check *c, uint64_t entry, uint64_t *offset,
                       uint64_t *bytes)
{
    uint32_t shift = 62 - (c->h.cluster_bits - 8);
    uint64_t more_sectors = entry >> shift & ((1u << (c->h.cluster_bits - 8)) - 1);

    *offset = entry & ((1ull << shift) - 1);
    *bytes = (more_sectors + 1) * 512 - (*offset & 511);
}

static unsigned place_faults(const struct check *c, uint64_t offset)
{
    return (is_aligned(offset, c->cluster_size) ? 0 : FAULT_MISALIGNED) |
           (qcheck_past_end(c, offset, c->cluster_size) ? FAULT_PAST_END : 0);
}

unsigned qcheck_l1_faults(const struct check *c, uint64_t entry)
{
    return (entry & L1_RESERVED ? FAULT_RESERVED : 0) | place_faults(c, entry & L1_OFFSET);
}

unsigned qcheck_l2_faults(const struct check *c, uint64_t entry)
{
    if (entry & L2_COMPRESSED) {
        uint64_t offset, bytes;
        qcheck_compressed(c, entry, &offset, &bytes);
        return (entry & L2_COPIED ? FAULT_COPIED : 0) |
               (qcheck_past_end(c, offset, bytes) ? FAULT_PAST_END : 0);
    }
    unsigned faults = entry & L2_RESERVED ? FAULT_RESERVED : 0;
    if ((entry & L2_ZERO) && c->h.version < 3)
        faults |= FAULT_ZERO_V2;
    if (entry & L2_OFFSET)
        faults |= place_faults(c, entry & L2_OFFSET);
    return faults;
}

const char *qcheck_fault_text(unsigned faults)
{
    if (faults & FAULT_MISALIGNED)
        return "not cluster aligned";
    if (faults & FAULT_PAST_END)
        return "past the end of the file";
    if (faults & FAULT_RESERVED)
        return "reserved bits are set";
    if (faults & FAULT_ZERO_V2)
        return "zero flag in a version 2 image";
    return "copied flag of a compressed cluster";
}
