/* SPDX-License-Identifier: BSD-3-Clause */
/* What happens when an impossible entry is found while an image is served: writes fail from then
 * on, and the header gets the corrupt bit, so that the image must be checked before anybody
 * writes to it again. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/internal.h"

void qcow2_mark_corrupt(struct qcow2 *q)
{
    /* Version 2 has no such bit. */
    if (node_met_corruption(q->node))
        atomic_store(&q->corrupt_unwritten, q->header.version >= 3);
}

static int write_corrupt_bit(struct qcow2 *q)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.incompatible |= INCOMPAT_CORRUPT;
    int err = qcow2_header_write_features(q->node->file, &h);
    if (!err)
        err = storage_flush(q->node->file);
    if (!err)
        q->header.incompatible = h.incompatible;
    return err;
}

int qcow2_failed(struct qcow2 *q, int err)
{
    if (LIKELY(!err) || !atomic_exchange(&q->corrupt_unwritten, false))
        return err;
    int failure = write_corrupt_bit(q);
    if (failure)
        log_error("%s: setting the corrupt bit: %s", q->node->filename, strerror(-failure));
    return err;
}
