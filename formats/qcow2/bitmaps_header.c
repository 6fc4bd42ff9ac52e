/* SPDX-License-Identifier: BSD-3-Clause */
/* The header extension that points to the bitmap directory.
 *
 * If its 24 bytes lie in one sector they are overwritten in one write, after which the disk has
 * the old or the new ones.  Otherwise, and when the extension is added or removed, the autoclear
 * bit is cleared during the change: without it the extension is ignored, so that a crash loses
 * the bitmaps but does no other harm.  Other extensions are never moved. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/header_ext.h"
#include "qcow2/internal.h"

#define SECTOR    512u
#define EXT_BYTES 24u
#define EXT_HEAD  8u

#define FIELD(name) offsetof(struct qcow2_disk_header, name)

/* The header's cluster as it is in the file; places are offsets in it. */
struct raw_header {
    uint8_t *raw;
    uint64_t size;     /* of the cluster */
    uint64_t area;     /* where the extensions begin */
    uint64_t area_end; /* where they must end: at the backing file's name, if any */
    uint64_t name;     /* the backing file's name; 0: there is none */
    uint32_t name_len;
    uint64_t end;   /* the end marker */
    uint64_t place; /* of the extension's data; 0: there is none */
};

static void destroy_raw_header(struct raw_header *h)
{
    free(h->raw);
}

static int read_raw_header(struct qcow2 *q, struct raw_header *h)
{
    size_t end = 0, place = 0;

    *h = (struct raw_header){.size = cluster_size(q), .area = q->header.header_length};
    h->raw = malloc(h->size);
    if (!h->raw)
        return -ENOMEM;
    int err = storage_read(q->node->file, h->raw, 0, h->size);
    if (err)
        return err;
    h->name = load_be64(h->raw + FIELD(backing_file_offset));
    h->name_len = load_be32(h->raw + FIELD(backing_file_size));
    if (h->name_len == 0 || h->name < h->area ||
        !range_inside(h->name, h->name_len, h->size))
        h->name = h->name_len = 0;
    h->area_end = h->name ? h->name : h->size;
    err = qcow2_header_ext_find(h->raw + h->area, h->area_end - h->area, EXT_BITMAPS,
                                EXT_BYTES, &place, &end);
    h->end = h->area + end;
    h->place = place ? h->area + place : 0;
    return err;
}

static void fill_extension(uint8_t *out, uint32_t n, uint64_t offset, uint64_t bytes)
{
    store_be32(out, n);
    store_be32(out + 4, 0);
    store_be64(out + 8, bytes);
    store_be64(out + 16, offset);
}

static int write_durably(struct qcow2 *q, const void *buf, uint64_t at, size_t n)
{
    int err = storage_write(q->node->file, buf, at, n, 0);

    return err ? err : node_barrier(q->node);
}

static int set_autoclear_bit(struct qcow2 *q, bool on)
{
    struct qcow2_header h = q->header;

    h.autoclear = on ? h.autoclear | AUTOCLEAR_BITMAPS : h.autoclear & ~AUTOCLEAR_BITMAPS;
    if (h.autoclear == q->header.autoclear)
        return 0;
    int err = qcow2_header_write_features(q->node->file, &h);
    if (!err)
        err = node_barrier(q->node);
    if (!err)
        q->header.autoclear = h.autoclear;
    return err;
}

/* ---- adding it ---- */

/* What a new extension takes behind the others: its head, its data, and the end marker. */
#define ADDED_BYTES (EXT_HEAD + EXT_BYTES + EXT_HEAD)

/* A new place for the backing file's name, so that the extension fits before it; 0: none. */
static uint64_t place_for_name(const struct raw_header *h)
{
    uint64_t behind = align_up(MAX(h->end + ADDED_BYTES, h->name + h->name_len), 8);

    return range_inside(behind, h->name_len, MIN(h->size, 1u << 16)) ? behind : 0;
}

static bool fits(const struct raw_header *h)
{
    return range_inside(h->end, ADDED_BYTES, h->area_end);
}

static int check_room(const struct raw_header *h)
{
    return h->place || fits(h) || (h->name && place_for_name(h)) ? 0 : -ENOSPC;
}

/* Moves the backing file's name.  The copy is durable before the header points to it; the field
 * that does is written within one sector. */
static int move_name(struct qcow2 *q, struct raw_header *h)
{
    uint64_t to = place_for_name(h);
    uint8_t fields[8];

    int err = write_durably(q, h->raw + h->name, to, h->name_len);
    if (err)
        return err;
    store_be64(fields, to);
    err = write_durably(q, fields, FIELD(backing_file_offset), sizeof fields);
    h->name = h->area_end = to;
    return err;
}

/* Appends the extension, while the autoclear bit is clear, so that half an extension does no
 * harm.  The end marker behind it is durable first. */
static int append_extension(struct qcow2 *q, struct raw_header *h, const uint8_t *data)
{
    uint8_t added[ADDED_BYTES] = {0};

    int err = fits(h) ? 0 : move_name(q, h);
    if (!err)
        err = write_durably(q, added, h->end, sizeof added);
    if (err)
        return err;
    store_be32(added, EXT_BITMAPS);
    store_be32(added + 4, EXT_BYTES);
    memcpy(added + EXT_HEAD, data, EXT_BYTES);
    return write_durably(q, added, h->end, sizeof added);
}

/* ---- removing it ---- */

/* Removes the extension, because QEMU warns each time about one without the autoclear bit.  Only
 * if it is the last: then four bytes have to be written, which can't be torn. */
static int remove_extension(struct qcow2 *q, const struct raw_header *h)
{
    uint8_t end[4];

    if (h->place == 0 || h->place + EXT_BYTES != h->end)
        return 0;
    store_be32(end, EXT_END);
    return write_durably(q, end, h->place - EXT_HEAD, sizeof end);
}

/* ---- */

static bool in_one_sector(uint64_t at)
{
    return at / SECTOR == (at + EXT_BYTES - 1) / SECTOR;
}

static int write_extension(struct qcow2 *q, struct raw_header *h, uint32_t n,
                           uint64_t offset, uint64_t bytes)
{
    uint8_t data[EXT_BYTES];

    fill_extension(data, n, offset, bytes);
    if (n > 0 && h->place && in_one_sector(h->place) && qcow2_has_bitmaps(q))
        return write_durably(q, data, h->place, sizeof data);
    int err = set_autoclear_bit(q, false);
    if (err)
        return err;
    if (n == 0)
        return remove_extension(q, h);
    err = h->place ? write_durably(q, data, h->place, sizeof data)
                   : append_extension(q, h, data);
    return err ? err : set_autoclear_bit(q, true);
}

int qcow2_point_to_bitmaps(struct qcow2 *q, uint32_t n, uint64_t offset, uint64_t bytes)
{
    struct raw_header h CLEANUP(destroy_raw_header) = {0};

    int err = read_raw_header(q, &h);
    if (!err && n > 0)
        err = check_room(&h);
    if (err)
        return err;
    err = write_extension(q, &h, n, offset, bytes);
    if (err) {
        mcache_poison(q->node->mc);
        return err;
    }
    q->header.bitmaps = (struct qcow2_bitmaps_ext){.present = n > 0,
                                                   .length = EXT_BYTES,
                                                   .count = n,
                                                   .directory_bytes = bytes,
                                                   .directory_offset = offset};
    return 0;
}

int qcow2_check_bitmaps_room(struct qcow2 *q)
{
    struct raw_header h CLEANUP(destroy_raw_header) = {0};

    int err = read_raw_header(q, &h);
    return err ? err : check_room(&h);
}
