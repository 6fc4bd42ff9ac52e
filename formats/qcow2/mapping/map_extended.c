/* SPDX-License-Identifier: BSD-3-Clause */
/* The lookup in images with extended L2 entries, where an extent is a run of subclusters. */
#include <errno.h>

#include "base/checked.h"
#include "qcow2/internal.h"

int mapping_decode_extended(struct qcow2_mapping *m, struct mc_pair pair, uint64_t guest,
                            struct cluster *out)
{
    unsigned faults = l2_extended_decode(&m->geo, pair.first, pair.second, out);

    return mapping_judge(m, pair.first, guest, faults, out);
}

int mapping_decode_at(struct qcow2_mapping *m, const struct mc_page *page, uint64_t guest,
                      struct cluster *out)
{
    uint32_t word = geometry_l2_word(&m->geo, guest);

    return m->geo.word_bits
               ? mapping_decode_extended(m, mc_load_pair(page, word), guest, out)
               : mapping_decode(m, mc_load(page, word), guest, out);
}

/* How many subclusters from `first` on are of the same kind as `first`. */
static uint32_t run_in_cluster(const struct cluster *c, uint32_t first)
{
    enum cluster_kind kind = cluster_kind_of(c, first);
    uint32_t n = 1;

    while (first + n < SUBCLUSTERS && cluster_kind_of(c, first + n) == kind)
        n++;
    return n;
}

/* Does the first subcluster of `next`, the cluster after `c`, continue the extent of the last
 * subcluster of `c`? */
static bool continues_run(const struct qcow2_mapping *m, const struct cluster *c,
                          const struct cluster *next)
{
    enum cluster_kind kind = cluster_kind_of(c, SUBCLUSTERS - 1);

    if (kind != cluster_kind_of(next, 0) || kind == CL_COMPRESSED)
        return false;
    return kind == CL_NONE || kind == CL_ZERO ||
           (next->host == c->host + geometry_cluster(&m->geo) && next->copied == c->copied);
}

/* Loads the entry of a guest offset.  *page is the page of an earlier offset, and becomes that
 * of this one. */
static int load_entry(struct qcow2_mapping *m, uint64_t guest, struct mc_page **page,
                      struct cluster *out)
{
    uint64_t index = geometry_l2_page(&m->geo, guest);

    int err = (*page)->index == index ? 0 : mcmap_get(m->l2_map, index, page);
    if (err)
        return err;
    return mapping_decode_extended(m, mc_load_pair(*page, geometry_l2_word(&m->geo, guest)),
                                   guest, out);
}

ASIDE int mapping_map_extended(struct qcow2_mapping *m, struct mc_page *page, uint64_t off,
                               uint64_t len, struct extent *out)
{
    const struct qcow2_geometry *geo = &m->geo;
    uint64_t at = align_down(off, geometry_cluster(geo));
    uint64_t end = MIN(off + len, geometry_table_end(geo, off));
    uint32_t first = (uint32_t)((off - at) >> geo->subcluster_bits);
    struct cluster c;

    int err = load_entry(m, off, &page, &c);
    if (err)
        return qcow2_failed(m->q, err);
    struct cluster one = c;
    one.kind = cluster_kind_of(&c, first);
    mapping_fill_extent(m, &one, off - at, out);

    uint32_t n = run_in_cluster(&c, first);
    uint64_t run_end = at + ((uint64_t)(first + n) << geo->subcluster_bits);
    while (run_end < end && first + n == SUBCLUSTERS) {
        struct cluster next;
        /* An error is reported when the caller gets to that cluster. */
        if (load_entry(m, run_end, &page, &next) || !continues_run(m, &c, &next))
            break;
        c = next;
        first = 0;
        n = run_in_cluster(&c, 0);
        run_end += (uint64_t)n << geo->subcluster_bits;
    }
    out->length = MIN(end, run_end) - off;
    return 0;
}
