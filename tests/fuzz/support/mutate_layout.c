/* SPDX-License-Identifier: BSD-3-Clause */
/* Where header fields and table entries are in qcow2 and QED images; see mutate.h. */
#include <stddef.h>

#include "base/compiler.h"
#include "mutate.h"
#include "qcow2/qcow2_format.h"
#include "qed/qed_format.h"

static uint64_t be(const uint8_t *image, uint64_t n, uint64_t off, unsigned bytes)
{
    return mutate_get(image, n, (struct place){off, bytes}, true);
}

static uint64_t le(const uint8_t *image, uint64_t n, uint64_t off, unsigned bytes)
{
    return mutate_get(image, n, (struct place){off, bytes}, false);
}

static struct place entry(uint64_t table, uint64_t n_entries, struct rng *rng)
{
    return (struct place){table + 8 * rng_below(rng, n_entries), 8};
}

/* ---- qcow2 ---- */

#define FIELD(name)                                     \
    {                                                   \
        offsetof(struct qcow2_disk_header, name),       \
            sizeof((struct qcow2_disk_header *)0)->name \
    }

static const struct place qcow2_fields[] = {
    FIELD(version),
    FIELD(backing_file_offset),
    FIELD(backing_file_size),
    FIELD(cluster_bits),
    FIELD(size),
    FIELD(crypt_method),
    FIELD(l1_size),
    FIELD(l1_table_offset),
    FIELD(refcount_table_offset),
    FIELD(refcount_table_clusters),
    FIELD(nb_snapshots),
    FIELD(snapshots_offset),
    FIELD(incompatible_features),
    FIELD(compatible_features),
    FIELD(autoclear_features),
    FIELD(refcount_order),
    FIELD(header_length),
};

static uint64_t qcow2_field(const uint8_t *image, uint64_t n, size_t off, unsigned bytes)
{
    return be(image, n, off, bytes);
}

#define QCOW2(name)                                                 \
    qcow2_field(image, n, offsetof(struct qcow2_disk_header, name), \
                sizeof((struct qcow2_disk_header *)0)->name)

static struct place l1_entry(const uint8_t *image, uint64_t n, struct rng *rng)
{
    return entry(QCOW2(l1_table_offset), MIN(QCOW2(l1_size) + 1, n / 8 + 1), rng);
}

/* An entry of an L2 table.  Tries some L1 entries to find a table, as most are 0. */
static struct place l2_entry(const uint8_t *image, uint64_t n, uint64_t cluster,
                             struct rng *rng)
{
    uint64_t table = 0;

    for (unsigned i = 0; table == 0 && i < 16; i++)
        table = be(image, n, l1_entry(image, n, rng).off, 8) & L1_OFFSET;
    /* Mostly one of the first entries: in small images these are the ones in use. */
    return entry(table, rng_one_in(rng, 4) ? cluster / 8 : MIN(16, cluster / 8), rng);
}

static struct place refcount(const uint8_t *image, uint64_t n, uint64_t cluster,
                             struct rng *rng)
{
    uint64_t block = be(image, n, QCOW2(refcount_table_offset), 8) & RT_OFFSET;
    uint64_t at = rng_below(rng, MIN(cluster, n / cluster * 2 + 2) / 2) * 2;

    return (struct place){block + at, 2};
}

static struct place snapshot_field(const uint8_t *image, uint64_t n, struct rng *rng)
{
    static const struct place fields[] = {{0, 8},  {8, 4},  {12, 2}, {14, 2},
                                          {32, 4}, {36, 4}, {40, 8}, {48, 8}};
    struct place place = fields[rng_below(rng, ARRAY_LEN(fields))];

    place.off += QCOW2(snapshots_offset);
    if (rng_one_in(rng, 3)) /* an entry of the snapshot's L1 table */
        return entry(be(image, n, QCOW2(snapshots_offset), 8), 8, rng);
    return place;
}

static struct place extension_field(const uint8_t *image, uint64_t n, struct rng *rng)
{
    uint64_t at = QCOW2(version) < 3 ? QCOW2_V2_HEADER_BYTES : QCOW2(header_length);

    for (uint64_t i = rng_below(rng, 4); i > 0 && at < n; i--)
        at += 8 + ((be(image, n, at + 4, 4) + 7) & ~UINT64_C(7));
    return (struct place){at + 4 * rng_below(rng, 8), 4};
}

static struct place pick_qcow2(const uint8_t *image, uint64_t n, uint64_t cluster,
                               struct rng *rng)
{
    switch (rng_below(rng, 10)) {
    case 0:
    case 1:
        return qcow2_fields[rng_below(rng, ARRAY_LEN(qcow2_fields))];
    case 2:
        return l1_entry(image, n, rng);
    case 3:
        return entry(QCOW2(refcount_table_offset), cluster / 8, rng);
    case 4:
        return entry(QCOW2(refcount_table_offset), 1, rng);
    case 5:
        return refcount(image, n, cluster, rng);
    case 6:
        return snapshot_field(image, n, rng);
    case 7:
        return extension_field(image, n, rng);
    default:
        return l2_entry(image, n, cluster, rng);
    }
}

bool mutate_qcow2_layout(const uint8_t *image, uint64_t n, struct layout *out)
{
    uint64_t bits = QCOW2(cluster_bits);

    *out = (struct layout){
        .big_endian = true,
        .cluster = UINT64_C(1) << (bits >= 9 && bits <= 16 ? bits : 9),
        .flags = {0, L2_COPIED, L2_ZERO, L2_COMPRESSED},
        .pick = pick_qcow2,
    };
    return be(image, n, 0, 4) == QCOW2_MAGIC;
}

/* ---- QED ---- */

#undef FIELD
#define FIELD(name)                                                                       \
    {                                                                                     \
        offsetof(struct qed_disk_header, name), sizeof((struct qed_disk_header *)0)->name \
    }

static const struct place qed_fields[] = {
    FIELD(cluster_size),
    FIELD(table_size),
    FIELD(header_size),
    FIELD(features),
    FIELD(compat_features),
    FIELD(autoclear_features),
    FIELD(l1_table_offset),
    FIELD(image_size),
    FIELD(backing_filename_offset),
    FIELD(backing_filename_size),
};

static struct place pick_qed(const uint8_t *image, uint64_t n, uint64_t cluster,
                             struct rng *rng)
{
    uint64_t l1 = le(image, n, offsetof(struct qed_disk_header, l1_table_offset), 8);

    if (rng_one_in(rng, 3))
        return qed_fields[rng_below(rng, ARRAY_LEN(qed_fields))];
    struct place place = entry(l1, rng_one_in(rng, 4) ? cluster / 8 : 4, rng);
    if (rng_one_in(rng, 3))
        return place;
    uint64_t table = le(image, n, place.off, 8);
    return entry(table, rng_one_in(rng, 4) ? cluster / 8 : 16, rng);
}

bool mutate_qed_layout(const uint8_t *image, uint64_t n, struct layout *out)
{
    uint64_t cluster = le(image, n, offsetof(struct qed_disk_header, cluster_size), 4);

    *out = (struct layout){
        .cluster = cluster >= 4096 && cluster <= 65536 ? cluster : 4096,
        .flags = {0, QED_ENTRY_ZERO, 0, 512},
        .pick = pick_qed,
    };
    return le(image, n, 0, 4) == QED_MAGIC;
}
