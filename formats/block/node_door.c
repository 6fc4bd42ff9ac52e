/* SPDX-License-Identifier: BSD-3-Clause */
/* What jobs and servers need of a node besides requests.  Each function calls the driver, the
 * cache or the storage, which jobs and servers don't know. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/node.h"
#include "block/shared_layer.h"
#include "storage/nbd.h"
#include "storage/protocol.h"
#include "block/open_policy.h"
#include "storage/rbd.h"

/* Resizes by the driver, and then the bitmaps: to the size that the node has now, also when the
 * driver failed half-way. */
static int resize(struct node *node, uint64_t size,
                  int (*change)(struct node *node, uint64_t size, struct diag *diag),
                  struct diag *diag)
{
    struct diag ignored;
    uint64_t before = node->size;

    int err = node_bitmaps_check_resize(node, diag);
    if (err)
        return err;
    err = change(node, size, diag);
    if (err && node->size == before)
        return err;
    int bitmaps = node_bitmaps_resize(node, node->size, err ? &ignored : diag);
    return err ? err : bitmaps;
}

int node_grow(struct node *node, uint64_t size, struct diag *diag)
{
    if (!node_can(node, DRIVER_GROWS))
        return diag_set(diag, ENOTSUP, "%s: %s images can't grow", node->filename,
                        node->driver->name);
    /* So that no bitmap is stored with the old size and the new bits, or the reverse. */
    LOCK_GUARD(&node->bitmaps.keep);
    return resize(node, size, node->driver->grow, diag);
}

int node_shrink(struct node *node, uint64_t size, struct diag *diag)
{
    if (!node_can(node, DRIVER_SHRINKS))
        return diag_set(diag, ENOTSUP, "%s: Shrinking %s images is not supported",
                        node->filename, node->driver->name);
    /* So that no bitmap is stored with the old size and the new bits, or the reverse. */
    LOCK_GUARD(&node->bitmaps.keep);
    return resize(node, size, node->driver->shrink, diag);
}

int node_make_empty(struct node *node, struct diag *diag)
{
    return node->driver->make_empty ? node->driver->make_empty(node, diag) : -ENOTSUP;
}

static void set_void_flushes(struct node *node, bool on)
{
    atomic_store(&node->file->no_flush, on);
    if (node->data_file)
        atomic_store(&node->data_file->no_flush, on);
}

/* Makes durable what was written while flushes did nothing. */
static int sync_everything(struct node *node)
{
    int err = node->active ? mcache_commit(node->mc, MC_COMMIT_EVERYTHING) : 0;

    if (!err && node->data_file)
        err = storage_sync(node->data_file);
    return err ? err : storage_sync(node->file);
}

int node_set_cache(struct node *node, const struct cache_mode *mode, struct diag *diag)
{
    const struct cache_mode *old = node->options.cache;

    if (mode == old) /* no store: timers may be reading it */
        return 0;
    if (mode->direct != old->direct)
        return diag_set(
            diag, EINVAL,
            "%s: cache: whether it is read directly (O_DIRECT) can't be changed "
            "while it is open",
            node->filename);
    set_void_flushes(node, mode->no_flush);
    int err = old->no_flush && !mode->no_flush ? sync_everything(node) : 0;
    if (err) {
        set_void_flushes(node, true);
        return diag_errno(diag, -err, "%s: cache: syncing it", node->filename);
    }
    node->options.cache = mode;
    return 0;
}

int node_check_backing(const struct node *node, const char *name, struct diag *diag)
{
    if (!node_can(node, DRIVER_BACKING))
        return diag_set(diag, ENOTSUP, "%s: %s images have no backing file", node->filename,
                        node->driver->name);
    if (name && node->data_alone && !node->backing_name)
        return diag_set(diag, EINVAL,
                        "%s: backing file %s: its data file is a raw image of the disk "
                        "(data_file_raw), which has nothing of another file",
                        node->filename, name);
    return name ? reference_check_recorded(node->filename, name, diag) : 0;
}

int node_set_backing(struct node *node, const char *name, const char *format,
                     struct diag *diag)
{
    int err = node_check_backing(node, name, diag);
    if (err)
        return err;
    CLEANUP_FREE char *new_name = name ? strdup(name) : NULL;
    CLEANUP_FREE char *new_format = format ? strdup(format) : NULL;
    if (!new_name != !name || !new_format != !format)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    err = node->driver->set_backing(node, name, format, diag);
    if (err)
        return err;
    /* The old texts are freed after their readers have left the gate. */
    new_name = atomic_exchange(&node->backing_name, new_name);
    new_format = atomic_exchange(&node->backing_format, new_format);
    gate_wait(&node->ctx->gate);
    return 0;
}

static int lock_files(struct node *node, enum storage_lock_level level, struct diag *diag)
{
    int err = storage_lock(node->file, level, diag);

    return err || !node->data_file ? err : storage_lock(node->data_file, level, diag);
}

