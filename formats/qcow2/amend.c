/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing the options of an existing image: version, features, refcount width, key slots, size.
 *
 * All options are checked before anything is changed.  A step that writes more than one sector
 * makes the others durable before the header's first sector refers to them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/amend.h"
#include "block/snapshot.h"
#include "qcow2/header_ext.h"
#include "qcow2/internal.h"

#define FIELD(name)   offsetof(struct qcow2_disk_header, name)
#define HEADER_LENGTH 112

const struct create_option_info qcow2_amend_options[] = {
    {"backing_file", CREATE_TEXT, .help = "File name of a base image"},
    {"backing_fmt", CREATE_TEXT, .help = "Image format of the base image"},
    {"compat", CREATE_TEXT, .help = "Version of the format: 0.10 (v2) or 1.1 (v3)"},
    {"data_file", CREATE_TEXT, .help = "File name of an external data file"},
    {"data_file_raw", CREATE_SWITCH, .help = "The data file is a raw image by itself"},
    {"encrypt.iter-time", CREATE_NUMBER,
     .help = "Milliseconds that trying a passphrase shall take"},
    {"encrypt.keyslot", CREATE_NUMBER, .help = "The key slot that is changed"},
    {"encrypt.new-secret", CREATE_TEXT, .help = "Id of the secret that is let in"},
    {"encrypt.old-secret", CREATE_TEXT,
     .help = "Id of a secret that opens it; or that is shut out"},
    {"encrypt.state", CREATE_TEXT, .help = "What becomes of key slots: active or inactive"},
    {"lazy_refcounts", CREATE_SWITCH, .help = "Postpone the updates of reference counts"},
    {"refcount_bits", CREATE_NUMBER, .help = "Width of a reference count, 1 to 64 bits"},
    CREATE_OPTION_SIZE,
    {0},
};

/* The options that the image will have. */
struct amendment {
    uint32_t version, refcount_order;
    bool lazy, data_raw, keys;
    const char *data_file; /* NULL: the name doesn't change */
};

/* ---- checking ---- */

static int refuse(const char *name, struct diag *diag, const char *why)
{
    return diag_set(diag, EINVAL, "%s: %s", name, why);
}

static int take_version(const char *name, const struct amend_request *req,
                        struct amendment *a, struct diag *diag)
{
    const char *text = amend_value(req, "compat");

    if (!text)
        return 0;
    if (strcmp(text, "0.10") == 0 || strcmp(text, "v2") == 0)
        a->version = 2;
    else if (strcmp(text, "1.1") == 0 || strcmp(text, "v3") == 0)
        a->version = 3;
    else
        return diag_set(diag, EINVAL, "%s: Unknown compatibility level %s", name, text);
    return 0;
}

static int take_width(const char *name, const struct amend_request *req,
                      struct amendment *a, struct diag *diag)
{
    const char *text = amend_value(req, "refcount_bits");
    uint64_t bits = text ? strtoull(text, NULL, 10) : 1;

    if (!is_power_of_two(bits) || bits > 64)
        return refuse(name, diag,
                      "Refcount width must be a power of two and may not exceed 64 bits");
    if (text)
        a->refcount_order = (uint32_t)__builtin_ctzll(bits);
    if (text && a->version < 3 && a->refcount_order != 4)
        return refuse(name, diag,
                      "Refcount widths other than 16 bits require compatibility level 1.1 "
                      "or above (use compat=1.1 or greater)");
    return 0;
}

static int take_features(const char *name, const struct qcow2_header *h,
                         const struct amend_request *req, struct amendment *a,
                         struct diag *diag)
{
    const char *lazy = amend_value(req, "lazy_refcounts");
    const char *raw = amend_value(req, "data_file_raw");

    a->data_file = amend_value(req, "data_file");
    if (lazy)
        a->lazy = strcmp(lazy, "on") == 0;
    if (lazy && a->lazy && a->version < 3)
        return refuse(
            name, diag,
            "Lazy refcounts only supported with compatibility level 1.1 and above "
            "(use compat=1.1 or greater)");
    if (raw && strcmp(raw, "on") == 0 && !a->data_raw)
        return refuse(name, diag, "data-file-raw cannot be set on existing images");
    if (raw)
        a->data_raw = strcmp(raw, "on") == 0;
    if (a->data_file && !(h->incompatible & INCOMPAT_DATA_FILE))
        return refuse(
            name, diag,
            "data-file can only be set for images that use an external data file");
    if (a->data_file && strlen(a->data_file) > MAX_BACKING_NAME)
        return refuse(name, diag, "data_file: its name is too long");
    return 0;
}

