/* SPDX-License-Identifier: BSD-3-Clause */
/* What the entries of L1 and L2 tables say, with an eye on the end of the file. */
#include "base/checked.h"
#include "qcow2/check/check.h"

bool qcheck_past_end(const struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes; /* both are below 2^62 */

    return end > c->in.file_size && end - c->in.file_size >= c->in.cluster_size;
}

static unsigned past_end_fault(const struct check *c, uint64_t offset, uint64_t bytes)
{
    return qcheck_past_end(c, offset, bytes) ? FAULT_PAST_END : 0;
}

unsigned qcheck_l1_faults(const struct check *c, uint64_t entry)
{
    return l1_entry_faults(&c->in.geo, entry) |
           past_end_fault(c, entry & L1_OFFSET, c->in.cluster_size);
}

unsigned qcheck_decode(const struct check *c, uint64_t entry, struct cluster *out)
{
    unsigned faults = l2_entry_decode(&c->in.geo, entry, out);

    if (out->kind == CL_COMPRESSED)
        return faults | past_end_fault(c, out->host, out->compressed_bytes);
    return faults | (out->host ? past_end_fault(c, out->host, c->in.cluster_size) : 0);
}

unsigned qcheck_l2_faults(const struct check *c, uint64_t entry)
{
    struct cluster unused;

    return qcheck_decode(c, entry, &unused);
}
