/* SPDX-License-Identifier: BSD-3-Clause */
/* A node: one opened image of a chain, and the requests that it serves.
 *
 * Offsets and lengths are bytes of the disk.  Requests return 0 or -errno; offset + length must
 * lie inside node->size (-EINVAL).  A zero length succeeds and does nothing.
 *
 * Threads: block_* requests from any thread at once; open, activate, close from one thread
 * while no request runs.  Layer: block. */
#ifndef BLOCK_NODE_H
#define BLOCK_NODE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/gate.h"
#include "base/housekeeper.h"
#include "base/range_lock.h"
#include "block/cache_mode.h"
#include "block/dirty_bitmap.h"
#include "block/driver.h"
#include "block/node_name.h"
#include "block/frozen_point.h"
#include "block/observer.h"
#include "block/snapshot.h"
#include "mcache/mcache.h"
#include "storage/storage.h"

struct shared_layers;

/* What all chains of a process can share: one budget for cached tables, one thread for timers
 * (a slow disk delays timers of other disks, never their requests), and the images that lie
 * below several chains. */
struct block_shared {
    struct shared_layers *layers;
    struct mc_pool *pool;
    struct cluster_cache *clusters; /* decompressed ones */
    struct housekeeper *housekeeper;
};

/* clock NULL: CLOCK_MONOTONIC.  Returns 0 or -ENOMEM. */
int block_shared_init(struct block_shared *shared, size_t cache_bytes, clock_fn *clock,
                      void *clock_opaque) MUST_USE;
/* After the last context that uses it.  A second call does nothing. */
void block_shared_destroy(struct block_shared *shared);

/* What the nodes of one chain share.  Must outlive them. */
struct block_context {
    /* Entered by each request; by changing ones with gate_enter_to_change. */
    struct gate gate;
    struct shared_layers *layers; /* NULL: its layers aren't shared */
    struct mc_pool *pool;
    struct cluster_cache *clusters;
    struct housekeeper *housekeeper;
    struct block_shared own; /* destroyed with the context; NULLs: it uses another's */
};

/* With memory and a timer thread of its own; see block_shared_init. */
int block_context_init(struct block_context *ctx, size_t cache_bytes, clock_fn *clock,
                       void *clock_opaque) MUST_USE;
/* With those of `shared`, which must outlive the context. */
void block_context_init_shared(struct block_context *ctx,
                               const struct block_shared *shared);
void block_context_destroy(struct block_context *ctx);

enum detect_zeroes { DETECT_OFF, DETECT_ON, DETECT_UNMAP };

/* A user's choices for a node; zero-initialised is the default of each. */
struct node_options {
    const struct cache_mode *cache; /* NULL: writeback */
    /* Whole clusters are stored compressed, if smaller; off where the driver can't. */
    bool compress;
    bool copy_on_read;                /* users' reads from the backing file are kept */
    bool discard_ignore;              /* TRIM does nothing, freed clusters aren't punched */
    enum detect_zeroes detect_zeroes; /* what becomes of writes of zero bytes */
    uint64_t need_check_delay_ns;     /* 0: the mark is cleared only at close */
    int lazy_refcounts;               /* 0 as the image says, 1 on (where it can), -1 off */
    bool lock_off;                    /* take no image locks */
    bool repair_off; /* an image with a dirty mark is refused for writing, not repaired */
    /* Opened only to be described: images with features that can't be served are accepted, tables
     * aren't read, and only driver->info, the fields of the node and node_close may be used. */
    bool describe;
    bool keep_marks; /* volatile-final-sync=no: no sync, marks stay at close */
    /* With a cache mode that doesn't flush: no flush at close either.  For images that can be
     * made again (the target of a command). */
    bool no_final_sync;
};

struct merged_map;
struct shared_layer;

struct node {
    const struct driver *driver;
    void *state; /* the driver's */
    struct block_context *ctx;
    struct node_options options;

