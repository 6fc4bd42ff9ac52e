/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of a QED image: reading and validating it, and changing single fields.
 *
 * Bytes from the file become a struct qed_header only through qed_header_read, and a struct
 * qed_geometry is only made from a header that passed qed_header_validate; code that has one of
 * them needn't check it again.  Layer: qed. */
#ifndef QED_HEADER_H
#define QED_HEADER_H

#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "qed/qed_format.h"
#include "storage/storage.h"

/* Longer names can't be opened as files. */
#define QED_MAX_BACKING_NAME 4095u

struct qed_header {
    uint32_t cluster_size, table_size, header_size;
    uint64_t features, compat_features, autoclear_features;
    uint64_t l1_table_offset;
    uint64_t image_size;
    uint32_t backing_filename_offset, backing_filename_size;
};

/* Derived from the header: shifts and masks, computed once. */
struct qed_geometry {
    uint32_t cluster_size;
    unsigned cluster_bits; /* log2 of cluster_size */
    unsigned entry_bits;   /* log2 of the number of entries of a table */
    uint64_t table_bytes;
    uint64_t header_bytes; /* size of the header: where the first regular cluster begins */
    uint64_t l1_offset;
};

/* Reads and validates the header.  -EINVAL: invalid; -ENOTSUP: unknown feature bits; or -errno
 * of the read.  Messages start with filename. */
int qed_header_read(struct storage *file, const char *filename, struct qed_header *header,
                    struct diag *diag) MUST_USE;

/* Validates a header against the format, and against a file of file_size bytes. */
int qed_header_validate(const struct qed_header *header, uint64_t file_size,
                        const char *filename, struct diag *diag) MUST_USE;

void qed_geometry_init(struct qed_geometry *geo, const struct qed_header *header);

/* The largest image_size that two levels of tables can map, limited to INT64_MAX for off_t. */
uint64_t qed_max_image_size(uint32_t cluster_size, uint32_t table_size);

/* Reads the backing file's name.  *name: the caller frees it; NULL if there is none. */
int qed_header_read_backing(struct storage *file, const char *filename,
                            const struct qed_header *header, char **name,
                            struct diag *diag) MUST_USE;

/* Encodes the header as it is stored in the file. */
void qed_header_encode(const struct qed_header *header,
                       uint8_t raw[sizeof(struct qed_disk_header)]);

/* Each overwrites the eight bytes of one field in the file; doesn't flush.  Returns 0 or
 * -errno. */
int qed_header_write_features(struct storage *file, uint64_t features) MUST_USE;
int qed_header_write_autoclear(struct storage *file, uint64_t autoclear_features) MUST_USE;
int qed_header_write_image_size(struct storage *file, uint64_t image_size) MUST_USE;

#endif
