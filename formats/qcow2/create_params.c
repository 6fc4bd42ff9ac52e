/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of `create`: the table of them, parsing each, and checking all of them together. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/luks_options.h"
#include "qcow2/create.h"
#include "qcow2/internal.h"

const struct create_option_info qcow2_create_options[] = {
    {"encryption", CREATE_SWITCH, .help = "Old word for encrypt.format=aes"},
    {"encrypt.format", CREATE_TEXT,
     .help = "Encrypt the guest's data: luks, or aes (unsafe)"},
    LUKS_CREATE_OPTIONS("encrypt."),
    {"cluster_size", CREATE_SIZE, .initial = "65536",
     .help = "Size of a cluster, 512 bytes to 2 MiB"},
    {"extended_l2", CREATE_SWITCH, .initial = "off",
     .help = "Divide clusters into 32 subclusters"},
    {"preallocation", CREATE_TEXT,
     .help = "What to allocate now: off, metadata, falloc or full"},
    {"compression_type", CREATE_TEXT, .initial = "zlib",
     .help = "How clusters are compressed: zlib or zstd"},
    CREATE_OPTION_SIZE,
    {"compat", CREATE_TEXT, .help = "Version of the format: 0.10 (v2) or 1.1 (v3)"},
    CREATE_OPTION_BACKING_FILE,
    CREATE_OPTION_BACKING_FORMAT,
    {"data_file", CREATE_TEXT, .help = "File name of an external data file",
     .in_request = true},
    {"data_file_raw", CREATE_SWITCH, .help = "The data file is a raw image by itself"},
    {"lazy_refcounts", CREATE_SWITCH, .initial = "off",
     .help = "Postpone the updates of reference counts"},
    {"refcount_bits", CREATE_NUMBER, .initial = "16",
     .help = "Width of a reference count, 1 to 64 bits"},
    CREATE_OPTION_NOCOW,
    CREATE_OPTION_EXTENT,
    {0},
};

/* ---- parsing one option each: 0, or -errno and a message ---- */

static int refuse_value(const struct qcow2_params *p, const struct create_option *o,
                        const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: %s '%s': %s", p->filename, o->key, o->value, why);
}

/* Parses a power of two in [2^min, 2^max]; *bits is its logarithm. */
static int take_power(const struct qcow2_params *p, const struct create_option *o,
                      uint32_t min, uint32_t max, const char *why, uint32_t *bits,
                      struct diag *diag)
{
    char *end;
    uint64_t v = strtoull(o->value, &end, 10);

    if (*end || end == o->value || !is_power_of_two(v) || v < 1ull << min ||
        v > 1ull << max)
        return refuse_value(p, o, why, diag);
    *bits = (uint32_t)__builtin_ctzll(v);
    return 0;
}

/* Finds the option's value in a list of words that ends with NULL; *index is its place there. */
static int take_word(const struct qcow2_params *p, const struct create_option *o,
                     const char *const *words, const char *why, unsigned *index,
                     struct diag *diag)
{
    for (unsigned i = 0; words[i]; i++)
        if (strcmp(o->value, words[i]) == 0) {
            *index = i;
            return 0;
        }
    return refuse_value(p, o, why, diag);
}

static int take_switch(const struct qcow2_params *p, const struct create_option *o,
                       bool *on, struct diag *diag)
{
    static const char *const words[] = {"off", "on", NULL};
    unsigned index = 0;

    int err = take_word(p, o, words, "must be on or off", &index, diag);
    *on = index;
    return err;
}

static int take_cluster_size(struct qcow2_params *p, const struct create_option *o,
                             struct diag *diag)
{
    return take_power(p, o, MIN_CLUSTER_BITS, MAX_CLUSTER_BITS,
                      "must be a power of two from 512 to 2M", &p->geo.cluster_bits, diag);
}

static int take_refcount_bits(struct qcow2_params *p, const struct create_option *o,
                              struct diag *diag)
{
    return take_power(p, o, 0, MAX_REFCOUNT_ORDER, "must be a power of two from 1 to 64",
                      &p->geo.refcount_order, diag);
}

