/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmap directory: reading, checking and describing it. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/foreign_text.h"
#include "base/log.h"
#include "qcow2/internal.h"

#define ENTRY_FIXED  sizeof(struct qcow2_disk_bitmap)
#define ENTRY(field) (raw + offsetof(struct qcow2_disk_bitmap, field))

static int refuse_entry(const struct qcow2 *q, uint32_t index, const char *why,
                        struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: bitmap directory entry %" PRIu32 ": %s",
                    q->node->filename, index, why);
}

uint64_t qcow2_bitmap_table_size(const struct qcow2 *q, uint64_t size, uint64_t granularity)
{
    return div_round_up(dirty_bitmap_bytes(size, granularity), cluster_size(q));
}

/* The reason why an entry can't be used, or NULL. */
static const char *why_not(const struct qcow2 *q, const struct qcow2_bitmap *bitmap,
                           uint8_t type)
{
    if (type != BITMAP_TYPE_DIRTY)
        return "its type is none that is known";
    if (bitmap->flags & BITMAP_FLAGS_RESERVED)
        return "it has flags that aren't known";
    if (bitmap->table_size == 0 ||
        bitmap->table_size > MAX_BITMAP_BYTES >> q->geo.cluster_bits)
        return "its table is of no size that can be";
    if (!(bitmap->flags & BITMAP_IN_USE) &&
        bitmap->table_size <
            qcow2_bitmap_table_size(q, q->header.size, bitmap->granularity))
        return "its table is too small for the disk";
    return NULL;
}

static int copy_extra(const struct qcow2 *q, struct qcow2_bitmap *bitmap,
                      const uint8_t *data, struct diag *diag)
{
    if (bitmap->extra_bytes == 0)
        return 0;
    bitmap->extra = malloc(bitmap->extra_bytes);
    if (!bitmap->extra)
        return diag_errno(diag, ENOMEM, "%s: bitmap directory", q->node->filename);
    memcpy(bitmap->extra, data, bitmap->extra_bytes);
    return 0;
}

/* Parses the entry at `raw`, of which n bytes are there; *length becomes the entry's length. */
static int parse_entry(struct qcow2 *q, uint32_t index, const uint8_t *raw, uint64_t n,
                       uint64_t *length, struct diag *diag)
{
    struct qcow2_bitmap *bitmap = &q->bitmaps.entry[index];

    if (n < ENTRY_FIXED)
        return refuse_entry(q, index, "reaches past the end of the directory", diag);
    uint16_t name_bytes = load_be16(ENTRY(name_bytes));
    bitmap->extra_bytes = load_be32(ENTRY(extra_bytes));
    uint64_t name_at = ENTRY_FIXED + (uint64_t)bitmap->extra_bytes;
    *length = align_up(name_at + name_bytes, 8);
    if (*length > n)
        return refuse_entry(q, index, "reaches past the end of the directory", diag);
    uint8_t granularity = *ENTRY(granularity_bits);
    if (granularity < MIN_BITMAP_GRANULARITY || granularity > MAX_BITMAP_GRANULARITY)
        return refuse_entry(q, index, "its granularity is none that can be", diag);
    if (name_bytes == 0 || name_bytes > MAX_BITMAP_NAME)
        return refuse_entry(q, index, "its name is of no length that can be", diag);
    bitmap->flags = load_be32(ENTRY(flags));
    bitmap->granularity = 1u << granularity;
    bitmap->table_offset = load_be64(ENTRY(table_offset));
    bitmap->table_size = load_be32(ENTRY(table_size));
    const char *why = why_not(q, bitmap, *ENTRY(type));
    if (why)
        return refuse_entry(q, index, why, diag);
    int err = copy_extra(q, bitmap, raw + ENTRY_FIXED, diag);
    return err ? err
               : foreign_text_copy(&bitmap->name, raw + name_at, name_bytes, diag,
                                   "%s: bitmap directory entry %" PRIu32 ": the name",
                                   q->node->filename, index);
}

