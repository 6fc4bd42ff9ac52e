/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing an empty image: header | refcount table | refcount blocks | L1 table | LUKS header. */
#include "qcow2/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "qcow2/header_ext.h"
#include "qcow2/internal.h"
#include "qcow2/qcow2.h"

#define HEADER_LENGTH 112 /* with the compression type */

static uint64_t offset_of(const struct qcow2_params *p, uint64_t cluster)
{
    return cluster << p->geo.cluster_bits;
}

struct qcow2_layout qcow2_plan_layout(const struct qcow2_params *p)
{
    uint64_t cluster = geometry_cluster(&p->geo);
    uint64_t per_block = cluster * 8 >> p->geo.refcount_order;
    uint64_t l1_entries = geometry_l1_entries(&p->geo, p->size);
    uint64_t l1 = div_round_up(l1_entries * 8, cluster);
    uint64_t luks = div_round_up(qcow2_luks_bytes(p), cluster);
    uint64_t table = 1, blocks = 1;

    /* Refcount table and blocks are counted themselves, so adding some can require more. */
    for (;;) {
        uint64_t need = div_round_up(1 + table + blocks + l1 + luks, per_block);
        uint64_t need_table = MAX(1, div_round_up(need * 8, cluster));
        if (need <= blocks && need_table <= table)
            break;
        blocks = MAX(blocks, need);
        table = MAX(table, need_table);
    }
    return (struct qcow2_layout){.table = 1,
                                 .blocks = 1 + table,
                                 .l1 = 1 + table + blocks,
                                 .luks = 1 + table + blocks + l1,
                                 .end = 1 + table + blocks + l1 + luks,
                                 .l1_entries = (uint32_t)l1_entries};
}

/* ---- the first cluster ---- */

static uint64_t incompatible_features(const struct qcow2_params *p)
{
    return (p->data_file ? INCOMPAT_DATA_FILE : 0) |
           (p->compression_type != COMPRESSION_ZLIB ? INCOMPAT_COMPRESSION : 0) |
           (p->geo.word_bits ? INCOMPAT_EXTENDED_L2 : 0);
}

static void fill_header(const struct qcow2_params *p, const struct qcow2_layout *l,
                        uint8_t *raw)
{
#define PUT(bits, field, value) \
    store_be##bits(raw + offsetof(struct qcow2_disk_header, field), (value))
    PUT(32, magic, QCOW2_MAGIC);
    PUT(32, version, p->geo.version);
    PUT(32, cluster_bits, p->geo.cluster_bits);
    PUT(64, size, p->size);
    PUT(32, crypt_method, p->encryption.method);
    PUT(32, l1_size, l->l1_entries);
    PUT(64, l1_table_offset, offset_of(p, l->l1));
    PUT(64, refcount_table_offset, offset_of(p, l->table));
    PUT(32, refcount_table_clusters, (uint32_t)(l->blocks - l->table));
    if (p->geo.version >= 3) {
        PUT(64, incompatible_features, incompatible_features(p));
        PUT(64, compatible_features, p->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0);
        PUT(64, autoclear_features, p->data_file_raw ? AUTOCLEAR_DATA_RAW : 0);
        PUT(32, refcount_order, p->geo.refcount_order);
        PUT(32, header_length, HEADER_LENGTH);
        raw[offsetof(struct qcow2_disk_header, compression_type)] = p->compression_type;
    }
#undef PUT
}

static size_t backing_name_bytes(const struct qcow2_params *p)
{
    return p->backing_file ? strlen(p->backing_file) : 0;
}

static int append_text(uint8_t *raw, size_t cluster, size_t *at, uint32_t type,
                       const char *text)
{
    return text ? qcow2_header_ext_append(raw, cluster, at, type, text, strlen(text)) : 0;
}

static int append_luks(const struct qcow2_params *p, const struct qcow2_layout *l,
                       uint8_t *raw, size_t cluster, size_t *at)
{
    uint8_t place[16];

    if (p->encryption.method != CRYPT_LUKS)
        return 0;
    store_be64(place, offset_of(p, l->luks));
    store_be64(place + 8, qcow2_luks_bytes(p));
    return qcow2_header_ext_append(raw, cluster, at, EXT_LUKS, place, sizeof place);
}

/* Appends the extensions at *at, and advances *at.  -ENAMETOOLONG: there is no room. */
static int append_extensions(const struct qcow2_params *p, const struct qcow2_layout *l,
                             uint8_t *raw, size_t cluster, size_t *at)
{
    size_t names = qcow2_n_feature_names * sizeof *qcow2_feature_names;

    int err = append_text(raw, cluster, at, EXT_BACKING_FORMAT, p->backing_format);
    if (err)
        return -ENAMETOOLONG;
    err = append_text(raw, cluster, at, EXT_DATA_FILE, p->data_file);
    if (err)
        return -ENAMETOOLONG;
    err = append_luks(p, l, raw, cluster, at);
    if (err)
        return -ENAMETOOLONG;
    /* The feature names are optional: if a small cluster lacks room, they are left out. */
    if (p->geo.version >= 3 && *at + 8 + names + 8 + backing_name_bytes(p) <= cluster)
        err = qcow2_header_ext_append(raw, cluster, at, EXT_FEATURE_NAMES,
                                      qcow2_feature_names, names);
    if (!err)
        err = qcow2_header_ext_append(raw, cluster, at, EXT_END, NULL, 0);
    return err ? -ENAMETOOLONG : 0;
}

static int put_backing_name(const struct qcow2_params *p, uint8_t *raw, size_t cluster,
                            size_t at)
{
    size_t n = backing_name_bytes(p);

    if (n > cluster - at)
        return -ENAMETOOLONG;
    if (n == 0)
        return 0;
    store_be64(raw + offsetof(struct qcow2_disk_header, backing_file_offset), at);
    store_be32(raw + offsetof(struct qcow2_disk_header, backing_file_size), (uint32_t)n);
    memcpy(raw + at, p->backing_file, n);
    return 0;
}

