/* SPDX-License-Identifier: BSD-3-Clause */
/* Words that remember the results of look-ups in frozen layers. */
#include "block/merged_map.h"

#include <assert.h>
#include <stdlib.h>

#include "base/checked.h"

/* A word consists of a kind, the number of a layer (0: the first), and an offset in its file in
 * units of 512 bytes. */
enum kind { UNKNOWN, ZERO, NOTHING, PLACE, LAYER, WALK };
#define KIND_BITS   3
#define LAYER_BITS  9
#define PLACE_SHIFT (KIND_BITS + LAYER_BITS)
#define PLACE_UNIT  512
#define MAX_LAYERS  (1u << LAYER_BITS)

/* log2 of a granule's size in bytes, and the largest number of granules, which bounds the
 * memory for the directory of an absurdly large disk. */
#define MIN_BITS     11
#define MAX_BITS     21
#define MAX_GRANULES (UINT64_C(1) << 32)

struct merged_map {
    _Atomic bool ended;
    unsigned bits;           /* log2 of a granule's size */
    uint32_t words_per_page; /* a power of two */
    uint64_t size;           /* of the first layer */
    struct mcmap *words;
    struct merged_map *next; /* in a list of maps to be freed */
    unsigned n_layers;
    struct node *layer[];
};

static uint64_t granule_of(const struct merged_map *map)
{
    return UINT64_C(1) << map->bits;
}

static uint32_t word_in_page(const struct merged_map *map, uint64_t granule)
{
    return (uint32_t)(granule & (map->words_per_page - 1));
}

static enum kind kind_of(uint64_t word)
{
    return word & ((1u << KIND_BITS) - 1);
}

static unsigned layer_of(uint64_t word)
{
    return word >> KIND_BITS & (MAX_LAYERS - 1);
}

static uint64_t place_of(uint64_t word)
{
    return (word >> PLACE_SHIFT) * PLACE_UNIT;
}

static uint64_t word_make(enum kind kind, unsigned layer, uint64_t place)
{
    return place / PLACE_UNIT << PLACE_SHIFT | (uint64_t)layer << KIND_BITS | kind;
}

/* The difference between the words of two granules of which the second continues the first. */
static uint64_t step_of(const struct merged_map *map, uint64_t word)
{
    return kind_of(word) == PLACE ? granule_of(map) / PLACE_UNIT << PLACE_SHIFT : 0;
}

/* ---- making and ending ---- */

static unsigned count_layers(const struct node *first)
{
    unsigned n = 0;

    for (; first; first = first->backing)
        n++;
    return n;
}

static unsigned choose_bits(const struct node *first)
{
    uint64_t smallest = UINT64_C(1) << MAX_BITS;
    unsigned bits = MIN_BITS;

    for (const struct node *node = first; node; node = node->backing)
        if (node->cluster_size > 1)
            smallest = MIN(smallest, node->subcluster_size);
    while (UINT64_C(1) << bits < smallest || first->size >> bits > MAX_GRANULES)
        bits++;
    return bits;
}

static struct merged_map *make(struct node *first, unsigned n)
{
    struct merged_map *map = calloc(1, sizeof *map + n * sizeof map->layer[0]);

    if (!map)
        return NULL;
    for (struct node *node = first; node && map->n_layers < n; node = node->backing)
        map->layer[map->n_layers++] = node;
    map->size = first->size;
    map->bits = choose_bits(first);
    map->words = mcmap_new_memo(first->mc, (first->size >> map->bits) + 1);
    if (!map->words) {
        free(map);
        return NULL;
    }
    map->words_per_page = mcmap_words_per_page(map->words);
    return map;
}

/* Invariant 1. */
static bool has_writer(const struct merged_map *map)
{
    for (unsigned i = 0; i < map->n_layers; i++)
        if (atomic_load(&map->layer[i]->written_elsewhere))
            return true;
    return false;
}

static bool any_is_active(const struct node *first)
{
    for (; first; first = first->backing)
        if (first->active)
            return true;
    return false;
}

ASIDE struct merged_map *merged_map_make(struct node *first)
{
    struct merged_map *none = NULL;

    if (!first->backing || any_is_active(first)) /* invariants 4, 1 */
        return NULL;
    unsigned n = count_layers(first);
    if (n > MAX_LAYERS)
        return NULL;
    struct merged_map *map = make(first, n);
    if (!map)
        return NULL;
    if (!atomic_compare_exchange_strong(&first->merged, &none, map)) {
        merged_map_free(map);
        return none;
    }
    /* A writer sets written_elsewhere before it looks for maps, and the map is visible before
     * this looks for writers: at least one of the two sees the other. */
    if (has_writer(map))
        atomic_store(&map->ended, true);
    return map;
}

void merged_map_free(struct merged_map *map)
{
    if (!map)
        return;
    mcmap_free(map->words);
    free(map);
}

static void end(struct node *node)
{
    struct merged_map *map = atomic_load(&node->merged);

    if (map)
        atomic_store(&map->ended, true);
}

void node_note_writer(struct node *top, struct node *layer)
{
    atomic_store(&layer->written_elsewhere, true);
    atomic_store(&node_opened(layer)->written_elsewhere, true);
    for (struct node *node = top; node; node = node == layer ? NULL : node->backing) {
        atomic_store(&node->shared_alone, true);
        end(node);
        end(node_opened(node));
    }
}

