/* SPDX-License-Identifier: BSD-3-Clause */
/* A backing node for an image that lies on a disk while a backup of that disk is written to it:
 * it reads as the point of the backup.  So a cluster of which the backup has only a part gets
 * the rest as it was at the point; and zeroes are written to the image, as they hide what lies
 * below. */
#include <errno.h>

#include "block/frozen_internal.h"

/* Describes everything as unknown data: the point may not be set yet, and later its status may
 * change between this call and the read. */
static int backing_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    (void)node;
    (void)off;
    *out = (struct extent){.kind = EXTENT_ELSEWHERE, .allocated = true, .length = len};
    return 0;
}

static int backing_read(struct node *node, void *buf, uint64_t off, uint64_t len)
{
    const struct frozen_point *point = node->state;

    return point ? block_read(point->node, buf, off, len) : -EIO;
}

/* Not in the table of drivers: no file is opened with this one. */
static const struct driver backing_driver = {
    .name = "frozen",
    .open = frozen_open_nothing,
    .close = frozen_close_nothing,
    .map = backing_map,
    .read = backing_read,
};

int frozen_backing_open(struct block_context *ctx, const struct node *disk,
                        struct node **out, struct diag *diag)
{
    return frozen_open_driver(ctx, &backing_driver, disk, out, diag);
}

void frozen_backing_tell(struct node *image, struct frozen_point *point)
{
    if (image->backing && image->backing->driver == &backing_driver)
        image->backing->state = point;
}
