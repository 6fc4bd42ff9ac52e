/* SPDX-License-Identifier: BSD-3-Clause */
/* The on-disk format of QED (docs/interop/qed_spec.rst of QEMU).  All fields are little-endian;
 * a table is an array of little-endian 64-bit offsets.
 *
 *   header clusters | L1 table | clusters: L2 tables and guest data, in any order
 *
 * Layer: qed. */
#ifndef QED_QED_FORMAT_H
#define QED_QED_FORMAT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define QED_MAGIC 0x00444551u /* "QED\0" */

#define QED_MIN_CLUSTER_SIZE 4096u
#define QED_MAX_CLUSTER_SIZE (64u << 20)
#define QED_MIN_TABLE_SIZE   1u /* in clusters */
#define QED_MAX_TABLE_SIZE   16u
#define QED_SECTOR_SIZE      512u

#define QED_DEFAULT_CLUSTER_SIZE (64u << 10)
#define QED_DEFAULT_TABLE_SIZE   4u

/* `features`: a program that doesn't know a bit must not open the image.  No compat_features
 * and autoclear_features are defined yet. */
#define QED_F_BACKING_FILE            0x01u
#define QED_F_NEED_CHECK              0x02u
#define QED_F_BACKING_FORMAT_NO_PROBE 0x04u
#define QED_F_KNOWN                   (QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_BACKING_FORMAT_NO_PROBE)

/* Entries of L2 tables that aren't offsets.  In an L1 table only the first is valid. */
#define QED_ENTRY_UNALLOCATED 0u
#define QED_ENTRY_ZERO        1u

struct qed_disk_header {
    uint32_t magic;
    uint32_t cluster_size; /* bytes */
    uint32_t table_size;   /* clusters in an L1 or L2 table */
    uint32_t header_size;  /* clusters before the first regular one */
    uint64_t features;
    uint64_t compat_features;
    uint64_t autoclear_features;
    uint64_t l1_table_offset;         /* bytes */
    uint64_t image_size;              /* bytes the guest sees */
    uint32_t backing_filename_offset; /* bytes; with QED_F_BACKING_FILE */
    uint32_t backing_filename_size;   /* without a NUL */
};

static_assert(sizeof(struct qed_disk_header) == 64, "layout of the file");
static_assert(offsetof(struct qed_disk_header, cluster_size) == 4, "layout of the file");
static_assert(offsetof(struct qed_disk_header, table_size) == 8, "layout of the file");
static_assert(offsetof(struct qed_disk_header, header_size) == 12, "layout of the file");
static_assert(offsetof(struct qed_disk_header, features) == 16, "layout of the file");
static_assert(offsetof(struct qed_disk_header, compat_features) == 24,
              "layout of the file");
static_assert(offsetof(struct qed_disk_header, autoclear_features) == 32,
              "layout of the file");
static_assert(offsetof(struct qed_disk_header, l1_table_offset) == 40,
              "layout of the file");
static_assert(offsetof(struct qed_disk_header, image_size) == 48, "layout of the file");
static_assert(offsetof(struct qed_disk_header, backing_filename_offset) == 56,
              "layout of the file");
static_assert(offsetof(struct qed_disk_header, backing_filename_size) == 60,
              "layout of the file");

#endif