/* Detaches the node's map, if it has one, and adds it to the list *maps. */
static void take_map(struct node *node, struct merged_map **maps)
{
    struct merged_map *map = atomic_exchange(&node->merged, NULL);

    if (!map)
        return;
    map->next = *maps;
    *maps = map;
}

void node_forget_merged(struct node *top)
{
    struct merged_map *maps = NULL;

    for (struct node *node = top; node; node = node->backing) {
        take_map(node, &maps);
        if (atomic_load(&node->shared_alone))
            take_map(node_opened(node), &maps);
    }
    if (maps)
        gate_wait(&top->ctx->gate); /* invariant 3 */
    while (maps) {
        struct merged_map *next = maps->next;
        merged_map_free(maps);
        maps = next;
    }
    for (struct node *node = top; node; node = node->backing)
        shared_layer_forget_below(node);
}

/* ---- looking up ---- */

/* The word for an extent of one layer that begins at a granule's start. */
static uint64_t word_for(const struct merged_map *map, unsigned layer,
                         const struct extent *ext)
{
    if (ext->kind == EXTENT_ZERO && !ext->file)
        return word_make(ext->allocated ? ZERO : NOTHING, layer, 0);
    if (ext->kind == EXTENT_DATA && ext->file == map->layer[layer]->data &&
        ext->host_offset % PLACE_UNIT == 0)
        return word_make(PLACE, layer, ext->host_offset);
    return word_make(LAYER, layer, 0);
}

/* Asks the layers in turn.  *word: for the run at off, which is at most *len bytes long.
 * Returns 0 or -errno. */
static int walk(const struct merged_map *map, uint64_t off, uint64_t *len, uint64_t *word)
{
    unsigned i = 0;

    for (; i < map->n_layers && off < map->layer[i]->size; i++) {
        struct node *layer = map->layer[i];
        struct extent ext;
        *len = MIN(*len, layer->size - off);
        int err = layer->driver->map(layer, off, *len, &ext);
        if (err)
            return err;
        *len = ext.length;
        if (ext.kind != EXTENT_BACKING) {
            *word = word_for(map, i, &ext);
            return 0;
        }
    }
    assert(i > 0);
    *word = word_make(NOTHING, i - 1, 0); /* beyond the end of the next layer */
    return 0;
}

/* Asks the layers about the run that begins with a granule, and stores the words of all
 * granules that it covers in this page.  Returns the word of the first granule; UNKNOWN after
 * an error. */
ASIDE static uint64_t fill(struct merged_map *map, struct mc_page *page, uint64_t granule,
                           uint64_t end)
{
    uint64_t off = granule << map->bits, word = UNKNOWN;
    uint32_t at = word_in_page(map, granule);
    uint64_t page_end = (granule - at + map->words_per_page) << map->bits;
    uint64_t stop = MIN(MIN(align_up(end, granule_of(map)), page_end), map->size);
    uint64_t len = stop - off;

    if (walk(map, off, &len, &word)) /* invariant 2 */
        return UNKNOWN;
    uint64_t n =
        off + len == map->size ? div_round_up(len, granule_of(map)) : len >> map->bits;
    if (n == 0) {
        word = word_make(WALK, 0, 0);
        n = 1;
    }
    for (uint64_t i = 0, step = step_of(map, word); i < n; i++)
        mcmap_remember(page, at + (uint32_t)i, word + i * step);
    return word;
}

/* The end, in bytes, of the run of granules in this page that `word` begins; at most `end`. */
static uint64_t run_end(const struct merged_map *map, const struct mc_page *page,
                        uint64_t granule, uint64_t word, uint64_t end)
{
    uint64_t run = (granule + 1) << map->bits, step = step_of(map, word);
    uint32_t at = word_in_page(map, granule);

    while (run < end && ++at < map->words_per_page && mc_load(page, at) == (word += step))
        run += granule_of(map);
    return MIN(run, end);
}

bool merged_map_find(struct merged_map *map, uint64_t off, uint64_t len, struct extent *ext,
                     unsigned *number, struct node **layer)
{
    uint64_t granule = off >> map->bits, end = off + len;
    struct mc_page *page;

    assert(end <= map->size);
    *number = 0;
    *layer = map->layer[0];
    ext->length = len;
    if (UNLIKELY(atomic_load_explicit(&map->ended, memory_order_acquire)) ||
        mcmap_get(map->words, granule / map->words_per_page, &page))
        return false;
    uint64_t word = mc_load(page, word_in_page(map, granule));
    if (UNLIKELY(word == UNKNOWN))
        word = fill(map, page, granule, end);
    enum kind kind = kind_of(word);
    if (UNLIKELY(kind == UNKNOWN || kind == WALK))
        return false;
    *number = layer_of(word);
    *layer = map->layer[*number];
    ext->length = run_end(map, page, granule, word, end) - off;
    if (UNLIKELY(kind == LAYER))
        return false;
    ext->allocated = kind != NOTHING;
    ext->kind = kind == PLACE ? EXTENT_DATA : EXTENT_ZERO;
    ext->file = kind == PLACE ? (*layer)->data : NULL;
    ext->host_offset = place_of(word) + (off & (granule_of(map) - 1));
    return true;
}
