/* SPDX-License-Identifier: BSD-3-Clause */
/* From guest to host: the lock-free lookup. */
#include <errno.h>
#include <inttypes.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* The first byte's place; `in_cluster` bytes into it. */
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

/* How many of the entries of one page from `word` on, at most `max`, continue a run whose
 * next entry would be `next`; each further one is `step` larger. */
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

/* The clusters from the one at `off` on, of which the first has `entry`, that continue it:
 * to the end of the table and of `len` at most, page by page. */
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
                break; /* said when the caller comes to it */
        }
        uint32_t more = run_in_page(m, page, at, entry + n * step, step, max - n);
        n += more;
        at += more;
        if (at < 1u << geo->page_bits)
            break;
    }
    return n;
}

/* One (sub)cluster, by its entry in the file.  Where another node writes to the file, the
 * cached entry may be old: of a compressed cluster that was written to in part, the place is
 * free by then, though the rest is still read here.  The new entry is in the file before the
 * old place is let go of, and that waits for all who are inside the gate. */
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
    /* So far only the first entry's place was checked. */
    if (n > 1 && !(cluster_has_place(&first) && mapping_bad_data(q, first.host, n)))
        out->length = MIN(len, (n << geo->cluster_bits) - in_cluster);
    return 0;
}
