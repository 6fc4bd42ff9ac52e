/* SPDX-License-Identifier: BSD-3-Clause */
/* From guest to host: judging of L1 and L2 entries, and the lock-free lookup. */
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

/* As bad_host, for clusters of guest data. */
static const char *bad_data_host(struct qcow2 *q, uint64_t host, uint64_t n)
{
    if (UNLIKELY(atomic_load(&q->node->written_elsewhere)))
        return bad_host_now(q, host, n);
    const char *why = bad_host(q, host, n);

    if (!why && meta_set_has_any(&q->alloc.metadata, host >> q->geo.cluster_bits, n))
        why = "holds metadata of the image";
    return why;
}

int mapping_check_l1(struct qcow2_mapping *m, uint32_t l1_index, uint64_t entry)
{
    struct qcow2 *q = m->q;
    const char *why =
        (entry & L1_RESERVED) ? "reserved bits are set" : bad_host(q, entry & L1_OFFSET, 1);

    if (LIKELY(!why))
        return 0;
    log_error("%s: L1 entry %" PRIu32 " (0x%" PRIx64 "): %s", q->node->filename, l1_index,
              entry, why);
    qcow2_mark_corrupt(q);
    return -EIO;
}

static int refuse_entry(struct qcow2 *q, uint64_t guest, uint64_t entry, const char *why)
{
    log_error("%s: L2 entry of guest offset %" PRIu64 " (0x%" PRIx64 "): %s",
              q->node->filename, align_down(guest, cluster_size(q)), entry, why);
    return -EIO;
}

static int impossible_entry(struct qcow2 *q, uint64_t guest, uint64_t entry,
                            const char *why)
{
    int err = refuse_entry(q, guest, entry, why);

    qcow2_mark_corrupt(q);
    return err;
}

int mapping_decode(struct qcow2_mapping *m, uint64_t entry, uint64_t guest,
                   struct cluster *out)
{
    struct qcow2 *q = m->q;
    unsigned faults = l2_entry_decode(&m->geo, entry, out);

    if (UNLIKELY(out->kind == CL_COMPRESSED))
        return refuse_entry(q, guest, entry, "compressed clusters are not supported");
    if (UNLIKELY(faults))
        return impossible_entry(q, guest, entry, entry_fault_text(faults));
    if (out->host == 0)
        return 0;
    const char *why = bad_data_host(q, out->host, 1);
    return LIKELY(!why) ? 0 : impossible_entry(q, guest, entry, why);
}

static void fill_extent(const struct qcow2 *q, const struct cluster *c, uint64_t in_cluster,
                        struct extent *out)
{
    *out = (struct extent){
        .allocated = c->kind != CL_NONE,
        .writable = c->kind == CL_DATA && c->copied,
    };
    switch (c->kind) {
    case CL_NONE:
        out->kind = q->node->backing ? EXTENT_BACKING : EXTENT_ZERO;
        break;
    case CL_ZERO:
    case CL_ZERO_ALLOCATED:
        out->kind = EXTENT_ZERO;
        break;
    case CL_DATA:
    case CL_COMPRESSED:
        out->kind = EXTENT_DATA;
        break;
    }
    if (cluster_has_place(c)) {
        out->file = q->node->file;
        out->host_offset = c->host + in_cluster;
    }
}

/* Does `entry` continue a run whose first entry was `first`, `n` clusters earlier? */
static bool continues(const struct qcow2_mapping *m, uint64_t first, uint64_t entry,
                      uint64_t n)
{
    if ((first & L2_OFFSET) == 0)
        return entry == first;
    return entry == first + (n << m->geo.cluster_bits);
}

/* How many of the entries of one page from `word` on, at most `max`, continue the run that
 * is `so_far` long. */
static uint32_t run_in_page(const struct qcow2_mapping *m, const struct mc_page *page,
                            uint32_t word, uint64_t first, uint64_t so_far, uint64_t max)
{
    uint32_t n = 0, room = (uint32_t)MIN(max, (1u << m->geo.page_bits) - word);

    while (n < room && continues(m, first, mc_load(page, word + n), so_far + n))
        n++;
    return n;
}

/* Nothing in this L1 entry, nor in those after it that are as empty. */
static uint64_t empty_tables(const struct qcow2_mapping *m, uint64_t off, uint64_t len)
{
    uint32_t shift = geometry_table_bits(&m->geo);
    uint64_t index = off >> shift, end = align_up(off + 1, 1ull << shift);

    while (end < off + len && ++index < m->l1_size &&
           (atomic_load_explicit(&m->l1[index], memory_order_acquire) & L1_OFFSET) == 0)
        end += 1ull << shift;
    return MIN(len, end - off);
}

int mapping_map(struct qcow2_mapping *m, uint64_t off, uint64_t len, struct extent *out)
{
    struct qcow2 *q = m->q;
    const struct qcow2_geometry *geo = &m->geo;
    uint64_t l1_entry =
        atomic_load_explicit(&m->l1[geometry_l1_index(geo, off)], memory_order_acquire);
    uint64_t in_cluster = off & (geometry_cluster(geo) - 1);
    struct cluster first = {.kind = CL_NONE};
    struct mc_page *page;

    if ((l1_entry & L1_OFFSET) == 0) {
        fill_extent(q, &first, in_cluster, out);
        out->length = empty_tables(m, off, len);
        return 0;
    }
    int err = mapping_check_l1(m, geometry_l1_index(geo, off), l1_entry);
    if (!err)
        err = mcmap_get(m->l2_map, geometry_l2_page(geo, off), &page);
    if (err)
        return qcow2_failed(q, err == -ENOENT ? -EIO : err);
    uint32_t word = geometry_l2_word(geo, off);
    uint64_t entry = mc_load(page, word);
    err = mapping_decode(m, entry, off, &first);
    if (err)
        return qcow2_failed(q, err);
    fill_extent(q, &first, in_cluster, out);

    /* The run: to the end of the table at most, page by page. */
    uint64_t table_end = geometry_table_end(geo, off);
    uint64_t clusters =
        (MIN(off + len, table_end) - off + in_cluster + geometry_cluster(geo) - 1) >>
        geo->cluster_bits;
    uint64_t n = 1;
    for (uint32_t at = word + 1; n < clusters;) {
        if (at == 1u << geo->page_bits) {
            at = 0;
            if (mcmap_get(m->l2_map, geometry_l2_page(geo, off + (n << geo->cluster_bits)),
                          &page))
                break; /* said when the caller comes to it */
        }
        uint32_t more = run_in_page(m, page, at, entry, n, clusters - n);
        n += more;
        at += more;
        if (at < 1u << geo->page_bits)
            break;
    }
    /* So far only the first entry's place was checked. */
    if (cluster_has_place(&first) && n > 1 && bad_data_host(q, first.host, n))
        n = 1;
    out->length = MIN(len, (n << geo->cluster_bits) - in_cluster);
    return 0;
}
