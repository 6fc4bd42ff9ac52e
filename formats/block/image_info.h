/* SPDX-License-Identifier: BSD-3-Clause */
/* A description of one image as plain data: what is common to all formats, and what the format
 * adds.  Texts have the bytes that the image has: any but NUL.  The caller owns the struct; it
 * doesn't depend on the node any more.  Layer: block. */
#ifndef BLOCK_IMAGE_INFO_H
#define BLOCK_IMAGE_INFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "block/snapshot.h"

struct node;

/* A dirty bitmap stored in the image. */
struct stored_bitmap_info {
    char *name;           /* owned */
    uint32_t granularity; /* bytes */
    bool in_use;          /* it was not stored when the image was last used */
    bool enabled;         /* records changes as soon as the image is opened */
};

#define LUKS_KEY_SLOTS 8

struct luks_slot_info {
    bool active;
    uint32_t iterations, stripes;
    uint64_t key_offset; /* bytes, from the start of the LUKS header */
};

struct luks_info {
    bool known; /* False: there is no valid header, and the other fields are empty. */
    char cipher[33], chaining[33];
    char ivgen[33], ivgen_hash[33]; /* "": none */
    char hash[33], uuid[41];
    uint32_t key_bits; /* of the cipher */
    uint64_t payload_offset;
    uint32_t master_key_iterations;
    struct luks_slot_info slots[LUKS_KEY_SLOTS];
};

enum encryption { ENCRYPTION_NONE, ENCRYPTION_AES, ENCRYPTION_LUKS };

struct qcow2_info {
    uint32_t version; /* 2 or 3 */
    uint32_t refcount_bits;
    const char *compression_type;              /* static: "zlib", "zstd" */
    bool lazy_refcounts, corrupt, extended_l2; /* version 3 */
    bool has_data_file, data_file_raw;
    char *data_file; /* owned; NULL: the image names none */
    enum encryption encryption;
    struct luks_info luks; /* ENCRYPTION_LUKS */
    struct stored_bitmap_info *bitmaps;
    size_t n_bitmaps;
    bool bitmaps_lost; /* there are others, whose directory is invalid */
};

/* Which format's part is filled in. */
enum image_info_kind { IMAGE_INFO_PLAIN, IMAGE_INFO_QCOW2, IMAGE_INFO_LUKS };

struct image_info {
    char *filename;
    const char *format; /* static */
    uint64_t virtual_size;
    bool has_actual_size;  /* the store can tell its allocated size */
    uint64_t actual_size;  /* bytes */
    uint32_t cluster_size; /* bytes; 1: no clusters */

    char *backing_name;      /* NULL: there is none */
    char *full_backing_name; /* resolved from the image's folder */
    char *backing_format;    /* NULL: not recorded */

    /* Filled in by the driver. */
    bool dirty; /* was not closed: to be checked before it is written to */
    bool encrypted;
    struct snapshot_list snapshots;
    enum image_info_kind kind;
    union {
        struct qcow2_info qcow2;
        struct luks_info luks;
    };
};

enum image_info_backing {
    IMAGE_INFO_RECORDED, /* The backing file that the image records; it need not exist. */
    /* The backing node that is open (a user or a job may have chosen another file).  Its name
     * is the recorded one if both mean the same file. */
    IMAGE_INFO_OPENED,
};

/* Describes the node; from any thread that may use it.  May read from its file.  On success
 * *out has to be released with image_info_free; -ENOMEM leaves nothing to release. */
int image_info_read(struct node *node, enum image_info_backing backing,
                    struct image_info *out) MUST_USE;

/* Leaves it empty; may be called again. */
void image_info_free(struct image_info *info);

/* For drivers: *out becomes a copy of text; NULL for NULL.  Returns 0 or -ENOMEM. */
int image_info_copy(char **out, const char *text) MUST_USE;

#define CLEANUP_IMAGE_INFO CLEANUP(image_info_free)

#endif
