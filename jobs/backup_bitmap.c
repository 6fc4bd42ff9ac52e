/* SPDX-License-Identifier: BSD-3-Clause */
/* A backup's bitmap: which data is copied, and the bitmap's contents afterwards. */
#include <errno.h>

#include "jobs/backup_internal.h"

static void mark_since(struct observer *observer, uint64_t off, uint64_t len)
{
    dirty_bitmap_set(CONTAINER_OF(observer, struct backup, since_observer)->since, off,
                     len);
}

/* May the bitmap's contents be replaced at the end? */
static bool is_replaced_at_end(const struct backup *b)
{
    return b->params.bitmap_mode != BACKUP_NEVER && b->params.sync != BACKUP_NONE;
}

int backup_check_bitmap(struct backup *b, struct diag *diag)
{
    /* In a transaction, another action may create the bitmap at the same point. */
    if (!b->params.bitmap || b->held)
        return 0;
    const struct dirty_bitmap *bitmap =
        mirror_find_bitmap(b->source, b->params.bitmap, diag);
    if (!bitmap)
        return -ENOENT;
    return dirty_bitmap_busy(bitmap)
               ? diag_set(diag, EBUSY, "bitmap '%s' is in use by a job", b->params.bitmap)
               : 0;
}

static struct dirty_bitmap *new_like(const struct dirty_bitmap *bitmap)
{
    return dirty_bitmap_new(NULL, dirty_bitmap_size(bitmap),
                            dirty_bitmap_granularity(bitmap));
}

/* Starts to record in `since` what the bitmap records.  A disabled bitmap records nothing. */
static int begin_since(struct backup *b)
{
    if (!is_replaced_at_end(b) || !dirty_bitmap_enabled(b->named))
        return 0;
    b->since = new_like(b->named);
    if (!b->since)
        return -ENOMEM;
    b->since_observer.wrote = mark_since;
    return observer_add(&b->source->observers, &b->since_observer);
}

/* Makes the bitmap that readers of the point are told of. */
static int add_for_readers(struct backup *b)
{
    b->for_readers = new_like(b->named);
    if (!b->for_readers)
        return -ENOMEM;
    frozen_set_changed(b->point, b->for_readers);
    return 0;
}

int backup_take_bitmap(struct backup *b, struct dirty_bitmap *acquired, struct diag *diag)
{
    if (!b->params.bitmap)
        return 0;
    b->named = acquired ? acquired : node_bitmap_acquire(b->source, b->params.bitmap, diag);
    if (!b->named)
        return -diag->err;
    int err = begin_since(b);
    if (!err && b->params.sync == BACKUP_NONE)
        err = add_for_readers(b);
    if (err) {
        backup_thaw(b, acquired);
        return diag_errno(diag, -err, "bitmap '%s'", b->params.bitmap);
    }
    return 0;
}

void backup_note_remainder(struct backup *b)
{
    const struct mirror *m = &b->mirror;

    if (!b->named || b->params.bitmap_mode != BACKUP_ALWAYS ||
        b->params.sync != BACKUP_BITMAP || !(b->remainder = new_like(b->named)))
        return;
    dirty_bitmap_merge(b->remainder, m->dirty);
    /* It was written to the target, but may not be durable there. */
    dirty_bitmap_merge(b->remainder, m->unflushed);
    dirty_bitmap_merge(b->remainder, m->flushing);
}

static void end_since(struct backup *b)
{
    if (b->since)
        observer_remove(&b->source->observers, &b->since_observer);
}

int backup_record_at(struct backup *b, struct node *node)
{
    struct observer *observer = &b->since_observer;

    return b->since ? observer_add_unseen(&node->observers, &observer, 1) : 0;
}

void backup_stop_recording(struct backup *b, struct node *node)
{
    struct observer *observer = &b->since_observer;

    if (b->since)
        observer_remove_unseen(&node->observers, &observer, 1);
}

void backup_drop_bitmap(struct backup *b)
{
    end_since(b);
    dirty_bitmap_free(b->since);
    dirty_bitmap_free(b->remainder);
    if (b->named)
        dirty_bitmap_release(b->named);
    b->since = b->remainder = b->named = NULL;
}

void backup_settle_bitmap(struct backup *b, bool success)
{
    bool replaced = b->named && is_replaced_at_end(b) && (success || b->remainder);
    struct diag ignored;

    /* For a bitmap stored in the image.  If it fails, the bitmap keeps its old contents,
     * which mark more than necessary. */
    if (replaced && node_bitmap_begin_change(b->source, b->named, &ignored))
        replaced = false;
    if (replaced) {
        dirty_bitmap_clear(b->named, 0, dirty_bitmap_size(b->named));
        if (!success)
            dirty_bitmap_merge(b->named, b->remainder);
        if (b->since)
            dirty_bitmap_merge(b->named, b->since);
    }
    end_since(b);
    /* Merges once more: a writer that was just marking both may have marked the bitmap
     * before it was cleared, and `since` after it was merged.  Now no writer is marking any
     * more. */
    if (replaced && b->since)
        dirty_bitmap_merge(b->named, b->since);
    if (replaced)
        node_bitmap_end_change(b->source, b->named);
    backup_drop_bitmap(b);
}
