/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of `create`: which there are, and what they say together. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/create.h"
#include "qcow2/internal.h"

const struct create_option_info qcow2_create_options[] = {
    {"encryption", CREATE_SWITCH, .not_on = "encrypted images are not supported"},
    {"cluster_size", CREATE_SIZE, .initial = "65536",
     .help = "Size of a cluster, 512 bytes to 2 MiB"},
    {"extended_l2", CREATE_SWITCH, .initial = "off"},
    {"preallocation", CREATE_TEXT,
     .help = "What to allocate now: off, metadata, falloc or full"},
    {"compression_type", CREATE_TEXT, .initial = "zlib"},
    CREATE_OPTION_SIZE,
    {"compat", CREATE_TEXT, .help = "Version of the format: 0.10 (v2) or 1.1 (v3)"},
    CREATE_OPTION_BACKING_FILE,
    CREATE_OPTION_BACKING_FORMAT,
    {"lazy_refcounts", CREATE_SWITCH, .initial = "off",
     .help = "Postpone the updates of reference counts"},
    {"refcount_bits", CREATE_NUMBER, .initial = "16",
     .help = "Width of a reference count, 1 to 64 bits"},
    CREATE_OPTION_NOCOW,
    CREATE_OPTION_EXTENT,
    {0},
};

/* ---- one option each: 0, or -errno with a sentence ---- */

static int refuse_value(const struct qcow2_params *p, const struct create_option *o,
                        const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: %s '%s': %s", p->filename, o->key, o->value, why);
}

/* Takes a power of two in [2^min, 2^max]. */
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

/* The index of o's value in a list of words that ends with NULL. */
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
    static const char *const words[] = {"zlib", NULL};
    unsigned index;

    return take_word(p, o, words, "only zlib is supported", &index, diag);
}

static int take_extended_l2(struct qcow2_params *p, const struct create_option *o,
                            struct diag *diag)
{
    bool on;

    int err = take_switch(p, o, &on, diag);
    if (err || !on)
        return err;
    return diag_set(diag, ENOTSUP, "%s: extended_l2: extended L2 entries are not supported",
                    p->filename);
}

static int take_encryption(struct qcow2_params *p, const struct create_option *o,
                           struct diag *diag)
{
    bool on;

    int err = take_switch(p, o, &on, diag);
    if (err || !on)
        return err;
    return diag_set(diag, ENOTSUP, "%s: encryption=on: encrypted images are not supported",
                    p->filename);
}

static const struct {
    const char *key;
    int (*take)(struct qcow2_params *p, const struct create_option *o, struct diag *diag);
} takers[] = {
    {"cluster_size", take_cluster_size},         {"compat", take_compat},
    {"compression_type", take_compression_type}, {"encryption", take_encryption},
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
    return diag_set(diag, EINVAL, "%s: unknown option '%s' for qcow2", p->filename, o->key);
}

/* What version 2 doesn't have. */
static int check_version(const struct qcow2_params *p, struct diag *diag)
{
    if (p->geo.version >= 3)
        return 0;
    if (p->geo.refcount_order != 4)
        return diag_set(
            diag, EINVAL,
            "%s: refcount_bits: %u need version 3 (compat=1.1); version 2 has 16",
            p->filename, 1u << p->geo.refcount_order);
    if (p->lazy_refcounts)
        return diag_set(diag, EINVAL,
                        "%s: lazy_refcounts=on: needs version 3 (compat=1.1 or later)",
                        p->filename);
    return 0;
}

static int check_size(const struct qcow2_params *p, struct diag *diag)
{
    if (p->size <= INT64_MAX && geometry_l1_entries(&p->geo, p->size) * 8 <= MAX_L1_BYTES)
        return 0;
    return diag_set(diag, EFBIG,
                    "%s: size: %" PRIu64 " bytes are too many for clusters of %u bytes",
                    p->filename, p->size, 1u << p->geo.cluster_bits);
}

static int check_backing(const struct qcow2_params *p, struct diag *diag)
{
    if (p->backing_file && p->preallocation != PREALLOC_OFF)
        return diag_set(diag, EINVAL,
                        "%s: preallocation: can't be used together with a backing file",
                        p->filename);
    if (p->backing_file && strlen(p->backing_file) > MAX_BACKING_NAME)
        return diag_set(diag, EINVAL, "%s: backing_file: its name is longer than %d bytes",
                        p->filename, MAX_BACKING_NAME);
    if (p->backing_format && strlen(p->backing_format) > 15)
        return diag_set(diag, EINVAL, "%s: backing_fmt '%s': longer than 15 bytes",
                        p->filename, p->backing_format);
    return 0;
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
    };
    for (size_t i = 0; i < req->n_options; i++) {
        int err = take_option(out, &req->options[i], diag);
        if (err)
            return err;
    }
    out->geo = qcow2_geometry(out->geo.version, out->geo.cluster_bits,
                              out->geo.refcount_order, false, false);
    int err = check_version(out, diag);
    if (err)
        return err;
    err = check_size(out, diag);
    return err ? err : check_backing(out, diag);
}

int qcow2_check_create(const struct create_request *req, struct diag *diag)
{
    struct qcow2_params params;

    return qcow2_parse_params(req, &params, diag);
}
