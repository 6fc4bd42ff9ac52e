/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocation of data clusters: reserve takes them, link makes the tables point to them, release
 * gives them back.
 *
 * Clusters that were trimmed and not punched yet still belong to their guest range, and are
 * reused for it (trims.h).
 *
 * Only the changes of words are serialised.  Between reserve and link a request holds nothing
 * but the lock on its guest range, so allocations run in parallel even within one L2 table. */
#include <assert.h>

#include "base/checked.h"
#include "qed/image.h"

static void end_mark(struct qed_image *img)
{
    LOCK_GUARD(mcache_meta(img->node->mc));
    dirty_mark_end(&img->mark);
}

/* *own: the clusters belonged to the guest range before it was trimmed. */
static int take_clusters(struct qed_image *img, uint64_t off, uint64_t len,
                         struct qed_clusters *out, bool *own)
{
    int err = qed_ensure_table(img, off);

    len = MIN(len, qed_left_in_table(img, off));
    /* Allocates the blocks of the L2 pages first (invariant 10 of mcache.h), before data uses
     * the space. */
    for (uint64_t at = 0; err == 0 && at < len; at += qed_left_in_page(img, off + at))
        err = mcmap_get_for_store(img->l2_map, qed_page_index(img, off + at), NULL);
    if (err < 0)
        return err;
    uint64_t place = qed_trims_place(img, off, &len);
    *own = place != 0;
    if (*own) {
        *out = (struct qed_clusters){.offset = place, .length = len};
        return 0;
    }
    return qed_space_take(&img->space, img->geo.cluster_size, len, out);
}

int qed_reserve(struct node *node, uint64_t off, uint64_t len, struct reservation *out)
{
    struct qed_image *img = node->state;
    struct qed_clusters clusters;
    bool own;

    assert(len && is_aligned(off | len, img->geo.cluster_size));
    int err = dirty_mark_begin(&img->mark);
    if (err < 0)
        return err;
    err = take_clusters(img, off, len, &clusters, &own);
    if (err < 0) {
        end_mark(img);
        return err;
    }
    *out = (struct reservation){
        .guest_offset = off,
        .length = clusters.length,
        .file = node->file,
        .host_offset = clusters.offset,
        .fresh = clusters.fresh,
        .retained = own,
    };
    return 0;
}

/* META: stores the words of the reservation from `done` on, as far as they lie in this page.
 * Returns the number of bytes that they map. */
static uint64_t store_words(struct qed_image *img, struct mc_page *page,
                            const struct reservation *res, uint64_t done)
{
    uint64_t off = res->guest_offset + done;
    uint64_t bytes = MIN(res->length - done, qed_left_in_page(img, off));

    for (uint64_t at = 0; at < bytes; at += img->geo.cluster_size) {
        uint32_t word = qed_page_word(img, off + at);
        assert(mc_load(page, word) <= QED_ENTRY_ZERO);
        if (res->retained)
            qed_trims_forget(img, off + at);
        mcmap_store(page, word, res->host_offset + done + at, MC_LINK);
    }
    return bytes;
}

/* Links the words of one page; advances *done. */
static int link_page(struct qed_image *img, const struct reservation *res,
                     bool replaces_zero, uint64_t *done)
{
    struct mcache *mc = img->node->mc;
    struct qed_clusters clusters = {res->host_offset, res->length, res->fresh};
    uint64_t index = qed_page_index(img, res->guest_offset + *done);

    for (;;) {
        lock_acquire(mcache_meta(mc));
        struct mc_page *page = mcmap_peek_for_store(img->l2_map, index);
        if (page) {
            /* Not strict only if the old content is zeroes and the new clusters are durable
             * zeroes: then it doesn't matter whether the word or the data becomes durable
             * first. */
            if (!replaces_zero || qed_needs_barrier(img, &clusters))
                mcache_strict(mc);
            *done += store_words(img, page, res, *done);
        }
        lock_release(mcache_meta(mc));
        if (page)
            return 0;
        int err = mcmap_get_for_store(img->l2_map, index, NULL);
        if (err < 0)
            return err;
    }
}

int qed_link(struct node *node, const struct reservation *res, bool replaces_zero)
{
    struct qed_image *img = node->state;
    uint64_t done = 0;
    int err = 0;

    /* If a page can't be loaded, words stored before that stay: their data is written, and a
     * write that failed may be done in part. */
    while (done < res->length && err == 0)
        err = link_page(img, res, replaces_zero, &done);

    lock_acquire(mcache_meta(node->mc));
    if (!res->retained)
        qed_space_put(&img->space, res->host_offset + done, res->length - done);
    dirty_mark_end(&img->mark);
    lock_release(mcache_meta(node->mc));
    node_wrote(node);
    return err;
}

void qed_release(struct node *node, const struct reservation *res)
{
    struct qed_image *img = node->state;
    LOCK_GUARD(mcache_meta(node->mc));

    if (!res->retained)
        qed_space_put(&img->space, res->host_offset, res->length);
    dirty_mark_end(&img->mark);
}
