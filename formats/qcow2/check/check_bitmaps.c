/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps: the directory, the tables, and the clusters of their bits.  Bitmaps that violate the
 * format, or share a cluster with anything else, are one finding; the rest of them isn't counted,
 * because a repair drops all of them.  They are checked last, so that of two claims theirs is
 * dropped: losing a bitmap makes the next backup copy too much, while dropping the other claim
 * would lose data, and overwritten bits could miss changes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"

#define MAX_DATA_BYTES (512ull << 20) /* of one bitmap */

#define ENTRY_FIXED sizeof(struct qcow2_disk_bitmap)

static int report_broken_bitmaps(struct check *c, const char *what)
{
    qcheck_impossible(c, 1, "bitmaps: %s", what);
    c->pass.bitmaps_broken = true;
    return 0;
}

/* Does anything else refer to a cluster of the range?  The range lies inside the file. */
static bool is_taken(const struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t end = div_round_up(offset + bytes, c->in.cluster_size);

    for (uint64_t i = offset >> c->in.h.cluster_bits; i < end; i++)
        if (counts_get(&c->pass.refs, i))
            return true;
    return false;
}

/* Counts a table or the directory, which must lie inside the file and overlap nothing else. */
static int count_area(struct check *c, uint64_t offset, uint64_t bytes, const char *what)
{
    bool inside;

    if (offset == 0 || !is_aligned(offset, c->in.cluster_size) ||
        !range_inside(offset, bytes, c->in.file_size) || is_taken(c, offset, bytes))
        return report_broken_bitmaps(c, what);
    return qcheck_add_meta(c, offset, bytes, 1, what, &inside);
}

static bool entry_is_wrong(const struct check *c, uint64_t entry)
{
    uint64_t offset = entry & BT_OFFSET;

    return (entry & BT_RESERVED) || (offset && (entry & BT_ALL_ONES)) ||
           !is_aligned(offset, c->in.cluster_size) ||
           qcheck_past_end(c, offset, c->in.cluster_size);
}

static int count_table(struct check *c, uint64_t offset, uint32_t n)
{
    CLEANUP_FREE uint8_t *raw = malloc((size_t)n * 8);
    bool inside;

    if (!raw)
        return diag_errno(c->in.diag, ENOMEM, "%s: bitmap table", c->in.st->name);
    int err = storage_read(c->in.st, raw, offset, n * 8ull);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: reading a bitmap table", c->in.st->name);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t entry = load_be64(raw + i * 8ull);
        if (entry_is_wrong(c, entry))
            return report_broken_bitmaps(c, "a table has an entry that can't be right");
        if ((entry & BT_OFFSET) == 0)
            continue;
        if (is_taken(c, entry & BT_OFFSET, 1))
            return report_broken_bitmaps(c, "bits lie where other things do");
        err = qcheck_add_range(c, entry & BT_OFFSET, c->in.cluster_size, 1, "bitmap data",
                               &inside);
        if (err)
            return err;
    }
    return 0;
}

/* Is a directory entry possible?  `raw` is its fixed part. */
static bool directory_entry_ok(const struct check *c, const uint8_t *raw)
{
    uint32_t n = load_be32(raw + 8), flags = load_be32(raw + 12);
    uint8_t granularity = raw[17];
    uint16_t name_bytes = load_be16(raw + 18);
    uint64_t data_bytes = n * c->in.cluster_size;

    if (n == 0 || data_bytes > MAX_DATA_BYTES || (flags & BITMAP_FLAGS_RESERVED) ||
        raw[16] != BITMAP_TYPE_DIRTY || granularity < MIN_BITMAP_GRANULARITY ||
        granularity > MAX_BITMAP_GRANULARITY || name_bytes == 0 ||
        name_bytes > MAX_BITMAP_NAME)
        return false;
    return (flags & BITMAP_IN_USE) || c->in.h.size <= data_bytes * 8 << granularity;
}

static int count_directory(struct check *c, const uint8_t *raw, uint64_t bytes)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < c->in.h.bitmaps.count; i++) {
        if (bytes - at < ENTRY_FIXED || !directory_entry_ok(c, raw + at))
            return report_broken_bitmaps(c, "a directory entry can't be right");
        uint64_t offset = load_be64(raw + at);
        uint32_t n = load_be32(raw + at + 8);
        uint64_t length = align_up(
            ENTRY_FIXED + (uint64_t)load_be32(raw + at + 20) + load_be16(raw + at + 18), 8);
        if (length > bytes - at)
            return report_broken_bitmaps(
                c, "a directory entry reaches past the directory's end");
        int err = count_area(c, offset, n * 8ull, "a table is at an impossible place");
        if (!err && !c->pass.bitmaps_broken)
            err = count_table(c, offset, n);
        if (err || c->pass.bitmaps_broken)
            return err;
        at += length;
    }
    return at == bytes ? 0
                       : report_broken_bitmaps(
                             c, "the directory has more entries than there are bitmaps");
}

int qcheck_bitmaps(struct check *c)
{
    const struct qcow2_bitmaps_ext *ext = &c->in.h.bitmaps;

    /* When the autoclear bit is clear, they are out of date and ignored. */
    if (!ext->present || !(c->in.h.autoclear & AUTOCLEAR_BITMAPS))
        return 0;
    if (ext->length != 24 || ext->reserved || ext->count == 0 || ext->count > MAX_BITMAPS ||
        ext->directory_bytes == 0 || ext->directory_bytes > MAX_BITMAP_DIRECTORY_BYTES)
        return report_broken_bitmaps(c, "the header extension can't be right");
    int err = count_area(c, ext->directory_offset, ext->directory_bytes,
                         "the directory is at an impossible place");
    if (err || c->pass.bitmaps_broken)
        return err;
    CLEANUP_FREE uint8_t *raw = malloc(ext->directory_bytes);
    if (!raw)
        return diag_errno(c->in.diag, ENOMEM, "%s: bitmap directory", c->in.st->name);
    err = storage_read(c->in.st, raw, ext->directory_offset, ext->directory_bytes);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: reading the bitmap directory",
                          c->in.st->name);
    return count_directory(c, raw, ext->directory_bytes);
}
