/* SPDX-License-Identifier: BSD-3-Clause */
/* Marks stored bitmaps as in use before anything changes, and stores them after a period without
 * changes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fence.h"
#include "base/log.h"
#include "qcow2/internal.h"

static void on_timer(void *opaque);

void qcow2_bitmaps_init(struct qcow2 *q)
{
    lock_init(&q->bitmaps.in_use, RANK_IN_USE);
    timer_init(&q->bitmaps.timer, on_timer, q);
}

void qcow2_bitmaps_destroy(struct qcow2 *q)
{
    timer_cancel(q->node->ctx->housekeeper, &q->bitmaps.timer);
    qcow2_free_bitmap_entries(q->bitmaps.entry, q->bitmaps.n);
    lock_destroy(&q->bitmaps.in_use);
}

/* ---- marking ---- */

/* Writes one entry's flags with the in-use flag.  If a crash leaves it in some entries only, that
 * is no error: the change that the flag announces hasn't happened yet. */
static int write_flags(struct qcow2 *q, uint32_t slot)
{
    uint8_t raw[4];
    uint64_t place = q->header.bitmaps.directory_offset + q->bitmaps.entry[slot].at +
                     offsetof(struct qcow2_disk_bitmap, flags);

    store_be32(raw, q->bitmaps.entry[slot].flags | BITMAP_IN_USE);
    return storage_write(q->node->file, raw, place, sizeof raw, 0);
}

/* Under in_use: sets the flag, durably, in each entry i for which wanted[i] is true. */
static int mark_entries(struct qcow2 *q, const bool *wanted)
{
    bool any = false;

    for (uint32_t i = 0; i < q->bitmaps.n; i++) {
        if (!wanted[i] || (q->bitmaps.entry[i].flags & BITMAP_IN_USE))
            continue;
        int err = write_flags(q, i);
        if (err)
            return err;
        any = true;
    }
    if (!any)
        return 0;
    int err = node_light_barrier(q->node);
    if (err)
        return err;
    LOCK_GUARD(&q->header_lock);
    for (uint32_t i = 0; i < q->bitmaps.n; i++)
        if (wanted[i])
            q->bitmaps.entry[i].flags |= BITMAP_IN_USE;
    return 0;
}

struct choice {
    struct qcow2 *q;
    bool *wanted;
};

/* A disabled bitmap that equals its stored bits stays right when the disk changes. */
static void spare_frozen(struct dirty_bitmap *bitmap, void *opaque)
{
    struct choice *choice = opaque;
    uint32_t slot = dirty_bitmap_slot(bitmap);

    if (dirty_bitmap_persistent(bitmap) && slot < choice->q->bitmaps.n &&
        !dirty_bitmap_enabled(bitmap) && !dirty_bitmap_unsaved(bitmap) &&
        !dirty_bitmap_inconsistent(bitmap))
        choice->wanted[slot] = false;
}

static int mark_all(struct qcow2 *q, bool frozen_too)
{
    uint32_t n = q->bitmaps.n;
    CLEANUP_FREE bool *wanted = malloc(n + 1);

    if (!wanted)
        return -ENOMEM;
    memset(wanted, true, n);
    struct choice choice = {q, wanted};
    if (!frozen_too)
        node_bitmap_each(q->node, spare_frozen, &choice);
    return mark_entries(q, wanted);
}

/* Under in_use. */
static void note_change(struct qcow2 *q)
{
    q->bitmaps.epoch++;
    q->bitmaps.watching = false;
    qcow2_watch_bitmaps(q);
}

int qcow2_mark_bitmaps_in_use(struct qcow2 *q)
{
    int err = mark_all(q, false);

    if (!err)
        note_change(q);
    return err;
}

int qcow2_mark_all_bitmaps_in_use(struct qcow2 *q)
{
    LOCK_GUARD(&q->bitmaps.in_use);
    int err = mark_all(q, true);

    if (!err)
        note_change(q);
    return err;
}

