/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a node: open, activate, close. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/cluster_cache.h"
#include "block/engine.h"
#include "block/merged_map.h"
#include "block/shared_layer.h"
#include "crypto/cipher.h"

/* Limit of the cache of decompressed clusters in bytes, allocated as needed. */
#define DECOMPRESSED_BYTES (32u << 20)

int block_shared_init(struct block_shared *shared, size_t cache_bytes, clock_fn *clock,
                      void *clock_opaque)
{
    shared->layers = shared_layers_new();
    shared->pool = mc_pool_new(cache_bytes);
    shared->clusters = cluster_cache_new(DECOMPRESSED_BYTES);
    shared->housekeeper = housekeeper_new(clock, clock_opaque);
    if (shared->layers && shared->pool && shared->clusters && shared->housekeeper)
        return 0;
    block_shared_destroy(shared);
    return -ENOMEM;
}

void block_shared_destroy(struct block_shared *shared)
{
    shared_layers_free(shared->layers);
    housekeeper_free(shared->housekeeper);
    mc_pool_free(shared->pool);
    cluster_cache_free(shared->clusters);
    *shared = (struct block_shared){0};
}

void block_context_init_shared(struct block_context *ctx, const struct block_shared *shared)
{
    gate_init(&ctx->gate);
    ctx->layers = shared->layers;
    ctx->pool = shared->pool;
    ctx->clusters = shared->clusters;
    ctx->housekeeper = shared->housekeeper;
    ctx->own = (struct block_shared){0};
}

int block_context_init(struct block_context *ctx, size_t cache_bytes, clock_fn *clock,
                       void *clock_opaque)
{
    struct block_shared own;

    int err = block_shared_init(&own, cache_bytes, clock, clock_opaque);
    if (err)
        return err;
    block_context_init_shared(ctx, &own);
    ctx->layers = NULL; /* there are no other chains to share with */
    ctx->own = own;
    return 0;
}

void block_context_destroy(struct block_context *ctx)
{
    block_shared_destroy(&ctx->own);
    ctx->layers = NULL;
    ctx->housekeeper = NULL;
    ctx->pool = NULL;
    ctx->clusters = NULL;
}

/* A commit without a client's flush starts this long after a change, as the kernel does with
 * dirty pages. */
#define WRITEBACK_AGE_NS (30 * 1000000000ull)

static void arm_write_back(struct node *node)
{
    if (!atomic_load_explicit(&node->write_back_armed, memory_order_relaxed) &&
        !atomic_exchange(&node->write_back_armed, true))
        timer_arm(node->ctx->housekeeper, &node->write_back, WRITEBACK_AGE_NS);
}

static void write_back(void *opaque)
{
    struct node *node = opaque;

    atomic_store(&node->write_back_armed, false);
    int err = mcache_commit(node->mc, MC_COMMIT);
    if (err)
        log_error("%s: background write-back failed: %s", node->filename, strerror(-err));
    if (err && !mcache_health(node->mc))
        arm_write_back(node);
}

void node_wrote(struct node *node)
{
    mcache_note_write(node->mc);
    arm_write_back(node);
}

int node_barrier(struct node *node)
{
    int err = storage_flush(node->file);

    if (err)
        mcache_poison(node->mc);
    return err;
}

int node_light_barrier(struct node *node)
{
    return node->file->keeps_writes ? storage_flush(node->file) : node_barrier(node);
}

void node_free(struct node *node)
{
    merged_map_free(atomic_load(&node->merged));
    cluster_cache_forget_owner(node->ctx->clusters, node);
    mcache_free(node->mc);
    cipher_free(node->cipher);
    storage_close(node->data_file);
    storage_close(node->file);
    range_lock_destroy(&node->ranges);
    dirty_bitmaps_destroy(&node->bitmaps);
    observers_destroy(&node->observers);
    lock_destroy(&node->frozen_points.lock);
    lock_destroy(&node->snapshots.lock);
    node_name_put(node->name);
    free(node->filename);
    free(node->backing_name);
    free(node->backing_format);
    free(node);
}

