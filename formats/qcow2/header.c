/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading, checking and writing the header. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/foreign_text.h"
#include "qcow2/header.h"
#include "qcow2/header_ext.h"

#define KNOWN_INCOMPAT                                                               \
    (INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_DATA_FILE | INCOMPAT_COMPRESSION | \
     INCOMPAT_EXTENDED_L2)

#define FIELD(name) offsetof(struct qcow2_disk_header, name)

static void parse_fields(const uint8_t *raw, struct qcow2_header *h)
{
    h->version = load_be32(raw + FIELD(version));
    h->cluster_bits = load_be32(raw + FIELD(cluster_bits));
    h->size = load_be64(raw + FIELD(size));
    h->l1_size = load_be32(raw + FIELD(l1_size));
    h->l1_table_offset = load_be64(raw + FIELD(l1_table_offset));
    h->refcount_table_offset = load_be64(raw + FIELD(refcount_table_offset));
    h->refcount_table_clusters = load_be32(raw + FIELD(refcount_table_clusters));
    h->nb_snapshots = load_be32(raw + FIELD(nb_snapshots));
    h->snapshots_offset = load_be64(raw + FIELD(snapshots_offset));
    h->crypt_method = load_be32(raw + FIELD(crypt_method));
    h->refcount_order = 4;
    h->header_length = QCOW2_V2_HEADER_BYTES;
    if (h->version < 3)
        return;
    h->incompatible = load_be64(raw + FIELD(incompatible_features));
    h->compatible = load_be64(raw + FIELD(compatible_features));
    h->autoclear = load_be64(raw + FIELD(autoclear_features));
    h->refcount_order = load_be32(raw + FIELD(refcount_order));
    h->header_length = load_be32(raw + FIELD(header_length));
    if (h->header_length > FIELD(compression_type))
        h->compression_type = raw[FIELD(compression_type)];
}

/* Checks the fields on which the checks of all others depend. */
static int check_basics(const char *name, const uint8_t *raw, const struct qcow2_header *h,
                        struct diag *diag)
{
    if (load_be32(raw + FIELD(magic)) != QCOW2_MAGIC)
        return diag_set(diag, EINVAL, "%s: magic: not a qcow2 image", name);
    if (h->version < 2 || h->version > 3)
        return diag_set(diag, ENOTSUP, "%s: version: %" PRIu32 " is not 2 or 3", name,
                        h->version);
    if (h->cluster_bits < MIN_CLUSTER_BITS || h->cluster_bits > MAX_CLUSTER_BITS)
        return diag_set(diag, EINVAL, "%s: cluster_bits: %" PRIu32 " is not in %d..%d",
                        name, h->cluster_bits, MIN_CLUSTER_BITS, MAX_CLUSTER_BITS);
    if (h->version >= 3 && (h->header_length < QCOW2_V3_MIN_HEADER_BYTES ||
                            h->header_length > 1u << h->cluster_bits))
        return diag_set(diag, EINVAL,
                        "%s: header_length: %" PRIu32 " is not in %d..cluster size", name,
                        h->header_length, QCOW2_V3_MIN_HEADER_BYTES);
    if (h->version >= 3 && !is_aligned(h->header_length, 8))
        return diag_set(diag, EINVAL,
                        "%s: header_length: %" PRIu32 " is not a multiple of 8", name,
                        h->header_length);
    if (h->refcount_order > MAX_REFCOUNT_ORDER)
        return diag_set(diag, EINVAL,
                        "%s: refcount_order: %" PRIu32 " is over %d (64 bits)", name,
                        h->refcount_order, MAX_REFCOUNT_ORDER);
    return 0;
}

