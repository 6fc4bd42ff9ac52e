/* SPDX-License-Identifier: BSD-3-Clause */
/* Reservations: host clusters that receive data before an L2 entry points to them (driver.h:
 * reserve, link, release).
 *
 * A run of a request's clusters is of one of two kinds:
 *   kept  the host clusters are known already: an allocated zero cluster that isn't shared, or a
 *         subcluster of a cluster that isn't shared.  The data goes there.
 *   new   everything else gets new host clusters; the old ones lose a reference at the link.
 * In an external data file every cluster is kept: its host offset is its guest offset.
 *
 * A subcluster lies in the host cluster of its L2 entry.  So when an entry gets a new host cluster,
 * the reservation also covers the allocated subclusters beside the request, and the engine
 * copies their old content.
 *
 * A link changes one L2 entry.  Whether that may be durable before the data is decided for each
 * entry (is_settled), because the growth of the file may have become durable in between. */
#include <assert.h>
#include <errno.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* What is to be reserved for the beginning of a range: clusters of one kind. */
struct plan {
    uint64_t start, end; /* guest offsets; whole subclusters */
    bool kept;           /* the host clusters exist: `host` is the offset of `start` */
    uint64_t host;
};

static bool keeps_place(const struct cluster *c)
{
    return c->kind == CL_ZERO_ALLOCATED && c->copied;
}

/* The checked entry of a guest cluster.  Its page gets blocks on disk first, before the data can
 * take the last free space. */
static int load_entry(struct qcow2 *q, uint64_t guest, struct cluster *c)
{
    struct mc_page *page;

    int err = mcmap_get_for_store(q->live.l2_map, geometry_l2_page(&q->geo, guest), &page);
    return err ? err : mapping_decode_at(&q->live, page, guest, c);
}

/* Plans the clusters from `off` on that are of one kind, at most to `end`; all are in one L2
 * table. */
static int plan_clusters(struct qcow2 *q, uint64_t off, uint64_t end, struct plan *plan)
{
    *plan = (struct plan){.start = off, .end = off};
    for (; plan->end < end; plan->end += cluster_size(q)) {
        struct cluster c;
        int err = load_entry(q, plan->end, &c);
        if (err)
            return plan->end > off ? 0 : err;
        if (plan->end == off && keeps_place(&c)) {
            plan->kept = true;
            plan->host = c.host;
        }
        bool same = plan->kept ? keeps_place(&c) && c.host == plan->host + (plan->end - off)
                               : !keeps_place(&c) && !(c.kind == CL_DATA && c.copied);
        if (!same)
            break;
    }
    return plan->end > off ? 0 : -EINVAL;
}

static uint64_t subclusters(const struct qcow2 *q, uint32_t n)
{
    return (uint64_t)n << q->geo.subcluster_bits;
}

/* The cluster at guest offset `start` gets a new host cluster: extends the plan over the
 * subclusters whose old content has to be copied there. */
static void include_allocated(const struct qcow2 *q, const struct cluster *c,
                              uint64_t start, struct plan *plan)
{
    uint32_t moved = c->kind == CL_COMPRESSED ? ALL_SUBCLUSTERS : c->allocated;

    if (!moved)
        return;
    uint32_t first = (uint32_t)__builtin_ctz(moved);
    uint32_t last = 31 - (uint32_t)__builtin_clz(moved);
    plan->start = MIN(plan->start, start + subclusters(q, first));
    plan->end = MAX(plan->end, start + subclusters(q, last + 1));
}

static bool has_nothing_to_move(const struct cluster *c)
{
    return c->kind != CL_COMPRESSED && !c->allocated && !(c->kind == CL_DATA && c->copied);
}

/* As plan_clusters, for extended L2 entries. */
static int plan_extended(struct qcow2 *q, uint64_t off, uint64_t end, struct plan *plan)
{
    uint64_t start = align_down(off, cluster_size(q));
    uint64_t cluster_end = start + cluster_size(q);
    struct cluster c;

    int err = load_entry(q, off, &c);
    if (err)
        return err;
    *plan = (struct plan){.start = off, .end = MIN(end, cluster_end)};
    if (c.kind == CL_DATA && c.copied) {
        plan->kept = true;
        plan->host = c.host + (off - start);
        return 0;
    }
    include_allocated(q, &c, start, plan);
    if (!has_nothing_to_move(&c))
        return 0;
    while (plan->end < end && !load_entry(q, plan->end, &c) && has_nothing_to_move(&c))
        plan->end = MIN(end, plan->end + cluster_size(q));
    return 0;
}

