/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps that go with a disk from one node to another.
 *
 * A bitmap says what was changed since something that its owner remembers, of the disk, not of a
 * file.  So when the disk is another node from now on, with the same contents, each goes there
 * as it is, whoever uses it, and goes on recording.  The old image keeps what it stored of it: of
 * that image it goes on being true.
 *
 * One of a layer below is only about what was changed until the layer above was put on it.
 * It goes along where nothing is missing: when each layer above has one of its name, to
 * which it is added, or when it has recorded all that the new node got
 * (node_bitmaps_follow). */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/dirty_bitmap_internal.h"
#include "block/node.h"

struct move {
    struct node *top, *from, *to;
    unsigned n, n_new;
    struct dirty_bitmap **item;
    struct dirty_bitmap **twin; /* what the old image keeps; NULL: nothing */
    struct observer **observer; /* n_new: of those that don't record `to` yet */
    bool failed;
};

static void free_move(struct move *move)
{
    for (unsigned i = 0; move->twin && i < move->n; i++)
        dirty_bitmap_free(move->twin[i]);
    free(move->item);
    free(move->twin);
    free(move->observer);
}

/* ---- which go ---- */

static bool has_usable(struct node *node, const char *name)
{
    const struct dirty_bitmap *bitmap = node_bitmap_find(node, name);

    return bitmap && !dirty_bitmap_inconsistent(bitmap);
}

/* Is nothing missing of what was changed since it stopped to record? */
static bool is_whole(const struct move *move, const struct dirty_bitmap *bitmap)
{
    if (observer_is_there(&move->to->observers, &bitmap->observer))
        return true;
    for (struct node *above = move->top; above != move->from; above = above->backing)
        if (!has_usable(above, bitmap->name))
            return false;
    return true;
}

static void count_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    (void)bitmap;
    ++*(unsigned *)opaque;
}

/* A node that isn't active has what is kept from its image. */
static bool goes_along(const struct move *move, const struct dirty_bitmap *bitmap)
{
    return !dirty_bitmap_inconsistent(bitmap) && is_whole(move, bitmap) &&
           (move->to->active || !bitmap->persistent);
}

static void gather_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    struct move *move = opaque;

    move->item[move->n++] = bitmap;
}

/* Of all that were gathered. */
static void leave_others_out(struct move *move)
{
    unsigned n = 0;

    for (unsigned i = 0; i < move->n; i++)
        if (goes_along(move, move->item[i]))
            move->item[n++] = move->item[i];
    move->n = n;
}

static int gather(struct move *move)
{
    unsigned room = 0;

    node_bitmap_each(move->from, count_bitmap, &room);
    move->item = calloc(room + 1, sizeof *move->item);
    move->twin = calloc(room + 1, sizeof *move->twin);
    move->observer = calloc(room + 1, sizeof *move->observer);
    if (!move->item || !move->twin || !move->observer)
        return -ENOMEM;
    node_bitmap_each(move->from, gather_bitmap, move);
    leave_others_out(move);
    return 0;
}

/* ---- what can fail ---- */

static int check_name(const struct move *move, const struct dirty_bitmap *bitmap,
                      struct diag *diag)
{
    const struct dirty_bitmap *other = node_bitmap_find(move->to, bitmap->name);

    if (other && dirty_bitmap_busy(other))
        return diag_set(diag, EBUSY, "%s: its bitmap '%.200s' is in use",
                        move->to->filename, bitmap->name);
    /* Who uses it may be looking at its bits. */
    if (bitmap->size != move->to->size && dirty_bitmap_busy(bitmap))
        return diag_set(diag, EBUSY, "%s: bitmap '%.200s' is in use", move->from->filename,
                        bitmap->name);
    return 0;
}

static struct dirty_bitmap *new_twin(const struct dirty_bitmap *bitmap)
{
    struct dirty_bitmap *twin =
        dirty_bitmap_new(bitmap->name, bitmap->size, dirty_bitmap_granularity(bitmap));

    if (!twin)
        return NULL;
    dirty_bitmap_merge(twin, bitmap);
    dirty_bitmap_enable(twin, dirty_bitmap_enabled(bitmap));
    twin->persistent = true;
    twin->slot = bitmap->slot;
    dirty_bitmap_set_unsaved(twin, dirty_bitmap_unsaved(bitmap));
    return twin;
}

/* What the disk has behind its old end was there before: nobody has recorded it. */
static int fit_size(struct dirty_bitmap *bitmap, uint64_t size)
{
    uint64_t old = bitmap->size;
    int err = old == size ? 0 : dirty_bitmap_resize(bitmap, size);

    if (!err && size > old && dirty_bitmap_enabled(bitmap))
        dirty_bitmap_set(bitmap, old, size - old);
    return err;
}