/* Checks fields that belong to features: encryption, compression type, extended L2 entries. */
static int check_features(const char *name, const struct qcow2_header *h, struct diag *diag)
{
    uint8_t type = h->compression_type;

    if (h->crypt_method > CRYPT_LUKS)
        return diag_set(diag, ENOTSUP,
                        "%s: crypt_method: %" PRIu32 ": an unknown method of encryption",
                        name, h->crypt_method);
    if (type > COMPRESSION_ZSTD ||
        (type != COMPRESSION_ZLIB) != ((h->incompatible & INCOMPAT_COMPRESSION) != 0))
        return diag_set(
            diag, ENOTSUP,
            "%s: compression_type: %u doesn't go with incompatible_features 0x%" PRIx64,
            name, type, h->incompatible);
    if ((h->incompatible & INCOMPAT_EXTENDED_L2) &&
        h->cluster_bits < MIN_EXTENDED_CLUSTER_BITS)
        return diag_set(diag, EINVAL,
                        "%s: cluster_bits: %" PRIu32
                        " are too few for extended L2 entries, which need %d",
                        name, h->cluster_bits, MIN_EXTENDED_CLUSTER_BITS);
    return 0;
}

/* Checks the place of a table: aligned, behind the header's cluster, inside the file.  The file
 * may end inside its last cluster. */
static int check_table(const char *name, const char *field, uint64_t offset, uint64_t bytes,
                       uint64_t align, const struct qcow2_header *h, uint64_t file_size,
                       struct diag *diag)
{
    if (!is_aligned(offset, align))
        return diag_set(diag, EINVAL,
                        "%s: %s: offset %" PRIu64 " is not aligned to %" PRIu64, name,
                        field, offset, align);
    if (offset < 1ull << h->cluster_bits)
        return diag_set(diag, EINVAL, "%s: %s: offset %" PRIu64 " overlaps the header",
                        name, field, offset);
    if (!range_inside(offset, bytes, align_up(file_size, 1ull << h->cluster_bits)))
        return diag_set(diag, EINVAL,
                        "%s: %s: %" PRIu64 " bytes at offset %" PRIu64
                        " lie outside the file of %" PRIu64 " bytes",
                        name, field, bytes, offset, file_size);
    return 0;
}

static int check_l1_size(const char *name, const struct qcow2_header *h, struct diag *diag)
{
    uint64_t bytes = (uint64_t)h->l1_size * 8;

    if (bytes > MAX_L1_BYTES)
        return diag_set(diag, EFBIG, "%s: l1_size: %" PRIu32 " entries are over %u bytes",
                        name, h->l1_size, MAX_L1_BYTES);
    if (h->size > INT64_MAX)
        return diag_set(diag, EFBIG, "%s: size: %" PRIu64 " bytes are over %" PRId64, name,
                        h->size, INT64_MAX);
    struct qcow2_geometry geo = qcow2_header_geometry(h);
    uint64_t needed = geometry_l1_entries(&geo, h->size);
    if (needed > h->l1_size)
        return diag_set(diag, EINVAL,
                        "%s: l1_size: %" PRIu32 " entries don't cover the size of %" PRIu64
                        " bytes, which needs %" PRIu64,
                        name, h->l1_size, h->size, needed);
    return 0;
}

static int check_l1(const char *name, const struct qcow2_header *h, uint64_t file_size,
                    struct diag *diag)
{
    int err = check_l1_size(name, h, diag);

    if (err || h->l1_size == 0)
        return err;
    return check_table(name, "l1_table_offset", h->l1_table_offset,
                       (uint64_t)h->l1_size * 8, 1ull << h->cluster_bits, h, file_size,
                       diag);
}

static int check_refcount_table(const char *name, const struct qcow2_header *h,
                                uint64_t file_size, struct diag *diag)
{
    uint64_t bytes = (uint64_t)h->refcount_table_clusters << h->cluster_bits;

    if (bytes == 0)
        return diag_set(diag, EINVAL,
                        "%s: refcount_table_clusters: there is no refcount table", name);
    if (bytes > MAX_RT_BYTES)
        return diag_set(diag, EFBIG,
                        "%s: refcount_table_clusters: %" PRIu32 " are over %u bytes", name,
                        h->refcount_table_clusters, MAX_RT_BYTES);
    return check_table(name, "refcount_table_offset", h->refcount_table_offset, bytes,
                       1ull << h->cluster_bits, h, file_size, diag);
}