/* The end of the plan in the external data file.  A raw external data file is as long as the
 * disk, which may end inside of the last cluster. */
static uint64_t end_in_data_file(const struct qcow2 *q, const struct plan *plan)
{
    const struct node *node = q->node;
    bool ends_with_disk = node->data_alone && node->host_zeroes_show;

    return ends_with_disk ? MIN(plan->end, node->size) : plan->end;
}

/* Allocates what was planned, or less of it when no longer run is free. */
static int take_place(struct qcow2 *q, const struct plan *plan, struct reservation *out)
{
    uint64_t first = align_down(plan->start, cluster_size(q)), host = 0;
    uint64_t n = (align_up(plan->end, cluster_size(q)) - first) >> q->geo.cluster_bits;

    *out = (struct reservation){.guest_offset = plan->start,
                                .length = plan->end - plan->start,
                                .file = q->node->data,
                                .host_offset = plan->host,
                                .retained = plan->kept || q->geo.external};
    if (q->geo.external) {
        out->host_offset = plan->start;
        out->length = end_in_data_file(q, plan) - plan->start;
    }
    if (out->retained)
        return 0;
    int err = alloc_clusters(&q->alloc, n, &host, &n, &out->fresh);
    if (err)
        return err;
    out->host_offset = host + (plan->start - first);
    out->length = MIN(plan->end, first + (n << q->geo.cluster_bits)) - plan->start;
    return 0;
}

/* The part of a reservation that may fail after the dirty mark was set. */
static int find_place(struct qcow2 *q, uint64_t off, uint64_t len, struct reservation *out)
{
    uint64_t end = MIN(off + len, geometry_table_end(&q->geo, off));
    struct plan plan = {0};

    int err = mapping_own_table(&q->live, geometry_l1_index(&q->geo, off));
    if (!err)
        err = q->geo.word_bits ? plan_extended(q, off, end, &plan)
                               : plan_clusters(q, off, end, &plan);
    return err ? err : take_place(q, &plan, out);
}

/* The dirty mark could not be written.  The guest's write doesn't fail for that: refcounts are
 * written in order from here on, without the mark. */
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
    /* Fails at most once: after give_up_lazy there is nothing to write. */
    while (dirty_mark_begin(&q->mark))
        give_up_lazy(q);
}

/* Ends qcow2_begin_change for a change that wasn't made. */
static void give_up_change(struct qcow2 *q)
{
    LOCK_GUARD(mcache_meta(q->node->mc));
    dirty_mark_end(&q->mark);
}

int qcow2_reserve(struct node *node, uint64_t off, uint64_t len, struct reservation *out)
{
    struct qcow2 *q = qcow2_of(node);

    assert(is_aligned(off, 1ull << q->geo.subcluster_bits) &&
           is_aligned(len, 1ull << q->geo.subcluster_bits));
    qcow2_begin_change(q);
    int err = find_place(q, off, len, out);
    if (err)
        give_up_change(q);
    return qcow2_failed(q, err);
}

/* As find_place, for one cluster that is stored compressed in `bytes` bytes. */
static int find_packed_place(struct qcow2 *q, uint64_t off, uint32_t bytes,
                             struct reservation *out)
{
    struct cluster old;

    int err = mapping_own_table(&q->live, geometry_l1_index(&q->geo, off));
    if (!err)
        err = load_entry(q, off, &old);
    if (err)
        return err;
    *out = (struct reservation){.guest_offset = off,
                                .length = cluster_size(q),
                                .file = q->node->file,
                                .stored_bytes = bytes};
    return alloc_packed(&q->alloc, bytes, &out->host_offset);
}

int qcow2_reserve_compressed(struct node *node, uint64_t off, uint32_t bytes,
                             struct reservation *out)
{
    struct qcow2 *q = qcow2_of(node);

    assert(is_aligned(off, cluster_size(q)) && bytes > 0 && bytes < cluster_size(q));
    if (q->geo.external || q->node->cipher)
        return -ENOTSUP;
    qcow2_begin_change(q);
    int err = find_packed_place(q, off, bytes, out);
    if (err) {
        give_up_change(q);
        return qcow2_failed(q, err);
    }
    if (out->host_offset + bytes <= l2_compressed_end(&q->geo))
        return 0;
    qcow2_release(node, out); /* beyond the offsets that a compressed entry can hold */
    return -ENOTSUP;
}