static int take_compat(struct qcow2_params *p, const struct create_option *o,
                       struct diag *diag)
{
    static const char *const words[] = {"v2", "0.10", "v3", "1.1", NULL};
    unsigned index = 0;

    int err = take_word(p, o, words, "must be 0.10 or 1.1", &index, diag);
    p->geo.version = index < 2 ? 2 : 3;
    return err;
}

static int take_lazy_refcounts(struct qcow2_params *p, const struct create_option *o,
                               struct diag *diag)
{
    return take_switch(p, o, &p->lazy_refcounts, diag);
}

static int take_preallocation(struct qcow2_params *p, const struct create_option *o,
                              struct diag *diag)
{
    static const char *const words[] = {"off", "metadata", "falloc", "full", NULL};
    unsigned index = 0;

    int err = take_word(p, o, words, "must be off, metadata, falloc or full", &index, diag);
    p->preallocation = (enum qcow2_preallocation)index;
    return err;
}

static int take_compression_type(struct qcow2_params *p, const struct create_option *o,
                                 struct diag *diag)
{
    static const char *const words[] = {
        [COMPRESSION_ZLIB] = "zlib", [COMPRESSION_ZSTD] = "zstd", NULL};
    unsigned index = 0;

    int err = take_word(p, o, words, "must be zlib or zstd", &index, diag);
    p->compression_type = (uint8_t)index;
    return err;
}

static int take_extended_l2(struct qcow2_params *p, const struct create_option *o,
                            struct diag *diag)
{
    bool on;

    int err = take_switch(p, o, &on, diag);
    p->geo.word_bits = on;
    return err;
}

static int take_data_file_raw(struct qcow2_params *p, const struct create_option *o,
                              struct diag *diag)
{
    return take_switch(p, o, &p->data_file_raw, diag);
}

static const struct {
    const char *key;
    int (*take)(struct qcow2_params *p, const struct create_option *o, struct diag *diag);
} takers[] = {
    {"cluster_size", take_cluster_size},         {"compat", take_compat},
    {"compression_type", take_compression_type}, {"data_file_raw", take_data_file_raw},
    {"extended_l2", take_extended_l2},           {"lazy_refcounts", take_lazy_refcounts},
    {"preallocation", take_preallocation},       {"refcount_bits", take_refcount_bits},
};

/* ---- all of them ---- */

static int take_option(struct qcow2_params *p, const struct create_option *o,
                       struct diag *diag)
{
    for (size_t i = 0; i < ARRAY_LEN(takers); i++)
        if (strcmp(takers[i].key, o->key) == 0)
            return takers[i].take(p, o, diag);
    int err = qcow2_take_encryption(p, o, diag);
    if (err != -ENOENT)
        return err;
    return diag_set(diag, EINVAL, "%s: unknown option '%s' for qcow2", p->filename, o->key);
}

/* Refuses what version 2 can't express. */
static int check_version(const struct qcow2_params *p, struct diag *diag)
{
    if (p->geo.version >= 3)
        return 0;
    if (p->geo.refcount_order != 4)
        return diag_set(
            diag, EINVAL,
            "%s: refcount_bits: %u need version 3 (compat=1.1); version 2 has 16",
            p->filename, 1u << p->geo.refcount_order);
    const char *newer = p->lazy_refcounts     ? "lazy_refcounts=on"
                        : p->geo.word_bits    ? "extended_l2=on"
                        : p->compression_type ? "compression_type=zstd"
                        : p->data_file        ? "data_file"
                                              : NULL;
    if (newer)
        return diag_set(diag, EINVAL, "%s: %s: needs version 3 (compat=1.1 or later)",
                        p->filename, newer);
    return 0;
}

static int check_extended(const struct qcow2_params *p, struct diag *diag)
{
    if (!p->geo.word_bits || p->geo.cluster_bits >= MIN_EXTENDED_CLUSTER_BITS)
        return 0;
    return diag_set(
        diag, EINVAL, "%s: extended_l2=on: needs clusters of %u bytes at least, not %u",
        p->filename, 1u << MIN_EXTENDED_CLUSTER_BITS, 1u << p->geo.cluster_bits);
}

