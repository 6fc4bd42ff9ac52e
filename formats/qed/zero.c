/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroing whole clusters.
 *
 * A cluster that is allocated stays allocated, because QED can't express that it is free.  It
 * is zeroed in the file; if it may lose its blocks, later (trims.h).  A hole over a backing
 * file gets the zero marker; a hole without one reads as zeroes already. */
#include <errno.h>

#include "base/checked.h"
#include "qed/image.h"

/* META: stores zero markers for a page's holes in [off, off + len). */
static void store_markers(struct qed_image *img, struct mc_page *page, uint64_t off,
                          uint64_t len)
{
    for (uint64_t at = 0; at < len; at += img->geo.cluster_size) {
        uint32_t word = qed_page_word(img, off + at);
        if (mc_load(page, word) == QED_ENTRY_UNALLOCATED)
            mcmap_store(page, word, QED_ENTRY_ZERO, MC_LINK);
    }
}

/* Marks holes within one page.  A marker points to nothing, so a barrier is needed only if the
 * mark requires it. */
static int mark_page(struct qed_image *img, uint64_t off, uint64_t len)
{
    struct mcache *mc = img->node->mc;

    int err = qed_ensure_table(img, off);
    while (err == 0) {
        lock_acquire(mcache_meta(mc));
        struct mc_page *page = mcmap_peek_for_store(img->l2_map, qed_page_index(img, off));
        if (page) {
            if (dirty_mark_needs_barrier(&img->mark))
                mcache_strict(mc);
            store_markers(img, page, off, len);
        }
        lock_release(mcache_meta(mc));
        if (page)
            return 0;
        err = mcmap_get_for_store(img->l2_map, qed_page_index(img, off), NULL);
    }
    return err;
}

static int mark_holes(struct qed_image *img, uint64_t off, uint64_t len, uint64_t *done)
{
    int err = dirty_mark_begin(&img->mark);

    if (err < 0)
        return err;
    for (uint64_t at = 0; at < len && err == 0;) {
        uint64_t bytes = MIN(len - at, qed_left_in_page(img, off + at));
        err = mark_page(img, off + at, bytes);
        if (err == 0) {
            at += bytes;
            *done += bytes;
        }
    }
    lock_acquire(mcache_meta(img->node->mc));
    dirty_mark_end(&img->mark);
    lock_release(mcache_meta(img->node->mc));
    node_wrote(img->node);
    return err;
}

/* Tries to zero with and without unmapping. */
static int try_zeroing(struct storage *st, uint64_t off)
{
    int err = storage_zero(st, off, QED_MIN_CLUSTER_SIZE, STORAGE_FAST);

    return err ? err
               : storage_zero(st, off, QED_MIN_CLUSTER_SIZE,
                              STORAGE_FAST | STORAGE_MAY_UNMAP);
}

/* Tested once per image.  The test extends the file for a moment, so the mark is set meanwhile. */
static bool storage_zeroes_fast(struct qed_image *img)
{
    int known = atomic_load(&img->fast_zero);

    if (known == QED_UNKNOWN) {
        int err = dirty_mark_begin(&img->mark);
        if (err < 0)
            return false;
        err = qed_space_try(&img->space, try_zeroing);
        node_wrote(img->node);
        lock_acquire(mcache_meta(img->node->mc));
        dirty_mark_end(&img->mark);
        lock_release(mcache_meta(img->node->mc));
        known = err == 0 ? QED_YES : QED_NO;
        atomic_store(&img->fast_zero, known);
    }
    return known == QED_YES;
}

/* Zeroes data at its place in the file. */
static int zero_in_place(struct qed_image *img, uint64_t host, uint64_t len,
                         enum zero_how how)
{
    struct node *node = img->node;
    unsigned flags =
        how == ZERO_KEEP || node->options.discard_ignore ? 0 : STORAGE_MAY_UNMAP;

    /* For a trim, writing zero bytes would be too expensive. */
    if (how == ZERO_DISCARD)
        flags |= STORAGE_FAST;
    int err = storage_zero(node->file, host, len, flags);
    node_wrote(node);
    return how == ZERO_DISCARD && err == -ENOTSUP ? 0 : err;
}

/* Lets data be punched later, page by page as long as there is room.  *kept: number of bytes. */
static int punch_later(struct qed_image *img, uint64_t off, uint64_t len, uint64_t *kept)
{
    bool full = false;

    int err = dirty_mark_begin(&img->mark);
    if (err < 0)
        return err;
    while (*kept < len && err == 0 && !full) {
        uint64_t bytes = MIN(len - *kept, qed_left_in_page(img, off + *kept));
        err = qed_trims_keep(img, off + *kept, bytes, &full);
        if (err == 0 && !full)
            *kept += bytes;
    }
    lock_acquire(mcache_meta(img->node->mc));
    qed_trims_end_mark(img);
    lock_release(mcache_meta(img->node->mc));
    node_wrote(img->node);
    return err;
}

static int zero_data(struct qed_image *img, uint64_t off, const struct qed_run *run,
                     enum zero_how how)
{
    bool ignore = img->node->options.discard_ignore;
    uint64_t kept = 0;

    if (how == ZERO_DISCARD && ignore)
        return 0;
    if (how != ZERO_KEEP && !ignore && storage_zeroes_fast(img)) {
        int err = punch_later(img, off, run->length, &kept);
        if (err < 0 || kept == run->length)
            return err;
    }
    return zero_in_place(img, run->host_offset + kept, run->length - kept, how);
}

int qed_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
             uint64_t *done)
{
    struct qed_image *img = node->state;
    int err = 0;

    *done = 0;
    while (*done < len && err == 0) {
        struct qed_run run;
        err = qed_lookup(img, off + *done, len - *done, &run);
        if (err < 0)
            return err;
        if (run.kind == QED_UNALLOCATED && node_holes_may_show(img->node)) {
            err = mark_holes(img, off + *done, run.length, done);
            continue;
        }
        if (run.kind == QED_DATA)
            err = zero_data(img, off + *done, &run, how);
        if (err == 0)
            *done += run.length;
    }
    return err;
}

bool qed_zero_is_fast(struct node *node, uint64_t off, uint64_t len)
{
    struct qed_image *img = node->state;

    if (!img->active)
        return false;
    for (uint64_t done = 0; done < len;) {
        struct qed_run run;
        if (qed_lookup(img, off + done, len - done, &run) < 0)
            return false;
        if (run.kind == QED_DATA && !storage_zeroes_fast(img))
            return false;
        done += run.length;
    }
    return true;
}
