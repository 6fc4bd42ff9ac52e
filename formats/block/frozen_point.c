/* SPDX-License-Identifier: BSD-3-Clause */
/* Frozen points: saves granules before they are changed. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/frozen_internal.h"

/* ---- saving ---- */

static int save_zeroes(struct frozen_point *point, uint64_t off, uint64_t len)
{
    if (point->setup.store_is_blank)
        return 0;
    return block_zero(point->setup.store, off, len, BLOCK_MAY_UNMAP | BLOCK_INSIDE);
}

static int save_bytes(struct frozen_point *point, void *buf, uint64_t off, uint64_t len)
{
    int err = block_read(point->source, buf, off, len);

    return err ? err : block_write(point->setup.store, buf, off, len, BLOCK_INSIDE);
}

/* Saves a range.  Its granule is locked by the caller. */
static int save_range(struct frozen_point *point, uint64_t off, uint64_t end)
{
    CLEANUP_FREE void *buf = NULL;

    while (off < end) {
        struct block_status st;
        int err = 0;
        /* When the status is unknown, save it as data. */
        if (block_status(point->source, off, end - off, &st))
            st = (struct block_status){.length = end - off};
        if (!st.zero && !buf && posix_memalign(&buf, 4096, FROZEN_GRANULE) != 0)
            return -ENOMEM;
        err = st.zero ? save_zeroes(point, off, st.length)
                      : save_bytes(point, buf, off, st.length);
        if (err)
            return err;
        off += st.length;
    }
    return 0;
}

int frozen_save(struct frozen_point *point, uint64_t granule)
{
    uint64_t off = granule * FROZEN_GRANULE;
    uint64_t end = MIN(off + FROZEN_GRANULE, point->size);

    RANGE_LOCK_GUARD(&point->saving, off, end);
    if (frozen_is_saved(point, granule) || atomic_load(&point->error))
        return 0;
    int err = save_range(point, off, end);
    if (err)
        return err;
    hbits_set(&point->saved, granule, 1);
    if (point->setup.saved)
        point->setup.saved(point->setup.opaque, off, end - off);
    return 0;
}

/* Handles a granule that couldn't be saved.  Returns 0 if the change may be made nevertheless. */
static int deal_with_failure(struct frozen_point *point, int err)
{
    int none = 0;

    if (point->setup.give_up)
        atomic_compare_exchange_strong(&point->error, &none, err);
    if (point->setup.failed)
        point->setup.failed(point->setup.opaque, err);
    return point->setup.give_up ? 0 : err;
}

static int preserve(struct frozen_point *point, uint64_t granule)
{
    int err = point->savers ? frozen_savers_save(point->savers, granule)
                            : frozen_save(point, granule);

    return err ? deal_with_failure(point, err) : 0;
}

static int guard_change(struct observer *observer, const struct change *change)
{
    struct frozen_point *point = CONTAINER_OF(observer, struct frozen_point, observer);
    uint64_t first = change->off / FROZEN_GRANULE;
    uint64_t last = (change->off + change->len - 1) / FROZEN_GRANULE;
    int err = 0;

    for (uint64_t g = first; g <= last && !err && !atomic_load(&point->error); g++)
        if (!frozen_is_saved(point, g))
            err = preserve(point, g);
    return err;
}

/* Nothing to do after a change: the guard has done everything before it. */
static void note_nothing(struct observer *observer, uint64_t off, uint64_t len)
{
    (void)observer;
    (void)off;
    (void)len;
}

void frozen_release(struct frozen_point *point, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    uint64_t first = div_round_up(off, FROZEN_GRANULE);
    uint64_t stop = end == point->size ? point->saved.n_bits : end / FROZEN_GRANULE;

    if (first < stop)
        hbits_set(&point->saved, first, stop - first);
}

void frozen_set_changed(struct frozen_point *point, struct dirty_bitmap *changed)
{
    point->changed = changed;
}

const struct dirty_bitmap *frozen_changed(const struct frozen_point *point)
{
    return point->changed;
}

int frozen_error(const struct frozen_point *point)
{
    return atomic_load(&point->error);
}

/* ---- creating and beginning ---- */

