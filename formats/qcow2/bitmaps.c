/* SPDX-License-Identifier: BSD-3-Clause */
/* The dirty bitmaps that are stored in the image: what there is, for those who ask; they
 * aren't kept up. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/foreign_text.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* Names in a warning; the others are counted. */
#define NAMES_SHOWN 8

#define ENTRY_FIXED  sizeof(struct qcow2_disk_bitmap)
#define ENTRY(field) (raw + offsetof(struct qcow2_disk_bitmap, field))

static int refuse_entry(const struct qcow2 *q, uint32_t index, const char *why,
                        struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: bitmap directory entry %" PRIu32 ": %s",
                    q->node->filename, index, why);
}

/* Parses the entry at raw, of which n bytes are there; *length is its length. */
static int parse_entry(struct qcow2 *q, uint32_t index, const uint8_t *raw, uint64_t n,
                       uint64_t *length, struct diag *diag)
{
    struct qcow2_bitmap *bitmap = &q->bitmaps[index];

    if (n < ENTRY_FIXED)
        return refuse_entry(q, index, "reaches past the end of the directory", diag);
    uint16_t name_bytes = load_be16(ENTRY(name_bytes));
    uint64_t name_at = ENTRY_FIXED + (uint64_t)load_be32(ENTRY(extra_bytes));
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
    return foreign_text_copy(&bitmap->name, raw + name_at, name_bytes, diag,
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
    if (ext->length != 24 || ext->count == 0 || ext->count > MAX_BITMAPS ||
        ext->directory_bytes < (uint64_t)ext->count * ENTRY_FIXED ||
        ext->directory_bytes > MAX_BITMAP_DIRECTORY_BYTES ||
        !range_inside(ext->directory_offset, ext->directory_bytes, file_size))
        return diag_set(diag, EINVAL,
                        "%s: header extension 0x%08" PRIx32 ": %" PRIu32
                        " bitmaps in a directory of %" PRIu64 " bytes at offset %" PRIu64
                        " can't be",
                        q->node->filename, EXT_BITMAPS, ext->count, ext->directory_bytes,
                        ext->directory_offset);
    return 0;
}

static int read_directory(struct qcow2 *q, struct diag *diag)
{
    const struct qcow2_bitmaps_ext *ext = &q->header.bitmaps;
    CLEANUP_FREE uint8_t *raw = NULL;

    int err = check_extension(q, diag);
    if (err)
        return err;
    raw = malloc(ext->directory_bytes);
    q->bitmaps = calloc(ext->count, sizeof *q->bitmaps);
    if (!raw || !q->bitmaps)
        return diag_errno(diag, ENOMEM, "%s: bitmap directory", q->node->filename);
    err = storage_read(q->node->file, raw, ext->directory_offset, ext->directory_bytes);
    if (err)
        return diag_errno(diag, -err, "%s: reading the bitmap directory",
                          q->node->filename);
    uint64_t at = 0, length = 0;
    for (uint32_t i = 0; i < ext->count; i++, at += length) {
        err = parse_entry(q, i, raw + at, ext->directory_bytes - at, &length, diag);
        if (err)
            return err;
        q->n_bitmaps = i + 1;
    }
    return 0;
}

void qcow2_free_bitmaps(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_bitmaps; i++)
        free(q->bitmaps[i].name);
    free(q->bitmaps);
    q->bitmaps = NULL;
    q->n_bitmaps = 0;
}

/* Are they what the image says of itself?  Without the bit they were left behind by a
 * program that doesn't know them.  Under header_lock, or alone. */
static bool are_valid(const struct qcow2 *q)
{
    return q->header.bitmaps.present && (q->header.autoclear & AUTOCLEAR_BITMAPS);
}

void qcow2_read_bitmaps(struct qcow2 *q)
{
    struct diag diag = {0};

    if (!are_valid(q) || read_directory(q, &diag) == 0)
        return;
    log_warning("%s: its dirty bitmaps can't be used", diag.text);
    qcow2_free_bitmaps(q);
}

void qcow2_warn_of_bitmaps(struct qcow2 *q)
{
    CLEANUP_FREE char *names = NULL;
    size_t n;

    if (!are_valid(q) || q->n_bitmaps == 0)
        return;
    FILE *f = open_memstream(&names, &n);
    if (!f)
        return;
    for (uint32_t i = 0; i < MIN(q->n_bitmaps, NAMES_SHOWN); i++)
        fprintf(f, "%s%s", i ? ", " : "", q->bitmaps[i].name);
    if (q->n_bitmaps > NAMES_SHOWN)
        fprintf(f, " and %" PRIu32 " more", q->n_bitmaps - NAMES_SHOWN);
    if (fclose(f) == 0)
        log_warning(
            "%s: the dirty bitmaps stored in it are not kept up: the first change makes "
            "them invalid: %s",
            q->node->filename, names);
}

int qcow2_copy_bitmaps(const struct qcow2 *q, struct qcow2_info *part)
{
    if (!are_valid(q) || q->n_bitmaps == 0)
        return 0;
    part->bitmaps = calloc(q->n_bitmaps, sizeof *part->bitmaps);
    if (!part->bitmaps)
        return -ENOMEM;
    for (uint32_t i = 0; i < q->n_bitmaps; i++) {
        const struct qcow2_bitmap *from = &q->bitmaps[i];
        struct stored_bitmap_info *to = &part->bitmaps[part->n_bitmaps++];
        to->granularity = from->granularity;
        to->in_use = from->flags & BITMAP_IN_USE;
        to->enabled = from->flags & BITMAP_AUTO;
        if (image_info_copy(&to->name, from->name))
            return -ENOMEM;
    }
    return 0;
}