static int prepare_one(const struct move *move, unsigned i, struct diag *diag)
{
    struct dirty_bitmap *bitmap = move->item[i];

    int err = check_name(move, bitmap, diag);
    if (err)
        return err;
    if (bitmap->persistent)
        move->twin[i] = new_twin(bitmap);
    if (bitmap->persistent && !move->twin[i])
        err = -ENOMEM;
    if (!err)
        err = fit_size(bitmap, move->to->size);
    return err ? diag_errno(diag, -err, "%s: bitmap '%.200s'", move->from->filename,
                            bitmap->name)
               : 0;
}

static int prepare(struct move *move, struct diag *diag)
{
    int err = gather(move);
    if (err)
        return diag_errno(diag, -err, "%s: its bitmaps", move->from->filename);
    for (unsigned i = 0; i < move->n; i++) {
        err = prepare_one(move, i, diag);
        if (err)
            return err;
        if (!observer_is_there(&move->to->observers, &move->item[i]->observer))
            move->observer[move->n_new++] = &move->item[i]->observer;
    }
    err = observer_add_unseen(&move->to->observers, move->observer, move->n_new);
    return err ? diag_errno(diag, -err, "%s: its bitmaps", move->to->filename) : 0;
}

/* ---- what can't ---- */

static void leave_twin(struct node *node, struct dirty_bitmap *bitmap,
                       struct dirty_bitmap *twin)
{
    LOCK_GUARD(&node->bitmaps.lock);

    list_remove(&bitmap->link);
    if (twin)
        list_append(&node->bitmaps.list, &twin->link);
}

/* What `to` knows under its name becomes part of it. */
static void unite(struct node *to, struct dirty_bitmap *bitmap)
{
    struct dirty_bitmap *other = node_bitmap_find(to, bitmap->name);
    struct diag ignored;

    /* Nobody acquires bitmaps of a node that isn't served yet. */
    if (!other || dirty_bitmap_acquire_to_remove(other, &ignored))
        return;
    if (!dirty_bitmap_inconsistent(other)) {
        dirty_bitmap_merge(bitmap, other);
        if (dirty_bitmap_enabled(other))
            dirty_bitmap_enable(bitmap, true);
    }
    node_bitmap_drop(to, other);
}

/* Where it can't be kept it is lost with the process, not before. */
static void settle_keeping(struct node *to, struct dirty_bitmap *bitmap)
{
    struct diag diag = {0};

    if (!bitmap->persistent ||
        !node_bitmap_check_keep(to, bitmap->name, dirty_bitmap_granularity(bitmap), &diag))
        return;
    bitmap->persistent = false;
    log_warning("bitmap '%.200s' can't be kept in the image any more: %s", bitmap->name,
                diag.text);
}

static void join(struct node *to, struct dirty_bitmap *bitmap)
{
    unite(to, bitmap);
    settle_keeping(to, bitmap);
    bitmap->slot = BITMAP_NO_SLOT;
    dirty_bitmap_set_unsaved(bitmap, true);
    LOCK_GUARD(&to->bitmaps.lock);
    list_append(&to->bitmaps.list, &bitmap->link);
}

static void go(struct move *move)
{
    for (unsigned i = 0; i < move->n; i++) {
        {
            LOCK_GUARD(&move->from->bitmaps.keep);
            leave_twin(move->from, move->item[i], move->twin[i]);
            move->twin[i] = NULL;
        }
        join(move->to, move->item[i]);
    }
}

int node_bitmaps_move(struct node *top, struct node *from, struct node *to,
                      struct diag *diag)
{
    struct move move = {.top = top, .from = from, .to = to};

    int err = prepare(&move, diag);
    if (!err)
        go(&move);
    free_move(&move);
    return err;
}

/* ---- following ---- */

struct followers {
    struct observer **observer;
    unsigned n;
};

static void gather_follower(struct dirty_bitmap *bitmap, void *opaque)
{
    struct followers *followers = opaque;

    if (!dirty_bitmap_inconsistent(bitmap))
        followers->observer[followers->n++] = &bitmap->observer;
}

static bool gather_followers(struct node *from, struct followers *followers)
{
    unsigned room = 0;

    node_bitmap_each(from, count_bitmap, &room);
    followers->observer = calloc(room + 1, sizeof *followers->observer);
    if (followers->observer)
        node_bitmap_each(from, gather_follower, followers);
    return followers->observer;
}

int node_bitmaps_follow(struct node *from, struct node *to)
{
    struct followers followers = {0};

    if (!gather_followers(from, &followers))
        return -ENOMEM;
    int err = observer_add_all(&to->observers, followers.observer, followers.n);
    free(followers.observer);
    return err;
}
