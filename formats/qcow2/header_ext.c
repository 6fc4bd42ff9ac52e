/* SPDX-License-Identifier: BSD-3-Clause */
/* Parsing, replacing and appending header extensions. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/foreign_text.h"
#include "qcow2/header_ext.h"

const struct qcow2_feature_name qcow2_feature_names[] = {
    {FEATURE_INCOMPATIBLE, 0, "dirty bit"},
    {FEATURE_INCOMPATIBLE, 1, "corrupt bit"},
    {FEATURE_INCOMPATIBLE, 2, "external data file"},
    {FEATURE_INCOMPATIBLE, 3, "compression type"},
    {FEATURE_INCOMPATIBLE, 4, "extended L2 entries"},
    {FEATURE_COMPATIBLE, 0, "lazy refcounts"},
    {FEATURE_AUTOCLEAR, 0, "bitmaps"},
    {FEATURE_AUTOCLEAR, 1, "raw external data"},
};
const size_t qcow2_n_feature_names = ARRAY_LEN(qcow2_feature_names);

struct extension {
    uint32_t type, len;
    const uint8_t *data;
};

/* Returns the extension at *at and moves on; false at the end, or when the extension reaches past
 * the area. */
static int next_extension(const uint8_t *area, size_t n, size_t *at, struct extension *ext)
{
    if (n - *at < 8)
        return 0;
    ext->type = load_be32(area + *at);
    ext->len = load_be32(area + *at + 4);
    *at += 8;
    if (ext->type == EXT_END)
        return 0;
    if (ext->len > n - *at)
        return -EINVAL;
    ext->data = area + *at;
    *at = MIN(n, *at + align_up(ext->len, 8));
    return 1;
}

/* Finds the name of a feature bit: in the image's table of names, else in this program's. */
static void name_feature(const struct extension *table, uint32_t bit, char out[47])
{
    out[0] = 0;
    for (size_t i = 0; i < qcow2_n_feature_names; i++)
        if (qcow2_feature_names[i].type == FEATURE_INCOMPATIBLE &&
            qcow2_feature_names[i].bit == bit)
            memcpy(out, qcow2_feature_names[i].name, 46);
    for (size_t at = 0; table->data && at + 48 <= table->len; at += 48) {
        const uint8_t *row = table->data + at;
        if (row[0] == FEATURE_INCOMPATIBLE && row[1] == bit && row[2] != 0)
            memcpy(out, row + 2, 46);
    }
    out[46] = 0;
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e)
            *c = '?';
}

static int refuse_features(const char *name, uint64_t bits, const struct extension *table,
                           struct diag *diag)
{
    char text[512] = "";
    size_t used = 0;

    for (uint32_t bit = 0; bit < 64; bit++) {
        char feature[47];
        if (!(bits & 1ull << bit))
            continue;
        name_feature(table, bit, feature);
        if (!feature[0])
            snprintf(feature, sizeof feature, "unknown feature bit %" PRIu32, bit);
        int n =
            snprintf(text + used, sizeof text - used, "%s%s", used ? ", " : "", feature);
        used = MIN(sizeof text - 1, used + (size_t)n);
    }
    return diag_set(diag, ENOTSUP,
                    "%s: incompatible_features: 0x%" PRIx64 " is not supported: %s", name,
                    bits, text);
}

/* Copies a text.  If there are several extensions of one type the last one counts. */
static int take_text(char **out, const struct extension *ext, const char *image,
                     const char *what, struct diag *diag)
{
    char *text;
    int err = foreign_text_copy(&text, ext->data, ext->len, diag,
                                "%s: header extension 0x%08" PRIx32 ": %s", image,
                                ext->type, what);

    if (err)
        return err;
    free(*out);
    *out = text;
    return 0;
}

/* Checks that each name is followed by zeroes only. */
static int check_feature_names(const struct extension *ext, const char *image,
                               struct diag *diag)
{
    for (size_t at = 0; at + sizeof(struct qcow2_feature_name) <= ext->len;
         at += sizeof(struct qcow2_feature_name)) {
        struct qcow2_feature_name row;
        memcpy(&row, ext->data + at, sizeof row);
        size_t n = strnlen(row.name, sizeof row.name);
        for (size_t i = n; i < sizeof row.name; i++)
            if (row.name[i])
                return diag_set(diag, EINVAL,
                                "%s: header extension 0x%08" PRIx32
                                ": the feature name '%.*s' goes on after a NUL byte",
                                image, ext->type, (int)n, row.name);
    }
    return 0;
}

static void take_bitmaps(struct qcow2_bitmaps_ext *bitmaps, const struct extension *ext)
{
    *bitmaps = (struct qcow2_bitmaps_ext){.present = true, .length = ext->len};
    if (ext->len < 24)
        return;
    bitmaps->count = load_be32(ext->data);
    bitmaps->reserved = load_be32(ext->data + 4);
    bitmaps->directory_bytes = load_be64(ext->data + 8);
    bitmaps->directory_offset = load_be64(ext->data + 16);
}

