/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroing and discarding whole clusters in the tables. */
#include <errno.h>

#include "base/checked.h"
#include "qcow2/internal.h"

enum { KEEP_ENTRY, NEW_ENTRY };

/* What becomes of one entry: KEEP_ENTRY, NEW_ENTRY with *entry and *unlink set, or -ENOTSUP
 * when the format can't say it. */
static int zeroed_entry(const struct qcow2 *q, const struct cluster *c, enum zero_how how,
                        uint64_t *entry, bool *unlink)
{
    bool v3 = q->header.version >= 3, backing = node_holes_may_show(q->node);

    *unlink = false;
    switch (c->kind) {
    case CL_NONE:
        if (!backing)
            return KEEP_ENTRY;
        *entry = L2_ZERO;
        return v3 ? NEW_ENTRY : -ENOTSUP;
    case CL_ZERO:
        return KEEP_ENTRY;
    case CL_ZERO_ALLOCATED:
        if (how == ZERO_KEEP)
            return KEEP_ENTRY;
        break;
    case CL_DATA:
        if (how == ZERO_KEEP && c->copied) {
            *entry = c->host | L2_COPIED | L2_ZERO;
            return v3 ? NEW_ENTRY : -ENOTSUP;
        }
        break;
    case CL_COMPRESSED:
        return -EIO;
    }
    /* The cluster is let go of; what lies below must not shine through. */
    *unlink = true;
    *entry = backing ? L2_ZERO : 0;
    return backing && !v3 ? -ENOTSUP : NEW_ENTRY;
}

/* Handles clusters from `off` on as long as their entries stay as they are; stops at the
 * first that has to change, or can't.  Without a lock: the guest range is held. */
static int skip_kept(struct qcow2 *q, uint64_t off, uint64_t end, enum zero_how how,
                     uint64_t *at)
{
    for (*at = off; *at < end;) {
        struct extent ext;
        int err = mapping_map(&q->live, *at, end - *at, &ext);
        if (err)
            return err;
        struct cluster c = {
            .kind = ext.kind == EXTENT_DATA ? CL_DATA
                    : !ext.allocated        ? CL_NONE
                    : ext.file              ? CL_ZERO_ALLOCATED
                                            : CL_ZERO,
            .copied = ext.writable,
        };
        uint64_t entry;
        bool unlink;
        err = zeroed_entry(q, &c, how, &entry, &unlink);
        if (err != KEEP_ENTRY)
            return err == NEW_ENTRY ? 0 : err;
        *at += ext.length;
    }
    return 0;
}

/* META, released while pages are loaded: changes entries until one can't be; *at moves on.
 */
static int change_entries(struct qcow2 *q, uint64_t *at, uint64_t end, enum zero_how how)
{
    for (; *at < end; *at += cluster_size(q)) {
        struct mc_page *page;
        struct cluster c;
        uint64_t entry;
        bool unlink;
        int err = mapping_lock_l2_page(&q->live, *at, &page);
        if (err)
            return err;
        uint32_t word = geometry_l2_word(&q->geo, *at);
        err = mapping_decode(&q->live, mc_load(page, word), *at, &c);
        if (err)
            return err;
        err = zeroed_entry(q, &c, how, &entry, &unlink);
        if (err < 0)
            return err;
        if (err == KEEP_ENTRY)
            continue;
        /* With each entry, for META was released if a page had to be loaded. */
        if (dirty_mark_needs_barrier(&q->mark))
            mcache_strict(q->node->mc);
        mcmap_store(page, word, entry, MC_LINK);
        if (unlink)
            alloc_unlink(&q->alloc, c.host, 1);
    }
    return 0;
}

/* One L2 table's part of the range. */
static int zero_in_table(struct qcow2 *q, uint64_t off, uint64_t end, enum zero_how how,
                         uint64_t *at)
{
    int err = skip_kept(q, off, end, how, at);
    if (err || *at >= end)
        return err;
    qcow2_begin_change(q);
    err = mapping_own_table(&q->live, geometry_l1_index(&q->geo, *at));
    LOCK_GUARD(mcache_meta(q->node->mc));
    if (!err)
        err = change_entries(q, at, end, how);
    dirty_mark_end(&q->mark);
    return err;
}

int qcow2_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
               uint64_t *done)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t at = off;
    int err = 0;

    while (!err && at < off + len) {
        uint64_t table_end = geometry_table_end(&q->geo, at);
        err = zero_in_table(q, at, MIN(off + len, table_end), how, &at);
    }
    *done = MIN(at - off, len);
    return qcow2_failed(q, err);
}

bool qcow2_zero_is_fast(struct node *node, uint64_t off, uint64_t len)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->header.version >= 3)
        return true;
    /* Version 2 can only let go of clusters, and only where nothing lies below. */
    uint64_t end = MIN(off + len, node->size);
    while (off < end) {
        struct extent ext;
        if (node_holes_may_show(node) || mapping_map(&q->live, off, end - off, &ext))
            return false;
        off += ext.length;
    }
    return true;
}