/* Refuses features that version 2 can't express. */
static int judge_downgrade(const char *name, const struct qcow2_header *h,
                           const struct amendment *a, struct diag *diag)
{
    if (h->version < 3 || a->version >= 3)
        return 0;
    if (h->incompatible & INCOMPAT_DATA_FILE)
        return refuse(name, diag, "Cannot downgrade an image with a data file");
    if (h->incompatible & ~INCOMPAT_DIRTY)
        return diag_set(
            diag, EINVAL,
            "%s: Cannot downgrade an image with incompatible features 0x%" PRIx64 " set",
            name, (uint64_t)(h->incompatible & ~INCOMPAT_DIRTY));
    if (a->refcount_order != 4)
        return refuse(name, diag, "compat=0.10 requires refcount_bits=16");
    if (h->bitmaps.present && h->bitmaps.count)
        return refuse(name, diag,
                      "Cannot downgrade an image with bitmaps: remove them before");
    return 0;
}

static bool has_key_options(const struct amend_request *req)
{
    for (size_t i = 0; i < req->n_options; i++)
        if (strncmp(req->options[i].key, "encrypt.", 8) == 0)
            return true;
    return false;
}

static int judge(const char *name, const struct qcow2_header *h,
                 const struct amend_request *req, struct amendment *a, struct diag *diag)
{
    *a = (struct amendment){.version = h->version,
                            .refcount_order = h->refcount_order,
                            .lazy = h->compatible & COMPAT_LAZY_REFCOUNTS,
                            .data_raw = h->autoclear & AUTOCLEAR_DATA_RAW,
                            .keys = has_key_options(req)};
    if (amend_value(req, "backing_file") || amend_value(req, "backing_fmt"))
        return refuse(name, diag,
                      "Cannot amend the backing file: that is what rebase does");
    int err = take_version(name, req, a, diag);
    if (!err)
        err = take_width(name, req, a, diag);
    if (!err)
        err = take_features(name, h, req, a, diag);
    if (a->version < 3 && !amend_value(req, "lazy_refcounts"))
        a->lazy = false;
    return err ? err : judge_downgrade(name, h, a, diag);
}

/* ---- the disk ---- */

static bool is_zero_cluster(const struct block_status *st)
{
    return st->depth == 0 && st->present && st->zero && !st->data;
}

static int write_zeroes(struct node *node, uint64_t off, uint64_t len)
{
    CLEANUP_FREE void *zeroes = calloc(1, node->cluster_size);
    int err = zeroes ? 0 : -ENOMEM;

    for (uint64_t n; !err && len > 0; off += n, len -= n) {
        n = MIN(len, node->cluster_size);
        err = block_write(node, zeroes, off, n, 0);
    }
    return err;
}

/* Version 2 has no zero clusters.  They become holes or, if a backing file would show through,
 * data. */
static int expand_zeroes(struct node *node)
{
    struct block_status st;
    int err = 0;

    for (uint64_t off = 0; !err && off < node->size; off += st.length) {
        err = block_status(node, off, node->size - off, &st);
        if (err || !is_zero_cluster(&st))
            continue;
        err = node_holes_may_show(node)
                  ? write_zeroes(node, off, st.length)
                  : qcow2_cut_clusters(qcow2_of(node), off,
                                       align_up(off + st.length, node->cluster_size));
    }
    return err ? err : block_flush(node);
}

/* Adds the fields to the snapshot table that version 3 requires (the disk size of each snapshot).
 * They are allowed in version 2, so this comes before the version changes. */
static int complete_snapshots(struct node *node, struct diag *diag)
{
    const struct snapshot_request request = {.kind = SNAPSHOT_COMPLETE};
    struct diag why;

    if (qcow2_of(node)->n_snapshots == 0)
        return 0;
    int err = node_change_snapshot(node, &request, NULL, &why);
    if (!err || err == -ENOENT)
        return 0;
    return diag_set(diag, -err, "%s", why.text);
}