static void free_point(struct frozen_point *point)
{
    assert(!point->attached);
    frozen_savers_free(point->savers);
    free(point->name);
    dirty_bitmap_free(point->changed);
    node_close(point->node);
    block_context_destroy(&point->ctx);
    hbits_destroy(&point->saved);
    range_lock_destroy(&point->saving);
    free(point);
}

static int check_store(const struct frozen_setup *setup, struct diag *diag)
{
    if (setup->store == setup->source)
        return diag_set(diag, EINVAL, "%s: is the disk itself", setup->store->filename);
    if (setup->store->size < setup->source->size)
        return diag_set(diag, EINVAL,
                        "%s: its %" PRIu64 " bytes are less than the disk's %" PRIu64,
                        setup->store->filename, setup->store->size, setup->source->size);
    return 0;
}

static int fill_point(struct frozen_point *point, struct diag *diag)
{
    const struct block_context *ctx = point->setup.source->ctx;
    const struct block_shared shared = {
        .pool = ctx->pool, .clusters = ctx->clusters, .housekeeper = ctx->housekeeper};

    block_context_init_shared(&point->ctx, &shared);
    range_lock_init(&point->saving, RANK_LEAF);
    point->observer.wrote = note_nothing;
    point->observer.guard = guard_change;
    list_init(&point->link);
    atomic_init(&point->users, 1);
    int err = hbits_init(&point->saved, div_round_up(point->size, FROZEN_GRANULE));
    if (!err && point->setup.timeout_ms && !(point->savers = frozen_savers_new(point)))
        err = -ENOMEM;
    return err ? diag_errno(diag, -err, "%s", point->setup.source->filename)
               : frozen_node_open(point, diag);
}

int frozen_new(const struct frozen_setup *setup, struct frozen_point **out,
               struct diag *diag)
{
    int err = check_store(setup, diag);
    if (err)
        return err;
    struct frozen_point *point = calloc(1, sizeof *point);
    if (!point)
        return diag_errno(diag, ENOMEM, "%s", setup->source->filename);
    point->setup = *setup;
    atomic_init(&point->source, setup->source);
    point->size = setup->source->size;
    err = fill_point(point, diag);
    if (err)
        free_point(point);
    else
        *out = point;
    return err;
}

int frozen_begin(struct frozen_point *point, struct diag *diag)
{
    int err = observer_add(&point->source->observers, &point->observer);

    point->attached = !err;
    return err ? diag_errno(diag, -err, "%s", point->setup.source->filename) : 0;
}

/* ---- moving to another node ---- */

int frozen_prepare_to_move(struct frozen_point *point, struct node *to)
{
    struct observer *observer = &point->observer;

    return point->attached ? observer_add_unseen(&to->observers, &observer, 1) : 0;
}

void frozen_move(struct frozen_point *point, struct node *to)
{
    struct node *from = point->source;

    if (!point->attached)
        return;
    point->source = to;
    frozen_move_shown(from, to);
}

void frozen_stay(struct frozen_point *point, struct node *to)
{
    struct observer *observer = &point->observer;

    if (point->attached)
        observer_remove_unseen(&to->observers, &observer, 1);
}

/* ---- showing and finding ---- */

int frozen_show(struct frozen_point *point, const char *name)
{
    struct frozen_points *points = &point->source->frozen_points;
    char *copy = strdup(name);

    if (!copy)
        return -ENOMEM;
    LOCK_GUARD(&points->lock);
    point->name = copy;
    atomic_store(&point->shown, points);
    list_append(&points->list, &point->link);
    return 0;
}

/* False: the point was moved to another list meanwhile. */
static bool hide_at(struct frozen_point *point, struct frozen_points *points)
{
    LOCK_GUARD(&points->lock);
    if (atomic_load(&point->shown) != points)
        return false;
    list_remove(&point->link);
    atomic_store(&point->shown, NULL);
    return true;
}

static void hide_point(struct frozen_point *point)
{
    struct frozen_points *points;

    while ((points = atomic_load(&point->shown)) && !hide_at(point, points))
        continue;
}

/* Removes the first point of the list, which is moved to another one, and returns a reference;
 * NULL: the list is empty. */
static struct frozen_point *take_first(struct frozen_points *from, struct frozen_points *to)
{
    LOCK_GUARD(&from->lock);
    if (list_empty(&from->list))
        return NULL;
    struct frozen_point *point = CONTAINER_OF(from->list.next, struct frozen_point, link);
    list_remove(&point->link);
    atomic_store(&point->shown, to);
    return frozen_hold(point);
}

