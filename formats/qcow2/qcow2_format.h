/* SPDX-License-Identifier: BSD-3-Clause */
/* The on-disk format: structures, masks and limits, as QEMU's docs/interop/qcow2.rst specifies
 * them.  All fields are big-endian.  Limits that the specification leaves open are QEMU's, so
 * that QEMU can open every image that this program writes. */
#ifndef QCOW2_FORMAT_H
#define QCOW2_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbu

struct qcow2_disk_header {
    uint32_t magic;
    uint32_t version;
    uint64_t backing_file_offset;
    uint32_t backing_file_size;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size;
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    /* version 3 */
    uint64_t incompatible_features;
    uint64_t compatible_features;
    uint64_t autoclear_features;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type;
    uint8_t padding[7];
};

#define QCOW2_V2_HEADER_BYTES     72
#define QCOW2_V3_MIN_HEADER_BYTES 104
_Static_assert(offsetof(struct qcow2_disk_header, incompatible_features) ==
                   QCOW2_V2_HEADER_BYTES,
               "v2 header");
_Static_assert(offsetof(struct qcow2_disk_header, compression_type) ==
                   QCOW2_V3_MIN_HEADER_BYTES,
               "v3 header");
_Static_assert(sizeof(struct qcow2_disk_header) == 112, "header with compression type");

/* Feature bits. */
#define INCOMPAT_DIRTY        (1ull << 0)
#define INCOMPAT_CORRUPT      (1ull << 1)
#define INCOMPAT_DATA_FILE    (1ull << 2)
#define INCOMPAT_COMPRESSION  (1ull << 3)
#define INCOMPAT_EXTENDED_L2  (1ull << 4)
#define COMPAT_LAZY_REFCOUNTS (1ull << 0)
#define AUTOCLEAR_BITMAPS     (1ull << 0)
#define AUTOCLEAR_DATA_RAW    (1ull << 1)

/* crypt_method and compression_type. */
#define CRYPT_AES        1
#define CRYPT_LUKS       2
#define COMPRESSION_ZLIB 0
#define COMPRESSION_ZSTD 1

/* Extended L2 entries need clusters of at least 16 KiB, so that a subcluster has 512 bytes. */
#define MIN_EXTENDED_CLUSTER_BITS 14

/* Header extensions: u32 type, u32 length, data padded to 8. */
#define EXT_END            0x00000000u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES  0x6803f857u
#define EXT_BITMAPS        0x23852875u
#define EXT_LUKS           0x0537be77u
#define EXT_DATA_FILE      0x44415441u

/* A row of the feature name table. */
struct qcow2_feature_name {
    uint8_t type; /* enum qcow2_feature_type */
    uint8_t bit;
    char name[46];
};
_Static_assert(sizeof(struct qcow2_feature_name) == 48, "feature name");
enum qcow2_feature_type { FEATURE_INCOMPATIBLE, FEATURE_COMPATIBLE, FEATURE_AUTOCLEAR };

/* L1 entries. */
#define L1_COPIED   (1ull << 63)
#define L1_OFFSET   0x00fffffffffffe00ull
#define L1_RESERVED 0x7f000000000001ffull

/* Extended L2 entries divide a cluster into 32 subclusters. */
#define SUBCLUSTERS_LOG 5
#define SUBCLUSTERS     (1u << SUBCLUSTERS_LOG)

/* L2 entries (standard cluster descriptors). */
#define L2_COPIED     (1ull << 63)
#define L2_COMPRESSED (1ull << 62)
#define L2_ZERO       (1ull << 0) /* version 3 */
#define L2_OFFSET     0x00fffffffffffe00ull
#define L2_RESERVED   0x3f000000000001feull

/* Refcount table entries. */
#define RT_OFFSET   0xfffffffffffffe00ull
#define RT_RESERVED 0x00000000000001ffull

/* An entry of the snapshot table: fixed part, extra data, id, name; padded to 8. */
struct qcow2_disk_snapshot {
    uint64_t l1_table_offset;
    uint32_t l1_size; /* entries */
    uint16_t id_bytes, name_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint32_t vm_state_bytes; /* a larger size is in the extra data */
    uint32_t extra_bytes;
};
_Static_assert(sizeof(struct qcow2_disk_snapshot) == 40, "snapshot table entry");

/* The extra data of an entry.  It may be shorter, or longer with fields that aren't known yet. */
struct qcow2_disk_snapshot_extra {
    uint64_t vm_state_bytes, disk_size;
    uint64_t icount;
};
_Static_assert(sizeof(struct qcow2_disk_snapshot_extra) == 24, "snapshot's extra data");

#define MIN_SNAPSHOT_EXTRA 16   /* required in version 3 */
#define MAX_SNAPSHOT_EXTRA 1024 /* QEMU's limit */

/* An entry of the bitmap directory: fixed part, extra data, name; padded to 8. */
struct qcow2_disk_bitmap {
    uint64_t table_offset;
    uint32_t table_size; /* entries */
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    uint16_t name_bytes;
    uint32_t extra_bytes;
};
_Static_assert(sizeof(struct qcow2_disk_bitmap) == 24, "bitmap directory entry");

#define BITMAP_IN_USE         (1u << 0) /* it wasn't saved, and can't be relied on */
#define BITMAP_AUTO           (1u << 1) /* it is to be enabled when the image is opened */
#define BITMAP_EXTRA_OK       (1u << 2) /* it may be used even if its extra data is unknown */
#define BITMAP_FLAGS_RESERVED 0xfffffff8u
#define BITMAP_TYPE_DIRTY     1

/* Bitmap table entries. */
#define BT_OFFSET   0x00fffffffffffe00ull
#define BT_RESERVED 0xff000000000001feull
#define BT_ALL_ONES 1ull

#define MAX_BITMAPS                65535u
#define MAX_BITMAP_DIRECTORY_BYTES (65535u * 1024u)
#define MAX_BITMAP_NAME            1023
#define MIN_BITMAP_GRANULARITY     9
#define MAX_BITMAP_GRANULARITY     31

#define MIN_CLUSTER_BITS   9
#define MAX_CLUSTER_BITS   21
#define MAX_REFCOUNT_ORDER 6
#define MAX_L1_BYTES       (32u << 20)
#define MAX_RT_BYTES       (8u << 20)
#define MAX_BACKING_NAME   1023
#define MAX_SNAPSHOTS      65536
#define MAX_SNAPSHOT_BYTES (16u << 20) /* of the snapshot table */
/* Eight key slots with the largest key take less. */
#define MAX_LUKS_BYTES (8u << 20)

#endif