static int refuse_zeroes_of(struct node *node, const char *name, struct diag *diag)
{
    struct block_status st;
    struct node *snapshot;

    int err = node_open_snapshot(node, name, &snapshot, diag);
    if (err)
        return err;
    for (uint64_t off = 0; !err && off < snapshot->size; off += st.length) {
        err = block_status(snapshot, off, snapshot->size - off, &st);
        if (err)
            diag_errno(diag, -err, "%s: snapshot %s", node->filename, name);
        else if (is_zero_cluster(&st))
            err = diag_set(diag, ENOTSUP,
                           "%s: Cannot downgrade: the snapshot %s has zero clusters, which "
                           "version 2 can't say",
                           node->filename, name);
    }
    node_close_snapshot(snapshot);
    return err;
}

/* In version 2 other programs take a snapshot's disk size to be that of the disk. */
static int refuse_size_of(const struct node *node, const struct snapshot_info *s,
                          uint64_t disk_size, struct diag *diag)
{
    if (s->disk_size != disk_size)
        return diag_set(
            diag, EINVAL,
            "%s: Internal snapshots prevent downgrade of image: '%s' has %" PRIu64
            " bytes, the disk %" PRIu64,
            node->filename, s->name, s->disk_size, disk_size);
    if (s->vm_state_bytes > UINT32_MAX)
        return diag_set(
            diag, EINVAL,
            "%s: Internal snapshots prevent downgrade of image: '%s' has %" PRIu64
            " bytes of the guest's state, over %" PRIu32,
            node->filename, s->name, s->vm_state_bytes, UINT32_MAX);
    return 0;
}

/* disk_size: the size that the disk will have. */
static int check_snapshots(struct node *node, uint64_t disk_size, struct diag *diag)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    int err = node_snapshots(node, &list);

    if (err)
        return diag_errno(diag, -err, "%s", node->filename);
    for (size_t i = 0; !err && i < list.n; i++)
        err = refuse_size_of(node, &list.list[i], disk_size, diag);
    for (size_t i = 0; !err && i < list.n; i++) {
        const char *name = snapshot_export_name(&list, i);
        err = name ? refuse_zeroes_of(node, name, diag)
                   : diag_set(diag, ENOTSUP, "%s: Cannot downgrade: a snapshot has no name",
                              node->filename);
    }
    return err;
}

static int amend_size(struct node *node, const char *text, struct diag *diag)
{
    uint64_t size = strtoull(text, NULL, 10);

    if (size == 0 || size % 512)
        return diag_set(diag, EINVAL, "%s: The new size must be a multiple of 512",
                        node->filename);
    if (size == node->size)
        return 0;
    return size < node->size ? node_shrink(node, size, diag) : node_grow(node, size, diag);
}

int qcow2_amend_disk(struct node *node, const struct amend_request *req, struct diag *diag)
{
    const struct qcow2_header *h = &qcow2_of(node)->header;
    const char *size = amend_value(req, "size");
    struct amendment a;

    int err = judge(node->filename, h, req, &a, diag);
    bool downgrade = !err && h->version >= 3 && a.version < 3;
    if (!err && size && qcow2_of(node)->n_snapshots > 0 && h->version < 3 && a.version >= 3)
        return 1; /* a disk with snapshots can change its size only in version 3 */
    if (downgrade)
        err = check_snapshots(node, size ? strtoull(size, NULL, 10) : node->size, diag);
    if (!err && a.version >= 3)
        err = complete_snapshots(node, diag);
    if (!err && size)
        err = amend_size(node, size, diag);
    if (err || !downgrade)
        return err;
    err = node_begin_change(node);
    if (!err)
        err = expand_zeroes(node);
    return err ? diag_errno(diag, -err, "%s: expanding zero clusters", node->filename) : 0;
}

/* ---- the header ---- */

static bool is_for_version_2(uint32_t type)
{
    return type != EXT_FEATURE_NAMES && type != EXT_BITMAPS && type != EXT_DATA_FILE;
}

static bool is_kept_by_version_3(uint32_t type)
{
    return type != EXT_DATA_FILE;
}

