/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes or removes the backing file's name in the header cluster. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "qcow2/header_ext.h"
#include "qcow2/internal.h"

#define FIELD(name) offsetof(struct qcow2_disk_header, name)

/* First writes the new name, durably, to an unused place; then the fields that point to it.
 * Those lie in one sector, together with the extension for the backing format in headers that
 * this program or QEMU wrote, so that a crash leaves the old or the new name. */
static int write_header(struct qcow2 *q, uint8_t *raw, size_t used, const char *name,
                        uint64_t at)
{
    struct storage *st = q->node->file;
    size_t len = name ? strlen(name) : 0;
    uint64_t old = load_be64(raw + FIELD(backing_file_offset));
    bool over =
        len && at < old + load_be32(raw + FIELD(backing_file_size)) && old < at + len;

    if (over) { /* only if the whole header is one sector; see driver_place_name */
        memcpy(raw + at, name, len);
        used = at + len;
    }
    int err = len && !over ? storage_write(st, name, at, len, 0) : 0;
    if (!err && len && !over)
        err = node_barrier(q->node);
    store_be64(raw + FIELD(backing_file_offset), at);
    store_be32(raw + FIELD(backing_file_size), (uint32_t)len);
    if (!err)
        err = storage_write(st, raw, 0, used, 0);
    return err ? err : node_barrier(q->node);
}

int qcow2_set_backing(struct node *node, const char *name, const char *format,
                      struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);
    int err = node_begin_change(node);
    if (err)
        return diag_errno(diag, -err, "%s: clearing autoclear_features", node->filename);
    LOCK_GUARD(&q->header_lock);
    size_t size = cluster_size(q), fixed = q->header.header_length, used;
    CLEANUP_FREE uint8_t *raw = malloc(size);

    if (!raw)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    err = storage_read(node->file, raw, 0, size);
    if (err)
        return diag_errno(diag, -err, "%s: reading the header", node->filename);
    uint64_t old = load_be64(raw + FIELD(backing_file_offset));
    uint32_t old_len = load_be32(raw + FIELD(backing_file_size));
    if (old == 0 || old_len == 0 || old < fixed || old > size)
        old = old_len = 0;
    err = qcow2_header_ext_replace(raw + fixed, (old ? old : size) - fixed,
                                   EXT_BACKING_FORMAT, format, format ? strlen(format) : 0,
                                   &used);
    used += fixed;
    uint64_t at = err || !name ? 0
                               : driver_place_name(used, old, old_len, strlen(name),
                                                   MIN(size, 1u << 16));
    if (!err && !name)
        err = write_header(q, raw, used, NULL, 0);
    else if (at == 0 || strlen(name) > MAX_BACKING_NAME)
        return diag_set(diag, ENOSPC, "%s: no room in its header for the name %s",
                        node->filename, name ? name : "");
    else
        err = write_header(q, raw, used, name, at);
    return err ? diag_errno(diag, -err, "%s: naming %s as its backing file", node->filename,
                            name ? name : "nothing")
               : 0;
}