/* Header, extensions and backing name. */
static int write_first_cluster(const struct qcow2_params *p, const struct qcow2_layout *l,
                               struct storage *st)
{
    size_t cluster = geometry_cluster(&p->geo);
    size_t at = p->geo.version >= 3 ? HEADER_LENGTH : QCOW2_V2_HEADER_BYTES;
    CLEANUP_FREE uint8_t *raw = calloc(1, cluster);
    if (!raw)
        return -ENOMEM;

    fill_header(p, l, raw);
    int err = append_extensions(p, l, raw, cluster, &at);
    if (err)
        return err;
    err = put_backing_name(p, raw, cluster, at);
    return err ? err : storage_write(st, raw, 0, cluster, 0);
}

/* ---- reference counts: 1 for each cluster of the layout ---- */

/* Fills in the refcount block number `block`. */
static void fill_refcount_block(const struct qcow2_params *p, const struct qcow2_layout *l,
                                uint64_t block, uint8_t *raw)
{
    uint64_t cluster = geometry_cluster(&p->geo);
    uint64_t n = cluster * 8 >> p->geo.refcount_order, first = block * n;

    memset(raw, 0, cluster);
    for (uint64_t i = first; i < MIN(l->end, first + n); i++)
        refcount_pack(p->geo.refcount_order, raw, i - first, 1);
}

/* Fills in cluster number `part` of the refcount table. */
static void fill_refcount_table(const struct qcow2_params *p, const struct qcow2_layout *l,
                                uint64_t part, uint8_t *raw)
{
    uint64_t cluster = geometry_cluster(&p->geo), n = cluster / 8, first = part * n;

    memset(raw, 0, cluster);
    for (uint64_t i = first; i < MIN(l->l1 - l->blocks, first + n); i++)
        store_be64(raw + (i - first) * 8, offset_of(p, l->blocks + i));
}

static int write_refcounts(const struct qcow2_params *p, const struct qcow2_layout *l,
                           struct storage *st)
{
    uint64_t cluster = geometry_cluster(&p->geo);
    CLEANUP_FREE uint8_t *raw = malloc(cluster);
    if (!raw)
        return -ENOMEM;

    for (uint64_t i = l->blocks; i < l->l1; i++) {
        fill_refcount_block(p, l, i - l->blocks, raw);
        int err = storage_write(st, raw, offset_of(p, i), cluster, 0);
        if (err)
            return err;
    }
    for (uint64_t i = l->table; i < l->blocks; i++) {
        fill_refcount_table(p, l, i - l->table, raw);
        int err = storage_write(st, raw, offset_of(p, i), cluster, 0);
        if (err)
            return err;
    }
    return 0;
}

/* ---- the image ---- */

/* A file was truncated before, so that growing it gives zeroes; a device must be written to. */
static int write_l1(const struct qcow2_params *p, const struct qcow2_layout *l,
                    struct storage *st)
{
    uint64_t start = offset_of(p, l->l1), end = offset_of(p, l->luks);

    return st->fixed_size ? storage_zero(st, start, end - start, 0)
                          : storage_truncate(st, offset_of(p, l->end));
}

/* Makes the data file as long as the disk; a device must be at least that long. */
static int size_data_file(const struct qcow2_params *p, struct storage *data,
                          struct diag *diag)
{
    uint64_t bytes = 0;

    if (!data)
        return 0;
    int err =
        data->fixed_size ? storage_size(data, &bytes) : storage_truncate(data, p->size);
    if (!err && data->fixed_size && bytes < p->size)
        err = -ENOSPC;
    if (!err)
        err = storage_flush(data);
    return err ? diag_errno(diag, -err, "%s: a data file of %" PRIu64 " bytes", data->name,
                            p->size)
               : 0;
}

static int write_tables(const struct qcow2_params *p, const struct qcow2_layout *l,
                        struct storage *st)
{
    int err = write_l1(p, l, st);

    if (!err)
        err = write_refcounts(p, l, st);
    return err ? err : storage_flush(st);
}

static int write_header(const struct qcow2_params *p, const struct qcow2_layout *l,
                        struct storage *st)
{
    int err = write_first_cluster(p, l, st);

    return err ? err : storage_flush(st);
}

/* Writes the header last: until then the file isn't an image. */
static int write_image(const struct qcow2_params *p, struct storage *st,
                       struct cipher **cipher, struct diag *diag)
{
    struct qcow2_layout l = qcow2_plan_layout(p);

    int err = write_tables(p, &l, st);
    if (err)
        return diag_errno(diag, -err, "%s: writing the image", p->filename);
    err = qcow2_make_key(p, st, offset_of(p, l.luks), cipher, diag);
    if (err)
        return err;
    err = write_header(p, &l, st);
    return err ? diag_errno(diag, -err, "%s: writing the image", p->filename) : 0;
}

int qcow2_create(struct storage *st, struct storage *data, const struct create_request *req,
                 struct diag *diag)
{
    CLEANUP_STORAGE struct storage *file = st, *data_file = data;
    CLEANUP_CIPHER struct cipher *cipher = NULL;
    struct qcow2_params params;

    int err = qcow2_parse_params(req, &params, diag);
    if (!err)
        err = size_data_file(&params, data_file, diag);
    if (!err)
        err = write_image(&params, file, &cipher, diag);
    if (err || params.preallocation == PREALLOC_OFF)
        return err;
    return qcow2_allocate_all(&params, TAKE(&file), TAKE(&data_file), TAKE(&cipher), diag);
}
