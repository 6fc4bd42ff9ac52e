/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk as it was at one point, while it goes on being changed: copy before write.
 *
 * The disk is cut into granules.  Before the first change of one its content is saved in a
 * store; every later change passes by a bit.  Who reads the point takes saved granules from
 * the store, the others from the disk, and locks nothing:
 *   (1) a granule's bit is set when its content is in the store, and before it is changed;
 *   (2) a bit stays set;
 *   (3) so a reader who looks at the bit after he has read from the disk, and finds it clear,
 *       has read what was there at the point; else it is in the store.
 * A change waits until the granules that it touches are saved, by itself or by another, and
 * for nobody else: neither for readers nor for where they take what they read.
 *
 * Threads: new, begin, end, put on one thread (begin with changes of the disk drained); the
 * rest from any.  Not inside the gate of the disk: new, begin, end, put.  Layer: block. */
#ifndef BLOCK_FROZEN_POINT_H
#define BLOCK_FROZEN_POINT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "base/lock.h"

struct block_context;
struct dirty_bitmap;
struct node;
struct frozen_point;

/* Of a node: those that are shown. */
struct frozen_points {
    struct lock lock; /* RANK_LEAF */
    struct list list; /* under lock */
};

#define FROZEN_GRANULE (64u << 10)

struct frozen_setup {
    struct node *source; /* the disk; borrowed until frozen_end */
    /* Where old content is saved, at its own offsets: at least as long as the disk, active,
     * and nobody else's; borrowed until frozen_end. */
    struct node *store;
    bool store_is_blank; /* it reads as zeroes */
    /* When a granule can't be saved: the point is given up, and the change is made; else the
     * change fails, and the point stays. */
    bool give_up;
    unsigned
        timeout_ms; /* so long a change waits for one granule; 0: as long as it takes */
    /* Optional: a granule couldn't be saved.  Called on a request's thread; must not wait. */
    void (*failed)(void *opaque, int err);
    /* Optional: a granule was saved, and is about to be changed.  As `failed`. */
    void (*saved)(void *opaque, uint64_t off, uint64_t len);
    void *opaque;
};

/* 0, -EINVAL or -ENOMEM with diag.  Nothing is preserved yet. */
int frozen_new(const struct frozen_setup *setup, struct frozen_point **out,
               struct diag *diag) MUST_USE;

/* The point is now.  0 or -errno with diag. */
int frozen_begin(struct frozen_point *point, struct diag *diag) MUST_USE;

/* Others find it by this name at the disk's node, until it ends.  0 or -ENOMEM. */
int frozen_show(struct frozen_point *point, const char *name) MUST_USE;

/* The disk is about to be another node, with the same contents, as changes of it are drained: `to`
 * is guarded, too; then either it is the disk, or all is as before.  The old one stays open until
 * frozen_end, and isn't changed meanwhile unless `to` is: it may lie on the same file.
 * 0 or -ENOMEM.  Not beside begin and end. */
int frozen_prepare_to_move(struct frozen_point *point, struct node *to) MUST_USE;
void frozen_move(struct frozen_point *point, struct node *to);
void frozen_stay(struct frozen_point *point, struct node *to);

/* Nothing is preserved any more, and reads fail with -EIO from here on; waits for those
 * under way.  Again: does nothing. */
void frozen_end(struct frozen_point *point);

/* One more who may use it; each puts it once, and frozen_new's caller, too.  The last frees
 * it, after frozen_end. */
struct frozen_point *frozen_hold(struct frozen_point *point);
void frozen_put(struct frozen_point *point); /* NULL is allowed */

/* Those that are shown at `from` are shown at `to` from here on. */
void frozen_move_shown(struct node *from, struct node *to);

/* Points that are shown, from any thread.  frozen_find: the caller holds it; NULL: there is
 * none of that name. `each` must not call back; not 0: no more are wanted, and it is returned. */
struct frozen_point *frozen_find(struct node *node, const char *name) MUST_USE;
int frozen_each(struct node *node, int (*each)(void *opaque, const char *name),
                void *opaque);

/* The point as a disk that is only read: block_read and block_status, until it is put. */
struct node *frozen_node(struct frozen_point *point);

/* Nobody will read the range any more, not even a target that lies on the point and is written
 * beside it in part: its granules needn't be saved.  Rounds inwards. */
void frozen_release(struct frozen_point *point, uint64_t off, uint64_t len);

/* Which parts were dirty at the point, for who reads it; the bitmap, which isn't added to a
 * node, is taken over.  Before others have a hold of the point.  NULL: nobody knows. */
void frozen_set_changed(struct frozen_point *point, struct dirty_bitmap *changed);
const struct dirty_bitmap *frozen_changed(const struct frozen_point *point);

/* What lies below an image that will have what is saved or copied of the disk, and is to lie
 * on the disk: a node that is closed with the image.  It reads as the point that it is told
 * of (frozen_backing_tell, when it has none yet and nobody reads; that has to outlive it); before
 * that, and after frozen_end, with -EIO.  0 or -errno with diag. */
int frozen_backing_open(struct block_context *ctx, const struct node *disk,
                        struct node **out, struct diag *diag) MUST_USE;
/* Does nothing when something else, or nothing, lies below the image. */
void frozen_backing_tell(struct node *image, struct frozen_point *point);

/* A copy of a bitmap of its store's, which doesn't record; the caller's.  NULL with diag. */
struct dirty_bitmap *frozen_copy_bitmap(struct frozen_point *point, const char *name,
                                        struct diag *diag) MUST_USE;

/* The name of the point that is shown at the disk and whose store bears this node name; the
 * caller's to free; NULL: none. */
char *frozen_find_by_store(struct node *disk, const char *node_name) MUST_USE;

/* 0, or why the point was given up. */
int frozen_error(const struct frozen_point *point);

/* A store for a point of the disk that costs nothing until it is used: a file without a name
 * beside the disk's, or, if that is no local file, in $TMPDIR or /var/tmp.  The caller's. */
int frozen_store_open(struct node *source, struct node **out, struct diag *diag) MUST_USE;

#endif
