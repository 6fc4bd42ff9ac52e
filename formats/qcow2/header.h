/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 header and its extensions, checked: every offset, size and count in here may be
 * used as it is.  Threads: reading alone; writing under the header lock of the caller. */
#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "qcow2/geometry.h"
#include "qcow2/qcow2_format.h"
#include "storage/storage.h"

/* The bitmaps header extension as it stands, unjudged. */
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
    char *data_file;                     /* the same: the external data file's name */
    struct qcow2_bitmaps_ext bitmaps;
    uint64_t luks_offset, luks_bytes; /* 0 bytes: no LUKS header */
};

/* Reads and validates; on failure *h holds nothing. */
int qcow2_header_read(struct storage *st, struct qcow2_header *h,
                      struct diag *diag) MUST_USE;

/* For a check, which judges by itself where the tables lie: that they are inside the file,
 * apart from each other and, for the refcount table, of a size that can be, is not asked
 * here.  Features that change no table's meaning (encryption, the compression type) are let
 * pass. */
int qcow2_header_read_for_check(struct storage *st, struct qcow2_header *h,
                                struct diag *diag) MUST_USE;

/* For a description: every feature that is known passes, and where the tables lie that
 * aren't needed for one is not asked. */
int qcow2_header_read_for_info(struct storage *st, struct qcow2_header *h,
                               struct diag *diag) MUST_USE;
void qcow2_header_free(struct qcow2_header *h);

/* Each writes its fields only, so that whatever else the header holds is kept.  No flush.
 */
int qcow2_header_write_features(struct storage *st, const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_refcount_table(struct storage *st,
                                      const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_snapshots(struct storage *st, const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_l1(struct storage *st, const struct qcow2_header *h) MUST_USE;
int qcow2_header_write_size(struct storage *st, const struct qcow2_header *h) MUST_USE;
/* All that the four above write, by one write within one sector: after a crash all is old or
 * all is new. */
int qcow2_header_write_tables(struct storage *st, const struct qcow2_header *h) MUST_USE;

static inline struct qcow2_geometry qcow2_header_geometry(const struct qcow2_header *h)
{
    return qcow2_geometry(h->version, h->cluster_bits, h->refcount_order,
                          h->incompatible & INCOMPAT_EXTENDED_L2,
                          h->incompatible & INCOMPAT_DATA_FILE);
}

/* The feature names we know, for new images. */
extern const struct qcow2_feature_name qcow2_feature_names[];
extern const size_t qcow2_n_feature_names;

#endif
