/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing an empty image: header | refcount table | refcount blocks | L1 table; then, when
 * it is asked for, clusters for the whole disk. */
#include "qcow2/create.h"

#include <errno.h>
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
    uint64_t table = 1, blocks = 1;

    /* Table and blocks cover themselves, so more of them may need more of them. */
    for (;;) {
        uint64_t need = div_round_up(1 + table + blocks + l1, per_block);
        uint64_t need_table = MAX(1, div_round_up(need * 8, cluster));
        if (need <= blocks && need_table <= table)
            break;
        blocks = MAX(blocks, need);
        table = MAX(table, need_table);
    }
    return (struct qcow2_layout){.table = 1,
                                 .blocks = 1 + table,
                                 .l1 = 1 + table + blocks,
                                 .end = 1 + table + blocks + l1,
                                 .l1_entries = (uint32_t)l1_entries};
}

/* ---- the first cluster ---- */

static void fill_header(const struct qcow2_params *p, const struct qcow2_layout *l,
                        uint8_t *raw)
{
#define PUT(bits, field, value) \
    store_be##bits(raw + offsetof(struct qcow2_disk_header, field), (value))
    PUT(32, magic, QCOW2_MAGIC);
    PUT(32, version, p->geo.version);
    PUT(32, cluster_bits, p->geo.cluster_bits);
    PUT(64, size, p->size);
    PUT(32, l1_size, l->l1_entries);
    PUT(64, l1_table_offset, offset_of(p, l->l1));
    PUT(64, refcount_table_offset, offset_of(p, l->table));
    PUT(32, refcount_table_clusters, (uint32_t)(l->blocks - l->table));
    if (p->geo.version >= 3) {
        PUT(64, compatible_features, p->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0);
        PUT(32, refcount_order, p->geo.refcount_order);
        PUT(32, header_length, HEADER_LENGTH);
    }
#undef PUT
}

static size_t backing_name_bytes(const struct qcow2_params *p)
{
    return p->backing_file ? strlen(p->backing_file) : 0;
}

/* The extensions from *at on, which becomes their end. */
static int append_extensions(const struct qcow2_params *p, uint8_t *raw, size_t cluster,
                             size_t *at)
{
    size_t names = qcow2_n_feature_names * sizeof *qcow2_feature_names;
    int err = 0;

    if (p->backing_format)
        err = qcow2_header_ext_append(raw, cluster, at, EXT_BACKING_FORMAT,
                                      p->backing_format, strlen(p->backing_format));
    if (err)
        return err;
    /* The names are a courtesy: in a small cluster the backing name goes first. */
    if (p->geo.version >= 3 && *at + 8 + names + 8 + backing_name_bytes(p) <= cluster)
        err = qcow2_header_ext_append(raw, cluster, at, EXT_FEATURE_NAMES,
                                      qcow2_feature_names, names);
    return err ? err : qcow2_header_ext_append(raw, cluster, at, EXT_END, NULL, 0);
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
    int err = append_extensions(p, raw, cluster, &at);
    if (err)
        return err;
    err = put_backing_name(p, raw, cluster, at);
    return err ? err : storage_write(st, raw, 0, cluster, 0);
}

/* ---- reference counts: 1 for each cluster of the layout ---- */

/* The block-th refcount block. */
static void fill_refcount_block(const struct qcow2_params *p, const struct qcow2_layout *l,
                                uint64_t block, uint8_t *raw)
{
    uint64_t cluster = geometry_cluster(&p->geo);
    uint64_t n = cluster * 8 >> p->geo.refcount_order, first = block * n;

    memset(raw, 0, cluster);
    for (uint64_t i = first; i < MIN(l->end, first + n); i++)
        refcount_pack(p->geo.refcount_order, raw, i - first, 1);
}

/* The part-th cluster of the refcount table. */
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

/* A store that can be cut is empty, and growth reads as zeroes. */
static int write_l1(const struct qcow2_params *p, const struct qcow2_layout *l,
                    struct storage *st)
{
    uint64_t start = offset_of(p, l->l1), end = offset_of(p, l->end);

    return st->fixed_size ? storage_zero(st, start, end - start, 0)
                          : storage_truncate(st, end);
}

/* The header comes last: until then the file is no image. */
static int write_image(const struct qcow2_params *p, struct storage *st)
{
    struct qcow2_layout l = qcow2_plan_layout(p);

    int err = write_l1(p, &l, st);
    if (err)
        return err;
    err = write_refcounts(p, &l, st);
    if (err)
        return err;
    err = storage_flush(st);
    if (err)
        return err;
    err = write_first_cluster(p, &l, st);
    return err ? err : storage_flush(st);
}

/* ---- preallocation ---- */

static int write_all_zeroes(struct node *node)
{
    uint64_t step = 1u << 20;
    CLEANUP_FREE uint8_t *zeroes = calloc(1, step);
    if (!zeroes)
        return -ENOMEM;

    for (uint64_t off = 0; off < node->size; off += step) {
        int err = block_write(node, zeroes, off, MIN(step, node->size - off), 0);
        if (err)
            return err;
    }
    return 0;
}

/* The blocks of the whole file; a device has its own. */
static int reserve_blocks(struct storage *file)
{
    uint64_t bytes;

    if (file->fixed_size)
        return 0;
    int err = storage_size(file, &bytes);
    return err ? err : storage_preallocate(file, 0, bytes);
}

static int allocate_disk(struct node *node, enum qcow2_preallocation how)
{
    int err = block_preallocate(node, 0, node->size);

    if (!err && how != PREALLOC_METADATA)
        err = reserve_blocks(node->file);
    /* A filesystem that can't reserve blocks gets them by being written to. */
    if ((how == PREALLOC_FULL && !err) || err == -ENOTSUP)
        err = write_all_zeroes(node);
    return err;
}

static int activate_and_allocate(const struct qcow2_params *p, struct node *node,
                                 struct diag *diag)
{
    int err = node_activate(node, diag);
    if (err)
        return err;
    err = allocate_disk(node, p->preallocation);
    return err ? diag_errno(diag, -err, "%s: preallocating", p->filename) : 0;
}

/* Takes the storage over. */
static int open_and_allocate(const struct qcow2_params *p, struct block_context *ctx,
                             struct storage *st, struct diag *diag)
{
    static const struct node_options options;
    struct node *node;

    int err = node_open(ctx, &qcow2_driver, st, p->filename, &options, &node, diag);
    if (err)
        return err;
    err = activate_and_allocate(p, node, diag);
    int close_err = node_close(node);
    if (!err && close_err)
        err = diag_errno(diag, -close_err, "%s: closing", p->filename);
    return err;
}

/* Takes the storage over. */
static int preallocate_image(const struct qcow2_params *p, struct storage *st,
                             struct diag *diag)
{
    struct block_context ctx;

    int err = block_context_init(&ctx, 16u << 20, NULL, NULL);
    if (err) {
        storage_close(st);
        return diag_errno(diag, -err, "%s", p->filename);
    }
    err = open_and_allocate(p, &ctx, st, diag);
    block_context_destroy(&ctx);
    return err;
}

int qcow2_create(struct storage *st, const struct create_request *req, struct diag *diag)
{
    CLEANUP_STORAGE struct storage *file = st;
    struct qcow2_params params;

    int err = qcow2_parse_params(req, &params, diag);
    if (err)
        return err;
    err = write_image(&params, file);
    if (err)
        return diag_errno(diag, -err, "%s: writing the image", req->filename);
    if (params.preallocation == PREALLOC_OFF)
        return 0;
    file = NULL;
    return preallocate_image(&params, st, diag);
}
