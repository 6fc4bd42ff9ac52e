/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing an empty image: header | refcount table | refcount blocks | L1 table; then, when
 * it is asked for, clusters for the whole disk. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/header_ext.h"
#include "qcow2/internal.h"
#include "qcow2/qcow2.h"

const struct create_option_info qcow2_create_options[] = {
    {"encryption", CREATE_SWITCH, NULL, NULL},
    {"cluster_size", CREATE_SIZE, "65536", "Size of a cluster, 512 bytes to 2 MiB"},
    {"extended_l2", CREATE_SWITCH, "off", NULL},
    {"preallocation", CREATE_TEXT, NULL,
     "What to allocate now: off, metadata, falloc or full"},
    {"compression_type", CREATE_TEXT, "zlib", NULL},
    {"size", CREATE_SIZE, NULL, "Virtual disk size"},
    {"compat", CREATE_TEXT, NULL, "Version of the format: 0.10 (v2) or 1.1 (v3)"},
    {"backing_file", CREATE_TEXT, NULL, "File name of a base image"},
    {"backing_fmt", CREATE_TEXT, NULL, "Image format of the base image"},
    {"lazy_refcounts", CREATE_SWITCH, "off", "Postpone the updates of reference counts"},
    {"refcount_bits", CREATE_NUMBER, "16", "Width of a reference count, 1 to 64 bits"},
    CREATE_NOCOW_OPTION,
    CREATE_EXTENT_OPTION,
    {0},
};

#define HEADER_LENGTH 112 /* with the compression type */

