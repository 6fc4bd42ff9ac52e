/* SPDX-License-Identifier: BSD-3-Clause */
/* Places for compressed clusters, several of which share a host cluster (are packed into it).
 *
 * Each is a reference to all host clusters that it touches.  The next place follows directly
 * behind the last one.  When the rest of the host cluster is too small, the place continues in
 * a new host cluster if that is adjacent, and begins in the new one otherwise.  The refcount of a
 * host cluster is raised before an entry points to the place, and must be durable first:
 * therefore links to packed places make their group strict.
 *
 * Packing takes place under the pack lock.  Only when the cluster that is being packed gets
 * freed, packing into it is ended from elsewhere, under META. */
#include <errno.h>

#include "qcow2/alloc/alloc.h"

void alloc_end_packing(struct alloc *a)
{
    lock_assert_held(mcache_meta(a->node->mc));
    a->pack_next = a->pack_end = 0;
}

/* Adds a reference to the cluster that is being packed; *raised is false when its refcount can't
 * be any larger. */
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

/* The bytes that are left of the cluster that is being packed, from *at on; 0: there is no such
 * cluster. */
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
            raised = false; /* the place begins in the new cluster */
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
