/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of a QED image: reading it with every limit checked, and changing single
 * fields.
 *
 * Bytes from the file become a struct qed_header only through qed_header_read, and a struct
 * qed_geometry only from a header that passed qed_header_validate; code that holds one of
 * them need not check it again.  Layer: qed. */
#ifndef QED_HEADER_H
#define QED_HEADER_H

#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "qed/qed_format.h"
#include "storage/storage.h"

/* Longer names can't be opened anyway. */
#define QED_MAX_BACKING_NAME 4095u

struct qed_header {
    uint32_t cluster_size, table_size, header_size;
    uint64_t features, compat_features, autoclear_features;
    uint64_t l1_table_offset;
    uint64_t image_size;
    uint32_t backing_filename_offset, backing_filename_size;
};

/* What follows from the header; shifts and masks computed once. */
struct qed_geometry {
    uint32_t cluster_size;
    unsigned cluster_bits; /* log2 of it */
    unsigned entry_bits;   /* log2 of the entries in a table */
    uint64_t table_bytes;
    uint64_t header_bytes; /* the first regular cluster */
    uint64_t l1_offset;
};

/* Reads the header and refuses what the format or this program doesn't allow: -EINVAL,
 * -ENOTSUP for feature bits, or -errno of the read.  Messages start with filename. */
int qed_header_read(struct storage *file, const char *filename, struct qed_header *header,
                    struct diag *diag) MUST_USE;

/* The checks alone, against a file of file_size bytes. */
int qed_header_validate(const struct qed_header *header, uint64_t file_size,
                        const char *filename, struct diag *diag) MUST_USE;

void qed_geometry_init(struct qed_geometry *geo, const struct qed_header *header);

/* The largest image_size that a table of tables can map, clipped to what an off_t can say.
 */
uint64_t qed_max_image_size(uint32_t cluster_size, uint32_t table_size);

/* The backing file's name; *name is the caller's to free, NULL without one. */
int qed_header_read_backing(struct storage *file, const char *filename,
                            const struct qed_header *header, char **name,
                            struct diag *diag) MUST_USE;

/* The header as it lies in the file. */
void qed_header_encode(const struct qed_header *header,
                       uint8_t raw[sizeof(struct qed_disk_header)]);

/* Overwrite the eight bytes of one field in the file, nothing else; no flush. */
int qed_header_write_features(struct storage *file, uint64_t features) MUST_USE;
int qed_header_write_autoclear(struct storage *file, uint64_t autoclear_features) MUST_USE;
int qed_header_write_image_size(struct storage *file, uint64_t image_size) MUST_USE;

#endif
