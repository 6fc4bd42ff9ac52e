/* SPDX-License-Identifier: BSD-3-Clause */
/* How many persistent bitmaps an image can have, and of which size: checked before one is added,
 * and before the disk grows. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "qcow2/internal.h"

/* What the persistent bitmaps of a disk take. */
struct total {
    const struct qcow2 *q;
    uint64_t size;                        /* of the disk, in bytes */
    uint64_t n, bits, largest, directory; /* all but n in bytes */
};

static void add_bits_to_total(struct total *total, uint64_t granularity)
{
    uint64_t bits = qcow2_bitmap_table_size(total->q, total->size, granularity)
                    << total->q->geo.cluster_bits;

    total->bits += bits;
    total->largest = MAX(total->largest, bits);
}

static bool is_too_much(const struct total *total)
{
    return total->largest > MAX_BITMAP_BYTES || total->bits > MAX_BITMAPS_BYTES;
}

static void add_to_total(struct dirty_bitmap *bitmap, void *opaque)
{
    struct total *total = opaque;

    if (!dirty_bitmap_persistent(bitmap))
        return;
    total->n++;
    add_bits_to_total(total, dirty_bitmap_granularity(bitmap));
    const struct qcow2_bitmap *stored = qcow2_stored_bitmap(total->q, bitmap);
    total->directory +=
        align_up(sizeof(struct qcow2_disk_bitmap) + (stored ? stored->extra_bytes : 0) +
                     strlen(dirty_bitmap_name(bitmap)),
                 8);
}

static const char *why_not_keep(struct total *total, const char *name, uint64_t granularity)
{
    const struct qcow2 *q = total->q;

    if (q->header.version < 3)
        return "Cannot store dirty bitmaps in qcow2 v2 files";
    if (total->n >= MAX_BITMAPS)
        return "Maximum number of persistent bitmaps is already reached";
    if (total->directory + sizeof(struct qcow2_disk_bitmap) + strlen(name) + 7 >
        MAX_BITMAP_DIRECTORY_BYTES)
        return "Not enough space in the bitmap directory";
    add_bits_to_total(total, granularity);
    if (total->largest > MAX_BITMAP_BYTES)
        return "Too much space will be occupied by the bitmap. Use larger granularity";
    if (is_too_much(total))
        return "Too much space will be occupied by the bitmaps. Use larger granularity";
    return NULL;
}

int qcow2_check_bitmap(struct node *node, const char *name, uint64_t granularity,
                       struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);
    struct total total = {.q = q, .size = q->header.size};
    LOCK_GUARD(&q->header_lock); /* a new directory may be switched to at any time */

    node_bitmap_each(node, add_to_total, &total);
    const char *why = why_not_keep(&total, name, granularity);
    if (why)
        return diag_set(diag, ENOTSUP, "Cannot make bitmap '%.200s' persistent in '%s': %s",
                        name, node->filename, why);
    int err = qcow2_check_bitmaps_room(q);
    return err ? diag_errno(diag, -err,
                            "Cannot make bitmap '%.200s' persistent in '%s': room in its "
                            "header",
                            name, node->filename)
               : 0;
}

int qcow2_check_bitmaps_size(struct qcow2 *q, uint64_t size, struct diag *diag)
{
    struct total total = {.q = q, .size = size};

    node_bitmap_each(q->node, add_to_total, &total);
    return is_too_much(&total)
               ? diag_set(diag, EFBIG,
                          "%s: for a disk of %" PRIu64
                          " bytes its dirty bitmaps would take %" PRIu64
                          " bytes, the largest %" PRIu64
                          ", and can't be over %llu, each %llu: remove those of a small "
                          "granularity",
                          q->node->filename, size, total.bits, total.largest,
                          MAX_BITMAPS_BYTES, MAX_BITMAP_BYTES)
               : 0;
}