/* META: may a link to these clusters be durable before their data, if it replaces zeroes?  Yes
 * if they are fresh, their bookkeeping is durable, and zeroes in the file are zeroes for the
 * guest (not with encryption). */
static bool is_settled(const struct qcow2 *q, const struct reservation *res)
{
    return res->fresh && q->node->host_zeroes_show &&
           alloc_settled(&q->alloc, res->host_offset + res->length) &&
           !dirty_mark_needs_barrier(&q->mark);
}

void qcow2_let_go(struct qcow2 *q, const struct cluster *c)
{
    if (c->kind == CL_COMPRESSED)
        alloc_unlink_bytes(&q->alloc, c->host, c->compressed_bytes);
    else if (cluster_has_place(c) && !q->geo.external)
        alloc_unlink(&q->alloc, c->host, 1);
}

/* The second word (bitmap) of the extended entry of the guest cluster at `start`, whose host
 * cluster is `host` from now on. */
ASIDE static uint64_t new_bitmap(const struct qcow2 *q, const struct reservation *res,
                                 uint64_t start, uint64_t host, const struct cluster *old)
{
    uint64_t end =
        align_up(res->guest_offset + res->length, 1ull << q->geo.subcluster_bits);
    uint32_t named = l2_subclusters_of(&q->geo, start, res->guest_offset, end);
    uint32_t now = res->place_only || res->as_zero ? 0 : named;
    uint32_t zero = res->as_zero ? old->zero | named : old->zero & ~now;
    bool same_place = cluster_has_place(old) && old->host == host;
    uint32_t kept = same_place ? old->allocated & ~zero : 0;

    assert(same_place || !(old->allocated & ~now));
    return l2_extended_bitmap(kept | now, zero);
}

/* META: links the guest cluster at `start` to its part of the reservation. */
static void link_cluster(struct qcow2 *q, const struct reservation *res, uint64_t start,
                         struct mc_page *page)
{
    uint64_t host = res->host_offset + start - res->guest_offset;
    uint32_t word = geometry_l2_word(&q->geo, start);
    uint64_t entry = host | L2_COPIED, bitmap = 0;
    struct cluster old;

    /* It was checked in find_place, and the range lock kept others from changing it. */
    (void)l2_any_decode(&q->geo, mc_load(page, word),
                        q->geo.word_bits ? mc_load(page, word + 1) : 0, &old);
    if (res->stored_bytes)
        entry = l2_entry_compressed(&q->geo, host, res->stored_bytes);
    else if (q->geo.word_bits)
        bitmap = new_bitmap(q, res, start, host, &old);
    else if (UNLIKELY(res->as_zero))
        entry |= L2_ZERO;
    mapping_store(&q->live, page, start, entry, bitmap);
    if (old.kind == CL_COMPRESSED || old.host != host)
        qcow2_let_go(q, &old);
}

/* META: gives back the reservation from the guest cluster at `start` on. */
static void release_from(struct qcow2 *q, const struct reservation *res, uint64_t start)
{
    uint64_t end = align_up(res->guest_offset + res->length, cluster_size(q));
    uint64_t host = res->host_offset + start - res->guest_offset;

    if (res->stored_bytes)
        alloc_unlink_bytes(&q->alloc, res->host_offset, res->stored_bytes);
    else if (!res->retained)
        alloc_unlink(&q->alloc, host, (end - start) >> q->geo.cluster_bits);
}

int qcow2_link(struct node *node, const struct reservation *res, bool replaces_zero)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t start = align_down(res->guest_offset, cluster_size(q));
    uint64_t end = res->guest_offset + res->length;
    int err = res->as_zero && q->header.version < 3 ? -ENOTSUP : 0;

    LOCK_GUARD(mcache_meta(node->mc));
    for (; !err && start < end; start += cluster_size(q)) {
        struct mc_page *page;
        err = mapping_lock_l2_page(&q->live, start, &page);
        if (err)
            break;
        /* For each word: META was released if a page had to be loaded, so earlier words may
         * belong to a group that is being written already. */
        if (!replaces_zero || !is_settled(q, res))
            mcache_strict(node->mc);
        link_cluster(q, res, start, page);
    }
    if (err)
        release_from(q, res, start);
    dirty_mark_end(&q->mark);
    return err;
}

void qcow2_release(struct node *node, const struct reservation *res)
{
    struct qcow2 *q = qcow2_of(node);

    LOCK_GUARD(mcache_meta(node->mc));
    release_from(q, res, align_down(res->guest_offset, cluster_size(q)));
    dirty_mark_end(&q->mark);
}