static int check_snapshot_count(const char *name, const struct qcow2_header *h,
                                struct diag *diag)
{
    if (h->nb_snapshots > MAX_SNAPSHOTS)
        return diag_set(diag, EFBIG, "%s: nb_snapshots: %" PRIu32 " is over %d", name,
                        h->nb_snapshots, MAX_SNAPSHOTS);
    return 0;
}

static int check_snapshots(const char *name, const struct qcow2_header *h,
                           uint64_t file_size, struct diag *diag)
{
    int err = check_snapshot_count(name, h, diag);

    if (err || h->nb_snapshots == 0)
        return err;
    /* The length isn't recorded, but an entry takes at least 40 bytes. */
    return check_table(name, "snapshots_offset", h->snapshots_offset,
                       (uint64_t)h->nb_snapshots * 40, 1ull << h->cluster_bits, h,
                       file_size, diag);
}

/* Checks the place of the LUKS header; to be called after the extensions were read, as one of
 * them holds it. */
static int check_luks(const char *name, const struct qcow2_header *h, uint64_t file_size,
                      struct diag *diag)
{
    if (h->crypt_method != CRYPT_LUKS)
        return 0;
    if (h->luks_bytes == 0)
        return diag_set(
            diag, EINVAL,
            "%s: crypt_method: LUKS, but no header extension says where the LUKS "
            "header is",
            name);
    if (h->luks_bytes > MAX_LUKS_BYTES)
        return diag_set(diag, EINVAL,
                        "%s: header extension: a LUKS header of %" PRIu64 " bytes, over %u",
                        name, h->luks_bytes, MAX_LUKS_BYTES);
    return check_table(name, "LUKS header", h->luks_offset, h->luks_bytes,
                       1ull << h->cluster_bits, h, file_size, diag);
}

/* Checks that the L1 and refcount tables don't overlap.  Overlaps of single clusters are found
 * when they are used. */
static int check_overlaps(const char *name, const struct qcow2_header *h, struct diag *diag)
{
    uint64_t l1_bytes = (uint64_t)h->l1_size * 8;
    uint64_t rt_bytes = (uint64_t)h->refcount_table_clusters << h->cluster_bits;

    if (h->l1_size != 0 &&
        ranges_overlap(h->l1_table_offset, l1_bytes, h->refcount_table_offset, rt_bytes))
        return diag_set(diag, EINVAL,
                        "%s: l1_table_offset: the L1 table at %" PRIu64
                        " overlaps the refcount table at %" PRIu64,
                        name, h->l1_table_offset, h->refcount_table_offset);
    return 0;
}

static int read_backing_name(struct storage *st, const uint8_t *raw, struct qcow2_header *h,
                             struct diag *diag)
{
    uint64_t offset = load_be64(raw + FIELD(backing_file_offset));
    uint32_t len = load_be32(raw + FIELD(backing_file_size));

    if (offset == 0 || len == 0)
        return 0;
    if (len > MAX_BACKING_NAME)
        return diag_set(diag, EINVAL, "%s: backing_file_size: %" PRIu32 " is over %d",
                        st->name, len, MAX_BACKING_NAME);
    if (offset < h->header_length || !range_inside(offset, len, 1ull << h->cluster_bits))
        return diag_set(diag, EINVAL,
                        "%s: backing_file_offset: %" PRIu32 " bytes at offset %" PRIu64
                        " are not between the header and the end of its cluster",
                        st->name, len, offset);
    char name[MAX_BACKING_NAME];
    int err = storage_read(st, name, offset, len);
    if (err)
        return diag_errno(diag, -err, "%s: reading the backing file's name", st->name);
    return foreign_text_copy(&h->backing_name, name, len, diag,
                             "%s: backing_file_offset: the backing file's name", st->name);
}

/* Reads the fixed fields and the backing file's name, and makes the checks that everything else
 * depends on. */
