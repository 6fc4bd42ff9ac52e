/* SPDX-License-Identifier: BSD-3-Clause */
/* The images that chains of a process have in common. */
#include "block/shared_layer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "block/engine.h"
#include "block/merged_map.h"
#include "crypto/cipher.h"
#include "storage/protocol.h"

struct shared_layers {
    struct lock lock;
    struct list list; /* struct shared_layer.link */
};

struct shared_layers *shared_layers_new(void)
{
    struct shared_layers *layers = calloc(1, sizeof *layers);

    if (!layers)
        return NULL;
    lock_init(&layers->lock, RANK_LAYERS);
    list_init(&layers->list);
    return layers;
}

void shared_layers_free(struct shared_layers *layers)
{
    if (!layers)
        return;
    assert(list_empty(&layers->list));
    lock_destroy(&layers->lock);
    free(layers);
}

/* ---- is it the same? ---- */

/* Of a local file, which nobody has to start, and nobody to give up.  False: it can't be. */
static bool identify(struct storage *st, struct file_identity *out)
{
    return storage_protocol_of_store(st) == &storage_protocol_file &&
           storage_identity(st, &out->device, &out->inode) == 0;
}

static bool can_be_shared(const struct node *node, struct file_identity *file,
                          struct file_identity *data)
{
    *data = (struct file_identity){0};
    if (node->active || node->options.describe || !node->file->read_only)
        return false;
    return identify(node->file, file) &&
           (!node->data_file || identify(node->data_file, data));
}

static bool same_file(struct file_identity a, struct file_identity b)
{
    return a.device == b.device && a.inode == b.inode;
}

/* Whoever opened a LUKS layer had the key, for it says whether a passphrase is right; AES
 * takes any. */