/* Checks the options of an external data file.  With the raw bit the file must read as the disk
 * does, so each cluster is given its place at once. */
static int check_data_file(struct qcow2_params *p, struct diag *diag)
{
    if (p->data_file_raw && !p->data_file)
        return diag_set(diag, EINVAL, "%s: data_file_raw=on: needs a data_file",
                        p->filename);
    if (p->data_file_raw && p->backing_file)
        return diag_set(diag, EINVAL,
                        "%s: data_file_raw=on: can't be used together with a backing file",
                        p->filename);
    if (p->data_file && !p->data_file[0])
        return diag_set(diag, EINVAL, "%s: data_file: its name is empty", p->filename);
    if (p->data_file && strlen(p->data_file) > MAX_BACKING_NAME)
        return diag_set(diag, EINVAL, "%s: data_file: its name is longer than %d bytes",
                        p->filename, MAX_BACKING_NAME);
    if (p->data_file_raw && p->preallocation == PREALLOC_OFF)
        p->preallocation = PREALLOC_METADATA;
    return 0;
}

static int check_size(const struct qcow2_params *p, struct diag *diag)
{
    if (p->size <= INT64_MAX && geometry_l1_entries(&p->geo, p->size) * 8 <= MAX_L1_BYTES)
        return 0;
    return diag_set(diag, EFBIG,
                    "%s: size: %" PRIu64
                    " bytes are too many for clusters of %u bytes (try "
                    "using a larger cluster size)",
                    p->filename, p->size, 1u << p->geo.cluster_bits);
}

static int check_backing(const struct qcow2_params *p, struct diag *diag)
{
    if (p->backing_file && p->preallocation != PREALLOC_OFF && !p->geo.word_bits)
        return diag_set(diag, EINVAL,
                        "%s: preallocation: can't be used together with a backing file, "
                        "unless with extended_l2=on",
                        p->filename);
    if (p->backing_file && strlen(p->backing_file) > MAX_BACKING_NAME)
        return diag_set(diag, EINVAL, "%s: backing_file: its name is longer than %d bytes",
                        p->filename, MAX_BACKING_NAME);
    if (p->backing_format && strlen(p->backing_format) > 15)
        return diag_set(diag, EINVAL, "%s: backing_fmt '%s': longer than 15 bytes",
                        p->filename, p->backing_format);
    return 0;
}

static int take_options(struct qcow2_params *p, const struct create_request *req,
                        struct diag *diag)
{
    for (size_t i = 0; i < req->n_options; i++) {
        int err = take_option(p, &req->options[i], diag);
        if (err)
            return err;
    }
    return 0;
}

static int judge_params(struct qcow2_params *p, const struct create_request *req,
                        struct diag *diag)
{
    int err = check_version(p, diag);
    if (err)
        return err;
    err = check_extended(p, diag);
    if (err)
        return err;
    p->geo = qcow2_geometry(p->geo.version, p->geo.cluster_bits, p->geo.refcount_order,
                            p->geo.word_bits, p->data_file);
    err = check_size(p, diag);
    if (err)
        return err;
    err = check_data_file(p, diag);
    if (err)
        return err;
    err = check_backing(p, diag);
    return err ? err : qcow2_judge_encryption(p, req, diag);
}

int qcow2_parse_params(const struct create_request *req, struct qcow2_params *out,
                       struct diag *diag)
{
    *out = (struct qcow2_params){
        .filename = req->filename,
        .size = align_up(MIN(req->size, (uint64_t)INT64_MAX), 512),
        .geo = {.version = 3, .cluster_bits = 16, .refcount_order = 4},
        .backing_file = req->backing_file,
        .backing_format = req->backing_format,
        .data_file = req->data_file,
        .encryption = {.luks = luks_default_params},
        .give_up = req->give_up,
    };
    int err = take_options(out, req, diag);
    return err ? err : judge_params(out, req, diag);
}

int qcow2_check_create(const struct create_request *req, struct diag *diag)
{
    struct qcow2_params params;

    return qcow2_parse_params(req, &params, diag);
}
