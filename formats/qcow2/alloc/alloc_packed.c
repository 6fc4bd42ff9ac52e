/* SPDX-License-Identifier: BSD-3-Clause */
/* Places of compressed clusters, several in one host cluster.
 *
 * Each counts as a reference to the host clusters that it touches.  The next place is right
 * behind the last one; when that doesn't fit any more, it goes on into a new cluster if the
 * new one is the neighbour, and else begins there.  The count of a host cluster is raised
 * before anything points to the place, and that has to be durable first: links to packed
 * places make their group strict.
 *
 * Who packs holds the pack lock; only the end of packing in a cluster that is being freed
 * comes from elsewhere, under META. */
#include <errno.h>

#include "qcow2/alloc/alloc.h"

void alloc_end_packing(struct alloc *a)
{
    lock_assert_held(mcache_meta(a->node->mc));
    a->pack_next = a->pack_end = 0;
}

/* Another reference to the cluster that is being packed; *raised is false when there can't
 * be one. */
static int raise_count(struct alloc *a, uint64_t at, bool *raised)
{
    uint64_t cluster = at >> a->cluster_bits;

    int err = refcount_lock_page_for_store(&a->refs, cluster);
    if (err)
        return err;
    uint64_t count = refcount_get(&a->refs, cluster);
    *raised = a->pack_next == at && count > 0 && count < refcount_max(a->refs.order);
    if (*raised)
        refcount_set(&a->refs, cluster, count + 1, MC_LEAF);
    else
        alloc_end_packing(a);
    lock_release(mcache_meta(a->node->mc));
    return 0;
}

/* How many bytes from *at on are left of the cluster that is being packed; 0: there is
 * none. */
static uint64_t rest_of_cluster(struct alloc *a, uint64_t *at)
{
    LOCK_GUARD(mcache_meta(a->node->mc));
    *at = a->pack_next;
    return a->pack_end - a->pack_next;
}

static void go_on_at(struct alloc *a, uint64_t next, uint64_t end)
{
    LOCK_GUARD(mcache_meta(a->node->mc));
    a->pack_next = next;
    a->pack_end = end;
}

int alloc_packed(struct alloc *a, uint32_t bytes, uint64_t *host)
{
    uint64_t at, rest, cluster, n;
    bool raised = false, fresh;
    int err = 0;

    LOCK_GUARD(&a->pack);
    rest = rest_of_cluster(a, &at);
    if (rest >= bytes) {
        err = raise_count(a, at, &raised);
        if (raised) {
            *host = at;
            go_on_at(a, at + bytes, at + rest);
            return 0;
        }
    }
    if (!err)
        err = alloc_clusters(a, 1, &cluster, &n, &fresh);
    if (err)
        return err;
    rest = rest_of_cluster(a, &at);
    if (rest && rest < bytes && at + rest == cluster) {
        err = raise_count(a, at, &raised);
        if (err)
            raised = false; /* it begins in the new one */
    }
    *host = raised ? at : cluster;
    go_on_at(a, *host + bytes, cluster + alloc_cluster_size(a));
    return 0;
}

void alloc_unlink_bytes(struct alloc *a, uint64_t host, uint64_t bytes)
{
    uint64_t first = host >> a->cluster_bits;
    uint64_t last = (host + bytes - 1) >> a->cluster_bits;

    alloc_unlink(a, first << a->cluster_bits, last - first + 1);
}
