/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads, validates and writes the header. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/foreign_text.h"
#include "qed/header.h"

#define FIELD(raw, bits, name) load_le##bits((raw) + offsetof(struct qed_disk_header, name))
#define PUT_FIELD(raw, bits, name, value) \
    store_le##bits((raw) + offsetof(struct qed_disk_header, name), (value))

static void decode_fields(const uint8_t *raw, struct qed_header *h)
{
    *h = (struct qed_header){
        .cluster_size = FIELD(raw, 32, cluster_size),
        .table_size = FIELD(raw, 32, table_size),
        .header_size = FIELD(raw, 32, header_size),
        .features = FIELD(raw, 64, features),
        .compat_features = FIELD(raw, 64, compat_features),
        .autoclear_features = FIELD(raw, 64, autoclear_features),
        .l1_table_offset = FIELD(raw, 64, l1_table_offset),
        .image_size = FIELD(raw, 64, image_size),
        .backing_filename_offset = FIELD(raw, 32, backing_filename_offset),
        .backing_filename_size = FIELD(raw, 32, backing_filename_size),
    };
}

void qed_header_encode(const struct qed_header *h,
                       uint8_t raw[sizeof(struct qed_disk_header)])
{
    PUT_FIELD(raw, 32, magic, QED_MAGIC);
    PUT_FIELD(raw, 32, cluster_size, h->cluster_size);
    PUT_FIELD(raw, 32, table_size, h->table_size);
    PUT_FIELD(raw, 32, header_size, h->header_size);
    PUT_FIELD(raw, 64, features, h->features);
    PUT_FIELD(raw, 64, compat_features, h->compat_features);
    PUT_FIELD(raw, 64, autoclear_features, h->autoclear_features);
    PUT_FIELD(raw, 64, l1_table_offset, h->l1_table_offset);
    PUT_FIELD(raw, 64, image_size, h->image_size);
    PUT_FIELD(raw, 32, backing_filename_offset, h->backing_filename_offset);
    PUT_FIELD(raw, 32, backing_filename_size, h->backing_filename_size);
}

uint64_t qed_max_image_size(uint32_t cluster_size, uint32_t table_size)
{
    uint64_t entries = (uint64_t)cluster_size * table_size / sizeof(uint64_t);
    uint64_t clusters, bytes;

    /* Neither a host offset nor a guest offset may exceed off_t. */
    uint64_t limit = align_down(INT64_MAX, QED_MAX_CLUSTER_SIZE);
    if (mul_overflows(entries, entries, &clusters) ||
        mul_overflows(clusters, cluster_size, &bytes))
        return limit;
    return MIN(bytes, limit);
}

void qed_geometry_init(struct qed_geometry *geo, const struct qed_header *h)
{
    uint64_t table_bytes = (uint64_t)h->table_size * h->cluster_size;

    *geo = (struct qed_geometry){
        .cluster_size = h->cluster_size,
        .cluster_bits = (unsigned)__builtin_ctz(h->cluster_size),
        .entry_bits = (unsigned)__builtin_ctzll(table_bytes / sizeof(uint64_t)),
        .table_bytes = table_bytes,
        .header_bytes = (uint64_t)h->header_size * h->cluster_size,
        .l1_offset = h->l1_table_offset,
    };
}

static int check_sizes(const struct qed_header *h, const char *filename, struct diag *diag)
{
    if (!is_power_of_two(h->cluster_size))
        return diag_set(diag, EINVAL, "%s: cluster_size %" PRIu32 ": not a power of two",
                        filename, h->cluster_size);
    if (h->cluster_size < QED_MIN_CLUSTER_SIZE || h->cluster_size > QED_MAX_CLUSTER_SIZE)
        return diag_set(diag, EINVAL, "%s: cluster_size %" PRIu32 ": not within %u..%u",
                        filename, h->cluster_size, QED_MIN_CLUSTER_SIZE,
                        QED_MAX_CLUSTER_SIZE);
    if (!is_power_of_two(h->table_size))
        return diag_set(diag, EINVAL, "%s: table_size %" PRIu32 ": not a power of two",
                        filename, h->table_size);
    if (h->table_size > QED_MAX_TABLE_SIZE)
        return diag_set(diag, EINVAL,
                        "%s: table_size %" PRIu32 ": not within %u..%u clusters", filename,
                        h->table_size, QED_MIN_TABLE_SIZE, QED_MAX_TABLE_SIZE);
    if (h->header_size == 0)
        return diag_set(diag, EINVAL,
                        "%s: header_size 0: the header itself takes a cluster", filename);
    if ((uint64_t)h->header_size * h->cluster_size > UINT32_MAX)
        return diag_set(diag, EINVAL,
                        "%s: header_size %" PRIu32 ": %" PRIu32
                        "-byte clusters of header don't fit 32 bits",
                        filename, h->header_size, h->cluster_size);
    return 0;
}

static int check_image_size(const struct qed_header *h, const char *filename,
                            struct diag *diag)
{
    uint64_t max = qed_max_image_size(h->cluster_size, h->table_size);

