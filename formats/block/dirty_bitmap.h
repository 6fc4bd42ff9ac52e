/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps: which parts of a disk were written since a certain moment.
 *
 * A bitmap has one bit for each granule.  Its creator owns it, until it is added to a node:
 * then it belongs to the node, has a name there, and records the node's writes while it is
 * enabled.  Each user has a bitmap of its own, so clearing one doesn't affect the others.
 *
 * Setting rounds outwards to granules, clearing inwards: a granule of which only a part is
 * cleared stays dirty.  Ranges may reach past the end of the disk, and are cut there.
 *
 * Threads: set, get, count, and enable from any thread, without waiting; clear at the same
 * time, but from one thread only, the bitmap's owner's; next and merge (from) by the owner or
 * those who share the bitmap; resize and free while no thread sets bits.  The functions for a
 * node's bitmaps from any thread, outside the gate; a bitmap that was found stays valid until
 * it is removed.  Offsets and lengths are bytes.  Layer: block. */
#ifndef BLOCK_DIRTY_BITMAP_H
#define BLOCK_DIRTY_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "base/lock.h"

struct node;
struct dirty_bitmap;

#define BITMAP_MIN_GRANULARITY     512u
#define BITMAP_MAX_GRANULARITY     (1u << 31)
#define BITMAP_DEFAULT_GRANULARITY (64u << 10)
#define BITMAP_NAME_MAX            1023u /* bytes, as in qcow2 */

/* Is it a power of two within the limits? */
bool dirty_bitmap_granularity_ok(uint64_t granularity);

/* The granularity that QEMU chooses for a disk with clusters of this size (0 and 1: without
 * clusters). */
uint64_t dirty_bitmap_default_granularity(uint64_t cluster_size);

/* Creates a clean, enabled bitmap for a disk of `size` bytes; name NULL: anonymous.  NULL when
 * memory is short.  The granularity must be valid. */
struct dirty_bitmap *dirty_bitmap_new(const char *name, uint64_t size,
                                      uint64_t granularity) MUST_USE;

/* Creates a bitmap that can't be used, because its stored content is out of date.  It has no
 * bits and records no writes; it can be added to a node, and removed. */
struct dirty_bitmap *dirty_bitmap_new_inconsistent(const char *name, uint64_t size,
                                                   uint64_t granularity) MUST_USE;

/* Frees a bitmap that isn't added to a node; NULL is allowed. */
void dirty_bitmap_free(struct dirty_bitmap *bitmap);

const char *dirty_bitmap_name(const struct dirty_bitmap *bitmap); /* NULL: anonymous */
uint64_t dirty_bitmap_size(const struct dirty_bitmap *bitmap);
uint64_t dirty_bitmap_granularity(const struct dirty_bitmap *bitmap);

/* ---- bits ---- */

void dirty_bitmap_set(struct dirty_bitmap *bitmap, uint64_t off, uint64_t len);
void dirty_bitmap_clear(struct dirty_bitmap *bitmap, uint64_t off, uint64_t len);
bool dirty_bitmap_get(const struct dirty_bitmap *bitmap, uint64_t off);

/* Dirty bytes, never more than the size. */
uint64_t dirty_bitmap_count(const struct dirty_bitmap *bitmap);

/* Finds the next dirty run at or after `from`. *off is `from` if that is dirty, otherwise the
 * start of a granule.  The run ends at a clean granule, at the end of the disk, or after 64 Ki
 * granules.  False: there is none. */
bool dirty_bitmap_next(const struct dirty_bitmap *bitmap, uint64_t from, uint64_t *off,
                       uint64_t *len);

/* Sets in `to` what is dirty in `from`; the granularities may differ.  May miss bits that are
 * set in `from` meanwhile. */
void dirty_bitmap_merge(struct dirty_bitmap *to, const struct dirty_bitmap *from);

/* The added part is clean.  Returns 0, or -ENOMEM with nothing changed. */
int dirty_bitmap_resize(struct dirty_bitmap *bitmap, uint64_t size) MUST_USE;

/* While disabled it doesn't record the writes of its node; dirty_bitmap_set still works.  After
 * enabling, it records every write that ends later. */
void dirty_bitmap_enable(struct dirty_bitmap *bitmap, bool on);
bool dirty_bitmap_enabled(const struct dirty_bitmap *bitmap);

/* The user of a bitmap (a job, a client to which it is exported) acquires it, so that nobody
 * else can use, change or remove it.  Returns 0, -EBUSY, or -EINVAL if it is inconsistent, with
 * diag. */
