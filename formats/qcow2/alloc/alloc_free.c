/* SPDX-License-Identifier: BSD-3-Clause */
/* Freeing clusters, and closing the allocator.
 *
 * A cluster that was unlinked can't be reused at once, for three reasons in turn: the table on
 * disk still points to it until the change is durable; requests that looked at the table before
 * may still be reading it; and its refcount says that it is in use.  `unlinked` holds the
 * clusters that the open group unlinked, `frozen` those of the group that is being written.
 * alloc_reclaim.c does the rest. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/alloc/alloc.h"

void alloc_unlink(struct alloc *a, uint64_t host, uint64_t n)
{
    lock_assert_held(mcache_meta(a->node->mc));
    run_list_add(a, &a->unlinked, (struct run){.first = host >> a->cluster_bits, .n = n});
}

void alloc_frozen(struct alloc *a)
{
    tail_frozen(&a->tail);
    /* After a failed commit `frozen` still holds the runs of the group before. */
    run_list_move(a, &a->unlinked, &a->frozen);
}

/* Flush requests are answered only after this returns, so it does as little as possible. */
void alloc_durable(struct alloc *a)
{
    tail_durable(&a->tail, a->node);
    LOCK_GUARD(mcache_meta(a->node->mc));
    if (a->frozen.n > 0)
        alloc_retire(a);
}

/* Sets the refcounts of the unused tail to 0, page by page from its end, and shortens the tail
 * before each page.  So the tail never hands out a cluster without a refcount, even if a page
 * or a later step of closing fails and the image goes on being used. */
static int give_back_tail(struct alloc *a)
{
    uint64_t next = a->tail.next >> a->cluster_bits, end = a->tail.end >> a->cluster_bits;

    while (next < end) {
        uint64_t first = MAX(next, align_down(end - 1, 1ull << a->refs.page_bits));
        int err = refcount_lock_page_for_store(&a->refs, first);
        if (err)
            return err;
        for (uint64_t c = first; c < end; c++)
            refcount_set(&a->refs, c, 0, MC_LEAF);
        tail_cut(&a->tail, first << a->cluster_bits);
        lock_release(mcache_meta(a->node->mc));
        end = first;
    }
    return 0;
}

bool alloc_has_unlinked(struct alloc *a)
{
    LOCK_GUARD(mcache_meta(a->node->mc));
    return a->unlinked.n || a->frozen.n || a->reclaiming || !list_empty(&a->retired);
}

/* After that time clusters are freed without being punched; 0: no limit. */
static void limit_punching(struct alloc *a, uint64_t until_ns)
{
    LOCK_GUARD(&a->reclaim);
    a->punch_until_ns = until_ns;
}

int alloc_settle(struct alloc *a)
{
    struct node *node = a->node;
    int err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);

    limit_punching(a, housekeeper_now(node->ctx->housekeeper) + BACKGROUND_LAST_NS);
    while (!err && alloc_has_unlinked(a)) {
        while (alloc_reclaim(a) > 0)
            ;
        err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);
    }
    limit_punching(a, 0); /* the image stays in use if closing fails */
    if (!err)
        err = give_back_tail(a);
    return err || !a->shrunk || node->file->fixed_size ? err : alloc_drop_empty_blocks(a);
}