    char *filename; /* as shown to users: without secrets (node_location has them) */
    struct node_name *name;    /* given by a user; NULL: none; not changed while in use */
    struct storage *file;      /* owned */
    struct storage *data_file; /* owned; NULL: guest data lies in `file` */
    struct storage *data;      /* where guest data lies: one of the two */
    /* Raw external data: the data file is the disk, offset by offset.  Set by the driver's
     * open. */
    bool data_alone;
    /* Refcounts may be written later than what they count (node_options.lazy_refcounts).  Set by
     * the driver's open. */
    bool may_be_lazy;
    struct mcache *mc; /* owned; every node has one, for its commits */
    /* Owned; NULL: none.  Can be replaced while requests run (an intermediate commit), with
     * node_set_below; the caller waits for these requests before it closes the old one. */
    struct node *_Atomic backing;
    /* The look-up for this layer and all below; made by the first read that comes from a layer
     * above: merged_map.h. */
    struct merged_map *_Atomic merged;
    /* File, tables and state belong to this shared layer's node: shared_layer.h.  NULL: they are
     * this node's own. */
    struct shared_layer *shared;
    struct gate_member readers; /* this chain's membership in the shared layer's gate */
    /* Look-up results aren't shared with other chains (merged_map.h), because this layer or one
     * below it is being changed. */
    _Atomic bool shared_alone;

    uint64_t size;         /* virtual size, bytes */
    uint32_t cluster_size; /* bytes; 1 for raw */
    /* Bytes: the unit of allocation, zeroing and copy on write.  A subcluster with extended L2
     * entries, else a cluster. */
    uint32_t subcluster_size;
    const struct codec *codec; /* of compressed clusters; NULL: there are none */
    /* Owned; NULL: guest data isn't encrypted, or no key was given.  by_place: sectors are
     * numbered by their host offset, else by their guest offset. */
    struct cipher *cipher;
    bool cipher_by_place;
    const char *encryption; /* static: the method; without a cipher nothing can be read */
    bool can_write; /* the file is open read/write, and the format can be written on it */
    const char *cannot;  /* static: why the format can't be written on it; NULL: it can */
    _Atomic bool active; /* activated for writing */
    /* Zero bytes in the file are zeroes for the guest; false with encryption.  Set by the
     * driver's open. */
    bool host_zeroes_show;
    _Atomic uint64_t places_taken; /* counts calls of node_took_place */
    _Atomic bool changed; /* driver->first_change was called and needn't be called again */
    /* An impossible table entry was found; ... while the node was active: writes fail. */
    _Atomic bool corrupt, corrupt_fatal;
    /* Another node of this process writes to the same file, or did (a commit to a base that is
     * read through this node): the file may be longer and have other metadata than cached. */
    _Atomic bool written_elsewhere;

    /* As in the image; owned; NULL: none.  Where node_set_backing may be called, they are read
     * inside the gate. */
    char *_Atomic backing_name, *_Atomic backing_format;

    struct range_lock ranges;     /* guest ranges of allocating writes and of zeroing */
    struct observers observers;   /* are told of changes */
    struct dirty_bitmaps bitmaps; /* named ones */
    struct frozen_points frozen_points;
    _Atomic bool told_not_kept; /* the log says that copy-on-read can't keep what is read */
    struct timer write_back;    /* commits dirty metadata that got old without a flush */
    _Atomic bool write_back_armed;

    struct snapshot_nodes snapshots; /* nodes opened on this node's snapshots: snapshot.h */
    struct node *snapshot_of;        /* the snapshot's image; NULL: this isn't a snapshot */
    uint64_t snapshot_key;           /* which snapshot */
    /* Under the lock of snapshot_of's `snapshots`. */
    struct list snapshot_link;
    unsigned openers; /* each has to close it */
    /* The image will get a backing file: ranges that must go on reading as zeroes need an explicit
     * zero entry instead of a hole.  Set alone with the image. */
    bool expects_backing;
    /* Number of open views (server/view.h).  While there are any, the node is neither closed nor
     * repaired. */
    _Atomic unsigned viewers;
};

/* Can holes read as something else than zeroes, now or with the backing file that the image
 * names (which the user may have left out) or will name? */
static inline bool node_holes_may_show(const struct node *node)
{
    return node->backing || node->backing_name || node->expects_backing;
}

/* The number of images below it. */
static inline unsigned node_depth_below(const struct node *node)
{
    unsigned depth = 0;

    while ((node = node->backing))
        depth++;
    return depth;
}

/* Why no cluster can be stored compressed in it, for messages: "raw images have ..."; static.
 * NULL: clusters can. */
const char *node_why_not_compress(const struct node *node);
/* The same of lazy refcounts. */
const char *node_why_not_lazy(const struct node *node);

/* Opens one image over `file`, which it takes over even on failure; the backing file is opened
 * by chain_open.  Changes no byte. */
int node_open(struct block_context *ctx, const struct driver *driver, struct storage *file,
              const char *filename, const struct node_options *options, struct node **out,
              struct diag *diag) MUST_USE;