/* Stores the content of one extension in *h. */
static int take_extension(struct qcow2_header *h, const struct extension *ext,
                          const char *name, struct diag *diag)
{
    switch (ext->type) {
    case EXT_BACKING_FORMAT:
        if (ext->len > 15)
            return diag_set(diag, EINVAL,
                            "%s: header extension: a backing format of %" PRIu32 " bytes",
                            name, ext->len);
        return take_text(&h->backing_format, ext, name, "the backing format", diag);
    case EXT_DATA_FILE:
        if (ext->len > MAX_BACKING_NAME)
            return diag_set(diag, EINVAL,
                            "%s: header extension 0x%08" PRIx32
                            ": a data file's name of %" PRIu32 " bytes, over %d",
                            name, ext->type, ext->len, MAX_BACKING_NAME);
        return take_text(&h->data_file, ext, name, "the data file's name", diag);
    case EXT_FEATURE_NAMES:
        return check_feature_names(ext, name, diag);
    case EXT_BITMAPS:
        take_bitmaps(&h->bitmaps, ext);
        return 0;
    case EXT_LUKS:
        if (ext->len != 16)
            return diag_set(diag, EINVAL,
                            "%s: header extension: a LUKS header pointer of %" PRIu32
                            " bytes",
                            name, ext->len);
        h->luks_offset = load_be64(ext->data);
        h->luks_bytes = load_be64(ext->data + 8);
        return 0;
    default:
        return 0;
    }
}

int qcow2_header_ext_read(struct storage *st, struct qcow2_header *h, uint64_t end,
                          uint64_t supported, struct diag *diag)
{
    size_t n = (size_t)(end - h->header_length), at = 0;
    CLEANUP_FREE uint8_t *area = malloc(n + 1);
    struct extension ext, names = {0};

    if (!area)
        return diag_errno(diag, ENOMEM, "%s", st->name);
    int err = storage_read(st, area, h->header_length, n);
    if (err)
        return diag_errno(diag, -err, "%s: reading the header extensions", st->name);
    int more;
    while ((more = next_extension(area, n, &at, &ext)) > 0) {
        if (ext.type == EXT_FEATURE_NAMES)
            names = ext;
        err = take_extension(h, &ext, st->name, diag);
        if (err)
            return err;
    }
    if (more < 0)
        return diag_set(diag, EINVAL,
                        "%s: header extension 0x%" PRIx32 ": its %" PRIu32
                        " bytes reach past the extensions' end",
                        st->name, ext.type, ext.len);
    uint64_t unknown = h->incompatible & ~supported;
    return unknown ? refuse_features(st->name, unknown, &names, diag) : 0;
}

int qcow2_header_ext_append(uint8_t *buf, size_t capacity, size_t *at, uint32_t type,
                            const void *data, size_t len)
{
    size_t padded = (size_t)align_up(len, 8);

    if (capacity - *at < 8 || capacity - *at - 8 < padded)
        return -ENOSPC;
    store_be32(buf + *at, type);
    store_be32(buf + *at + 4, (uint32_t)len);
    memset(buf + *at + 8, 0, padded);
    if (len)
        memcpy(buf + *at + 8, data, len);
    *at += 8 + padded;
    return 0;
}

int qcow2_header_ext_replace(uint8_t *area, size_t n, uint32_t type, const void *data,
                             size_t len, size_t *used)
{
    size_t at = 0, start = 0, padded = (size_t)align_up(len, 8);
    struct extension ext;
    bool found = false;
    int more;

    while ((more = next_extension(area, n, &at, &ext)) > 0) {
        if (ext.type == type && data && at - start - 8 == padded) {
            found = true;
            store_be32(area + start + 4, (uint32_t)len);
            memset(area + start + 8, 0, padded);
            memcpy(area + start + 8, data, len);
        } else if (ext.type == type) { /* removed here; below it may be appended anew */
            memmove(area + start, area + at, n - at);
            memset(area + n - (at - start), 0, at - start);
            at = start;
        }
        start = at;
    }
    if (more < 0)
        return -EINVAL;
    if (data && !found && qcow2_header_ext_append(area, n, &start, type, data, len))
        return -ENOSPC;
    *used = MIN(n, start + 8);
    memset(area + start, 0, *used - start);
    return 0;
}

int qcow2_header_ext_copy(const uint8_t *area, size_t n, bool (*keep)(uint32_t type),
                          uint8_t *to, size_t capacity, size_t *at)
{
    struct extension ext;
    size_t from = 0;
    int more;

    while ((more = next_extension(area, n, &from, &ext)) > 0)
        if (keep(ext.type) &&
            qcow2_header_ext_append(to, capacity, at, ext.type, ext.data, ext.len))
            return -ENOSPC;
    return more;
}

int qcow2_header_ext_find_last(const uint8_t *area, size_t n, uint32_t type, size_t *place)
{
    size_t at = 0, start = 0, found = 0;
    uint32_t last = EXT_END;
    struct extension ext;
    int more;

    while ((more = next_extension(area, n, &at, &ext)) > 0) {
        found += ext.type == type;
        last = ext.type;
        *place = start;
        start = at;
    }
    return more < 0 || found != 1 || last != type ? -ENOENT : 0;
}

int qcow2_header_ext_find(const uint8_t *area, size_t n, uint32_t type, uint32_t len,
                          size_t *place, size_t *end)
{
    size_t at = 0, start = 0;
    struct extension ext;
    bool fits = true;
    int more;

    *place = 0;
    while ((more = next_extension(area, n, &at, &ext)) > 0) {
        if (ext.type == type) { /* the last one counts */
            *place = start + 8;
            fits = ext.len == len;
        }
        start = at;
    }
    *end = start;
    return more < 0 || !fits ? -EINVAL : 0;
}
