/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the decoding of one qcow2 L2 entry, plain or extended, with any cluster size.  An entry
 * that is accepted must be valid by the specification, have a possible offset, and be encoded to
 * the same bits again.
 *
 * The input: two bytes for the image's geometry, and 16 bytes of the entry as in the file. */
#include "base/bytes.h"
#include "fuzz.h"
#include "qcow2/l2_entry.h"

#define LARGEST_PLACE (1ull << 56)

static struct qcow2_geometry geometry_of(const uint8_t *data)
{
    bool extended = data[0] & 1, external = data[0] & 2;
    uint32_t version = extended || external || (data[0] & 4) ? 3 : 2;
    uint32_t cluster_bits = 9 + data[1] % 13;

    /* A subcluster (1/32 of a cluster) has at least 512 bytes. */
    if (extended && cluster_bits < 14)
        cluster_bits = 14;
    return qcow2_geometry(version, cluster_bits, 4, extended, external);
}

static void check_compressed(const struct qcow2_geometry *geo, uint64_t entry,
                             uint64_t bitmap, const struct cluster *c)
{
    fuzz_check(!c->copied && bitmap == 0 && !geo->external, "compressed");
    fuzz_check(c->compressed_bytes >= 1 && c->compressed_bytes <= 2 * geometry_cluster(geo),
               "%u bytes", c->compressed_bytes);
    fuzz_check(c->host < 1ull << l2_compressed_shift(geo), "compressed place");
    fuzz_check(l2_entry_compressed(geo, c->host, c->compressed_bytes) == entry,
               "written otherwise");
}

static void check_subclusters(const struct qcow2_geometry *geo, uint64_t bitmap,
                              const struct cluster *c)
{
    bool place = cluster_has_place(c);

    for (uint32_t i = 0; i < SUBCLUSTERS; i++) {
        bool allocated = bitmap >> i & 1, zero = bitmap >> (32 + i) & 1;
        enum cluster_kind want = zero        ? (place ? CL_ZERO_ALLOCATED : CL_ZERO)
                                 : allocated ? CL_DATA
                                             : CL_NONE;
        fuzz_check(!(allocated && zero) && (place || !allocated), "subcluster %u", i);
        fuzz_check(cluster_kind_of(c, i) == want, "subcluster %u", i);
    }
    fuzz_check(l2_extended_bitmap(c->allocated, c->zero) == bitmap, "bitmap");
    fuzz_check(l2_subclusters_of(geo, 0, 0, geometry_cluster(geo)) == ALL_SUBCLUSTERS,
               "all of them");
}

static void check_plain(const struct qcow2_geometry *geo, uint64_t entry,
                        const struct cluster *c)
{
    bool zero = entry & 1;

    fuzz_check(!zero || geo->version >= 3, "zero in version 2");
    fuzz_check(zero == (c->kind == CL_ZERO || c->kind == CL_ZERO_ALLOCATED), "zero");
    fuzz_check(c->allocated == 0 && c->zero == 0, "subclusters");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cluster c;

    if (size < 18)
        return 0;
    struct qcow2_geometry geo = geometry_of(data);
    uint64_t entry = load_be64(data + 2);
    uint64_t bitmap = geo.word_bits ? load_be64(data + 10) : 0;
    if (l2_any_decode(&geo, entry, bitmap, &c) != 0)
        return 0;
    if (c.kind == CL_COMPRESSED) {
        check_compressed(&geo, entry, bitmap, &c);
        return 0;
    }
    fuzz_check(c.host < LARGEST_PLACE && is_aligned(c.host, geometry_cluster(&geo)),
               "place");
    fuzz_check(cluster_has_place(&c) || c.host == 0, "place of nothing");
    fuzz_check((c.host | (c.copied ? L2_COPIED : 0) | (entry & 1)) == entry,
               "written otherwise");
    if (geo.word_bits)
        check_subclusters(&geo, bitmap, &c);
    else
        check_plain(&geo, entry, &c);
    return 0;
}