static int check_extension(const struct qcow2 *q, struct diag *diag)
{
    const struct qcow2_bitmaps_ext *ext = &q->header.bitmaps;
    uint64_t file_size;

    int err = storage_size(q->node->file, &file_size);
    if (err)
        return diag_errno(diag, -err, "%s: size", q->node->filename);
    if (ext->length != 24 || ext->reserved || ext->count == 0 || ext->count > MAX_BITMAPS ||
        ext->directory_bytes < (uint64_t)ext->count * ENTRY_FIXED ||
        ext->directory_bytes > MAX_BITMAP_DIRECTORY_BYTES ||
        !is_aligned(ext->directory_offset, cluster_size(q)) || ext->directory_offset == 0 ||
        !range_inside(ext->directory_offset, ext->directory_bytes, file_size))
        return diag_set(diag, EINVAL,
                        "%s: header extension 0x%08" PRIx32 ": %" PRIu32
                        " bitmaps in a directory of %" PRIu64 " bytes at offset %" PRIu64
                        " can't be",
                        q->node->filename, EXT_BITMAPS, ext->count, ext->directory_bytes,
                        ext->directory_offset);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_names(struct qcow2 *q, struct diag *diag)
{
    CLEANUP_FREE const char **names = calloc(q->bitmaps.n + 1, sizeof *names);

    if (!names)
        return diag_errno(diag, ENOMEM, "%s: bitmap directory", q->node->filename);
    for (uint32_t i = 0; i < q->bitmaps.n; i++)
        names[i] = q->bitmaps.entry[i].name;
    qsort((void *)names, q->bitmaps.n, sizeof *names, by_name);
    for (uint32_t i = 1; i < q->bitmaps.n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return diag_set(diag, EINVAL,
                            "%s: bitmap directory: two bitmaps have the name '%.200s'",
                            q->node->filename, names[i]);
    return 0;
}

static int parse_entries(struct qcow2 *q, const uint8_t *raw, uint64_t bytes,
                         struct diag *diag)
{
    uint64_t at = 0, length = 0, bits = 0;

    for (uint32_t i = 0; i < q->header.bitmaps.count; i++, at += length) {
        q->bitmaps.n = i + 1;
        q->bitmaps.entry[i].at = (uint32_t)at;
        int err = parse_entry(q, i, raw + at, bytes - at, &length, diag);
        if (err)
            return err;
        bits += (uint64_t)q->bitmaps.entry[i].table_size << q->geo.cluster_bits;
    }
    if (bits > MAX_BITMAPS_BYTES)
        return diag_set(diag, EFBIG,
                        "%s: bitmap directory: %" PRIu64
                        " bytes of bits are over the %llu that can be kept",
                        q->node->filename, bits, MAX_BITMAPS_BYTES);
    if (at != bytes)
        return diag_set(diag, EINVAL,
                        "%s: bitmap directory: has more entries than the %" PRIu32
                        " bitmaps there are",
                        q->node->filename, q->header.bitmaps.count);
    return check_names(q, diag);
}

static int read_directory(struct qcow2 *q, struct diag *diag)
{
    const struct qcow2_bitmaps_ext *ext = &q->header.bitmaps;
    CLEANUP_FREE uint8_t *raw = NULL;

    int err = check_extension(q, diag);
    if (err)
        return err;
    raw = malloc(ext->directory_bytes);
    q->bitmaps.entry = calloc(ext->count, sizeof *q->bitmaps.entry);
    if (!raw || !q->bitmaps.entry)
        return diag_errno(diag, ENOMEM, "%s: bitmap directory", q->node->filename);
    err = storage_read(q->node->file, raw, ext->directory_offset, ext->directory_bytes);
    if (err)
        return diag_errno(diag, -err, "%s: reading the bitmap directory",
                          q->node->filename);
    return parse_entries(q, raw, ext->directory_bytes, diag);
}

void qcow2_free_bitmap_entries(struct qcow2_bitmap *entry, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        free(entry[i].name);
        free(entry[i].table);
        free(entry[i].extra);
    }
    free(entry);
}

/* When the autoclear bit is clear, the image was written to by a program that doesn't keep
 * bitmaps up to date. */
bool qcow2_has_bitmaps(const struct qcow2 *q)
{
    return q->header.version >= 3 && q->header.bitmaps.present &&
           (q->header.autoclear & AUTOCLEAR_BITMAPS) && !q->bitmaps.lost;
}

void qcow2_lose_bitmaps(struct qcow2 *q, const char *why)
{
    log_warning("%s: its dirty bitmaps can't be used", why);
    LOCK_GUARD(&q->header_lock);
    q->bitmaps.lost = true;
    qcow2_free_bitmap_entries(q->bitmaps.entry, q->bitmaps.n);
    q->bitmaps.entry = NULL;
    q->bitmaps.n = 0;
}

void qcow2_read_bitmaps(struct qcow2 *q)
{
    struct diag diag = {0};

    if (qcow2_has_bitmaps(q) && read_directory(q, &diag))
        qcow2_lose_bitmaps(q, diag.text);
}

int qcow2_copy_bitmaps(const struct qcow2 *q, struct qcow2_info *part)
{
    uint32_t n = qcow2_has_bitmaps(q) ? q->bitmaps.n : 0;

    part->bitmaps_lost = q->bitmaps.lost;
    if (n == 0)
        return 0;
    part->bitmaps = calloc(n, sizeof *part->bitmaps);
    if (!part->bitmaps)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        const struct qcow2_bitmap *from = &q->bitmaps.entry[i];
        struct stored_bitmap_info *to = &part->bitmaps[part->n_bitmaps++];
        to->granularity = from->granularity;
        to->in_use = from->flags & BITMAP_IN_USE;
        to->enabled = from->flags & BITMAP_AUTO;
        if (image_info_copy(&to->name, from->name))
            return -ENOMEM;
    }
    return 0;
}
