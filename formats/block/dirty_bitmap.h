/* SPDX-License-Identifier: BSD-3-Clause */
/* Which parts of a disk were written since somebody last looked.
 *
 * A bitmap has one bit for each granule.  It belongs to whoever made it; one that is added
 * to a node follows the node's writes while it is enabled, belongs to the node and has a
 * name there.  Each user has its own: clearing one leaves the others alone.
 *
 * Setting rounds outwards to granules, clearing inwards: a granule of which a part is to be
 * cleared stays dirty.  Ranges may reach past the end, and are cut there.
 *
 * Threads: set, get, count, and enable from any thread, without waiting; clear from one at a
 * time, the bitmap's owner, beside them; next and merge (from) from those who share it, or the
 * owner; resize and free while
 * nobody sets. The functions for a node's bitmaps from any thread, outside the gate; what
 * is found stays valid until it is removed.  Offsets and lengths are bytes.  Layer: block.
 */
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

/* A power of two in the limits? */
bool dirty_bitmap_granularity_ok(uint64_t granularity);

/* What QEMU chooses for a disk of such clusters (0 and 1: of none), within its limits. */
uint64_t dirty_bitmap_default_granularity(uint64_t cluster_size);

/* A clean, enabled bitmap for a disk of `size` bytes; name NULL: anonymous.  NULL when
 * memory is short.  The granularity must be ok. */
struct dirty_bitmap *dirty_bitmap_new(const char *name, uint64_t size,
                                      uint64_t granularity) MUST_USE;

/* One that can't be used, for what it says isn't so any more; it has no bits, follows no
 * write, and can be added to a node, and removed. */
struct dirty_bitmap *dirty_bitmap_new_inconsistent(const char *name, uint64_t size,
                                                   uint64_t granularity) MUST_USE;

/* One that isn't added to a node; NULL is allowed. */
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

/* The next dirty run at or behind `from`: *off is `from` when that is dirty, else the start
 * of a granule; the run ends at a clean granule, at the disk's end, or after 64 Ki
 * granules.  False when there is none. */
bool dirty_bitmap_next(const struct dirty_bitmap *bitmap, uint64_t from, uint64_t *off,
                       uint64_t *len);

/* What is dirty in `from` becomes dirty in `to`, whatever their granularities.  What is set
 * in `from` meanwhile may be missed. */
void dirty_bitmap_merge(struct dirty_bitmap *to, const struct dirty_bitmap *from);

/* What is added is clean.  0, or -ENOMEM with nothing changed. */
int dirty_bitmap_resize(struct dirty_bitmap *bitmap, uint64_t size) MUST_USE;

/* A disabled one misses the writes of its node; dirty_bitmap_set works all the same.  Who
 * enables one misses no write that ends later. */
void dirty_bitmap_enable(struct dirty_bitmap *bitmap, bool on);
bool dirty_bitmap_enabled(const struct dirty_bitmap *bitmap);

/* Who uses a bitmap (a job, a client that it is exported to) keeps others from using, changing
 * or removing it.  0, -EBUSY, or -EINVAL when it is inconsistent, with diag. */