/* ---- changes other than writes ---- */

/* A bitmap without an entry in the directory, or an unusable one, needs no flag. */
static int mark_one(struct qcow2 *q, const struct dirty_bitmap *bitmap)
{
    uint32_t slot = dirty_bitmap_slot(bitmap);
    CLEANUP_FREE bool *wanted = calloc(q->bitmaps.n + 1, 1);

    if (!wanted)
        return -ENOMEM;
    if (slot < q->bitmaps.n)
        wanted[slot] = true;
    return mark_entries(q, wanted);
}

int qcow2_begin_bitmap_change(struct node *node, const struct dirty_bitmap *bitmap,
                              struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);
    LOCK_GUARD(&q->bitmaps.in_use);

    int err = mark_one(q, bitmap);
    if (err)
        return diag_errno(diag, -err, "%s: marking bitmap '%.200s' as in use",
                          node->filename, dirty_bitmap_name(bitmap));
    q->bitmaps.changing++;
    note_change(q);
    return 0;
}

void qcow2_end_bitmap_change(struct node *node)
{
    struct qcow2 *q = qcow2_of(node);
    LOCK_GUARD(&q->bitmaps.in_use);

    q->bitmaps.changing--;
    note_change(q);
}

/* ---- watching ---- */

/* With cache=volatile nothing is durable before the image is closed, so bitmaps are stored only
 * then. */
static bool stores_when_quiet(const struct qcow2 *q)
{
    return q->node->options.need_check_delay_ns != 0 && !q->node->options.cache->no_flush;
}

void qcow2_watch_bitmaps(struct qcow2 *q)
{
    if (q->bitmaps.n > 0 && stores_when_quiet(q))
        timer_arm_if_idle(q->node->ctx->housekeeper, &q->bitmaps.timer,
                          q->node->options.need_check_delay_ns);
}

bool qcow2_bitmaps_are_quiet(const struct qcow2 *q, uint64_t epoch)
{
    return q->bitmaps.epoch == epoch && q->bitmaps.changing == 0 &&
           !atomic_load(&q->node->changed);
}

/* Under in_use: from now on the next change will be noticed (see bitmaps.h). */
static void begin_to_watch(struct qcow2 *q)
{
    atomic_store(&q->node->changed, false);
    full_fence();
    q->bitmaps.watch_epoch = q->bitmaps.epoch;
    q->bitmaps.watch_stamp = gate_stamp_changers(&q->node->ctx->gate);
    q->bitmaps.watching = true;
}

/* Under in_use: has nothing changed since the timer ran last, and has every change ended that began
 * before? */
static bool was_quiet(struct qcow2 *q)
{
    if (q->bitmaps.watching && qcow2_bitmaps_are_quiet(q, q->bitmaps.watch_epoch))
        return gate_changers_passed(&q->node->ctx->gate, q->bitmaps.watch_stamp);
    begin_to_watch(q);
    return false;
}

/* Runs once in each delay, until a whole delay has passed without changes. */
static void on_timer(void *opaque)
{
    struct qcow2 *q = opaque;
    uint64_t epoch;
    bool quiet;

    {
        LOCK_GUARD(&q->bitmaps.in_use);
        quiet = was_quiet(q);
        epoch = q->bitmaps.watch_epoch;
    }
    int err = quiet ? qcow2_store_bitmaps(q, epoch) : -EAGAIN;
    if (!err) {
        node_wrote(q->node); /* the old directory and bits were unlinked */
        return;
    }
    if (err != -EAGAIN && err != -EBUSY) /* -EBUSY: a snapshot is being taken */
        log_error("%s: its bitmaps can't be stored (errno %d): they stay in use",
                  q->node->filename, -err);
    if (mcache_health(q->node->mc))
        return;
    LOCK_GUARD(&q->bitmaps.in_use);
    qcow2_watch_bitmaps(q);
}
