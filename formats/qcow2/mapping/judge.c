/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks whether the place in an L1 or L2 entry can be right.  The image's bytes are hostile:
 * through an L2 entry that points at metadata a guest's write would overwrite that metadata, and
 * a trim would free it. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* Does the range overlap a table that the header points to? */
static bool overlaps_tables(struct qcow2 *q, uint64_t host, uint64_t len)
{
    const struct refcount_table *rt =
        atomic_load_explicit(&q->alloc.refs.table, memory_order_acquire);

    return ranges_overlap(host, len, rt->offset, rt->n_entries * 8) ||
           ranges_overlap(host, len, atomic_load(&q->live.l1_offset),
                          (uint64_t)q->live.l1_size * 8);
}

/* The reason why no entry can point at these n host clusters, or NULL. */
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

/* The same for a file that another node of this process writes to: its tables may have moved,
 * and the file may have grown. */
static const char *bad_host_now(struct qcow2 *q, uint64_t host, uint64_t n)
{
    if (!is_aligned(host, cluster_size(q)))
        return "not cluster aligned";
    return alloc_inside_file_now(&q->alloc, host, n << q->geo.cluster_bits)
               ? NULL
               : "past the end of the file";
}

/* An external data file holds no metadata.  Its length is no limit either: what lies behind
 * its end reads as zeroes. */
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

/* A fault in a snapshot's tables doesn't endanger the disk, so only one in the live mapping
 * stops writes. */
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

/* The reason why one cluster can't lie at `host`, or NULL.  In an external data file each
 * cluster lies at its guest offset: new clusters are put there without a check whether
 * another entry claims the place. */
static const char *bad_place(struct qcow2 *q, uint64_t host, uint64_t guest)
{
    const char *why = mapping_bad_data(q, host, 1);

    return !why && q->geo.external && host != guest
               ? "not at its guest offset in the data file"
               : why;
}

/* The reason why a compressed cluster can't lie there, or NULL.  Only whole host clusters are
 * checked, as the file may end inside the last sector of the stream. */
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
