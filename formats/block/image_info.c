/* SPDX-License-Identifier: BSD-3-Clause */
/* Describes a node: the common part, then the driver's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/image_info.h"
#include "block/node.h"
#include "block/open_policy.h"

int image_info_copy(char **out, const char *text)
{
    *out = text ? strdup(text) : NULL;
    return text && !*out ? -ENOMEM : 0;
}

static int copy_backing(struct image_info *info, const char *name, const char *full,
                        const char *format)
{
    if (image_info_copy(&info->backing_name, name) ||
        image_info_copy(&info->full_backing_name, full) ||
        image_info_copy(&info->backing_format, format))
        return -ENOMEM;
    return 0;
}

static int copy_recorded_backing(struct image_info *info, const struct node *node)
{
    if (!node->backing_name)
        return 0;
    CLEANUP_FREE char *full = reference_join(node->filename, node->backing_name);
    if (!full)
        return -ENOMEM;
    return copy_backing(info, node->backing_name, full, node->backing_format);
}

static int copy_opened_backing(struct image_info *info, const struct node *node)
{
    const struct node *below = node->backing;

    if (!below)
        return 0;
    const char *full = below->filename, *name = node->backing_name;
    CLEANUP_FREE char *joined = name ? reference_join(node->filename, name) : NULL;
    if (name && !joined)
        return -ENOMEM;
    bool as_recorded = joined && strcmp(joined, full) == 0;
    return copy_backing(info, as_recorded ? name : full, full, below->driver->name);
}

static int fill_from_node(struct image_info *info, struct node *node,
                          enum image_info_backing backing)
{
    *info = (struct image_info){
        .format = node->driver->name,
        .virtual_size = node->size,
        .cluster_size = node->cluster_size,
    };
    info->has_actual_size = storage_allocated(node->file, &info->actual_size) == 0;
    int err = image_info_copy(&info->filename, node->filename);
    if (err)
        return err;
    err = backing == IMAGE_INFO_OPENED ? copy_opened_backing(info, node)
                                       : copy_recorded_backing(info, node);
    if (err)
        return err;
    return node->driver->info ? node->driver->info(node, info) : 0;
}

int image_info_read(struct node *node, enum image_info_backing backing,
                    struct image_info *out)
{
    int err = fill_from_node(out, node, backing);
    if (err)
        image_info_free(out);
    return err;
}

static void free_qcow2_part(struct qcow2_info *part)
{
    for (size_t i = 0; i < part->n_bitmaps; i++)
        free(part->bitmaps[i].name);
    free(part->bitmaps);
    free(part->data_file);
}

void image_info_free(struct image_info *info)
{
    if (info->kind == IMAGE_INFO_QCOW2)
        free_qcow2_part(&info->qcow2);
    snapshot_list_free(&info->snapshots);
    free(info->filename);
    free(info->backing_name);
    free(info->full_backing_name);
    free(info->backing_format);
    *info = (struct image_info){0};
}