enum preallocation { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

struct settings {
    const char *filename;
    uint64_t size; /* whole sectors */
    uint32_t version, cluster_bits, refcount_order;
    bool lazy;
    enum preallocation preallocation;
    const char *backing_file, *backing_format;
};

/* Clusters of an empty image, by number. */
struct layout {
    uint64_t table, blocks, l1, end;
};

static uint64_t l1_entries(const struct settings *s)
{
    struct qcow2_geometry geo =
        qcow2_geometry(s->version, s->cluster_bits, s->refcount_order, false, false);

    return geometry_l1_entries(&geo, s->size);
}

static int bad_value(const struct settings *s, const struct create_option *o,
                     const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: %s '%s': %s", s->filename, o->key, o->value, why);
}

/* Takes a power of two in [2^min, 2^max]. */
static int take_power(const struct settings *s, const struct create_option *o, uint32_t min,
                      uint32_t max, const char *why, uint32_t *bits, struct diag *diag)
{
    char *end;
    uint64_t v = strtoull(o->value, &end, 10);

    if (*end || end == o->value || !is_power_of_two(v) || v < 1ull << min ||
        v > 1ull << max)
        return bad_value(s, o, why, diag);
    *bits = (uint32_t)__builtin_ctzll(v);
    return 0;
}

/* The index of o's value in a list of words that ends with NULL. */
static int take_word(const struct settings *s, const struct create_option *o,
                     const char *const *words, const char *why, unsigned *index,
                     struct diag *diag)
{
    for (unsigned i = 0; words[i]; i++)
        if (strcmp(o->value, words[i]) == 0) {
            *index = i;
            return 0;
        }
    return bad_value(s, o, why, diag);
}

static int take_option(struct settings *s, const struct create_option *o, struct diag *diag)
{
    static const char *const compats[] = {"v2", "0.10", "v3", "1.1", NULL};
    static const char *const switches[] = {"off", "on", NULL};
    static const char *const preallocations[] = {"off", "metadata", "falloc", "full", NULL};
    static const char *const compressions[] = {"zlib", NULL};
    unsigned index = 0;
    int err;

    if (strcmp(o->key, "cluster_size") == 0)
        return take_power(s, o, MIN_CLUSTER_BITS, MAX_CLUSTER_BITS,
                          "must be a power of two from 512 to 2M", &s->cluster_bits, diag);
    if (strcmp(o->key, "refcount_bits") == 0)
        return take_power(s, o, 0, MAX_REFCOUNT_ORDER,
                          "must be a power of two from 1 to 64", &s->refcount_order, diag);
    if (strcmp(o->key, "compat") == 0) {
        err = take_word(s, o, compats, "must be 0.10 or 1.1", &index, diag);
        s->version = index < 2 ? 2 : 3;
        return err;
    }
    if (strcmp(o->key, "lazy_refcounts") == 0) {
        err = take_word(s, o, switches, "must be on or off", &index, diag);
        s->lazy = index;
        return err;
    }
    if (strcmp(o->key, "preallocation") == 0) {
        err = take_word(s, o, preallocations, "must be off, metadata, falloc or full",
                        &index, diag);
        s->preallocation = (enum preallocation)index;
        return err;
    }
    if (strcmp(o->key, "compression_type") == 0)
        return take_word(s, o, compressions, "only zlib is supported", &index, diag);
    if (strcmp(o->key, "extended_l2") == 0) {
        err = take_word(s, o, switches, "must be on or off", &index, diag);
        return !err && index
                   ? diag_set(diag, ENOTSUP,
                              "%s: extended_l2: extended L2 entries are not supported",
                              s->filename)
                   : err;
    }
    return diag_set(diag, EINVAL, "%s: unknown option '%s' for qcow2", s->filename, o->key);
}

static int check_settings(const struct settings *s, struct diag *diag)
{
    if (s->version < 3 && s->refcount_order != 4)
        return diag_set(
            diag, EINVAL,
            "%s: refcount_bits: %u need version 3 (compat=1.1); version 2 has 16",
            s->filename, 1u << s->refcount_order);
    if (s->version < 3 && s->lazy)
        return diag_set(diag, EINVAL,
                        "%s: lazy_refcounts=on: needs version 3 (compat=1.1 or later)",
                        s->filename);
    if (s->size > INT64_MAX || l1_entries(s) * 8 > MAX_L1_BYTES)
        return diag_set(diag, EFBIG,
                        "%s: size: %" PRIu64 " bytes are too many for clusters of %u bytes",
                        s->filename, s->size, 1u << s->cluster_bits);
    if (s->backing_file && s->preallocation != PREALLOC_OFF)
        return diag_set(diag, EINVAL,
                        "%s: preallocation: can't be used together with a backing file",
                        s->filename);
    if (s->backing_file && strlen(s->backing_file) > MAX_BACKING_NAME)
        return diag_set(diag, EINVAL, "%s: backing_file: its name is longer than %d bytes",
                        s->filename, MAX_BACKING_NAME);
    if (s->backing_format && strlen(s->backing_format) > 15)
        return diag_set(diag, EINVAL, "%s: backing_fmt '%s': longer than 15 bytes",
                        s->filename, s->backing_format);
    return 0;
}

static int read_settings(struct create_request *req, struct settings *s, struct diag *diag)
{
    *s = (struct settings){
        .filename = req->filename,
        .size = align_up(MIN(req->size, (uint64_t)INT64_MAX), 512),
        .version = 3,
        .cluster_bits = 16,
        .refcount_order = 4,
        .backing_file = req->backing_file,
        .backing_format = req->backing_format,
    };
    for (size_t i = 0; i < req->n_options; i++) {
        int err = take_option(s, &req->options[i], diag);
        if (err)
            return err;
        req->options[i].used = true;
    }
    return check_settings(s, diag);
}

static struct layout plan(const struct settings *s)
{
    uint64_t cluster = 1ull << s->cluster_bits;
    uint64_t per_block = cluster * 8 >> s->refcount_order;
    uint64_t l1 = div_round_up(l1_entries(s) * 8, cluster);
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
    return (struct layout){.table = 1,
                           .blocks = 1 + table,
                           .l1 = 1 + table + blocks,
                           .end = 1 + table + blocks + l1};
}

static void fill_header(const struct settings *s, const struct layout *l, uint8_t *raw)
{
#define PUT(bits, field, value) \
    store_be##bits(raw + offsetof(struct qcow2_disk_header, field), (value))
    PUT(32, magic, QCOW2_MAGIC);
    PUT(32, version, s->version);
    PUT(32, cluster_bits, s->cluster_bits);
    PUT(64, size, s->size);
    PUT(32, l1_size, (uint32_t)l1_entries(s));
    PUT(64, l1_table_offset, l->l1 << s->cluster_bits);
    PUT(64, refcount_table_offset, l->table << s->cluster_bits);
    PUT(32, refcount_table_clusters, (uint32_t)(l->blocks - l->table));
    if (s->version >= 3) {
        PUT(64, compatible_features, s->lazy ? COMPAT_LAZY_REFCOUNTS : 0);
        PUT(32, refcount_order, s->refcount_order);
        PUT(32, header_length, HEADER_LENGTH);
    }
#undef PUT
}

/* Header, extensions and backing name, in the first cluster. */
static int write_header(const struct settings *s, const struct layout *l,
                        struct storage *st)
{
    size_t cluster = (size_t)1 << s->cluster_bits;
    size_t at = s->version >= 3 ? HEADER_LENGTH : QCOW2_V2_HEADER_BYTES;
    CLEANUP_FREE uint8_t *raw = calloc(1, cluster);
    if (!raw)
        return -ENOMEM;

