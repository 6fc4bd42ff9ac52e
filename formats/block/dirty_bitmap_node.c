/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps of a node: finding them by name, and storing them in its image. */
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/dirty_bitmap_internal.h"
#include "block/node.h"

void dirty_bitmaps_init(struct dirty_bitmaps *bitmaps)
{
    lock_init(&bitmaps->keep, RANK_KEEP);
    lock_init(&bitmaps->lock, RANK_LEAF);
    list_init(&bitmaps->list);
}

static struct dirty_bitmap *bitmap_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct dirty_bitmap, link);
}

void dirty_bitmaps_destroy(struct dirty_bitmaps *bitmaps)
{
    LIST_FOR_EACH_SAFE (pos, &bitmaps->list) {
        list_remove(pos);
        dirty_bitmap_free(bitmap_at(pos));
    }
    lock_destroy(&bitmaps->lock);
    lock_destroy(&bitmaps->keep);
}

/* Under the lock. */
static struct dirty_bitmap *find_bitmap(struct dirty_bitmaps *bitmaps, const char *name)
{
    LIST_FOR_EACH (pos, &bitmaps->list)
        if (strcmp(bitmap_at(pos)->name, name) == 0)
            return bitmap_at(pos);
    return NULL;
}

struct dirty_bitmap *node_bitmap_find(struct node *node, const char *name)
{
    LOCK_GUARD(&node->bitmaps.lock);

    return find_bitmap(&node->bitmaps, name);
}

typedef int acquire_bitmap(struct dirty_bitmap *bitmap, struct diag *diag);

static struct dirty_bitmap *find_and_acquire(struct node *node, const char *name,
                                             acquire_bitmap *acquire, struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);
    struct dirty_bitmap *bitmap = find_bitmap(&node->bitmaps, name);

    if (!bitmap)
        diag_set(diag, ENOENT, "Dirty bitmap '%.200s' not found", name);
    else if (acquire(bitmap, diag) == 0)
        return bitmap;
    return NULL;
}

struct dirty_bitmap *node_bitmap_acquire(struct node *node, const char *name,
                                         struct diag *diag)
{
    return find_and_acquire(node, name, dirty_bitmap_acquire, diag);
}

struct dirty_bitmap *node_bitmap_share(struct node *node, const char *name,
                                       struct diag *diag)
{
    return find_and_acquire(node, name, dirty_bitmap_share, diag);
}

static int check_new(const struct node *node, const struct dirty_bitmap *bitmap,
                     struct diag *diag)
{
    if (!bitmap->name || bitmap->name[0] == '\0')
        return diag_set(diag, EINVAL, "%s: a bitmap needs a name", node->filename);
    if (strlen(bitmap->name) > BITMAP_NAME_MAX)
        return diag_set(diag, EINVAL, "%s: the bitmap's name is longer than %u bytes",
                        node->filename, BITMAP_NAME_MAX);
    if (bitmap->size != node->size)
        return diag_set(diag, EINVAL, "%s: bitmap '%s' is for a disk of another size",
                        node->filename, bitmap->name);
    return 0;
}

/* Adds the bitmap to the list before it records writes, so that no other can take its name. */
static int take_name(struct node *node, struct dirty_bitmap *bitmap, struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);

    if (find_bitmap(&node->bitmaps, bitmap->name))
        return diag_set(diag, EEXIST, "Bitmap already exists: %s", bitmap->name);
    list_append(&node->bitmaps.list, &bitmap->link);
    return 0;
}

static void give_name_back(struct node *node, struct dirty_bitmap *bitmap)
{
    LOCK_GUARD(&node->bitmaps.lock);

    list_remove(&bitmap->link);
}

int node_bitmap_add(struct node *node, struct dirty_bitmap *bitmap, struct diag *diag)
{
    int err = check_new(node, bitmap, diag);
    if (!err)
        err = take_name(node, bitmap, diag);
    if (err)
        return err;
    err = bitmap->inconsistent ? 0 : observer_add(&node->observers, &bitmap->observer);
    if (err) {
        give_name_back(node, bitmap);
        return diag_errno(diag, -err, "%s: bitmap '%s'", node->filename, bitmap->name);
    }
    return 0;
}

