/* SPDX-License-Identifier: BSD-3-Clause */
/* What lies below an image that is to lie on a disk while the disk's backup is written to it:
 * the point of that backup.  So a cluster of which the backup has only a part gets the rest
 * as it was at the point, and zeroes aren't left out for want of anything below that they would
 * hide. */
#include <errno.h>

#include "block/frozen_internal.h"

/* All of it may be anything: whether it is zero is known when the point is there, and then it
 * may change. */
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

/* In no table of drivers: nothing is opened as this. */
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
