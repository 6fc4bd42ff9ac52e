/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps: bits for chunks, and the names that a node knows them by. */
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/fence.h"
#include "block/dirty_bitmap.h"
#include "block/hbits.h"
#include "block/node.h"

/* dirty_bitmap_next looks no further: a full bitmap isn't read to its end for one run. */
#define LONGEST_RUN 65536u /* granules */

struct dirty_bitmap {
    struct observer observer;
    char *name;
    uint64_t size;
    unsigned shift; /* log2 of the granularity */
    _Atomic bool enabled, busy;
    struct hbits bits;
    struct list link; /* struct dirty_bitmaps.list */
};

bool dirty_bitmap_granularity_ok(uint64_t granularity)
{
    return is_power_of_two(granularity) && granularity >= BITMAP_MIN_GRANULARITY &&
           granularity <= BITMAP_MAX_GRANULARITY;
}

uint64_t dirty_bitmap_default_granularity(uint64_t cluster_size)
{
    if (cluster_size <= 1)
        return BITMAP_DEFAULT_GRANULARITY;
    return MIN(MAX(cluster_size, 4096), BITMAP_DEFAULT_GRANULARITY);
}

static uint64_t count_granules(uint64_t size, unsigned shift)
{
    return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

static void mark_change(struct observer *observer, uint64_t off, uint64_t len)
{
    struct dirty_bitmap *bitmap = CONTAINER_OF(observer, struct dirty_bitmap, observer);

    /* Either who enables it sees the data, or we see that it's enabled. */
    full_fence();
    if (atomic_load(&bitmap->enabled))
        dirty_bitmap_set(bitmap, off, len);
}

struct dirty_bitmap *dirty_bitmap_new(const char *name, uint64_t size, uint64_t granularity)
{
    struct dirty_bitmap *bitmap = calloc(1, sizeof *bitmap);

    assert(dirty_bitmap_granularity_ok(granularity));
    if (!bitmap)
        return NULL;
    bitmap->observer.wrote = mark_change;
    bitmap->size = size;
    bitmap->shift = (unsigned)__builtin_ctzll(granularity);
    atomic_init(&bitmap->enabled, true);
    list_init(&bitmap->link);
    bool named = !name || (bitmap->name = strdup(name));
    if (hbits_init(&bitmap->bits, count_granules(size, bitmap->shift)) == 0 && named)
        return bitmap;
    dirty_bitmap_free(bitmap);
    return NULL;
}

void dirty_bitmap_free(struct dirty_bitmap *bitmap)
{
    if (!bitmap)
        return;
    assert(list_empty(&bitmap->link));
    hbits_destroy(&bitmap->bits);
    free(bitmap->name);
    free(bitmap);
}

const char *dirty_bitmap_name(const struct dirty_bitmap *bitmap)
{
    return bitmap->name;
}

uint64_t dirty_bitmap_size(const struct dirty_bitmap *bitmap)
{
    return bitmap->size;
}

uint64_t dirty_bitmap_granularity(const struct dirty_bitmap *bitmap)
{
    return 1ull << bitmap->shift;
}

/* ---- bits ---- */

/* The end of a range, cut to the disk. */
static uint64_t end_of(const struct dirty_bitmap *bitmap, uint64_t off, uint64_t len)
{
    return off < bitmap->size ? off + MIN(len, bitmap->size - off) : off;
}

void dirty_bitmap_set(struct dirty_bitmap *bitmap, uint64_t off, uint64_t len)
{
    uint64_t end = end_of(bitmap, off, len);
    uint64_t first = off >> bitmap->shift;

    if (off < end)
        hbits_set(&bitmap->bits, first, count_granules(end, bitmap->shift) - first);
}

void dirty_bitmap_clear(struct dirty_bitmap *bitmap, uint64_t off, uint64_t len)
{
    uint64_t end = end_of(bitmap, off, len);

    if (off >= end)
        return;
    uint64_t first = count_granules(off, bitmap->shift), stop = end >> bitmap->shift;
    if (end == bitmap->size) /* the last granule may be a short one */
        stop = bitmap->bits.n_bits;
    if (first < stop)
        hbits_clear(&bitmap->bits, first, stop - first);
}

bool dirty_bitmap_get(const struct dirty_bitmap *bitmap, uint64_t off)
{
    return off < bitmap->size && hbits_test(&bitmap->bits, off >> bitmap->shift);
}

uint64_t dirty_bitmap_count(const struct dirty_bitmap *bitmap)
{
    uint64_t n = bitmap->bits.n_bits, bytes = hbits_count(&bitmap->bits) << bitmap->shift;

    /* How far the last granule reaches past the end. */
    if (bytes > 0 && hbits_test(&bitmap->bits, n - 1))
        bytes -= MIN(bytes, (n << bitmap->shift) - bitmap->size);
    return MIN(bytes, bitmap->size);
}

bool dirty_bitmap_next(const struct dirty_bitmap *bitmap, uint64_t from, uint64_t *off,
                       uint64_t *len)
{
    uint64_t n = bitmap->bits.n_bits;

    if (from >= bitmap->size)
        return false;
    uint64_t first = hbits_next_set(&bitmap->bits, from >> bitmap->shift, n);
    if (first == n)
        return false;
    uint64_t stop =
        hbits_next_clear(&bitmap->bits, first, first + MIN(n - first, LONGEST_RUN));
    if (stop == first) /* cleared between the two looks: dirty when it was found */
        stop++;
    *off = MAX(from, first << bitmap->shift);
    *len = MIN(stop << bitmap->shift, bitmap->size) - *off;
    return true;
}

void dirty_bitmap_merge(struct dirty_bitmap *to, const struct dirty_bitmap *from)
{
    uint64_t off, len;

    for (uint64_t at = 0; dirty_bitmap_next(from, at, &off, &len); at = off + len)
        dirty_bitmap_set(to, off, len);
}

int dirty_bitmap_resize(struct dirty_bitmap *bitmap, uint64_t size)
{
    int err = hbits_resize(&bitmap->bits, count_granules(size, bitmap->shift));

    if (!err)
        bitmap->size = size;
    return err;
}

void dirty_bitmap_enable(struct dirty_bitmap *bitmap, bool on)
{
    atomic_store(&bitmap->enabled, on);
    full_fence();
}

bool dirty_bitmap_enabled(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->enabled);
}

