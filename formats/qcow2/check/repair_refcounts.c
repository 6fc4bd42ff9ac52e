/* SPDX-License-Identifier: BSD-3-Clause */
/* Corrects wrong refcounts in place. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/check/check.h"
#include "qcow2/alloc/refcount.h"

/* Corrects the refcounts in a block that are too high, and with `raise` also those that are too
 * low; true if any changed. */
static bool mend_block(const struct check *c, uint64_t first, uint8_t *block, bool raise)
{
    uint64_t n = 1ull << qcheck_block_bits(c);
    uint32_t order = c->in.h.refcount_order;
    bool changed = false;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t refs =
            first + i <= c->in.n_clusters ? counts_get(&c->pass.refs, first + i) : 0;
        uint64_t count = qcheck_unpack(order, block, i);
        if (count > refs || (raise && count < refs)) {
            refcount_pack(order, block, i, refs);
            qcheck_say(
                c, "Repairing cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                first + i, count, refs);
            changed = true;
        }
    }
    return changed;
}

int qrepair_refcounts(struct check *c, bool raise)
{
    CLEANUP_FREE uint8_t *block = malloc(c->in.cluster_size);
    if (!block)
        return diag_errno(c->in.diag, ENOMEM, "%s: refcount block", c->in.st->name);

    for (uint64_t i = 0; i < c->pass.n_rt; i++) {
        uint64_t offset = qcheck_block_offset(c, i);
        if (offset == 0)
            continue;
        int err = storage_read(c->in.st, block, offset, c->in.cluster_size);
        if (err)
            return diag_errno(c->in.diag, -err,
                              "%s: reading the refcount block at offset %" PRIu64,
                              c->in.st->name, offset);
        if (mend_block(c, i << qcheck_block_bits(c), block, raise))
            err = qrepair_write(c, block, offset, c->in.cluster_size, "refcount block");
        if (err)
            return err;
    }
    return 0;
}
