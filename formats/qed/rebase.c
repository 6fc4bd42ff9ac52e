/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes the backing file name in the header. */
#include <errno.h>
#include <string.h>

#include "qed/image.h"

/* Writes the name first, to a place that the old header doesn't use; then the new header, which
 * fits into one sector. */
static int write_header(struct node *node, const struct qed_header *h, const char *name)
{
    struct storage *st = node->file;
    uint8_t raw[sizeof(struct qed_disk_header)];

    int err = name ? storage_write(st, name, h->backing_filename_offset,
                                   h->backing_filename_size, 0)
                   : 0;
    if (!err && name)
        err = node_barrier(node);
    qed_header_encode(h, raw);
    if (!err)
        err = storage_write(st, raw, 0, sizeof raw, 0);
    return err ? err : node_barrier(node);
}

/* Finds a place for the name and sets the fields of *h; name NULL: no backing file. */
static int place_name(struct qed_header *h, const char *name, const char *format)
{
    uint64_t at =
        name ? driver_place_name(sizeof(struct qed_disk_header), h->backing_filename_offset,
                                 h->backing_filename_size, strlen(name),
                                 (uint64_t)h->header_size * h->cluster_size)
             : 0;

    if (name && (at == 0 || strlen(name) > QED_MAX_BACKING_NAME))
        return -ENOSPC;
    h->backing_filename_offset = (uint32_t)at;
    h->backing_filename_size = name ? (uint32_t)strlen(name) : 0;
    h->features &= ~(uint64_t)(QED_F_BACKING_FORMAT_NO_PROBE | QED_F_BACKING_FILE);
    if (name)
        h->features |= QED_F_BACKING_FILE;
    if (name && strcmp(format, "raw") == 0)
        h->features |= QED_F_BACKING_FORMAT_NO_PROBE;
    return 0;
}

int qed_set_backing(struct node *node, const char *name, const char *format,
                    struct diag *diag)
{
    struct qed_image *img = node->state;
    LOCK_GUARD(&img->header_lock);
    struct qed_header h = img->header;

    if (place_name(&h, name, format))
        return diag_set(diag, ENOSPC, "%s: no room in its header for the name %s",
                        node->filename, name);
    int err = write_header(node, &h, name);
    if (err)
        return diag_errno(diag, -err, "%s: naming %s as its backing file", node->filename,
                          name ? name : "nothing");
    img->header = h;
    return 0;
}