static int read_fields(struct storage *st, uint8_t *raw, struct qcow2_header *h,
                       uint64_t *file_size, struct diag *diag)
{
    int err = storage_size(st, file_size);
    if (err)
        return diag_errno(diag, -err, "%s: size", st->name);
    if (*file_size < QCOW2_V2_HEADER_BYTES)
        return diag_set(diag, EINVAL,
                        "%s: %" PRIu64 " bytes are too few for a qcow2 header", st->name,
                        *file_size);
    err = storage_read(st, raw, 0, sizeof(struct qcow2_disk_header));
    if (err)
        return diag_errno(diag, -err, "%s: reading the header", st->name);
    parse_fields(raw, h);
    return check_basics(st->name, raw, h, diag);
}

static int read_rest(struct storage *st, const uint8_t *raw, struct qcow2_header *h,
                     uint64_t supported, struct diag *diag)
{
    int err = read_backing_name(st, raw, h, diag);
    if (err)
        return err;
    /* Extensions end where the backing file's name begins, or with the first cluster. */
    uint64_t end = h->backing_name ? load_be64(raw + FIELD(backing_file_offset))
                                   : 1ull << h->cluster_bits;
    return qcow2_header_ext_read(st, h, end, supported, diag);
}

/* The part that all kinds of reading share: fields, extensions, and a check that the features
 * fit together. */
static int read_known(struct storage *st, struct qcow2_header *h, uint64_t *file_size,
                      struct diag *diag)
{
    uint8_t raw[sizeof(struct qcow2_disk_header)];

    int err = read_fields(st, raw, h, file_size, diag);
    if (err)
        return err;
    err = read_rest(st, raw, h, KNOWN_INCOMPAT, diag);
    return err ? err : check_features(st->name, h, diag);
}

typedef int header_judge(const char *name, const struct qcow2_header *h, uint64_t file_size,
                         struct diag *diag);

static int read_and_judge(struct storage *st, struct qcow2_header *h, header_judge *judge,
                          struct diag *diag)
{
    uint64_t file_size;

    *h = (struct qcow2_header){0};
    int err = read_known(st, h, &file_size, diag);
    if (!err)
        err = judge(st->name, h, file_size, diag);
    if (err)
        qcow2_header_free(h);
    return err;
}

static int judge_to_serve(const char *name, const struct qcow2_header *h,
                          uint64_t file_size, struct diag *diag)
{
    /* In an external data file each guest cluster has only one place, which a snapshot and the
     * disk would have to share. */
    if ((h->incompatible & INCOMPAT_DATA_FILE) && h->nb_snapshots)
        return diag_set(diag, EINVAL,
                        "%s: nb_snapshots: %" PRIu32
                        " snapshots of an image whose data lies in another file",
                        name, h->nb_snapshots);
    int err = check_luks(name, h, file_size, diag);
    if (err)
        return err;
    err = check_l1(name, h, file_size, diag);
    if (err)
        return err;
    err = check_refcount_table(name, h, file_size, diag);
    if (err)
        return err;
    err = check_snapshots(name, h, file_size, diag);
    return err ? err : check_overlaps(name, h, diag);
}

int qcow2_header_read(struct storage *st, struct qcow2_header *h, struct diag *diag)
{
    return read_and_judge(st, h, judge_to_serve, diag);
}

static int check_alignment(const char *name, const char *field, uint64_t offset,
                           const struct qcow2_header *h, struct diag *diag)
{
    uint64_t cluster = 1ull << h->cluster_bits;

    if (!is_aligned(offset, cluster) || offset > INT64_MAX - MAX_L1_BYTES)
        return diag_set(diag, EINVAL,
                        "%s: %s: offset %" PRIu64 " is not aligned to %" PRIu64, name,
                        field, offset, cluster);
    return 0;
}

