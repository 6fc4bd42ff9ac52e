/* SPDX-License-Identifier: BSD-3-Clause */
/* Describes an image (driver->info). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "qcow2/internal.h"

static int copy_data_file(const struct qcow2_header *h, struct qcow2_info *part)
{
    part->has_data_file = h->incompatible & INCOMPAT_DATA_FILE;
    if (!part->has_data_file)
        return 0;
    part->data_file_raw = h->autoclear & AUTOCLEAR_DATA_RAW;
    return image_info_copy(&part->data_file, h->data_file);
}

static enum encryption encryption_of(const struct qcow2_header *h)
{
    if (h->crypt_method == 0)
        return ENCRYPTION_NONE;
    return h->crypt_method == 2 ? ENCRYPTION_LUKS : ENCRYPTION_AES;
}

static void describe_luks(struct qcow2 *q, struct luks_info *out)
{
    const struct luks_place place = qcow2_luks_place(q);

    if (luks_info_read(&place, out))
        log_warning(
            "%s: header extension 0x%08x: no LUKS header of version 1 at offset %" PRIu64,
            place.name, EXT_LUKS, place.offset);
}

int qcow2_info(struct node *node, struct image_info *info)
{
    struct qcow2 *q = qcow2_of(node);
    const struct qcow2_header *h = &q->header;
    LOCK_GUARD(&q->header_lock);

    info->dirty = h->incompatible & INCOMPAT_DIRTY;
    info->encrypted = h->crypt_method != 0;
    info->kind = IMAGE_INFO_QCOW2;
    info->qcow2 = (struct qcow2_info){
        .version = h->version,
        .refcount_bits = 1u << h->refcount_order,
        .compression_type = h->compression_type ? "zstd" : "zlib",
        .lazy_refcounts = h->compatible & COMPAT_LAZY_REFCOUNTS,
        .corrupt = h->incompatible & INCOMPAT_CORRUPT,
        .extended_l2 = h->incompatible & INCOMPAT_EXTENDED_L2,
        .encryption = encryption_of(h),
    };
    if (info->qcow2.encryption == ENCRYPTION_LUKS)
        describe_luks(q, &info->qcow2.luks);
    if (qcow2_copy_snapshots(q, &info->snapshots) || copy_data_file(h, &info->qcow2))
        return -ENOMEM;
    return qcow2_copy_bitmaps(q, &info->qcow2);
}