    fill_header(s, l, raw);
    int err = 0;
    if (s->backing_format)
        err = qcow2_header_ext_append(raw, cluster, &at, EXT_BACKING_FORMAT,
                                      s->backing_format, strlen(s->backing_format));
    size_t name_len = s->backing_file ? strlen(s->backing_file) : 0;
    size_t names = qcow2_n_feature_names * sizeof *qcow2_feature_names;
    /* The names are a courtesy: in a small cluster the backing name goes first. */
    if (!err && s->version >= 3 && at + 8 + names + 8 + name_len <= cluster)
        err = qcow2_header_ext_append(raw, cluster, &at, EXT_FEATURE_NAMES,
                                      qcow2_feature_names, names);
    if (!err)
        err = qcow2_header_ext_append(raw, cluster, &at, EXT_END, NULL, 0);
    if (!err && name_len > cluster - at)
        err = -ENAMETOOLONG;
    if (err)
        return err;
    if (name_len) {
        store_be64(raw + offsetof(struct qcow2_disk_header, backing_file_offset), at);
        store_be32(raw + offsetof(struct qcow2_disk_header, backing_file_size),
                   (uint32_t)name_len);
        memcpy(raw + at, s->backing_file, name_len);
    }
    return storage_write(st, raw, 0, cluster, 0);
}

static int write_refcounts(const struct settings *s, const struct layout *l,
                           struct storage *st)
{
    uint64_t cluster = 1ull << s->cluster_bits,
             per_block = cluster * 8 >> s->refcount_order;
    CLEANUP_FREE uint8_t *raw = malloc(cluster);
    int err = raw ? 0 : -ENOMEM;

    for (uint64_t b = 0; !err && b < l->l1 - l->blocks; b++) {
        memset(raw, 0, cluster);
        for (uint64_t c = b * per_block; c < MIN(l->end, (b + 1) * per_block); c++)
            refcount_pack(s->refcount_order, raw, c - b * per_block, 1);
        err = storage_write(st, raw, (l->blocks + b) << s->cluster_bits, cluster, 0);
    }
    for (uint64_t t = 0; !err && t < l->blocks - l->table; t++) {
        memset(raw, 0, cluster);
        for (uint64_t i = 0; i < cluster / 8; i++) {
            uint64_t b = t * (cluster / 8) + i;
            if (b < l->l1 - l->blocks)
                store_be64(raw + i * 8, (l->blocks + b) << s->cluster_bits);
        }
        err = storage_write(st, raw, (l->table + t) << s->cluster_bits, cluster, 0);
    }
    return err;
}

/* The header comes last: until then the file is no image. */
static int write_image(const struct settings *s, struct storage *st)
{
    struct layout l = plan(s);
    uint64_t l1_bytes = (l.end - l.l1) << s->cluster_bits;
    int err = st->fixed_size ? storage_zero(st, l.l1 << s->cluster_bits, l1_bytes, 0)
                             : storage_truncate(st, l.end << s->cluster_bits);

    if (!err)
        err = write_refcounts(s, &l, st);
    if (!err)
        err = storage_flush(st);
    if (!err)
        err = write_header(s, &l, st);
    if (!err)
        err = storage_flush(st);
    return err;
}

static int write_all_zeroes(struct node *node)
{
    uint64_t step = 1u << 20;
    CLEANUP_FREE uint8_t *zeroes = calloc(1, step);
    int err = zeroes ? 0 : -ENOMEM;

    for (uint64_t off = 0; !err && off < node->size; off += step)
        err = block_write(node, zeroes, off, MIN(step, node->size - off), 0);
    return err;
}

static int allocate(struct node *node, enum preallocation how)
{
    uint64_t bytes;
    int err = block_preallocate(node, 0, node->size);

    if (!err && how != PREALLOC_METADATA)
        err = storage_size(node->file, &bytes);
    if (!err && how != PREALLOC_METADATA && !node->file->fixed_size)
        err = storage_preallocate(node->file, 0, bytes);
    /* A filesystem that can't reserve blocks gets them by being written to. */
    if ((how == PREALLOC_FULL && !err) || err == -ENOTSUP)
        err = write_all_zeroes(node);
    return err;
}

/* Takes the storage over. */
static int preallocate(const struct settings *s, struct storage *st, struct diag *diag)
{
    static const struct node_options options;
    struct block_context ctx;
    struct node *node;

    int err = block_context_init(&ctx, 16u << 20, NULL, NULL);
    if (err) {
        storage_close(st);
        return diag_errno(diag, -err, "%s", s->filename);
    }
    err = node_open(&ctx, &qcow2_driver, st, s->filename, &options, &node, diag);
    if (!err) {
        err = node_activate(node, diag);
        if (!err) {
            err = allocate(node, s->preallocation);
            if (err)
                diag_errno(diag, -err, "%s: preallocating", s->filename);
        }
        int close_err = node_close(node);
        if (!err && close_err)
            err = diag_errno(diag, -close_err, "%s: closing", s->filename);
    }
    block_context_destroy(&ctx);
    return err;
}

int qcow2_create(struct create_request *req, struct diag *diag)
{
    struct settings s;
    struct storage *st;

    int err = read_settings(req, &s, diag);
    if (!err)
        err = storage_create_file(req->filename, &st, diag);
    if (err)
        return err;
    bool device = st->fixed_size;
    storage_set_hints(st, &req->hints);
    err = write_image(&s, st);
    if (err)
        diag_errno(diag, -err, "%s: writing the image", req->filename);
    if (err || s.preallocation == PREALLOC_OFF)
        storage_close(st);
    else
        err = preallocate(&s, st, diag);
    if (err && !device)
        unlink(req->filename);
    return err;
}
