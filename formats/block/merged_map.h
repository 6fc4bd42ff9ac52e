/* SPDX-License-Identifier: BSD-3-Clause */
/* The frozen layers of a chain looked up as one: where a granule of the disk lies, whichever
 * of them has it.
 *
 * A read that the active layer has nothing of would ask each layer below in turn.  What they
 * answer doesn't change, for nobody writes to them; so it is remembered, one word for each
 * granule, in pages of the metadata cache (mcmap_new_memo): made as they are used, bounded and
 * evicted as all others are.  The map belongs to the first frozen layer, and is made by the first
 * read that comes there.
 *
 * A granule is as large as the smallest cluster (or subcluster) of the layers.  Its word says
 *   ZERO    such a layer says that it reads as zeroes;
 *   NOTHING none has an entry for it, and it reads as zeroes; such a layer was the last that was
 *           asked;
 *   PLACE   plain bytes at such a place of such a layer's file: nobody else is asked;
 *   LAYER   that layer has it, and is asked how (compressed, encrypted, ...);
 *   WALK    it is made of several pieces: the layers are asked one by one, as without a map;
 *   0       nothing is known yet.
 *
 * Invariants, cited by number:
 *   (1) a map is of layers of which none is active, and none was written to through another node
 *       when it was made; what is found out later is used only while that is still so (`ended`);
 *   (2) a word is stored only when all layers that had to be asked have answered: an error is
 *       met again by whoever reads there;
 *   (3) a map is freed when everybody has left the gate who could have found it, and before any
 *       of its layers;
 *   (4) a layer without anything below it has no map: its own tables say as much.
 *
 * Threads: as noted; inside the gate of who reads.  Private to this folder. */
#ifndef BLOCK_MERGED_MAP_H
#define BLOCK_MERGED_MAP_H

#include <stdatomic.h>
#include <stdbool.h>

#include "block/node.h"
#include "block/shared_layer.h"

struct merged_map;

/* Inside the gate: the map of `first`, which is no active layer, and all below it.  NULL:
 * there is none, the
 * layers have to be asked one by one. */
struct merged_map *merged_map_make(struct node *first);

/* Inside the gate: where the range lies that begins at off, which is inside the first layer.
 * *layer is one of the map's, and lies *number layers below the first.  True: *ext says it, as
 * driver->map of *layer would, for ext->length bytes of it.  False: *layer is to be asked, for
 * ext->length bytes at most, and then those below it. */
bool merged_map_find(struct merged_map *map, uint64_t off, uint64_t len, struct extent *ext,
                     unsigned *number, struct node **layer);

/* Nobody can find it any more; NULL is allowed. */
void merged_map_free(struct merged_map *map);

/* Inside the gate: as merged_map_make, for the layer below one that is read. */
static inline struct merged_map *merged_map_of(struct node *layer)
{
    struct node *first = node_merging(layer);
    struct merged_map *map = atomic_load_explicit(&first->merged, memory_order_acquire);

    return LIKELY(map) ? map : merged_map_make(first);
}

#endif