static int judge_to_check(const char *name, const struct qcow2_header *h,
                          uint64_t file_size, struct diag *diag)
{
    (void)file_size;
    int err = check_l1_size(name, h, diag);
    if (!err && h->l1_size)
        err = check_alignment(name, "l1_table_offset", h->l1_table_offset, h, diag);
    if (err)
        return err;
    err = check_snapshot_count(name, h, diag);
    if (err || h->nb_snapshots == 0)
        return err;
    return check_alignment(name, "snapshots_offset", h->snapshots_offset, h, diag);
}

int qcow2_header_read_for_check(struct storage *st, struct qcow2_header *h,
                                struct diag *diag)
{
    return read_and_judge(st, h, judge_to_check, diag);
}

static int judge_to_describe(const char *name, const struct qcow2_header *h,
                             uint64_t file_size, struct diag *diag)
{
    if (h->size > INT64_MAX)
        return diag_set(diag, EFBIG, "%s: size: %" PRIu64 " bytes are over %" PRId64, name,
                        h->size, INT64_MAX);
    return check_snapshots(name, h, file_size, diag);
}

int qcow2_header_read_for_info(struct storage *st, struct qcow2_header *h,
                               struct diag *diag)
{
    return read_and_judge(st, h, judge_to_describe, diag);
}

void qcow2_header_free(struct qcow2_header *h)
{
    free(h->backing_name);
    free(h->backing_format);
    free(h->data_file);
    h->backing_name = h->backing_format = h->data_file = NULL;
}

int qcow2_header_write_features(struct storage *st, const struct qcow2_header *h)
{
    uint8_t raw[24];

    store_be64(raw, h->incompatible);
    store_be64(raw + 8, h->compatible);
    store_be64(raw + 16, h->autoclear);
    return storage_write(st, raw, FIELD(incompatible_features), sizeof raw, 0);
}

int qcow2_header_write_refcount_table(struct storage *st, const struct qcow2_header *h)
{
    uint8_t raw[12];

    store_be64(raw, h->refcount_table_offset);
    store_be32(raw + 8, h->refcount_table_clusters);
    return storage_write(st, raw, FIELD(refcount_table_offset), sizeof raw, 0);
}

int qcow2_header_write_snapshots(struct storage *st, const struct qcow2_header *h)
{
    uint8_t raw[12];

    store_be32(raw, h->nb_snapshots);
    store_be64(raw + 4, h->snapshots_offset);
    return storage_write(st, raw, FIELD(nb_snapshots), sizeof raw, 0);
}

int qcow2_header_write_l1(struct storage *st, const struct qcow2_header *h)
{
    uint8_t raw[12];

    store_be32(raw, h->l1_size);
    store_be64(raw + 4, h->l1_table_offset);
    return storage_write(st, raw, FIELD(l1_size), sizeof raw, 0);
}

int qcow2_header_write_size(struct storage *st, const struct qcow2_header *h)
{
    uint8_t raw[8];

    store_be64(raw, h->size);
    return storage_write(st, raw, FIELD(size), sizeof raw, 0);
}

int qcow2_header_write_tables(struct storage *st, const struct qcow2_header *h)
{
    uint8_t raw[QCOW2_V2_HEADER_BYTES - FIELD(size)];

    store_be64(raw, h->size);
    store_be32(raw + (FIELD(crypt_method) - FIELD(size)), h->crypt_method);
    store_be32(raw + (FIELD(l1_size) - FIELD(size)), h->l1_size);
    store_be64(raw + (FIELD(l1_table_offset) - FIELD(size)), h->l1_table_offset);
    store_be64(raw + (FIELD(refcount_table_offset) - FIELD(size)),
               h->refcount_table_offset);
    store_be32(raw + (FIELD(refcount_table_clusters) - FIELD(size)),
               h->refcount_table_clusters);
    store_be32(raw + (FIELD(nb_snapshots) - FIELD(size)), h->nb_snapshots);
    store_be64(raw + (FIELD(snapshots_offset) - FIELD(size)), h->snapshots_offset);
    return storage_write(st, raw, FIELD(size), sizeof raw, 0);
}