int node_lock_for_reading(struct node *node, struct diag *diag)
{
    return node->options.lock_off ? 0 : lock_files(node, STORAGE_READER, diag);
}

int node_lock_for_writing(struct node *node, struct diag *diag)
{
    int err = shared_layer_take(node, diag);

    if (err || node->options.lock_off)
        return err;
    err = lock_files(node, STORAGE_WRITER, diag);
    if (err)
        shared_layer_return(node);
    return err;
}

void node_unlock_for_writing(struct node *layer)
{
    struct diag ignored;

    (void)!node_lock_for_reading(layer, &ignored);
    shared_layer_return(layer);
}

/* Do both paths lead to the same file? */
static bool is_same_file(const char *path, const char *other)
{
    CLEANUP_FREE char *real = realpath(path, NULL);
    CLEANUP_FREE char *other_real = realpath(other, NULL);

    return real && other_real && strcmp(real, other_real) == 0;
}

static bool is_same_export(const struct node *node, const char *uri_text)
{
    CLEANUP_NBD_URI struct nbd_uri uri = {0};
    struct diag ignored;

    if (!storage_is_nbd(node->file) ||
        nbd_uri_parse(uri_text, NBD_URI_USER, &uri, &ignored))
        return false;
    CLEANUP_FREE char *canonical = nbd_uri_print(&uri);
    return canonical && strcmp(canonical, node->file->name) == 0;
}

/* Compares the place of the images; user names and options of the names don't matter. */
static bool is_same_rbd(const struct node *node, const char *text)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    struct diag ignored;

    if (!storage_is_rbd(node->file) || rbd_name_parse(text, RBD_NAME_USER, &name, &ignored))
        return false;
    CLEANUP_FREE char *place = rbd_name_print_place(&name);
    return place && strcmp(place, node->file->name) == 0;
}

const char *node_why_not_compress(const struct node *node)
{
    if (!node->driver->reserve_compressed)
        return "images of this format have no compressed clusters";
    if (node->encryption)
        return "the image is encrypted, and encrypted clusters can't be compressed";
    if (node->data_file)
        return "its data lies in another file, which has no compressed clusters";
    return NULL;
}

const char *node_why_not_lazy(const struct node *node)
{
    return node->may_be_lazy
               ? NULL
               : "only qcow2 images of version 3 (compat=1.1) have lazy refcounts";
}

bool node_is_called(const struct node *node, const char *name)
{
    if (strcmp(name, node->filename) == 0)
        return true;
    if (nbd_uri_is_one(name))
        return is_same_export(node, name);
    return rbd_name_is_one(name) ? is_same_rbd(node, name)
                                 : is_same_file(name, node->filename);
}

const char *node_location(const struct node *node)
{
    return node->file->location ? node->file->location : node->filename;
}

const struct storage_protocol *node_protocol(const struct node *node)
{
    return storage_protocol_of_store(node->file);
}

bool node_is_corrupt(struct node *node, bool fatal)
{
    struct node *opened = node_opened(node);

    return atomic_load(fatal ? &opened->corrupt_fatal : &opened->corrupt);
}

bool node_is_remote(const struct node *node)
{
    return storage_is_nbd(node->file) ||
           (node->data_file && storage_is_nbd(node->data_file));
}

bool node_locks_apart(const struct node *node)
{
    return node->file->lets_writers_in;
}

int node_lock_now(struct node *node, struct diag *diag)
{
    return lock_files(node, node->active ? STORAGE_WRITER : STORAGE_READER, diag);
}

int node_allocated(struct node *node, uint64_t *bytes)
{
    return storage_allocated(node->file, bytes);
}

uint64_t node_flush_failures(struct node *node)
{
    return mcache_failures(node->mc);
}

void node_set_forgiving(struct node *node, bool on)
{
    mcache_set_forgiving(node->mc, on);
}

uint64_t node_lost_writes(const struct node *node)
{
    uint64_t lost = storage_lost_writes(node->file);

    return node->data_file ? lost + storage_lost_writes(node->data_file) : lost;
}

bool node_persist(struct node *node, unsigned patience_ms)
{
    return storage_persist(node->file, patience_ms);
}

void node_abort(struct node *node)
{
    storage_abort(node->file);
    if (node->data_file)
        storage_abort(node->data_file);
}

uint32_t node_preferred(const struct node *node)
{
    uint32_t wish = storage_preferred(node->file);

    return wish ? wish : node->cluster_size;
}

int node_prove(struct node *node, bool by_reading, unsigned timeout_ms)
{
    int err = storage_prove(node->file, by_reading, timeout_ms);

    mcache_note_write(node->mc); /* otherwise the next flush would have nothing to do */
    return err;
}

void node_count(struct node *node, struct mcache_counters *out)
{
    mcache_count(node->mc, out);
}
