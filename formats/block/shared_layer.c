/* SPDX-License-Identifier: BSD-3-Clause */
/* The shared layers of a process. */
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

/* ---- are two layers the same?  ---- */

/* The identity of a local file.  Stores on servers aren't shared: each chain starts and aborts
 * its own.  False: can't be shared. */
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

/* Could both keys be the same?  A LUKS header checks the passphrase, so whoever has opened the
 * image has its key.  AES images accept any passphrase. */
static bool same_key(const struct node *a, const struct node *b)
{
    return !a->cipher == !b->cipher && (!a->cipher || strcmp(a->encryption, "AES") != 0);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Invariant 2.  Options that matter only for writing may differ. */
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

/* Makes the node a borrower of the layer. */
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

/* A node that will borrow from `opened`, with its backing name and format.  NULL: memory is
 * short. */
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

/* Makes a shared layer of a node that no request reads yet, with a context of its own; the node
 * leaves its chain. */
static struct shared_layer *make_layer(struct node *node)
{
    const struct block_shared shared = {.pool = node->ctx->pool,
                                        .clusters = node->ctx->clusters,
                                        .housekeeper = node->ctx->housekeeper};
    void *memory;

    /* The gate in it is aligned to cache lines. */
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

/* An existing shared layer that is the same as `fresh`, or else `fresh`, which is added.  The
 * caller becomes a user of it. */
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

/* Replaces `node`, from which its backing node was detached, by one that borrows from a shared
 * layer.  Returns that one.  NULL: the node can't be shared and stays. */
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
    /* From the bottom up: whether two layers are the same depends on what lies below them. */
    for (unsigned i = n; i-- > 1;) {
        struct node *under = layer[i]->backing;
        layer[i]->backing = NULL;
        struct node *stand_in = share(layer[i], below);
        if (!stand_in) { /* then the layers above it can't be shared either */
            layer[i]->backing = under;
            return;
        }
        stand_in->backing = under;
        layer[i - 1]->backing = stand_in;
        below = stand_in->shared;
    }
}

/* ---- leaving ---- */

/* Under the lock: if no chain or layer uses it any more, removes it from the list. */
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

/* Closes it, and the layers below it that are no longer used. */
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

    /* Kept in the tables of the layer. */
    merged_map_free(atomic_exchange(&node->merged, NULL));
    gate_quit(&layer->ctx.gate, &node->readers);
    give_back(node);
    return stop_using(layers, layer);
}

/* ---- finding a layer that is open ---- */

/* Under the lock: is it open in the way in which the file is to be opened?  False for encrypted
 * layers, whose passphrase would have to be checked, and for those with a data file. */
static bool is_open_so(const struct shared_layer *layer, struct file_identity file,
                       const struct driver *driver, const struct node_options *options)
{
    const struct node *open = layer->node;

    return same_file(layer->file, file) && !open->data_file && !open->encryption &&
           open->options.cache == options->cache && !open->options.lock_off &&
           (driver ? open->driver == driver : open->driver->probe != NULL);
}

/* Under the lock; NULL: none.  shared_layer_take has removed layers that are written to from
 * the list. */
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

/* Under the lock, what shared_layer_attach does. */
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

/* ---- for writers ---- */

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
        list_remove(&layer->link); /* it lies over another layer now: must not be found */
    }
    /* The driver only tests whether there is a backing node; requests use the chain's node. */
    layer->node->backing = node->backing;
    if (below && drop_above(layers, below))
        (void)!close_layers(layers, below);
}
