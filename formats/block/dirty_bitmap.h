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
 * Threads: set, get, count, and enable from any thread, without waiting; next, clear and
 * merge (from) from one at a time, the bitmap's owner, beside them; resize and free while
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
#define BITMAP_MAX_GRANULARITY     (64u << 20)
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

/* A job that uses a bitmap keeps others from using, changing or removing it.  0, or -EBUSY
 * with diag. */
int dirty_bitmap_acquire(struct dirty_bitmap *bitmap, struct diag *diag) MUST_USE;
void dirty_bitmap_release(struct dirty_bitmap *bitmap);
bool dirty_bitmap_busy(const struct dirty_bitmap *bitmap);

/* ---- a node's bitmaps ---- */

struct dirty_bitmaps {
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

/* NULL when there is none. */
struct dirty_bitmap *node_bitmap_find(struct node *node, const char *name);

/* Found and acquired, so that nobody removes it in between.  NULL with diag: -ENOENT or
 * -EBUSY. */
struct dirty_bitmap *node_bitmap_acquire(struct node *node, const char *name,
                                         struct diag *diag) MUST_USE;

/* Waits for requests in flight, and frees it.  -ENOENT, or -EBUSY with diag. */
int node_bitmap_remove(struct node *node, const char *name, struct diag *diag) MUST_USE;

/* The same of one that the caller has acquired. */
void node_bitmap_drop(struct node *node, struct dirty_bitmap *bitmap);

/* Calls `each` for every one, in the order in which they were added; it must not add or
 * remove. */
void node_bitmap_each(struct node *node,
                      void (*each)(struct dirty_bitmap *bitmap, void *opaque),
                      void *opaque);

/* The node, drained, has a new size.  -EBUSY with nothing changed when a job uses one;
 * -ENOMEM. */
int node_bitmaps_resize(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

#endif