int dirty_bitmap_acquire(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;
void dirty_bitmap_release(struct dirty_bitmap *bitmap);
bool dirty_bitmap_busy(const struct dirty_bitmap *bitmap);

/* Who only looks at one shares it with others who do, by dirty_bitmap_get, _next and _count; it
 * isn't changed but by writes, nor removed.  As dirty_bitmap_acquire. */
int dirty_bitmap_share(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;
void dirty_bitmap_unshare(struct dirty_bitmap *bitmap);

/* ---- keeping them ---- */

/* Is it kept in the image?  Set before it is added to a node. */
bool dirty_bitmap_persistent(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_persistent(struct dirty_bitmap *bitmap);
bool dirty_bitmap_inconsistent(const struct dirty_bitmap *bitmap);

/* It becomes inconsistent, whoever uses it: from here on it says nothing. */
void dirty_bitmap_spoil(struct dirty_bitmap *bitmap);

/* Where the driver has it stored: a number of its own. */
#define BITMAP_NO_SLOT UINT32_MAX
uint32_t dirty_bitmap_slot(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_slot(struct dirty_bitmap *bitmap, uint32_t slot);

/* Have bits changed since it was last set to false?  Who stores them does that before, and
 * true again after a failure. */
bool dirty_bitmap_unsaved(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_unsaved(struct dirty_bitmap *bitmap, bool unsaved);

/* The bits as bytes, the first granule in the lowest bit: how many for such a disk, n of them
 * from `at` on (multiples of 8; what is behind the last is zero; true: one isn't), and whether
 * any isn't zero.  While bits change it tells of some moment of each. */
uint64_t dirty_bitmap_bytes(uint64_t size, uint64_t granularity);
bool dirty_bitmap_export(const struct dirty_bitmap *bitmap, uint64_t at, uint8_t *out,
                         size_t n);
bool dirty_bitmap_any(const struct dirty_bitmap *bitmap, uint64_t at, uint64_t n);

/* Sets what is set there; before it is added to a node.  What is behind the last granule isn't
 * looked at. */
void dirty_bitmap_import(struct dirty_bitmap *bitmap, uint64_t at, const uint8_t *in,
                         size_t n);
void dirty_bitmap_import_ones(struct dirty_bitmap *bitmap, uint64_t at, uint64_t n);

/* ---- a node's bitmaps ---- */

struct dirty_bitmaps {
    struct lock keep; /* who stores, removes or resizes those that are kept */
    struct lock lock;
    struct list list; /* under lock */
};

void dirty_bitmaps_init(struct dirty_bitmaps *bitmaps);

/* Frees them, with nobody inside the gate. */
void dirty_bitmaps_destroy(struct dirty_bitmaps *bitmaps);

/* Takes over a named bitmap of the node's size: from then on it follows the node's writes.
 * -EINVAL (no name, a name that is too long, another size), -EEXIST, -ENOMEM with diag:
 * it's still the caller's. */
int node_bitmap_add(struct node *node, struct dirty_bitmap *bitmap,
                    struct diag *diag) MUST_USE;

/* The same of n at once, whose names are known to be good and others than the node's. */
int node_bitmaps_adopt(struct node *node, struct dirty_bitmap *const *bitmaps,
                       uint32_t n) MUST_USE;

struct bitmap_params {
    const char *name;
    uint64_t granularity; /* 0: what suits the node */
    bool persistent, disabled;
};

/* Makes one and adds it; *out is the node's.  What is persistent is in the image when that is
 * closed, or after node_bitmaps_keep.  As node_bitmap_add, or -errno of what can't be, with
 * diag. */
int node_bitmap_create(struct node *node, const struct bitmap_params *params,
                       struct dirty_bitmap **out, struct diag *diag) MUST_USE;

/* The disk is `to` from here on, with the same contents, in place of `top` and the layers below it
 * down to the one above `end` (NULL: all): their bitmaps go there, whoever uses them, and go on
 * recording; one of the same name that `to` or a layer below has becomes a part of it.
 * What an image keeps of them, it keeps as it is now.  Those of a layer below `top` go where
 * nothing that they haven't recorded is
 * missing.  One that can't be kept in `to` goes on in memory, which is logged.  Nobody changes any
 * of the nodes, or adds or removes bitmaps, meanwhile.  0, -EBUSY or -ENOMEM with diag: none
 * has gone or changed. */
int node_bitmaps_move(struct node *top, const struct node *end, struct node *to,
                      struct diag *diag) MUST_USE;

/* The bitmaps of `from`, a frozen layer, record what is changed of `to`, too, which will have
 * all that lies above it: to the end of `to`.  0 or -ENOMEM. */
int node_bitmaps_follow(struct node *from, struct node *to) MUST_USE;

bool node_has_bitmaps(struct node *node);

/* NULL when there is none. */
struct dirty_bitmap *node_bitmap_find(struct node *node, const char *name);

/* Found and acquired, so that nobody removes it in between.  NULL with diag: -ENOENT or
 * -EBUSY. */
struct dirty_bitmap *node_bitmap_acquire(struct node *node, const char *name,
                                         struct diag *diag) MUST_USE;

/* Found and shared, likewise. */
struct dirty_bitmap *node_bitmap_share(struct node *node, const char *name,
                                       struct diag *diag) MUST_USE;

/* The same of one that is to be removed, which may be inconsistent. */
int dirty_bitmap_acquire_to_remove(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;

/* Waits for requests in flight, and frees it.  -ENOENT, or -EBUSY with diag. */
int node_bitmap_remove(struct node *node, const char *name, struct diag *diag) MUST_USE;

/* The same of one that the caller has acquired to remove. */
void node_bitmap_drop(struct node *node, struct dirty_bitmap *bitmap);

/* Takes out one that isn't persistent and that nobody uses: it follows no writes any more, and is
 * the caller's.  Waits as node_bitmap_remove does.  NULL: there is none. */
struct dirty_bitmap *node_bitmap_take_unkept(struct node *node) MUST_USE;

/* Calls `each` for every one, in the order in which they were added; it must not add or
 * remove. */
void node_bitmap_each(struct node *node,
                      void (*each)(struct dirty_bitmap *bitmap, void *opaque),
                      void *opaque);

/* The disk shows something else everywhere, which no write brought about (a snapshot was
 * applied): all that record it are dirty.  After node_begin_change. */
void node_bitmaps_set_all(struct node *node);

/* -EBUSY with diag when somebody uses one: the node can't have another size then. */
int node_bitmaps_check_resize(struct node *node, struct diag *diag) MUST_USE;

/* Under keep: the node, drained, has a new size; what is added is dirty in those that record.
 * As node_bitmaps_check_resize, with nothing changed; -ENOMEM. */
int node_bitmaps_resize(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

/* ---- those that are kept in the image (DRIVER_BITMAPS; see driver.h) ---- */

/* Those of the image become the node's; again: does nothing.  What can't be used of them is
 * said in the log.  By one who opens or activates the node. */
void node_bitmaps_load(struct node *node);

/* Somebody else may have changed the disk: those that are kept in the image are taken out, to be
 * loaded anew; what others record, and those that somebody uses, says that all of it was. */
void node_bitmaps_distrust(struct node *node);

/* May one more be kept, of that name?  0, or -errno with the reason. */
int node_bitmap_check_keep(struct node *node, const char *name, uint64_t granularity,
                           struct diag *diag) MUST_USE;

/* Around a change of a bitmap that isn't a write's: after a crash in between it is not
 * believed.  Does nothing for one that isn't kept.  0, or -errno with diag: it must not be
 * changed.  Who only clears bits may do without. */
int node_bitmap_begin_change(struct node *node, const struct dirty_bitmap *bitmap,
                             struct diag *diag) MUST_USE;
void node_bitmap_end_change(struct node *node, const struct dirty_bitmap *bitmap);

/* After some were added or removed: the image says so too, durably.  What they hold is stored
 * later. */
int node_bitmaps_keep(struct node *node, struct diag *diag) MUST_USE;

#endif