int dirty_bitmap_acquire(struct dirty_bitmap *bitmap, struct diag *diag)
{
    bool idle = false;

    if (atomic_compare_exchange_strong(&bitmap->busy, &idle, true))
        return 0;
    return diag_set(diag, EBUSY, "bitmap '%s' is in use by a job",
                    bitmap->name ? bitmap->name : "");
}

void dirty_bitmap_release(struct dirty_bitmap *bitmap)
{
    assert(atomic_load(&bitmap->busy));
    atomic_store(&bitmap->busy, false);
}

bool dirty_bitmap_busy(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->busy);
}

/* ---- a node's bitmaps ---- */

void dirty_bitmaps_init(struct dirty_bitmaps *bitmaps)
{
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

struct dirty_bitmap *node_bitmap_acquire(struct node *node, const char *name,
                                         struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);
    struct dirty_bitmap *bitmap = find_bitmap(&node->bitmaps, name);

    if (!bitmap)
        diag_set(diag, ENOENT, "bitmap '%s': not found", name);
    else if (dirty_bitmap_acquire(bitmap, diag) == 0)
        return bitmap;
    return NULL;
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

/* A name is taken before its bitmap follows any write, so that it's taken once. */
static int take_name(struct node *node, struct dirty_bitmap *bitmap, struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);

    if (find_bitmap(&node->bitmaps, bitmap->name))
        return diag_set(diag, EEXIST, "%s: there is a bitmap '%s' already", node->filename,
                        bitmap->name);
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
    err = observer_add(&node->observers, &bitmap->observer);
    if (err) {
        give_name_back(node, bitmap);
        return diag_errno(diag, -err, "%s: bitmap '%s'", node->filename, bitmap->name);
    }
    return 0;
}

void node_bitmap_drop(struct node *node, struct dirty_bitmap *bitmap)
{
    assert(dirty_bitmap_busy(bitmap));
    observer_remove(&node->observers, &bitmap->observer);
    give_name_back(node, bitmap);
    dirty_bitmap_free(bitmap);
}

int node_bitmap_remove(struct node *node, const char *name, struct diag *diag)
{
    struct dirty_bitmap *bitmap = node_bitmap_acquire(node, name, diag);

    if (!bitmap)
        return -diag->err;
    node_bitmap_drop(node, bitmap);
    return 0;
}

void node_bitmap_each(struct node *node,
                      void (*each)(struct dirty_bitmap *bitmap, void *opaque), void *opaque)
{
    LOCK_GUARD(&node->bitmaps.lock);

    LIST_FOR_EACH (pos, &node->bitmaps.list)
        each(bitmap_at(pos), opaque);
}

int node_bitmaps_resize(struct node *node, uint64_t size, struct diag *diag)
{
    LOCK_GUARD(&node->bitmaps.lock);

    LIST_FOR_EACH (pos, &node->bitmaps.list)
        if (dirty_bitmap_busy(bitmap_at(pos)))
            return diag_set(diag, EBUSY, "%s: bitmap '%s' is in use by a job",
                            node->filename, bitmap_at(pos)->name);
    LIST_FOR_EACH (pos, &node->bitmaps.list) {
        int err = dirty_bitmap_resize(bitmap_at(pos), size);
        if (err)
            return diag_errno(diag, -err, "%s: bitmap '%s'", node->filename,
                              bitmap_at(pos)->name);
    }
    return 0;
}