static bool is_needed_by_version_3(uint32_t type)
{
    return type != EXT_DATA_FILE && type != EXT_FEATURE_NAMES;
}

static void put_fields(const struct qcow2_header *h, const struct amendment *a,
                       uint8_t *raw)
{
    uint64_t compatible =
        (h->compatible & ~COMPAT_LAZY_REFCOUNTS) | (a->lazy ? COMPAT_LAZY_REFCOUNTS : 0);
    uint64_t autoclear =
        (h->autoclear & ~AUTOCLEAR_DATA_RAW) | (a->data_raw ? AUTOCLEAR_DATA_RAW : 0);

    store_be32(raw + FIELD(version), a->version);
    if (a->version < 3)
        return;
    store_be64(raw + FIELD(incompatible_features), h->version < 3 ? 0 : h->incompatible);
    store_be64(raw + FIELD(compatible_features), compatible);
    store_be64(raw + FIELD(autoclear_features), h->version < 3 ? 0 : autoclear);
    store_be32(raw + FIELD(refcount_order), h->refcount_order);
}

/* The length of the header's fixed part. */
static size_t header_bytes(const struct qcow2_header *h)
{
    return h->version < 3 ? QCOW2_V2_HEADER_BYTES : h->header_length;
}

/* Builds the fixed part and the extensions; *used: their end.  brief: without the feature names. */
static int build_header(const struct qcow2_header *h, const struct amendment *a,
                        const uint8_t *old, size_t old_end, bool brief, uint8_t *raw,
                        size_t cluster, size_t *used)
{
    bool (*keeps)(uint32_t type) = a->version < 3 ? is_for_version_2
                                   : brief        ? is_needed_by_version_3
                                                  : is_kept_by_version_3;
    size_t old_length = header_bytes(h);
    size_t length = a->version < 3   ? QCOW2_V2_HEADER_BYTES
                    : h->version < 3 ? HEADER_LENGTH
                                     : old_length;
    const char *data_file = a->data_file ? a->data_file : h->data_file;
    size_t names = qcow2_n_feature_names * sizeof *qcow2_feature_names;

    memcpy(raw, old, MIN(old_length, length));
    put_fields(h, a, raw);
    if (a->version >= 3)
        store_be32(raw + FIELD(header_length), (uint32_t)length);
    *used = length;
    int err = qcow2_header_ext_copy(old + old_length, old_end - old_length, keeps, raw,
                                    cluster, used);
    if (!err && a->version >= 3 && data_file)
        err = qcow2_header_ext_append(raw, cluster, used, EXT_DATA_FILE, data_file,
                                      strlen(data_file));
    if (!err && h->version < 3 && a->version >= 3 && !brief)
        (void)!qcow2_header_ext_append(raw, cluster, used, EXT_FEATURE_NAMES,
                                       qcow2_feature_names, names);
    return err ? err : qcow2_header_ext_append(raw, cluster, used, EXT_END, NULL, 0);
}

/* ---- writing it ---- */

#define SECTOR 512u

/* The old and the new content of the header's cluster. */
struct rewrite {
    struct storage *st;
    size_t cluster, old_end; /* old_end: where the old extensions end at the latest */
    uint8_t *old, *raw, *brief;
    size_t used, brief_used; /* lengths of the content of `raw` and `brief` */
};

static int write_durably(struct storage *st, const uint8_t *raw, size_t from, size_t to)
{
    int err = from < to ? storage_write(st, raw + from, from, to - from, 0) : 0;

    return err ? err : storage_flush(st);
}

/* If the new extensions need the place of the backing file's name, copies the name to an unused
 * place, durably.  If the whole header is one sector the name is written with the rest. */
static int move_name(struct rewrite *w)
{
    uint64_t at = load_be64(w->old + FIELD(backing_file_offset));
    uint32_t len = load_be32(w->old + FIELD(backing_file_size));

    if (at == 0 || len == 0 || at >= w->used)
        return 0;
    uint64_t place = driver_place_name(w->used, at, len, len, MIN(w->cluster, 1u << 16));
    if (place == 0)
        return -ENOSPC;
    store_be64(w->raw + FIELD(backing_file_offset), place);
    store_be64(w->brief + FIELD(backing_file_offset), place);
    if (place < at + len) {
        memcpy(w->raw + place, w->old + at, len);
        w->used = place + len;
        return 0;
    }
    int err = storage_write(w->st, w->old + at, place, len, 0);
    return err ? err : storage_flush(w->st);
}