int dirty_bitmap_acquire(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;
void dirty_bitmap_release(struct dirty_bitmap *bitmap);
bool dirty_bitmap_busy(const struct dirty_bitmap *bitmap);

/* Several users can share a bitmap if they only call dirty_bitmap_get, _next and _count.
 * Meanwhile only writes of the node change it, and it isn't removed.  Errors as for
 * dirty_bitmap_acquire. */
int dirty_bitmap_share(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;
void dirty_bitmap_unshare(struct dirty_bitmap *bitmap);

/* ---- persistent bitmaps ---- */

/* Is it stored in the image?  To be set before it is added to a node. */
bool dirty_bitmap_persistent(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_persistent(struct dirty_bitmap *bitmap);
bool dirty_bitmap_inconsistent(const struct dirty_bitmap *bitmap);

/* Makes it inconsistent, even while it is in use: its bits mean nothing from now on. */
void dirty_bitmap_spoil(struct dirty_bitmap *bitmap);

/* A number that the driver gives to the stored copy of the bitmap. */
#define BITMAP_NO_SLOT UINT32_MAX
uint32_t dirty_bitmap_slot(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_slot(struct dirty_bitmap *bitmap, uint32_t slot);

/* Have bits changed since this was last set to false?  The code that stores the bits sets it to
 * false before, and to true again after a failure. */
bool dirty_bitmap_unsaved(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_unsaved(struct dirty_bitmap *bitmap, bool unsaved);

/* The bits as bytes, the first granule in the lowest bit.  dirty_bitmap_bytes: the number of
 * bytes for a disk of this size.  dirty_bitmap_export: copies n bytes from byte `at` on (both
 * multiples of 8), with zeroes after the last granule; true: one of them isn't zero.
 * dirty_bitmap_any: is any of n bytes from `at` on not zero?  If bits change meanwhile, each
 * word is that of some moment. */
uint64_t dirty_bitmap_bytes(uint64_t size, uint64_t granularity);
bool dirty_bitmap_export(const struct dirty_bitmap *bitmap, uint64_t at, uint8_t *out,
                         size_t n);
bool dirty_bitmap_any(const struct dirty_bitmap *bitmap, uint64_t at, uint64_t n);

/* Set the bits that are set in n bytes from byte `at` on (all of them for _ones).  To be called
 * before the bitmap is added to a node.  Bits after the last granule are ignored. */
void dirty_bitmap_import(struct dirty_bitmap *bitmap, uint64_t at, const uint8_t *in,
                         size_t n);
void dirty_bitmap_import_ones(struct dirty_bitmap *bitmap, uint64_t at, uint64_t n);

/* ---- a node's bitmaps ---- */

struct dirty_bitmaps {
    struct lock keep; /* for storing, removing and resizing persistent ones */
    struct lock lock;
    struct list list; /* under lock */
};

void dirty_bitmaps_init(struct dirty_bitmaps *bitmaps);

/* Frees them; no request may be inside the gate. */
void dirty_bitmaps_destroy(struct dirty_bitmaps *bitmaps);

/* Adds a named bitmap of the node's size, which then belongs to the node and records its
 * writes.  -EINVAL (no name, name too long, another size), -EEXIST, -ENOMEM with diag: the
 * caller still owns it. */
int node_bitmap_add(struct node *node, struct dirty_bitmap *bitmap,
                    struct diag *diag) MUST_USE;

/* Adds n bitmaps at once, whose names are valid and not used in the node.  Returns 0 or
 * -ENOMEM. */
int node_bitmaps_adopt(struct node *node, struct dirty_bitmap *const *bitmaps,
                       uint32_t n) MUST_USE;

struct bitmap_params {
    const char *name;
    uint64_t granularity; /* 0: the default for the node */
    bool persistent, disabled;
};

/* Creates a bitmap and adds it; *out belongs to the node.  A persistent one is in the image
 * after the image was closed, or after node_bitmaps_keep.  Errors as for node_bitmap_add, and
 * for invalid parameters, with diag. */
int node_bitmap_create(struct node *node, const struct bitmap_params *params,
                       struct dirty_bitmap **out, struct diag *diag) MUST_USE;

/* Moves the bitmaps when the disk moves to another node: from now on the disk is `to`, with the
 * same contents, instead of `top` and the layers below it down to the one above `end` (NULL:
 * all of them).  The bitmaps are moved, also while they are in use, and go on recording.  A
 * bitmap is merged with one of the same name that `to` or a lower layer has.  An image that has
 * a stored copy keeps it as it is now.  Bitmaps of layers below `top` move only if they miss no
 * change.  One that can't be stored in `to` stays in memory, which is logged.  Meanwhile nobody
 * may change any of the nodes, or add or remove bitmaps.  Returns 0, -EBUSY or -ENOMEM with
 * diag: nothing was moved or changed. */
int node_bitmaps_move(struct node *top, const struct node *end, struct node *to,
                      struct diag *diag) MUST_USE;

/* Makes the bitmaps of `from`, a frozen layer, also record the changes of `to`, into which all
 * layers above `from` are being copied; until `to` is closed.  Returns 0 or -ENOMEM. */
int node_bitmaps_follow(struct node *from, struct node *to) MUST_USE;

bool node_has_bitmaps(struct node *node);

/* NULL when there is none of that name. */
struct dirty_bitmap *node_bitmap_find(struct node *node, const char *name);

/* Finds and acquires a bitmap in one step, so that it can't be removed in between.  NULL with
 * diag: -ENOENT or -EBUSY. */
struct dirty_bitmap *node_bitmap_acquire(struct node *node, const char *name,
                                         struct diag *diag) MUST_USE;

/* Finds and shares a bitmap in one step. */
struct dirty_bitmap *node_bitmap_share(struct node *node, const char *name,
                                       struct diag *diag) MUST_USE;

/* Acquires a bitmap that is going to be removed; it may be inconsistent. */
int dirty_bitmap_acquire_to_remove(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;

/* Waits for requests in flight, and frees the bitmap.  -ENOENT, or -EBUSY with diag. */
int node_bitmap_remove(struct node *node, const char *name, struct diag *diag) MUST_USE;

/* The same for a bitmap that the caller has acquired to remove. */
void node_bitmap_drop(struct node *node, struct dirty_bitmap *bitmap);

/* Takes a bitmap out of the node that isn't persistent and not in use.  It no longer records
 * writes, and the caller owns it.  Waits as node_bitmap_remove does.  NULL: there is none. */
struct dirty_bitmap *node_bitmap_take_unkept(struct node *node) MUST_USE;

/* Calls `each` for every bitmap, in the order in which they were added; `each` must not add or
 * remove bitmaps. */
void node_bitmap_each(struct node *node,
                      void (*each)(struct dirty_bitmap *bitmap, void *opaque),
                      void *opaque);

/* Marks everything dirty in all enabled bitmaps: the content of the disk was replaced without a
 * write (a snapshot was applied).  To be called after node_begin_change. */
void node_bitmaps_set_all(struct node *node);

/* Returns -EBUSY with diag if a bitmap is in use: then the node can't be resized. */
int node_bitmaps_check_resize(struct node *node, struct diag *diag) MUST_USE;

/* Under keep, with the node drained: follows a new size of the node.  The added part is dirty
 * in bitmaps that are enabled.  Returns -EBUSY with nothing changed, or -ENOMEM. */
int node_bitmaps_resize(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

/* ---- persistent bitmaps of a node (DRIVER_BITMAPS; see driver.h) ---- */

/* Loads the bitmaps that are stored in the image; does nothing when called again.  Bitmaps that
 * can't be used are reported in the log.  To be called when the node is opened or activated. */
void node_bitmaps_load(struct node *node);

/* To be called when another program may have changed the disk.  Removes persistent bitmaps that
 * aren't in use, to be loaded again; marks everything dirty in the others. */
void node_bitmaps_distrust(struct node *node);

/* Can another bitmap of this name be stored?  Returns 0, or -errno with the reason. */
int node_bitmap_check_keep(struct node *node, const char *name, uint64_t granularity,
                           struct diag *diag) MUST_USE;

/* Called around a change of a bitmap that isn't made by a write: after a crash in between, the
 * stored copy counts as inconsistent.  Does nothing for a bitmap that isn't persistent.
 * Returns 0, or -errno with diag: it must not be changed.  Not needed for clearing bits only. */
int node_bitmap_begin_change(struct node *node, const struct dirty_bitmap *bitmap,
                             struct diag *diag) MUST_USE;
void node_bitmap_end_change(struct node *node, const struct dirty_bitmap *bitmap);

/* After bitmaps were added or removed: records that in the image, durably.  Their bits are
 * stored later. */
int node_bitmaps_keep(struct node *node, struct diag *diag) MUST_USE;

#endif
