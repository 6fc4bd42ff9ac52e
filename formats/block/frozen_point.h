/* SPDX-License-Identifier: BSD-3-Clause */
/* A frozen point: the content of a disk at one moment, while the disk goes on changing (copy
 * before write, CBW).
 *
 * The disk is divided into granules.  Before the first change of a granule its old content is saved
 * in a store, and a bit is set; later changes find the bit set and do nothing.  A reader of the
 * point takes saved granules from the store and the others from the disk, without a lock:
 *   (1) a granule's bit is set after its content is in the store, and before it is changed;
 *   (2) a bit stays set;
 *   (3) so a reader reads from the disk first and looks at the bit afterwards: if it is clear, the
 *       reader has the content of the point; if it is set, the content is in the store.
 * A change waits until the granules that it touches are saved, by itself or by another change.  It
 * waits neither for readers nor for the targets that they copy to.
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

/* The points of a node that were shown with frozen_show. */
struct frozen_points {
    struct lock lock; /* RANK_LEAF */
    struct list list; /* under lock */
};

#define FROZEN_GRANULE (64u << 10) /* bytes */

struct frozen_setup {
    struct node *source; /* the disk; borrowed until frozen_end */
    /* Where old content is saved, at the same offsets: at least as long as the disk, active, and
     * used for nothing else; borrowed until frozen_end. */
    struct node *store;
    bool store_is_blank; /* it reads as zeroes */
    /* If a granule can't be saved: true gives up the point and makes the change; false fails the
     * change and keeps the point. */
    bool give_up;
    unsigned timeout_ms; /* for saving one granule; 0: no limit */
    /* Optional: a granule couldn't be saved.  Called on a request's thread; must not wait. */
    void (*failed)(void *opaque, int err);
    /* Optional: a granule was saved, and is about to be changed.  As `failed`. */
    void (*saved)(void *opaque, uint64_t off, uint64_t len);
    void *opaque;
};

/* 0, -EINVAL or -ENOMEM with diag.  Nothing is preserved yet. */
int frozen_new(const struct frozen_setup *setup, struct frozen_point **out,
               struct diag *diag) MUST_USE;

/* Makes the present content the point's, with changes of the disk drained.  0 or -errno with
 * diag. */
int frozen_begin(struct frozen_point *point, struct diag *diag) MUST_USE;

/* Makes the point known by this name at the disk's node, until it ends.  0 or -ENOMEM. */
int frozen_show(struct frozen_point *point, const char *name) MUST_USE;

/* For the replacement of the disk's node by `to`, with the same contents, while changes are
 * drained. frozen_prepare_to_move guards `to` as well; then frozen_move makes it the disk, or
 * frozen_stay undoes the preparation.  The old node stays open until frozen_end, and isn't
 * changed, unless through `to`, which may use the same file.  0 or -ENOMEM.  Not concurrently
 * with begin and end. */
int frozen_prepare_to_move(struct frozen_point *point, struct node *to) MUST_USE;
void frozen_move(struct frozen_point *point, struct node *to);
void frozen_stay(struct frozen_point *point, struct node *to);

/* Ends the point: nothing is saved any more, and reads of it fail with -EIO.  Waits for reads in
 * flight.  A second call does nothing. */
void frozen_end(struct frozen_point *point);

/* Take and drop a reference; frozen_new returns the first.  The last one that is dropped, after
 * frozen_end, frees the point. */
struct frozen_point *frozen_hold(struct frozen_point *point);
void frozen_put(struct frozen_point *point); /* NULL is allowed */

/* Moves all points that are shown at `from` to `to`. */
void frozen_move_shown(struct node *from, struct node *to);

/* The points that are shown at a node, from any thread.  frozen_find returns a reference, or NULL
 * when there is none of that name.  frozen_each stops when `each` returns something other than 0,
 * and returns that; `each` must not call functions of frozen points. */
struct frozen_point *frozen_find(struct node *node, const char *name) MUST_USE;
int frozen_each(struct node *node, int (*each)(void *opaque, const char *name),
                void *opaque);

/* The point as a read-only node, for block_read and block_status; valid with a reference to the
 * point. */
struct node *frozen_node(struct frozen_point *point);

/* The range won't be read any more, neither by the caller nor through an image whose backing
 * file is the point: its granules needn't be saved.  Rounds inwards. */
void frozen_release(struct frozen_point *point, uint64_t off, uint64_t len);

/* Stores which parts of the disk were dirty at the point, for its readers.  The bitmap, which isn't
 * added to a node, is taken over.  Before anybody else has a reference.  NULL: unknown. */
void frozen_set_changed(struct frozen_point *point, struct dirty_bitmap *changed);
const struct dirty_bitmap *frozen_changed(const struct frozen_point *point);

/* A backing node for a backup's target or store whose backing file is to be the disk itself.  It
 * reads as the point given with frozen_backing_tell, which is called once, before the first read;
 * the point must outlive it.  Before that, and after frozen_end, reads fail with -EIO.  The node is
 * closed with the image above it.  0 or -errno with diag. */
int frozen_backing_open(struct block_context *ctx, const struct node *disk,
                        struct node **out, struct diag *diag) MUST_USE;
/* Does nothing if the image has another backing node, or none. */
void frozen_backing_tell(struct node *image, struct frozen_point *point);

/* A copy of a bitmap of the point's store; it doesn't record, and the caller owns it.  NULL with
 * diag. */
struct dirty_bitmap *frozen_copy_bitmap(struct frozen_point *point, const char *name,
                                        struct diag *diag) MUST_USE;

/* The name of the point, among those shown at the disk, whose store has this node name.  The caller
 * frees it; NULL: none. */
char *frozen_find_by_store(struct node *disk, const char *node_name) MUST_USE;

/* 0, or -errno: why the point was given up. */
int frozen_error(const struct frozen_point *point);

/* Opens a store for a point of the disk: a nameless sparse file in the folder of the disk's file
 * or, if that isn't a local file, in $TMPDIR or /var/tmp.  The caller owns it. */
int frozen_store_open(struct node *source, struct node **out, struct diag *diag) MUST_USE;

#endif