struct node *node_new(struct block_context *ctx, const struct driver *driver,
                      const char *filename, const struct node_options *options)
{
    struct node *node = calloc(1, sizeof *node);

    if (!node || !(node->filename = strdup(filename))) {
        free(node);
        return NULL;
    }
    node->driver = driver;
    node->ctx = ctx;
    node->options = *options;
    if (!node->options.cache)
        node->options.cache = cache_mode_find("writeback");
    node->options.compress &= driver->reserve_compressed != NULL;
    node->host_zeroes_show = true;
    range_lock_init(&node->ranges, RANK_RANGE);
    observers_init(&node->observers, &ctx->gate);
    dirty_bitmaps_init(&node->bitmaps);
    lock_init(&node->frozen_points.lock, RANK_LEAF);
    list_init(&node->frozen_points.list);
    timer_init(&node->write_back, write_back, node);
    lock_init(&node->snapshots.lock, RANK_LEAF);
    list_init(&node->snapshots.list);
    return node;
}

int node_open(struct block_context *ctx, const struct driver *driver, struct storage *file,
              const char *filename, const struct node_options *options, struct node **out,
              struct diag *diag)
{
    struct node *node = node_new(ctx, driver, filename, options);

    if (!node) {
        storage_close(file);
        return diag_errno(diag, ENOMEM, "%s", filename);
    }
    node->file = node->data = file;
    node->can_write = !file->read_only;
    int err = driver->open(node, diag);
    if (err) {
        node_free(node);
        return err;
    }
    if (!node->subcluster_size)
        node->subcluster_size = node->cluster_size;
    *out = node;
    return 0;
}

int node_reopen(struct node *node, void (*free_state)(void *state), struct diag *diag)
{
    void *state = node->state;
    struct mcache *mc = node->mc;
    char *name = node->backing_name, *format = node->backing_format;

    node->mc = NULL;
    node->backing_name = node->backing_format = NULL;
    int err = node->driver->open(node, diag);
    if (err) {
        mcache_free(node->mc);
        node->mc = mc;
        node->backing_name = name;
        node->backing_format = format;
        return err;
    }
    if (node->data_file)
        mcache_add_data_store(node->mc, node->data_file);
    gate_wait(&node->ctx->gate);
    free_state(state);
    mcache_free(mc);
    free(name);
    free(format);
    return 0;
}

