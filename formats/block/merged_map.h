/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks up the frozen layers of a chain as if they were one: which of them has a granule of the
 * disk, and where.
 *
 * A read of a range that the active layer doesn't have would ask each layer below in turn.
 * Their answers don't change, as nobody writes to them.  So the result is remembered, one word
 * for each granule, in pages of the metadata cache (mcmap_new_memo): they are created as
 * needed, and their number is bounded by eviction.  The map belongs to the first frozen layer,
 * and is made by the first read that reaches that layer.
 *
 * A granule is as large as the smallest cluster (or subcluster) of the layers.  Its word is one
 * of
 *   ZERO    a certain layer says that it reads as zeroes;
 *   NOTHING no layer has an entry for it, and it reads as zeroes; also says which layer was the
 *           last that had to be asked;
 *   PLACE   plain bytes at a certain offset of a certain layer's file: no layer is asked;
 *   LAYER   a certain layer has it, and is asked for the rest (compressed, encrypted, ...);
 *   WALK    it consists of several pieces: the layers are asked one by one, as without a map;
 *   0       not known yet.
 *
 * Invariants, cited by number:
 *   (1) when a map is made, none of its layers is active or was written to through another node;
 *       it is used only as long as that is so (`ended`);
 *   (2) a word is stored only when all layers that had to be asked have answered: after an error
 *       the next reader asks again;
 *   (3) a map is freed when all requests that could have found it have left the gate, and before
 *       any of its layers;
 *   (4) a layer with nothing below it has no map: its own tables give the same answer.
 *
 * Threads: any, inside the gate, unless noted.  Private to this folder. */
#ifndef BLOCK_MERGED_MAP_H
#define BLOCK_MERGED_MAP_H

#include <stdatomic.h>
#include <stdbool.h>

#include "block/node.h"
#include "block/shared_layer.h"

struct merged_map;

/* Inside the gate: the map of `first`, which isn't active, and all layers below it.  NULL:
 * there is none, and the layers have to be asked one by one. */
struct merged_map *merged_map_make(struct node *first);

/* Inside the gate: looks up the range at off, which lies inside the first layer.  *layer is the
 * layer that decides, *number layers below the first.  True: *ext describes the first
 * ext->length bytes, as driver->map of *layer would.  False: ask *layer for at most ext->length
 * bytes, and then the layers below it. */
bool merged_map_find(struct merged_map *map, uint64_t off, uint64_t len, struct extent *ext,
                     unsigned *number, struct node **layer);

/* The map must be unreachable (invariant 3); NULL is allowed. */
void merged_map_free(struct merged_map *map);

/* Inside the gate: the map that begins with `layer`, made if necessary; see merged_map_make. */
static inline struct merged_map *merged_map_of(struct node *layer)
{
    struct node *first = node_merging(layer);
    struct merged_map *map = atomic_load_explicit(&first->merged, memory_order_acquire);

    return LIKELY(map) ? map : merged_map_make(first);
}

#endif
