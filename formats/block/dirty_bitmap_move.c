/* SPDX-License-Identifier: BSD-3-Clause */
/* Moves bitmaps with a disk from one node to another.
 *
 * A bitmap tells what was changed on a disk since a moment that its user knows; it isn't about
 * a file.  So when the disk moves to another node with the same contents, its bitmaps move too,
 * even while they are in use, and go on recording.  A copy that is stored in the old image
 * stays there: it remains true for that image.
 *
 * A bitmap of a lower layer has recorded changes only until an overlay was put on that layer.
 * It is moved only if no change is missing: if each layer above has a bitmap of its name, to
 * which it is added, or if it has recorded all changes of the new node (node_bitmaps_follow). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/dirty_bitmap_internal.h"
#include "block/node.h"

/* A bitmap that is moved. */
struct going {
    struct dirty_bitmap *bitmap;
    struct node *from;
    struct dirty_bitmap *twin; /* stays in the old image in its place; NULL: nothing does */
    bool fits;                 /* its size is that of the new node */
    struct hbits room;         /* otherwise: new bits for it */
};

/* A move.  All memory is allocated before the first bitmap is moved, so that either all are
 * moved or none. */
struct move {
    struct node *top, *to;
    const struct node *end; /* the first layer whose bitmaps aren't moved; NULL: none */
    unsigned n, n_new;
    struct going *item; /* from the lowest layer up: each may be merged into one above */
    struct observer **observer; /* n_new observers of bitmaps that don't record `to` yet */
};

static void free_move(struct move *move)
{
    for (unsigned i = 0; move->item && i < move->n; i++) {
        dirty_bitmap_free(move->item[i].twin);
        hbits_destroy(&move->item[i].room);
    }
    free(move->item);
    free(move->observer);
}

/* ---- choosing the bitmaps ---- */

static bool has_usable(struct node *node, const char *name)
{
    const struct dirty_bitmap *bitmap = node_bitmap_find(node, name);

    return bitmap && !dirty_bitmap_inconsistent(bitmap);
}

/* Is no change missing since it stopped recording? */
static bool is_whole(const struct move *move, const struct going *item)
{
    if (observer_is_there(&move->to->observers, &item->bitmap->observer))
        return true;
    for (struct node *above = move->top; above != item->from; above = above->backing)
        if (!has_usable(above, item->bitmap->name))
            return false;
    return true;
}

/* Is it moved?  A node that isn't active already has its persistent bitmaps, from its image. */
static bool goes_along(const struct move *move, const struct going *item)
{
    return !dirty_bitmap_inconsistent(item->bitmap) && is_whole(move, item) &&
           (move->to->active || !item->bitmap->persistent);
}

static void count_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    (void)bitmap;
    ++*(unsigned *)opaque;
}

static unsigned count_all(const struct move *move)
{
    unsigned n = 0;

    for (struct node *layer = move->top; layer != move->end; layer = layer->backing)
        node_bitmap_each(layer, count_bitmap, &n);
    return n;
}

static void gather_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    struct move *move = opaque;

    move->item[move->n++].bitmap = bitmap;
}

static void gather_layer(struct move *move, struct node *layer)
{
    unsigned i = move->n;

    node_bitmap_each(layer, gather_bitmap, move);
    for (; i < move->n; i++)
        move->item[i].from = layer;
}

static void gather_layers(struct move *move)
{
    const struct node *below = move->end;

    while (below != move->top) {
        struct node *layer = move->top;
        while (layer->backing != below)
            layer = layer->backing;
        gather_layer(move, layer);
        below = layer;
    }
}

/* Removes from the list those that aren't moved. */
static void leave_others_out(struct move *move)
{
    unsigned n = 0;

    for (unsigned i = 0; i < move->n; i++)
        if (goes_along(move, &move->item[i]))
            move->item[n++] = move->item[i];
    move->n = n;
}

static int gather(struct move *move)
{
    unsigned room = count_all(move) + 1;

    move->item = calloc(room, sizeof *move->item);
    move->observer = calloc(room, sizeof *move->observer);
    if (!move->item || !move->observer)
        return -ENOMEM;
    gather_layers(move);
    leave_others_out(move);
    return 0;
}

/* ---- preparing: can fail ---- */

static int refuse_busy(const struct node *node, const char *name, struct diag *diag)
{
    return diag_set(diag, EBUSY, "%s: its bitmap '%.200s' is in use", node->filename, name);
}

/* Does it get merged with another bitmap of its name, of a lower layer or of the new node? */
static bool takes_up_another(const struct move *move, unsigned i)
{
    const char *name = move->item[i].bitmap->name;

    for (unsigned below = 0; below < i; below++)
        if (strcmp(move->item[below].bitmap->name, name) == 0)
            return true;
    return node_bitmap_find(move->to, name);
}