/* Is the content behind the first sector unchanged? */
static bool is_in_first_sector(const struct rewrite *w)
{
    return w->used <= SECTOR ||
           memcmp(w->old + SECTOR, w->raw + SECTOR, w->used - SECTOR) == 0;
}

/* Only the write of a single sector is atomic.  So if more than the first sector changes, a brief
 * header is written first, which fits into it because it lacks the feature names.  Then nothing
 * refers to the sectors behind, which are written next, and the first sector last. */
static int write_in_order(struct rewrite *w)
{
    if (is_in_first_sector(w))
        return write_durably(w->st, w->raw, 0, MIN(w->used, SECTOR));
    if (w->brief_used > SECTOR) /* other extensions are too long for that */
        return write_durably(w->st, w->raw, 0, w->used);
    int err = write_durably(w->st, w->brief, 0, w->brief_used);
    if (!err)
        err = write_durably(w->st, w->raw, SECTOR, w->used);
    return err ? err : write_durably(w->st, w->raw, 0, SECTOR);
}

static int build_both(const struct qcow2_header *h, const struct amendment *a,
                      struct rewrite *w)
{
    int err = build_header(h, a, w->old, w->old_end, false, w->raw, w->cluster, &w->used);

    return err ? err
               : build_header(h, a, w->old, w->old_end, true, w->brief, w->cluster,
                              &w->brief_used);
}

static int write_header(struct storage *st, const struct qcow2_header *h,
                        const struct amendment *a, struct diag *diag)
{
    size_t cluster = 1u << h->cluster_bits;
    CLEANUP_FREE uint8_t *old = calloc(1, cluster), *raw = calloc(1, cluster),
                         *brief = calloc(1, cluster);
    struct rewrite w = {.st = st,
                        .cluster = cluster,
                        .old_end = cluster,
                        .old = old,
                        .raw = raw,
                        .brief = brief};

    if (!old || !raw || !brief)
        return diag_errno(diag, ENOMEM, "%s: writing its header", st->name);
    int err = storage_read(st, old, 0, cluster);
    if (err)
        return diag_errno(diag, -err, "%s: reading its header", st->name);
    uint64_t name = load_be64(old + FIELD(backing_file_offset));
    /* The place of an empty name has no meaning. */
    if (load_be32(old + FIELD(backing_file_size)) && name >= header_bytes(h) &&
        name < w.old_end)
        w.old_end = name;
    err = build_both(h, a, &w);
    if (!err)
        err = move_name(&w);
    if (!err)
        err = write_in_order(&w);
    return err ? diag_errno(diag, -err, "%s: writing its header", st->name) : 0;
}

/* Version 2 has no field for the refcount width, so the version is changed first. */
static int amend_store(struct storage *st, struct qcow2_header *h,
                       const struct amendment *a, struct diag *diag)
{
    bool header = a->version != h->version || a->data_file ||
                  a->lazy != !!(h->compatible & COMPAT_LAZY_REFCOUNTS) ||
                  a->data_raw != !!(h->autoclear & AUTOCLEAR_DATA_RAW);
    uint32_t order = h->refcount_order;

    int err = header ? write_header(st, h, a, diag) : 0;
    if (!err && a->refcount_order != order)
        err = qcow2_amend_refcounts(st, h, a->refcount_order, diag);
    return err;
}

int qcow2_amend(struct node *node, const struct amend_request *req, struct diag *diag)
{
    struct storage *file = node->file;
    struct qcow2_header h;
    struct amendment a;

    int err = qcow2_header_read(file, &h, diag);
    if (err)
        return err;
    err = judge(file->name, &h, req, &a, diag);
    if (!err && (h.incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT)))
        err = refuse(file->name, diag, "it has to be repaired before (qimg check -r all)");
    if (!err && a.keys)
        err = qcow2_amend_keys(file, &h, req, diag);
    if (!err)
        err = amend_store(file, &h, &a, diag);
    qcow2_header_free(&h);
    return err ? err : node_open_anew(node, qcow2_free_state, diag);
}