/* The image's external data file is this store, which the node takes over.  Before anything is
 * read. */
void node_set_data_file(struct node *node, struct storage *file);

/* Why the node can't be written, for messages: "Permission denied". */
const char *node_why_read_only(const struct node *node);

/* Makes the node writable (its backing chain stays read-only).  A second call does nothing. */
int node_activate(struct node *node, struct diag *diag) MUST_USE;

/* Ends writing until the node is activated again: flushes, clears the marks, gives back what was
 * reserved ahead.  The lock stays a writer's.  Nobody changes the node meanwhile; waits for
 * requests inside the gate.  0; or -errno: then node_close tries all that again. */
int node_settle(struct node *node) MUST_USE;

/* Before chain_rest: if the node's file gives up its connection while it rests, so that other
 * processes can use the image, ends the node's writing as node_settle does.  Returns 0 or
 * -errno. */
int node_pause(struct node *node) MUST_USE;

/* Ends writing for good, when nobody changes the node any more; reads go on.  Flushes, clears the
 * marks, gives back what was reserved ahead, and turns the lock into a reader's.  Waits for
 * requests inside the gate.  Returns 0; or -errno: then node_close tries all that again. */
int node_freeze(struct node *node) MUST_USE;

/* Before another node of this process writes to the file of `layer`, which isn't the top of a
 * chain: if node_freeze failed for it, tries that again.  -errno with diag: the layer still has
 * metadata to write, and no other node may write to the file. */
int node_end_writing(struct node *layer, struct diag *diag) MUST_USE;

/* Flushes, ends cleanly and frees the node and its backing chain; NULL is allowed.  0 or
 * -errno of what could not be made durable. */
int node_close(struct node *node);

/* For the engine and drivers: the image changed; to be called after the change and before
 * the reply.  Not under META. */
void node_wrote(struct node *node);

/* For drivers whose clusters can lose their place and get the same place back while requests are in
 * flight (qed/trims.h): to be called after a loss.  A write in place that ran at the same time then
 * checks, before it is answered, that its bytes are where they can be read. */
static inline void node_took_place(struct node *node)
{
    atomic_fetch_add(&node->places_taken, 1);
}

/* Makes `below` the backing node of the layer and of its snapshots. */
void node_set_below(struct node *layer, struct node *below);

/* Another node of this process is going to write to the file of `layer`, a layer of top's chain:
 * sets written_elsewhere, and stops using the merged map. */
void node_note_writer(struct node *top, struct node *layer);

/* Frees the merged maps of a chain that node_set_below has changed.  To be called when all requests
 * have left that could have seen the old chain, and before any of its layers is closed. */
void node_forget_merged(struct node *top);

/* For drivers, outside of a commit: a flush of the node's file.  If it fails, what is durable is
 * unknown, and the node refuses writes from then on.  0 or -errno. */
int node_barrier(struct node *node) MUST_USE;

/* The same for structures to which nothing points yet, and for marks that are true whether the file
 * has them or not.  If the store keeps unflushed writes (keeps_writes in storage.h), a failure is
 * no worse than a failed write: the node goes on, and the caller can try again. */
int node_light_barrier(struct node *node) MUST_USE;

/* For drivers: a request found an impossible table entry.  If the node is active, writes fail from
 * now on; returns true at the first such call.  Under any lock. */
bool node_met_corruption(struct node *node);

/* For drivers whose `activate` has changed the image (a repair): opens it anew.  The old state is
 * freed with free_state when all who may read it have left.  On failure nothing has changed. */
int node_reopen(struct node *node, void (*free_state)(void *state),
                struct diag *diag) MUST_USE;

/* For drivers that have changed the file below a settled node: reopens it as node_reopen does, and
 * drops everything that memory has of the image (bitmaps, decoded clusters). */
int node_open_anew(struct node *node, void (*free_state)(void *state),
                   struct diag *diag) MUST_USE;

/* For drivers, at the start of `activate`: if other processes could write to the image since it was
 * opened (lets_writers_in in storage.h), opens it anew.  -ESTALE: it now has another size or
 * another backing file; -EBUSY: a view of it is open. */
int node_refresh(struct node *node, void (*free_state)(void *state),
                 struct diag *diag) MUST_USE;

/* For the engine, and for drivers that change more than the mapping: before a change of the image
 * calls driver->first_change, if it is due.  0 or -errno. */
int node_first_change(struct node *node) MUST_USE;