/* A bitmap in use can't be merged into another, as its user would lose it; nor be resized, as
 * its user may be reading the bits.  Nor can another be merged into it: its user, a backup, has
 * started without those bits, and would clear them at its end without having copied what they
 * stand for. */
static int check_use(const struct move *move, unsigned i, struct diag *diag)
{
    const struct going *item = &move->item[i];
    const char *name = item->bitmap->name;
    const struct dirty_bitmap *other = node_bitmap_find(move->to, name);

    if (other && dirty_bitmap_busy(other))
        return refuse_busy(move->to, name, diag);
    for (unsigned below = 0; below < i; below++)
        if (strcmp(move->item[below].bitmap->name, name) == 0 &&
            dirty_bitmap_busy(move->item[below].bitmap))
            return refuse_busy(move->item[below].from, name, diag);
    if (dirty_bitmap_busy(item->bitmap) && (!item->fits || takes_up_another(move, i)))
        return refuse_busy(item->from, name, diag);
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
    return twin;
}

static int prepare_one(const struct move *move, struct going *item, struct diag *diag)
{
    int err = 0;

    if (item->bitmap->persistent && !(item->twin = new_twin(item->bitmap)))
        err = -ENOMEM;
    if (!err && !item->fits)
        err = dirty_bitmap_make_room(item->bitmap, move->to->size, &item->room);
    return err ? diag_errno(diag, -err, "%s: bitmap '%.200s'", item->from->filename,
                            item->bitmap->name)
               : 0;
}

static int begin_recording(struct move *move, struct diag *diag)
{
    for (unsigned i = 0; i < move->n; i++)
        if (!observer_is_there(&move->to->observers, &move->item[i].bitmap->observer))
            move->observer[move->n_new++] = &move->item[i].bitmap->observer;
    int err = observer_add_unseen(&move->to->observers, move->observer, move->n_new);
    return err ? diag_errno(diag, -err, "%s: its bitmaps", move->to->filename) : 0;
}

static int prepare(struct move *move, struct diag *diag)
{
    int err = gather(move);
    if (err)
        return diag_errno(diag, -err, "%s: its bitmaps", move->top->filename);
    for (unsigned i = 0; i < move->n; i++) {
        move->item[i].fits = move->item[i].bitmap->size == move->to->size;
        err = check_use(move, i, diag);
        if (err)
            return err;
    }
    for (unsigned i = 0; i < move->n; i++) {
        err = prepare_one(move, &move->item[i], diag);
        if (err)
            return err;
    }
    return begin_recording(move, diag);
}

/* ---- moving: can't fail ---- */

/* Follows the size.  What the new node has beyond the old end was never recorded, so it is
 * dirty. */
static void fit_size(struct going *item, uint64_t size)
{
    struct dirty_bitmap *bitmap = item->bitmap;
    uint64_t old = bitmap->size;

    if (item->fits)
        return;
    dirty_bitmap_move_bits(bitmap, size, &item->room);
    if (size > old && dirty_bitmap_enabled(bitmap))
        dirty_bitmap_set(bitmap, old, size - old);
}

/* Puts the twin into the old node.  The driver may have stored the bitmap again since the twin
 * was made. */
static void leave_twin(struct going *item)
{
    struct dirty_bitmaps *bitmaps = &item->from->bitmaps;
    LOCK_GUARD(&bitmaps->keep);
    LOCK_GUARD(&bitmaps->lock);

    list_remove(&item->bitmap->link);
    if (item->twin) {
        item->twin->slot = item->bitmap->slot;
        dirty_bitmap_set_unsaved(item->twin, dirty_bitmap_unsaved(item->bitmap));
        list_append(&bitmaps->list, &item->twin->link);
    }
    item->twin = NULL;
}

/* Merges a bitmap of the same name that `to` has, and removes that one. */
static void unite(struct node *to, struct dirty_bitmap *bitmap)
{
    struct dirty_bitmap *other = node_bitmap_find(to, bitmap->name);
    struct diag ignored;

    /* Can't be in use: the node isn't served yet. */
    if (!other || dirty_bitmap_acquire_to_remove(other, &ignored))
        return;
    if (!dirty_bitmap_inconsistent(other)) {
        dirty_bitmap_merge(bitmap, other);
        if (dirty_bitmap_enabled(other))
            dirty_bitmap_enable(bitmap, true);
    }
    node_bitmap_drop(to, other);
}

/* If it can't be stored in the new image, it stays in memory until the process ends. */
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
        struct going *item = &move->item[i];
        leave_twin(item);
        fit_size(item, move->to->size);
        join(move->to, item->bitmap);
    }
}

int node_bitmaps_move(struct node *top, const struct node *end, struct node *to,
                      struct diag *diag)
{
    struct move move = {.top = top, .end = end, .to = to};

    int err = prepare(&move, diag);
    if (!err)
        go(&move);
    free_move(&move);
    return err;
}

/* ---- recording a second node ---- */

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
