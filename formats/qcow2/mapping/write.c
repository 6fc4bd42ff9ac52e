/* SPDX-License-Identifier: BSD-3-Clause */
/* Reservations: clusters that take data before anything points to them.
 *
 * A run of a request's clusters is of one of two kinds.  Zero clusters that have kept an
 * allocation of their own take the data right there; everything else gets new clusters, and
 * the old ones lose a reference when the new are linked.  A link is one word of an L2 table;
 * whether it may reach the disk before the data is decided word by word (is_settled), for
 * the tail may have become durable meanwhile. */
#include <assert.h>
#include <errno.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

static bool keeps_place(const struct cluster *c)
{
    return c->kind == CL_ZERO_ALLOCATED && c->copied;
}

/* How many clusters from `off` on, at most max and all in one L2 table, are of one kind:
 * zero clusters whose allocation can be used (*kept, from *host on), or such that need a new
 * place. */
static int count_same(struct qcow2 *q, uint64_t off, uint64_t max, bool *kept,
                      uint64_t *host, uint64_t *n)
{
    *kept = false;
    for (*n = 0; *n < max; ++*n) {
        uint64_t guest = off + (*n << q->geo.cluster_bits);
        struct mc_page *page;
        struct cluster c;
        /* Before the data takes what space there is. */
        int err =
            mcmap_get_for_store(q->live.l2_map, geometry_l2_page(&q->geo, guest), &page);
        if (!err)
            err = mapping_decode(&q->live, mc_load(page, geometry_l2_word(&q->geo, guest)),
                                 guest, &c);
        if (err)
            return *n ? 0 : err;
        if (*n == 0 && keeps_place(&c)) {
            *kept = true;
            *host = c.host;
        }
        bool same = *kept ? keeps_place(&c) && c.host == *host + (*n << q->geo.cluster_bits)
                          : !keeps_place(&c) && !(c.kind == CL_DATA && c.copied);
        if (!same)
            break;
    }
    return *n ? 0 : -EINVAL;
}

/* The part of a reservation that can fail while the mark is held. */
static int reserve(struct qcow2 *q, uint64_t off, uint64_t len, struct reservation *out)
{
    uint64_t table_end = geometry_table_end(&q->geo, off);
    uint64_t host = 0, n;
    bool kept;

    int err = mapping_own_table(&q->live, geometry_l1_index(&q->geo, off));
    if (!err)
        err = count_same(q, off, (MIN(off + len, table_end) - off) >> q->geo.cluster_bits,
                         &kept, &host, &n);
    if (err)
        return err;
    *out = (struct reservation){
        .guest_offset = off, .file = q->node->file, .host_offset = host, .retained = kept};
    if (!out->retained)
        err = alloc_clusters(&q->alloc, n, &out->host_offset, &n, &out->fresh);
    out->length = n << q->geo.cluster_bits;
    return err;
}

/* The mark could not be written: the write isn't failed for that; refcounts are written in
 * order from here on. */
static void give_up_lazy(struct qcow2 *q)
{
    log_warning("%s: the dirty bit can't be written; continuing without lazy refcounts",
                q->node->filename);
    mcache_set_postpone(q->node->mc, false);
    LOCK_GUARD(mcache_meta(q->node->mc));
    dirty_mark_give_up(&q->mark);
    mcache_strict(q->node->mc);
}

void qcow2_begin_change(struct qcow2 *q)
{
    /* It can fail only once. */
    while (dirty_mark_begin(&q->mark))
        give_up_lazy(q);
}

int qcow2_reserve(struct node *node, uint64_t off, uint64_t len, struct reservation *out)
{
    struct qcow2 *q = qcow2_of(node);

    assert(is_aligned(off, cluster_size(q)) && is_aligned(len, cluster_size(q)));
    qcow2_begin_change(q);
    int err = reserve(q, off, len, out);
    if (err) {
        LOCK_GUARD(mcache_meta(node->mc));
        dirty_mark_end(&q->mark);
    }
    return qcow2_failed(q, err);
}

/* META: is everything durable that has to be so before a link to these clusters is, except
 * for contents that replace something? */
static bool is_settled(const struct qcow2 *q, const struct reservation *res)
{
    return res->fresh && alloc_settled(&q->alloc, res->host_offset + res->length) &&
           !dirty_mark_needs_barrier(&q->mark);
}

int qcow2_link(struct node *node, const struct reservation *res, bool replaces_zero)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t n = res->length >> q->geo.cluster_bits, i = 0;
    int err = 0;

    LOCK_GUARD(mcache_meta(node->mc));
    for (; i < n; i++) {
        uint64_t guest = res->guest_offset + (i << q->geo.cluster_bits);
        uint64_t host = res->host_offset + (i << q->geo.cluster_bits);
        struct mc_page *page;
        err = mapping_lock_l2_page(&q->live, guest, &page);
        if (err)
            break;
        uint32_t word = geometry_l2_word(&q->geo, guest);
        uint64_t old = mc_load(page, word) & L2_OFFSET;
        /* With each word, for META was released if a page had to be loaded: the words so
         * far may be in a group that is being written. */
        if (!replaces_zero || !is_settled(q, res))
            mcache_strict(node->mc);
        mcmap_store(page, word, host | L2_COPIED, MC_LINK);
        if (old && old != host)
            alloc_unlink(&q->alloc, old, 1);
    }
    if (err && !res->retained)
        alloc_unlink(&q->alloc, res->host_offset + (i << q->geo.cluster_bits), n - i);
    dirty_mark_end(&q->mark);
    return err;
}

void qcow2_release(struct node *node, const struct reservation *res)
{
    struct qcow2 *q = qcow2_of(node);

    LOCK_GUARD(mcache_meta(node->mc));
    if (!res->retained)
        alloc_unlink(&q->alloc, res->host_offset, res->length >> q->geo.cluster_bits);
    dirty_mark_end(&q->mark);
}