/* Adds the point to its new list, unless it was hidden meanwhile. */
static void show_at(struct frozen_point *point, struct frozen_points *to)
{
    LOCK_GUARD(&to->lock);
    if (atomic_load(&point->shown) == to)
        list_append(&to->list, &point->link);
}

void frozen_move_shown(struct node *from, struct node *to)
{
    struct frozen_point *point;

    while ((point = take_first(&from->frozen_points, &to->frozen_points))) {
        show_at(point, &to->frozen_points);
        frozen_put(point);
    }
}

struct frozen_point *frozen_find(struct node *node, const char *name)
{
    LOCK_GUARD(&node->frozen_points.lock);
    LIST_FOR_EACH (pos, &node->frozen_points.list) {
        struct frozen_point *point = CONTAINER_OF(pos, struct frozen_point, link);
        if (strcmp(point->name, name) == 0)
            return frozen_hold(point);
    }
    return NULL;
}

int frozen_each(struct node *node, int (*each)(void *opaque, const char *name),
                void *opaque)
{
    LOCK_GUARD(&node->frozen_points.lock);
    int err = 0;

    LIST_FOR_EACH (pos, &node->frozen_points.list) {
        err = each(opaque, CONTAINER_OF(pos, struct frozen_point, link)->name);
        if (err)
            break;
    }
    return err;
}

char *frozen_find_by_store(struct node *disk, const char *node_name)
{
    LOCK_GUARD(&disk->frozen_points.lock);
    LIST_FOR_EACH (pos, &disk->frozen_points.list) {
        const struct frozen_point *point = CONTAINER_OF(pos, struct frozen_point, link);
        const struct node_name *name = point->setup.store->name;
        if (name && strcmp(name->text, node_name) == 0)
            return strdup(point->name);
    }
    return NULL;
}

/* ---- bitmaps of the store ---- */

static struct dirty_bitmap *copy_bitmap(struct node *store, const char *name,
                                        struct diag *diag)
{
    struct dirty_bitmap *bitmap = node_bitmap_share(store, name, diag), *copy = NULL;

    if (!bitmap)
        return NULL;
    if (dirty_bitmap_enabled(bitmap)) {
        diag_set(diag, EINVAL, "Enabled bitmap '%.200s' incompatible with readonly export",
                 name);
    } else {
        copy = dirty_bitmap_new(NULL, dirty_bitmap_size(bitmap),
                                dirty_bitmap_granularity(bitmap));
        if (copy)
            dirty_bitmap_merge(copy, bitmap);
        else
            diag_errno(diag, ENOMEM, "bitmap '%.200s'", name);
    }
    dirty_bitmap_unshare(bitmap);
    return copy;
}

/* Inside the point's gate, for which frozen_end waits before the caller closes the store. */
struct dirty_bitmap *frozen_copy_bitmap(struct frozen_point *point, const char *name,
                                        struct diag *diag)
{
    gate_ticket ticket = gate_enter(&point->ctx.gate);
    struct dirty_bitmap *copy = NULL;

    if (atomic_load(&point->error))
        diag_set(diag, ENOENT, "bitmap '%.200s': the backup that has it has ended", name);
    else
        copy = copy_bitmap(point->setup.store, name, diag);
    gate_leave(&point->ctx.gate, ticket);
    return copy;
}

/* ---- the end ---- */

void frozen_end(struct frozen_point *point)
{
    int none = 0;

    hide_point(point);
    atomic_compare_exchange_strong(&point->error, &none, -ESHUTDOWN);
    if (point->attached)
        observer_remove(&point->source->observers, &point->observer);
    point->attached = false;
    /* Also waits for threads that save granules whose requests have given up waiting. */
    frozen_savers_free(point->savers);
    point->savers = NULL;
    gate_wait(&point->ctx.gate);
}

struct frozen_point *frozen_hold(struct frozen_point *point)
{
    atomic_fetch_add(&point->users, 1);
    return point;
}

void frozen_put(struct frozen_point *point)
{
    if (point && atomic_fetch_sub(&point->users, 1) == 1)
        free_point(point);
}

struct node *frozen_node(struct frozen_point *point)
{
    return point->node;
}