int node_bitmaps_adopt(struct node *node, struct dirty_bitmap *const *bitmaps, uint32_t n)
{
    CLEANUP_FREE struct observer **observers = calloc(n + 1, sizeof *observers);
    unsigned n_observers = 0;

    if (!observers)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        if (!bitmaps[i]->inconsistent)
            observers[n_observers++] = &bitmaps[i]->observer;
    int err = observer_add_all(&node->observers, observers, n_observers);
    if (err)
        return err;
    LOCK_GUARD(&node->bitmaps.lock);
    for (uint32_t i = 0; i < n; i++)
        list_append(&node->bitmaps.list, &bitmaps[i]->link);
    return 0;
}

bool node_has_bitmaps(struct node *node)
{
    LOCK_GUARD(&node->bitmaps.lock);

    return !list_empty(&node->bitmaps.list);
}

static int check_params(struct node *node, const struct bitmap_params *params,
                        uint64_t granularity, struct diag *diag)
{
    if (params->name[0] == '\0')
        return diag_set(diag, EINVAL, "Bitmap name cannot be empty");
    if (!dirty_bitmap_granularity_ok(granularity))
        return diag_set(diag, EINVAL, "Granularity must be a power of two from %u to %u",
                        BITMAP_MIN_GRANULARITY, BITMAP_MAX_GRANULARITY);
    return params->persistent
               ? node_bitmap_check_keep(node, params->name, granularity, diag)
               : 0;
}

int node_bitmap_create(struct node *node, const struct bitmap_params *params,
                       struct dirty_bitmap **out, struct diag *diag)
{
    uint64_t granularity = params->granularity
                               ? params->granularity
                               : dirty_bitmap_default_granularity(node->cluster_size);

    int err = check_params(node, params, granularity, diag);
    if (err)
        return err;
    struct dirty_bitmap *bitmap = dirty_bitmap_new(params->name, node->size, granularity);
    if (!bitmap)
        return diag_errno(diag, ENOMEM, "Bitmap '%.200s'", params->name);
    dirty_bitmap_enable(bitmap, !params->disabled);
    if (params->persistent)
        dirty_bitmap_set_persistent(bitmap);
    err = node_bitmap_add(node, bitmap, diag);
    if (err)
        dirty_bitmap_free(bitmap);
    else
        *out = bitmap;
    return err;
}

void node_bitmap_drop(struct node *node, struct dirty_bitmap *bitmap)
{
    assert(dirty_bitmap_busy(bitmap));
    observer_remove(&node->observers, &bitmap->observer);
    LOCK_GUARD(&node->bitmaps.keep);
    give_name_back(node, bitmap);
    dirty_bitmap_free(bitmap);
}

int node_bitmap_remove(struct node *node, const char *name, struct diag *diag)
{
    struct dirty_bitmap *bitmap =
        find_and_acquire(node, name, dirty_bitmap_acquire_to_remove, diag);

    if (!bitmap)
        return -diag->err;
    node_bitmap_drop(node, bitmap);
    return 0;
}

static struct dirty_bitmap *acquire_unkept(struct node *node)
{
    struct diag ignored;
    LOCK_GUARD(&node->bitmaps.lock);

    LIST_FOR_EACH (pos, &node->bitmaps.list)
        if (!bitmap_at(pos)->persistent &&
            dirty_bitmap_acquire_to_remove(bitmap_at(pos), &ignored) == 0)
            return bitmap_at(pos);
    return NULL;
}

struct dirty_bitmap *node_bitmap_take_unkept(struct node *node)
{
    struct dirty_bitmap *bitmap = acquire_unkept(node);

    if (!bitmap)
        return NULL;
    observer_remove(&node->observers, &bitmap->observer);
    LOCK_GUARD(&node->bitmaps.keep);
    give_name_back(node, bitmap);
    dirty_bitmap_release(bitmap);
    return bitmap;
}

void node_bitmap_each(struct node *node,
                      void (*each)(struct dirty_bitmap *bitmap, void *opaque), void *opaque)
{
    LOCK_GUARD(&node->bitmaps.lock);

    LIST_FOR_EACH (pos, &node->bitmaps.list)
        each(bitmap_at(pos), opaque);
}

static void set_if_enabled(struct dirty_bitmap *bitmap, void *opaque)
{
    (void)opaque;
    if (dirty_bitmap_enabled(bitmap))
        dirty_bitmap_set(bitmap, 0, bitmap->size);
}

