/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 header and its extensions (qcow2.rst, "Header" and "Header extensions").  All values
 * in struct qcow2_header have been checked and may be used as they are.  Threads: reading needs
 * exclusive access; writing the caller's header lock. */
#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "qcow2/geometry.h"
#include "qcow2/qcow2_format.h"
#include "storage/storage.h"

/* The bitmaps extension as it was read; its values are not checked. */
struct qcow2_bitmaps_ext {
    bool present;
    uint32_t length, count, reserved;
    uint64_t directory_bytes, directory_offset;
};

struct qcow2_header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t l1_size; /* entries */
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t refcount_order;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t header_length;
    uint32_t crypt_method;               /* 0 none, 1 AES, 2 LUKS */
    uint8_t compression_type;            /* 0 zlib, 1 zstd */
    char *backing_name, *backing_format; /* owned; NULL: none */
    char *data_file;                     /* owned; NULL: no name is recorded */
    struct qcow2_bitmaps_ext bitmaps;
    uint64_t luks_offset, luks_bytes; /* 0 bytes: no LUKS header */
};

/* Reads and checks the header.  After a failure there is nothing in *h to be freed. */
int qcow2_header_read(struct storage *st, struct qcow2_header *h,
                      struct diag *diag) MUST_USE;

/* For a consistency check, which examines the places of tables itself: this doesn't check that
 * they lie inside the file, don't overlap, and that the refcount table has a possible size.
 * Unsupported values of features that don't change the tables' meaning (encryption, compression
 * type) are accepted. */
int qcow2_header_read_for_check(struct storage *st, struct qcow2_header *h,
                                struct diag *diag) MUST_USE;

/* For a description of the image: accepts all known features, and doesn't check the places of
 * tables that aren't needed for a description. */
int qcow2_header_read_for_info(struct storage *st, struct qcow2_header *h,
                               struct diag *diag) MUST_USE;
void qcow2_header_free(struct qcow2_header *h);

/* Each of these writes only its own fields and keeps the rest of the header.  None flushes. */
int qcow2_header_write_features(struct storage *st, const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_refcount_table(struct storage *st,
                                      const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_snapshots(struct storage *st, const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_l1(struct storage *st, const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_size(struct storage *st, const struct qcow2_header *h) MUST_USE;
/* Writes the fields of all four functions above with one write inside one sector: after a crash
 * either all are old or all are new. */
int qcow2_header_write_tables(struct storage *st, const struct qcow2_header *h) MUST_USE;

static inline struct qcow2_geometry qcow2_header_geometry(const struct qcow2_header *h)
{
    return qcow2_geometry(h->version, h->cluster_bits, h->refcount_order,
                          h->incompatible & INCOMPAT_EXTENDED_L2,
                          h->incompatible & INCOMPAT_DATA_FILE);
}

/* The feature names that new images get. */
extern const struct qcow2_feature_name qcow2_feature_names[];
extern const size_t qcow2_n_feature_names;

#endif