static bool same_key(const struct node *a, const struct node *b)
{
    return !a->cipher == !b->cipher && (!a->cipher || strcmp(a->encryption, "AES") != 0);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Invariant 2.  What is only for who writes makes no difference. */
static bool is_same(const struct shared_layer *layer, const struct shared_layer *other,
                    const struct shared_layer *below)
{
    const struct node *open = layer->node, *node = other->node;

    return same_file(layer->file, other->file) && same_file(layer->data, other->data) &&
           layer->below == below && open->driver == node->driver &&
           open->size == node->size && open->options.cache == node->options.cache &&
           (node->options.lock_off || !open->options.lock_off) && same_key(open, node) &&
           same_text(open->backing_name, node->backing_name);
}

/* ---- the node of a chain ---- */

static void borrow(struct node *node, struct shared_layer *layer)
{
    struct node *open = layer->node;

    node->shared = layer;
    node->state = open->state;
    node->file = open->file;
    node->data_file = open->data_file;
    node->data = open->data;
    node->data_alone = open->data_alone;
    node->mc = open->mc;
    node->size = open->size;
    node->cluster_size = open->cluster_size;
    node->subcluster_size = open->subcluster_size;
    node->codec = open->codec;
    node->cipher = open->cipher;
    node->cipher_by_place = open->cipher_by_place;
    node->encryption = open->encryption;
    node->host_zeroes_show = open->host_zeroes_show;
    node->cannot = open->cannot;
}

/* As one of its users. */
static void enter_layer(struct node *node, struct shared_layer *layer)
{
    borrow(node, layer);
    gate_join(&layer->ctx.gate, &node->readers, &node->ctx->gate);
}

static void give_back(struct node *node)
{
    node->state = NULL;
    node->file = node->data_file = node->data = NULL;
    node->mc = NULL;
    node->cipher = NULL;
    node->shared = NULL;
}

/* One that is to stand for `opened` in a chain, with the names that this has for what lies below;
 * NULL: no memory. */
static struct node *make_stand_in(struct block_context *ctx, const char *filename,
                                  const struct node_options *options,
                                  const struct node *opened)
{
    struct node *node = node_new(ctx, opened->driver, filename, options);

    if (!node)
        return NULL;
    node->backing_name = opened->backing_name ? strdup(opened->backing_name) : NULL;
    node->backing_format = opened->backing_format ? strdup(opened->backing_format) : NULL;
    if (!node->backing_name != !opened->backing_name ||
        !node->backing_format != !opened->backing_format) {
        node_free(node);
        return NULL;
    }
    return node;
}

/* ---- joining ---- */

/* Nobody reads the node yet: it lies in no chain from here on, but in a context of its own. */
static struct shared_layer *make_layer(struct node *node)
{
    const struct block_shared shared = {.pool = node->ctx->pool,
                                        .clusters = node->ctx->clusters,
                                        .housekeeper = node->ctx->housekeeper};
    void *memory;

    /* The gate in it wants its own cache lines. */
    if (posix_memalign(&memory, _Alignof(struct shared_layer), sizeof(struct shared_layer)))
        return NULL;
    struct shared_layer *layer = memory;
    *layer = (struct shared_layer){.node = node};
    list_init(&layer->link);
    block_context_init_shared(&layer->ctx, &shared);
    return layer;
}

static void settle_layer(struct shared_layer *layer, struct shared_layer *below)
{
    struct node *node = layer->node;

    node->ctx = &layer->ctx;
    node->observers.gate = &layer->ctx.gate;
    mcache_set_gate(node->mc, &layer->ctx.gate);
    layer->below = below;
    node->backing = below ? below->node : NULL;
    if (below)
        below->above++;
}

static struct shared_layer *find(struct shared_layers *layers,
                                 const struct shared_layer *wanted,
                                 const struct shared_layer *below)
{
    lock_assert_held(&layers->lock);
    LIST_FOR_EACH (pos, &layers->list) {
        struct shared_layer *layer = CONTAINER_OF(pos, struct shared_layer, link);
        if (is_same(layer, wanted, below))
            return layer;
    }
    return NULL;
}

/* The shared layer that this one is, or this; the caller becomes a user. */
static struct shared_layer *find_or_add(struct shared_layers *layers,
                                        struct shared_layer *fresh,
                                        struct shared_layer *below)
{
    LOCK_GUARD(&layers->lock);
    struct shared_layer *layer = find(layers, fresh, below);

    if (!layer) {
        layer = fresh;
        settle_layer(layer, below);
        list_append(&layers->list, &layer->link);
    }
    layer->users++;
    return layer;
}

/* In the place of `node`, which has nothing below it any more; NULL: it stays. */
static struct node *share(struct node *node, struct shared_layer *below)
{
    struct shared_layers *layers = node->ctx->layers;
    struct file_identity file, data;

    if (!can_be_shared(node, &file, &data))
        return NULL;
    struct node *stand_in = make_stand_in(node->ctx, node->filename, &node->options, node);
    struct shared_layer *fresh = make_layer(node);
    if (!stand_in || !fresh) {
        if (stand_in)
            node_free(stand_in);
        free(fresh);
        return NULL;
    }
    fresh->file = file;
    fresh->data = data;
    struct shared_layer *layer = find_or_add(layers, fresh, below);
    enter_layer(stand_in, layer);
    if (layer != fresh) {
        free(fresh);
        (void)!node_close(node);
    }
    return stand_in;
}

void shared_layers_join(struct node *top)
{
    struct node *layer[CHAIN_MAX_DEPTH];
    struct shared_layer *below = NULL;
    unsigned n = 0;

    if (!top->ctx->layers)
        return;
    for (struct node *node = top; node && n < CHAIN_MAX_DEPTH; node = node->backing)
        layer[n++] = node;
    /* From the lowest up: what a layer is depends on what lies below it. */
    for (unsigned i = n; i-- > 1;) {
        struct node *under = layer[i]->backing;
        layer[i]->backing = NULL;
        struct node *stand_in = share(layer[i], below);
        if (!stand_in) { /* nor are those above it */
            layer[i]->backing = under;
            return;
        }
        stand_in->backing = under;
        layer[i - 1]->backing = stand_in;
        below = stand_in->shared;
    }
}

/* ---- leaving ---- */

/* Under the lock: nobody needs it any more, and it isn't found. */
static bool is_unused(struct shared_layer *layer)
{
    if (layer->users > 0 || layer->above > 0)
        return false;
    list_remove(&layer->link);
    return true;
}

static bool drop_above(struct shared_layers *layers, struct shared_layer *layer)
{
    LOCK_GUARD(&layers->lock);
    assert(layer->above > 0);
    layer->above--;
    return is_unused(layer);
}

/* Closes it, and what below it nobody needs any more. */
static int close_layers(struct shared_layers *layers, struct shared_layer *layer)
{
    int result = 0;

    while (layer) {
        struct shared_layer *below = layer->below;
        layer->node->backing = NULL;
        int err = node_close(layer->node);
        if (err && !result)
            result = err;
        block_context_destroy(&layer->ctx);
        free(layer);
        layer = below && drop_above(layers, below) ? below : NULL;
    }
    return result;
}

static int stop_using(struct shared_layers *layers, struct shared_layer *layer)
{
    bool unused;

    {
        LOCK_GUARD(&layers->lock);
        layer->users--;
        unused = is_unused(layer);
    }
    return unused ? close_layers(layers, layer) : 0;
}

int shared_layer_leave(struct node *node)
{
    struct shared_layers *layers = node->ctx->layers;
    struct shared_layer *layer = node->shared;

    merged_map_free(
        atomic_exchange(&node->merged, NULL)); /* its words lie in those tables */
    gate_quit(&layer->ctx.gate, &node->readers);
    give_back(node);
    return stop_using(layers, layer);
}

/* ---- one that is open already ---- */

/* Under the lock: is it open in the way in which the file is to be opened?  Not said of what is
 * encrypted, for a key would have to be judged, and of what has a second file. */
static bool is_open_so(const struct shared_layer *layer, struct file_identity file,
                       const struct driver *driver, const struct node_options *options)
{
    const struct node *open = layer->node;

    return same_file(layer->file, file) && !open->data_file && !open->encryption &&
           open->options.cache == options->cache && !open->options.lock_off &&
           (driver ? open->driver == driver : open->driver->probe != NULL);
}

/* Under the lock; NULL: none.  One that was taken for a writer isn't found. */
static struct shared_layer *find_open(struct shared_layers *layers,
                                      const struct shared_layer *above,
                                      struct file_identity file,
                                      const struct driver *driver,
                                      const struct node_options *options)
{
    LIST_FOR_EACH (pos, &layers->list) {
        struct shared_layer *layer = CONTAINER_OF(pos, struct shared_layer, link);
        if ((!above || above->below == layer) && is_open_so(layer, file, driver, options))
            return layer;
    }
    return NULL;
}

/* As shared_layer_attach. */
static struct node *attach(struct shared_layers *layers, struct block_context *ctx,
                           const struct shared_layer *above, struct file_identity file,
                           const struct driver *driver, const char *shown,
                           const struct node_options *options)
{
    LOCK_GUARD(&layers->lock);
    struct shared_layer *layer = find_open(layers, above, file, driver, options);
    if (!layer)
        return NULL;
    struct node *node = make_stand_in(ctx, shown, options, layer->node);
    if (!node)
        return NULL;
    layer->users++;
    node->shared = layer;
    return node;
}

struct node *shared_layer_attach(struct block_context *ctx,
                                 const struct shared_layer *above, struct storage *file,
                                 const struct driver *driver, const char *shown,
                                 const struct node_options *options)
{
    struct file_identity identity;

    if (!identify(file, &identity))
        return NULL;
    struct node *node = attach(ctx->layers, ctx, above, identity, driver, shown, options);
    if (node)
        enter_layer(node, node->shared);
    return node;
}

/* ---- for who writes to the file ---- */

int shared_layer_take(struct node *node, struct diag *diag)
{
    struct shared_layer *layer = node->shared;
    struct shared_layers *layers = node->ctx->layers;

    if (!layer)
        return 0;
    LOCK_GUARD(&layers->lock);
    if (layer->users > 1)
        return diag_set(diag, EBUSY,
                        "%s: Permission conflict: permissions 'write' are required, and "
                        "unshared by %u other disks that use it as 'backing'",
                        node->filename, layer->users - 1);
    list_remove(&layer->link);
    return 0;
}

void shared_layer_return(struct node *node)
{
    struct shared_layers *layers = node->ctx->layers;

    if (!node->shared || atomic_load(&node->shared_alone))
        return;
    LOCK_GUARD(&layers->lock);
    list_append(&layers->list, &node->shared->link);
}

void shared_layer_forget_below(struct node *node)
{
    struct shared_layer *layer = node->shared;
    struct shared_layers *layers = node->ctx->layers;

    if (!layer || !atomic_load(&node->shared_alone))
        return;
    struct shared_layer *below;
    {
        LOCK_GUARD(&layers->lock);
        below = layer->below;
        layer->below = NULL;
        list_remove(&layer->link); /* it lies on something else: nobody finds it */
    }
    /* Its driver only asks whether there is anything: the chain's node has what it is. */
    layer->node->backing = node->backing;
    if (below && drop_above(layers, below))
        (void)!close_layers(layers, below);
}