    if (!is_aligned(h->image_size, QED_SECTOR_SIZE))
        return diag_set(diag, EINVAL, "%s: image_size %" PRIu64 ": not a multiple of %u",
                        filename, h->image_size, QED_SECTOR_SIZE);
    if (h->image_size > max)
        return diag_set(diag, EINVAL,
                        "%s: image_size %" PRIu64 ": more than the %" PRIu64
                        " bytes that its tables can map",
                        filename, h->image_size, max);
    return 0;
}

static int check_backing_name(const struct qed_header *h, const char *filename,
                              struct diag *diag)
{
    if (!(h->features & QED_F_BACKING_FILE))
        return 0;
    if (!range_inside(h->backing_filename_offset, h->backing_filename_size,
                      (uint64_t)h->header_size * h->cluster_size))
        return diag_set(diag, EINVAL,
                        "%s: backing_filename_offset %" PRIu32 ": name of %" PRIu32
                        " bytes doesn't lie within the header clusters",
                        filename, h->backing_filename_offset, h->backing_filename_size);
    if (h->backing_filename_size > QED_MAX_BACKING_NAME)
        return diag_set(diag, EINVAL,
                        "%s: backing_filename_size %" PRIu32 ": longer than %u bytes",
                        filename, h->backing_filename_size, QED_MAX_BACKING_NAME);
    return 0;
}

static int check_l1(const struct qed_header *h, uint64_t file_size, const char *filename,
                    struct diag *diag)
{
    uint64_t off = h->l1_table_offset;
    uint64_t bytes = (uint64_t)h->table_size * h->cluster_size;

    if (!is_aligned(off, h->cluster_size))
        return diag_set(diag, EINVAL,
                        "%s: l1_table_offset %" PRIu64
                        ": not a multiple of the cluster size",
                        filename, off);
    if (off < (uint64_t)h->header_size * h->cluster_size)
        return diag_set(diag, EINVAL, "%s: l1_table_offset %" PRIu64 ": inside the header",
                        filename, off);
    if (!range_inside(off, bytes, file_size))
        return diag_set(diag, EINVAL,
                        "%s: l1_table_offset %" PRIu64 ": table of %" PRIu64
                        " bytes reaches past the end of the file (%" PRIu64 " bytes)",
                        filename, off, bytes, file_size);
    return 0;
}

int qed_header_validate(const struct qed_header *h, uint64_t file_size,
                        const char *filename, struct diag *diag)
{
    uint64_t unknown = h->features & ~(uint64_t)QED_F_KNOWN;
    int err;

    /* Checked first, as an unknown feature may give other fields another meaning. */
    if (unknown)
        return diag_set(diag, ENOTSUP,
                        "%s: features 0x%" PRIx64 ": unknown feature bits 0x%" PRIx64,
                        filename, h->features, unknown);
    if ((err = check_sizes(h, filename, diag)) < 0 ||
        (err = check_image_size(h, filename, diag)) < 0 ||
        (err = check_backing_name(h, filename, diag)) < 0)
        return err;
    return check_l1(h, file_size, filename, diag);
}

int qed_header_read(struct storage *file, const char *filename, struct qed_header *header,
                    struct diag *diag)
{
    uint8_t raw[sizeof(struct qed_disk_header)];
    uint64_t file_size;

    int err = storage_size(file, &file_size);
    if (err < 0)
        return diag_errno(diag, -err, "%s: size of the file", filename);
    if ((err = storage_read(file, raw, 0, sizeof raw)) < 0)
        return diag_errno(diag, -err, "%s: reading the header", filename);
    if (FIELD(raw, 32, magic) != QED_MAGIC)
        return diag_set(diag, EINVAL, "%s: magic 0x%08" PRIx32 ": not a QED image",
                        filename, FIELD(raw, 32, magic));
    if (file_size < sizeof raw)
        return diag_set(diag, EINVAL, "%s: header: the file ends after %" PRIu64 " bytes",
                        filename, file_size);
    decode_fields(raw, header);
    return qed_header_validate(header, file_size, filename, diag);
}

int qed_header_read_backing(struct storage *file, const char *filename,
                            const struct qed_header *h, char **name, struct diag *diag)
{
    *name = NULL;
    if (!(h->features & QED_F_BACKING_FILE) || h->backing_filename_size == 0)
        return 0;
    char text[QED_MAX_BACKING_NAME];
    int err =
        storage_read(file, text, h->backing_filename_offset, h->backing_filename_size);
    if (err < 0)
        return diag_errno(diag, -err, "%s: reading the backing file name", filename);
    return foreign_text_copy(name, text, h->backing_filename_size, diag,
                             "%s: backing_filename_size: the backing file's name",
                             filename);
}

static int write_field(struct storage *file, uint64_t value, uint64_t off)
{
    uint8_t raw[sizeof value];

    store_le64(raw, value);
    return storage_write(file, raw, off, sizeof raw, 0);
}

int qed_header_write_features(struct storage *file, uint64_t features)
{
    return write_field(file, features, offsetof(struct qed_disk_header, features));
}

int qed_header_write_autoclear(struct storage *file, uint64_t autoclear_features)
{
    return write_field(file, autoclear_features,
                       offsetof(struct qed_disk_header, autoclear_features));
}

int qed_header_write_image_size(struct storage *file, uint64_t image_size)
{
    return write_field(file, image_size, offsetof(struct qed_disk_header, image_size));
}
