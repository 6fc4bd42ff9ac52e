/* SPDX-License-Identifier: BSD-3-Clause */
/* The lookup from guest offset to host offset, without locks: L1 entry, L2 page, L2 entry, and
 * as many entries after it as continue the same extent. */
#include <errno.h>
#include <inttypes.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

void mapping_fill_extent(const struct qcow2_mapping *m, const struct cluster *c,
                         uint64_t in_cluster, struct extent *out)
{
    const struct qcow2 *q = m->q;

    *out = (struct extent){
        .allocated = c->kind != CL_NONE,
        .writable = c->kind == CL_DATA && c->copied,
    };
    switch (c->kind) {
    case CL_NONE:
        out->kind = q->node->backing ? EXTENT_BACKING : EXTENT_ZERO;
        return;
    case CL_ZERO:
        out->kind = EXTENT_ZERO;
        return;
    case CL_ZERO_ALLOCATED:
        out->kind = EXTENT_ZERO;
        break;
    case CL_DATA:
        out->kind = q->data_kind;
        break;
    case CL_COMPRESSED:
        out->kind = EXTENT_COMPRESSED;
        out->file = q->node->file;
        out->host_offset = c->host;
        out->stored_bytes = c->compressed_bytes;
        out->skip = (uint32_t)in_cluster;
        return;
    }
    out->file = q->node->data;
    out->host_offset = c->host + in_cluster;
}

/* Counts the entries of one page, from `word` on and at most `max`, that continue a run: the
 * first must be `next`, each one after it larger by `step`. */
static uint32_t run_in_page(const struct qcow2_mapping *m, const struct mc_page *page,
                            uint32_t word, uint64_t next, uint64_t step, uint64_t max)
{
    uint32_t n = 0, room = (uint32_t)MIN(max, (1u << m->geo.page_bits) - word);

    while (n < room && mc_load(page, word + n) == next) {
        next += step;
        n++;
    }
    return n;
}

/* The length of the hole at `off`, up to `len`: this L1 entry and those after it have no
 * table. */
static uint64_t empty_tables(const struct qcow2_mapping *m, uint64_t off, uint64_t len)
{
    uint32_t shift = geometry_table_bits(&m->geo);
    uint64_t index = off >> shift, end = align_up(off + 1, 1ull << shift);

    while (end < off + len && ++index < m->l1_size &&
           (atomic_load_explicit(&m->l1[index], memory_order_acquire) & L1_OFFSET) == 0)
        end += 1ull << shift;
    return MIN(len, end - off);
}

/* Counts the clusters that form one run with the cluster at `off`, whose entry is `entry`.  The
 * run ends at the end of the L2 table, or of the range, at the latest. */
static uint64_t run_length(struct qcow2_mapping *m, struct mc_page *page, uint64_t entry,
                           const struct cluster *first, uint64_t off, uint64_t len)
{
    const struct qcow2_geometry *geo = &m->geo;
    uint64_t start = align_down(off, geometry_cluster(geo));
    uint64_t end = MIN(off + len, geometry_table_end(geo, off));
    uint64_t max = (end - start + geometry_cluster(geo) - 1) >> geo->cluster_bits, n = 1;
    uint64_t step = cluster_has_place(first) ? geometry_cluster(geo) : 0;

    for (uint32_t at = geometry_l2_word(geo, off) + 1; n < max;) {
        if (at == 1u << geo->page_bits) {
            at = 0;
            if (mcmap_get(m->l2_map,
                          geometry_l2_page(geo, start + (n << geo->cluster_bits)), &page))
                break; /* the error is reported when the caller gets to this page */
        }
        uint32_t more = run_in_page(m, page, at, entry + n * step, step, max - n);
        n += more;
        at += more;
        if (at < 1u << geo->page_bits)
            break;
    }
    return n;
}

/* Maps one (sub)cluster by its entry in the file instead of the cached one, which may be out of
 * date when another node of this process writes to the file.  That node may, for example, have
 * moved a compressed cluster and freed its old place.  It writes the new entry to the file
 * before it frees the old place, and frees it only after everybody inside the gate has left, so
 * the entry in the file is always safe to follow. */
ASIDE static int map_by_file(struct qcow2_mapping *m, uint64_t table, uint64_t off,
                             uint64_t len, struct extent *out)
{
    const struct qcow2_geometry *geo = &m->geo;
    uint64_t index = off >> geo->cluster_bits & ((1ull << geo->l2_bits) - 1);
    uint64_t bytes = 8u << geo->word_bits, in_cluster = off & (geometry_cluster(geo) - 1);
    uint8_t raw[16] = {0};
    struct cluster c;

    int err = storage_read(m->q->node->file, raw, table + index * bytes, bytes);
    struct mc_pair entry = {load_be64(raw), load_be64(raw + 8)};
    if (!err)
        err = geo->word_bits ? mapping_decode_extended(m, entry, off, &c)
                             : mapping_decode(m, entry.first, off, &c);
    if (err)
        return qcow2_failed(m->q, err);
    if (geo->word_bits)
        c.kind = cluster_kind_of(&c, (uint32_t)(in_cluster >> geo->subcluster_bits));
    uint64_t unit =
        1ull << (c.kind == CL_COMPRESSED ? geo->cluster_bits : geo->subcluster_bits);
    mapping_fill_extent(m, &c, in_cluster, out);
    out->length = MIN(len, align_up(off + 1, unit) - off);
    return 0;
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
        mapping_fill_extent(m, &first, in_cluster, out);
        out->length = empty_tables(m, off, len);
        return 0;
    }
    int err = mapping_check_l1(m, geometry_l1_index(geo, off), l1_entry);
    if (!err &&
        UNLIKELY(atomic_load_explicit(&q->node->written_elsewhere, memory_order_acquire)))
        return map_by_file(m, l1_entry & L1_OFFSET, off, len, out);
    if (!err)
        err = mcmap_get(m->l2_map, geometry_l2_page(geo, off), &page);
    if (err)
        return qcow2_failed(q, err == -ENOENT ? -EIO : err);
    if (UNLIKELY(geo->word_bits))
        return mapping_map_extended(m, page, off, len, out);
    uint64_t entry = mc_load(page, geometry_l2_word(geo, off));
    err = mapping_decode(m, entry, off, &first);
    if (err)
        return qcow2_failed(q, err);
    mapping_fill_extent(m, &first, in_cluster, out);
    out->length = MIN(len, geometry_cluster(geo) - in_cluster);
    if (out->length == len || first.kind == CL_COMPRESSED)
        return 0;
    uint64_t n = run_length(m, page, entry, &first, off, len);
    /* Only the first entry's place was checked so far. */
    if (n > 1 && !(cluster_has_place(&first) && mapping_bad_data(q, first.host, n)))
        out->length = MIN(len, (n << geo->cluster_bits) - in_cluster);
    return 0;
}
