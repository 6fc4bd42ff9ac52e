/* SPDX-License-Identifier: BSD-3-Clause */
/* Can what an entry points to be what it says it is?  Bytes of the image are hostile: an
 * entry that leads to metadata would have it overwritten, and later freed. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* Do the clusters hold what the header points to? */
static bool overlaps_tables(struct qcow2 *q, uint64_t host, uint64_t len)
{
    const struct refcount_table *rt =
        atomic_load_explicit(&q->alloc.refs.table, memory_order_acquire);

    return ranges_overlap(host, len, rt->offset, rt->n_entries * 8) ||
           ranges_overlap(host, len, atomic_load(&q->live.l1_offset),
                          (uint64_t)q->live.l1_size * 8);
}

/* Why n host clusters can't be what entries say, or NULL. */
static const char *bad_host(struct qcow2 *q, uint64_t host, uint64_t n)
{
    uint64_t len = n << q->geo.cluster_bits;

    if (!is_aligned(host, cluster_size(q)))
        return "not cluster aligned";
    if (!alloc_inside_file(&q->alloc, host, len))
        return "past the end of the file";
    if (overlaps_tables(q, host, len))
        return "overlaps the L1 or refcount table";
    return NULL;
}

/* The same where another node writes to the file: what was metadata may be data by now, and
 * the file longer. */
static const char *bad_host_now(struct qcow2 *q, uint64_t host, uint64_t n)
{
    if (!is_aligned(host, cluster_size(q)))
        return "not cluster aligned";
    return alloc_inside_file_now(&q->alloc, host, n << q->geo.cluster_bits)
               ? NULL
               : "past the end of the file";
}

/* In another file there is no metadata, and nothing to tell its end: what lies behind it
 * reads as zeroes. */
static const char *bad_external(const struct qcow2 *q, uint64_t host, uint64_t n)
{
    if (!is_aligned(host, cluster_size(q)))
        return "not cluster aligned";
    return range_inside(host, n << q->geo.cluster_bits, INT64_MAX)
               ? NULL
               : "past the end of any file";
}

const char *mapping_bad_data(struct qcow2 *q, uint64_t host, uint64_t n)
{
    if (UNLIKELY(q->geo.external))
        return bad_external(q, host, n);
    if (UNLIKELY(atomic_load(&q->node->written_elsewhere)))
        return bad_host_now(q, host, n);
    const char *why = bad_host(q, host, n);

    if (!why && meta_set_has_any(&q->alloc.metadata, host >> q->geo.cluster_bits, n))
        why = "holds metadata of the image";
    return why;
}

/* What only a snapshot's tables say does the disk no harm, whose writes go on. */
static void note_corruption(struct qcow2_mapping *m)
{
    if (m == &m->q->live)
        qcow2_mark_corrupt(m->q);
}

int mapping_check_l1(struct qcow2_mapping *m, uint32_t l1_index, uint64_t entry)
{
    struct qcow2 *q = m->q;
    const char *why =
        (entry & L1_RESERVED) ? "reserved bits are set" : bad_host(q, entry & L1_OFFSET, 1);

    if (LIKELY(!why))
        return 0;
    log_error("%s: L1 entry %" PRIu32 " (0x%" PRIx64 "): %s", m->name, l1_index, entry,
              why);
    note_corruption(m);
    return -EIO;
}

static int impossible_entry(struct qcow2_mapping *m, uint64_t guest, uint64_t entry,
                            const char *why)
{
    log_error("%s: L2 entry of guest offset %" PRIu64 " (0x%" PRIx64 "): %s", m->name,
              align_down(guest, cluster_size(m->q)), entry, why);
    note_corruption(m);
    return -EIO;
}

/* Of one cluster.  In another file it can lie nowhere but at its guest offset, where new ones
 * are placed without a look at who else may be there. */
static const char *bad_place(struct qcow2 *q, uint64_t host, uint64_t guest)
{
    const char *why = mapping_bad_data(q, host, 1);

    return !why && q->geo.external && host != guest
               ? "not at its guest offset in the data file"
               : why;
}

/* The last sectors may be in the file in part, or not at all: they end with the stream. */
static const char *bad_compressed(struct qcow2 *q, const struct cluster *c)
{
    uint64_t first = align_down(c->host, cluster_size(q));
    uint64_t end = align_up(c->host + c->compressed_bytes, cluster_size(q));

    return mapping_bad_data(q, first, (end - first) >> q->geo.cluster_bits);
}

int mapping_judge(struct qcow2_mapping *m, uint64_t entry, uint64_t guest, unsigned faults,
                  const struct cluster *c)
{
    const char *why = NULL;

    if (UNLIKELY(faults))
        why = entry_fault_text(faults);
    else if (cluster_has_place(c))
        why = bad_place(m->q, c->host, align_down(guest, cluster_size(m->q)));
    else if (c->kind == CL_COMPRESSED)
        why = bad_compressed(m->q, c);
    return LIKELY(!why) ? 0 : impossible_entry(m, guest, entry, why);
}