void node_bitmaps_set_all(struct node *node)
{
    node_bitmap_each(node, set_if_enabled, NULL);
}

/* Under the lock. */
static int check_idle(struct node *node, struct diag *diag)
{
    LIST_FOR_EACH (pos, &node->bitmaps.list)
        if (dirty_bitmap_busy(bitmap_at(pos)))
            return diag_set(diag, EBUSY, "%s: bitmap '%s' is in use", node->filename,
                            bitmap_at(pos)->name);
    return 0;
}

int node_bitmaps_check_resize(struct node *node, struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);

    return check_idle(node, diag);
}

/* Changes a bitmap's size with the disk's.  The added part is marked dirty: the disk may have
 * had other data there before it was made smaller, which the bitmap no longer knows.  For a
 * reader of the bitmap (an incremental backup) that range has changed. */
static int follow_size(struct dirty_bitmap *bitmap, uint64_t size)
{
    uint64_t old = dirty_bitmap_size(bitmap);

    int err = dirty_bitmap_resize(bitmap, size);
    if (!err && size > old && dirty_bitmap_enabled(bitmap))
        dirty_bitmap_set(bitmap, old, size - old);
    return err;
}

int node_bitmaps_resize(struct node *node, uint64_t size, struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);
    int err = check_idle(node, diag);

    if (err)
        return err;
    LIST_FOR_EACH (pos, &node->bitmaps.list) {
        err = follow_size(bitmap_at(pos), size);
        if (err)
            return diag_errno(diag, -err, "%s: bitmap '%s'", node->filename,
                              bitmap_at(pos)->name);
    }
    return 0;
}

/* ---- bitmaps stored in the image ---- */

void node_bitmaps_load(struct node *node)
{
    if (node_can(node, DRIVER_BITMAPS))
        node->driver->load_bitmaps(node);
}

static void take_kept(struct node *node, struct list *out)
{
    LOCK_GUARD(&node->bitmaps.lock);

    LIST_FOR_EACH_SAFE (pos, &node->bitmaps.list) {
        if (!dirty_bitmap_persistent(bitmap_at(pos)) || dirty_bitmap_busy(bitmap_at(pos)))
            continue;
        list_remove(pos);
        list_append(out, pos);
    }
}

void node_bitmaps_distrust(struct node *node)
{
    struct list kept;

    list_init(&kept);
    take_kept(node, &kept);
    LIST_FOR_EACH_SAFE (pos, &kept) {
        struct dirty_bitmap *bitmap = bitmap_at(pos);
        list_remove(pos);
        if (!bitmap->inconsistent)
            observer_remove(&node->observers, &bitmap->observer);
        dirty_bitmap_free(bitmap);
    }
    node_bitmaps_set_all(node);
}

static int check_can_keep(const struct node *node, struct diag *diag)
{
    if (!node_can(node, DRIVER_BITMAPS))
        return diag_set(diag, ENOTSUP,
                        "Driver '%s' does not support persistent bitmaps in node '%s'",
                        node->driver->name, node->filename);
    if (!node->active)
        return diag_set(diag, EROFS, "%s: is read-only: no bitmap can be kept in it",
                        node->filename);
    return 0;
}

int node_bitmap_check_keep(struct node *node, const char *name, uint64_t granularity,
                           struct diag *diag)
{
    int err = check_can_keep(node, diag);

    return err ? err : node->driver->check_bitmap(node, name, granularity, diag);
}

int node_bitmap_begin_change(struct node *node, const struct dirty_bitmap *bitmap,
                             struct diag *diag)
{
    if (!bitmap->persistent)
        return 0;
    if (!node->active)
        return diag_set(diag, EROFS, "Bitmap '%.200s' is readonly and cannot be modified",
                        bitmap->name);
    return node->driver->begin_bitmap_change(node, bitmap, diag);
}

void node_bitmap_end_change(struct node *node, const struct dirty_bitmap *bitmap)
{
    if (bitmap->persistent)
        node->driver->end_bitmap_change(node);
}

int node_bitmaps_keep(struct node *node, struct diag *diag)
{
    int err = check_can_keep(node, diag);

    return err ? err : node->driver->keep_bitmaps(node, diag);
}