static inline int node_begin_change(struct node *node)
{
    return LIKELY(atomic_load_explicit(&node->changed, memory_order_acquire))
               ? 0
               : node_first_change(node);
}

/* For the engine: 0, or -EINVAL for a range that isn't inside the virtual size. */
int node_check_range(const struct node *node, uint64_t off, uint64_t len);

/* ---- for jobs and servers, which use nothing below a node ---- */

/* Grows the virtual size, and the bitmaps with it.  The caller has the node to itself.  Returns
 * 0 or -errno with diag; -ENOTSUP without DRIVER_GROWS. */
int node_grow(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

/* Lowers the virtual size; otherwise as node_grow.  -ENOTSUP without DRIVER_SHRINKS. */
int node_shrink(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

/* As driver->make_empty.  -ENOTSUP without a sentence: the format can't do it, and nothing
 * happened. */
int node_make_empty(struct node *node, struct diag *diag) MUST_USE;

/* Changes the cache mode, while nobody changes the node; `direct` can't be changed.  After a change
 * from volatile to another mode everything is durable; if that fails the mode stays volatile.
 * 0 or -errno with diag. */
int node_set_cache(struct node *node, const struct cache_mode *mode,
                   struct diag *diag) MUST_USE;

/* Can the image name this backing file (NULL: none)?  0, or -errno with diag. */
int node_check_backing(const struct node *node, const char *name,
                       struct diag *diag) MUST_USE;

/* As driver->set_backing: the image names another backing file from now on.  Refused where
 * node_check_backing refuses; -ENOTSUP with a message without DRIVER_BACKING. */
int node_set_backing(struct node *node, const char *name, const char *format,
                     struct diag *diag) MUST_USE;

/* Replace the file's lock (storage_lock) by that of a reader or a writer.  They do nothing with
 * lock_off. */
int node_lock_for_reading(struct node *node, struct diag *diag) MUST_USE;
int node_lock_for_writing(struct node *node, struct diag *diag) MUST_USE;
/* After node_lock_for_writing, for a layer whose content didn't change: a reader's lock again, and
 * other chains may share the layer again. */
void node_unlock_for_writing(struct node *layer);

/* Locks a file that was opened with lock_off: as a writer if the node is active, else as a
 * reader. */
int node_lock_now(struct node *node, struct diag *diag) MUST_USE;

/* Bytes that the file takes on its disk.  0 or -errno. */
int node_allocated(struct node *node, uint64_t *bytes) MUST_USE;

/* The counters of its metadata cache. */
void node_count(struct node *node, struct mcache_counters *out);

static inline bool node_can(const struct node *node, enum driver_feature feature)
{
    return driver_can(node->driver, feature);
}

/* The name of its format. */
static inline const char *node_format(const struct node *node)
{
    return node->driver->name;
}

/* The name by which its file can be opened again.  Unlike `filename` it has the secrets that the
 * user's name may contain: not for messages. */
const char *node_location(const struct node *node);

/* Does a name (a path, an NBD URI or an RBD name as users write it) refer to the node's file?
 * A relative path is resolved from the current directory. */
bool node_is_called(const struct node *node, const char *name);

/* Was an impossible table entry found; fatal: while the node was active? */
bool node_is_corrupt(struct node *node, bool fatal);

/* Is its file an export of another NBD server?  Then it can't be opened a second time for
 * writing. */
bool node_is_remote(const struct node *node);

/* Does each node that writes to the same image have to take the lock itself?  If not, one lock
 * counts for all nodes of this process, and a second one would be refused. */
bool node_locks_apart(const struct node *node);

struct storage_protocol;

/* The protocol by which its file was opened, for opening it again. */
const struct storage_protocol *node_protocol(const struct node *node);

/* How many flushes of the file have failed, whoever asked for them.  What was written before one
 * may be lost, and a later flush that succeeds doesn't bring it back. */
uint64_t node_flush_failures(struct node *node);

/* While on, a failed flush doesn't poison the node: the caller writes again what may be lost.  Only
 * for formats without metadata. */
void node_set_forgiving(struct node *node, bool on);

/* See storage.h; of the node's file. */
uint64_t node_lost_writes(const struct node *node);
bool node_persist(struct node *node, unsigned patience_ms);
void node_abort(struct node *node);
uint32_t node_preferred(const struct node *node);

/* Does the server that has the file answer within timeout_ms, so that the next flush will reach it?
 * 0 or -errno. */
int node_prove(struct node *node, bool by_reading, unsigned timeout_ms) MUST_USE;

#define BLOCK_FUA       0x1u
#define BLOCK_MAY_UNMAP 0x2u /* block_zero: without it, allocation stays */
#define BLOCK_FAST      0x4u /* block_zero: -ENOTSUP, nothing touched, when it would be slow */
/* The caller is inside the gate, as an observer is, and must not wait for other requests.  Without
 * the flag a write that finds no space waits for unlinked clusters to become free, and tries
 * again. */
#define BLOCK_INSIDE 0x8u

int block_read(struct node *node, void *buf, uint64_t off, uint64_t len) MUST_USE;
int block_write(struct node *node, const void *buf, uint64_t off, uint64_t len,
                unsigned flags) MUST_USE;
int block_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags) MUST_USE;
/* As block_write, with bytes of another file that the kernel copies (storage_copy).  -errno, often
 * -ENOTSUP: the range has to be written with block_write. */
int block_copy(struct node *node, uint64_t off, struct storage *from, uint64_t from_off,
               uint64_t len) MUST_USE;
/* Announces that all of the range, which was never written to, is going to be written, so that the
 * file can allocate it at once (storage_expect).  Returns true if the caller has to discard what it
 * doesn't write after all. */
bool block_expect(struct node *node, uint64_t off, uint64_t len);
/* Copies into the node what it shows of the layers between it and `base` (NULL: of all below).  The
 * disk reads as before, so observers aren't told.  Users may write to it meanwhile.  *copied: bytes
 * of data that were written.  The node must be active. */
int block_populate(struct node *node, uint64_t off, uint64_t len, const struct node *base,
                   uint64_t *copied) MUST_USE;
int block_discard(struct node *node, uint64_t off, uint64_t len, unsigned flags) MUST_USE;

/* Makes everything durable that was answered before; see mcache_commit. */
int block_flush(struct node *node) MUST_USE;

/* The `settle` of drivers without tables: writes everything to the file, with cache=volatile
 * too. */
int block_settle(struct node *node) MUST_USE;

/* The end of a session with cache=volatile: makes everything durable or, with keep_marks or
 * no_final_sync, at least hands it to the host.  Data first, as in each barrier. */
int block_end_void(struct node *node) MUST_USE;

/* Loads the tables for a range and asks the host to read its data ahead. */
int block_cache(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* Copy on read: as block_read and block_cache, and if the node is active, what comes from below is
 * written to it in whole subclusters.  Several readers of a subcluster copy it once.  If the copy
 * fails they read as usual.  To be called outside the gate.  These count as changes of the disk: a
 * drain of changes (for node_freeze, or a snapshot) holds them up. */
int block_read_and_keep(struct node *node, void *buf, uint64_t off, uint64_t len) MUST_USE;
int block_cache_and_keep(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* A user's read, with or without options.copy_on_read. */
static inline int block_read_for_user(struct node *node, void *buf, uint64_t off,
                                      uint64_t len)
{
    return UNLIKELY(node->options.copy_on_read) ? block_read_and_keep(node, buf, off, len)
                                                : block_read(node, buf, off, len);
}

static inline int block_cache_for_user(struct node *node, uint64_t off, uint64_t len)
{
    return node->options.copy_on_read ? block_cache_and_keep(node, off, len)
                                      : block_cache(node, off, len);
}

/* Allocates every cluster of a range; contents stay (preallocation=metadata).  Where the backing
 * file shows, that needs extended L2 entries: -ENOTSUP without them. */
int block_preallocate(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* One run of the disk, of one kind and from one layer. */
struct block_status {
    uint64_t length;
    bool data;          /* bytes in a file somewhere in the chain */
    bool zero;          /* reads as zeroes */
    bool present;       /* some layer has an entry for it */
    bool compressed;    /* data, stored so */
    unsigned depth;     /* layer it comes from: 0 is the node itself */
    struct node *layer; /* that layer */
    /* Its place, as in struct extent. */
    struct storage *file;
    uint64_t host_offset;
};

/* As block_status, only for showing it to users: if the user chose another metadata context of the
 * NBD server below (x-dirty-bitmap; storage_marks), its marks stand for data, zero and present. */
int block_status_shown(struct node *node, uint64_t off, uint64_t len,
                       struct block_status *out) MUST_USE;

/* The run at off, at most len bytes; not merged with its neighbours. */
int block_status(struct node *node, uint64_t off, uint64_t len,
                 struct block_status *out) MUST_USE;

#endif