static bool is_same_name(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Are size, cluster size and backing file the same, on which users of the disk and the chain
 * rely? */
static bool is_same_disk(const struct node *node, const struct node *now)
{
    return now->size == node->size && now->cluster_size == node->cluster_size &&
           is_same_name(now->backing_name, node->backing_name);
}

/* Opens the image in a second node, so that the open node is unchanged if it has become another
 * image. */
static int check_same_disk(const struct node *node, struct diag *diag)
{
    const struct node_options options = {.describe = true};
    struct node *now = node_new(node->ctx, node->driver, node->filename, &options);

    if (!now)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    now->file = now->data = node->file;
    int err = node->driver->open(now, diag);
    bool same = !err && is_same_disk(node, now);
    if (!err)
        (void)!node->driver->close(now);
    now->file = now->data = NULL;
    node_free(now);
    if (err || same)
        return err;
    return diag_set(diag, ESTALE,
                    "%s: another client has changed its size or its backing file since it "
                    "was opened: it has to be opened anew before it can be written",
                    node->filename);
}

int node_open_anew(struct node *node, void (*free_state)(void *state), struct diag *diag)
{
    node_bitmaps_distrust(node);
    int err = node_reopen(node, free_state, diag);
    cluster_cache_forget_owner(node->ctx->clusters, node);
    return err;
}

int node_refresh(struct node *node, void (*free_state)(void *state), struct diag *diag)
{
    if (!node->file->lets_writers_in)
        return 0;
    if (atomic_load(&node->viewers))
        return diag_set(
            diag, EBUSY,
            "%s: a client reads a snapshot of it, which another client may have "
            "changed: it can't be written to before that ends",
            node->filename);
    int err = check_same_disk(node, diag);
    return err ? err : node_open_anew(node, free_state, diag);
}

void node_set_data_file(struct node *node, struct storage *file)
{
    node->data_file = node->data = file;
    if (file->read_only)
        node->can_write = false;
    mcache_add_data_store(node->mc, file);
}

const char *node_why_read_only(const struct node *node)
{
    if (node->cannot)
        return node->cannot;
    return node->file->refused_err ? strerror(node->file->refused_err)
                                   : "the file is open read-only";
}

int node_activate(struct node *node, struct diag *diag)
{
    struct diag ignored;

    if (node->active)
        return 0;
    if (!node->can_write)
        return diag_set(diag, EROFS, "%s: can't be opened for writing: %s", node->filename,
                        node_why_read_only(node));
    int err = node_lock_for_writing(node, diag);
    if (!err)
        err = node->driver->activate(node, diag);
    if (err) /* still readable, beside other readers; one of two files may be locked */
        (void)!node_lock_for_reading(node, &ignored);
    node->active = !err;
    return err;
}

int node_first_change(struct node *node)
{
    int err = node->driver->first_change ? node->driver->first_change(node) : 0;

    if (!err)
        atomic_store_explicit(&node->changed, true, memory_order_release);
    return err;
}

static void disarm_write_back(struct node *node)
{
    timer_cancel(node->ctx->housekeeper, &node->write_back);
    atomic_store(&node->write_back_armed, false);
}

int node_settle(struct node *node)
{
    if (!node->active)
        return 0;
    disarm_write_back(node);
    int err = mcache_commit(node->mc, MC_COMMIT);
    if (err)
        return err;
    /* Then clusters that were unlinked can become free without waiting for readers. */
    gate_wait(&node->ctx->gate);
    err = node->driver->settle(node);
    if (err)
        return err;
    disarm_write_back(node); /* punching holes has armed it again */
    node->active = false;
    return 0;
}

int node_pause(struct node *node)
{
    return storage_rests(node->file) ? node_settle(node) : 0;
}

int node_freeze(struct node *node)
{
    struct diag diag;

    if (!node->active)
        return 0;
    int err = node_settle(node);
    if (err)
        return err;
    node->can_write = false;
    node->cannot = "it is a frozen layer of the disk that is served";
    if (node_lock_for_reading(node, &diag))
        log_error("%s", diag.text);
    return 0;
}

int node_end_writing(struct node *layer, struct diag *diag)
{
    int err = node_freeze(layer);

    return err ? diag_errno(diag, -err, "%s: ending its use for writing", layer->filename)
               : 0;
}

/* The driver's close writes everything back.  Holes that it punches are changes too, but must
 * not arm the timer; so the timer counts as armed from here on. */
static int close_alone(struct node *node)
{
    timer_cancel(node->ctx->housekeeper, &node->write_back);
    atomic_store(&node->write_back_armed, true);
    return node->driver->close(node);
}

int node_close(struct node *node)
{
    int result = 0;

    while (node) {
        struct node *below = node->backing;
        int err = node->shared ? shared_layer_leave(node) : close_alone(node);
        if (err && !result)
            result = err;
        node_free(node);
        node = below;
    }
    return result;
}

bool node_met_corruption(struct node *node)
{
    atomic_store(&node->corrupt, true);
    if (!node->active || atomic_exchange(&node->corrupt_fatal, true))
        return false;
    mcache_refuse(node->mc);
    log_error("%s: the image is corrupt: writes fail from here on; see 'qimg check'",
              node->filename);
    return true;
}

int node_check_range(const struct node *node, uint64_t off, uint64_t len)
{
    return off <= node->size && len <= node->size - off ? 0 : -EINVAL;
}
