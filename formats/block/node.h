/* SPDX-License-Identifier: BSD-3-Clause */
/* One opened image of a chain, and the requests one can make of it.
 *
 * Threads: block_* requests from any thread at once; open, activate, close from one thread
 * while no request runs.  Requests return 0 or -errno; offset + length must lie inside
 * node->size
 * (-EINVAL).  A zero length succeeds and does nothing.  Layer: block. */
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

/* What all chains of a process can share: one budget for cached tables, one thread for
 * timers (one whose disk is slow keeps those of others waiting, never their requests), and
 * the images that lie below several of them. */
struct block_shared {
    struct shared_layers *layers;
    struct mc_pool *pool;
    struct cluster_cache *clusters; /* decompressed ones */
    struct housekeeper *housekeeper;
};

/* clock NULL: CLOCK_MONOTONIC.  0 or -ENOMEM. */
int block_shared_init(struct block_shared *shared, size_t cache_bytes, clock_fn *clock,
                      void *clock_opaque) MUST_USE;
/* After the last context that uses it; again: does nothing. */
void block_shared_destroy(struct block_shared *shared);

/* What the nodes of one chain share.  Lives longer than they do. */
struct block_context {
    struct gate gate; /* requests; those that change something enter to change */
    struct shared_layers *layers; /* NULL: it shares none */
    struct mc_pool *pool;
    struct cluster_cache *clusters;
    struct housekeeper *housekeeper;
    struct block_shared own; /* what is destroyed with it; NULLs: all is others' */
};

/* With memory and timers of its own; see block_shared_init. */
int block_context_init(struct block_context *ctx, size_t cache_bytes, clock_fn *clock,
                       void *clock_opaque) MUST_USE;
/* With those of others, which live longer. */
void block_context_init_shared(struct block_context *ctx,
                               const struct block_shared *shared);
void block_context_destroy(struct block_context *ctx);

enum detect_zeroes { DETECT_OFF, DETECT_ON, DETECT_UNMAP };

/* A user's choices for a node; zero-initialised is the default of each. */
struct node_options {
    const struct cache_mode *cache; /* NULL: writeback */
    /* Whole clusters are stored compressed, if smaller; off where the driver can't. */
    bool compress;
    bool copy_on_read;                /* what users read from below is kept */
    bool discard_ignore;              /* TRIM does nothing, freed clusters aren't punched */
    enum detect_zeroes detect_zeroes; /* what becomes of writes of zero bytes */
    uint64_t need_check_delay_ns;     /* 0: the mark is cleared only at close */
    int lazy_refcounts;               /* 0 as the image says, 1 on, -1 off */
    bool lock_off;                    /* take no image locks */
    bool repair_off; /* an unclean image is refused for writing, not repaired */
    /* Only to be described: features that can't be served pass, tables aren't read, and
     * nothing but driver->info, the fields of the node and node_close may be used. */
    bool describe;
    bool keep_marks; /* volatile-final-sync=no: no sync, marks stay at close */
    /* With a cache mode without flushes: none at the end either.  For images that whoever
     * makes them can make again. */
    bool no_final_sync;
};

struct merged_map;
struct shared_layer;

struct node {
    const struct driver *driver;
    void *state; /* the driver's */
    struct block_context *ctx;
    struct node_options options;

    char *filename;         /* for all to see */
    struct node_name *name; /* that a user gave it; NULL: none; not changed while in use */
    struct storage *file;   /* owned */
    struct storage *data_file; /* owned; NULL: guest data lies in `file` */
    struct storage *data;      /* where it lies: one of the two */
    /* The data file reads as the disk by itself, guest offset for offset, too.  Set by the
     * driver's open. */
    bool data_alone;
    struct mcache *mc; /* owned; every node has one, for its commits */
    /* Owned; NULL: none.  Replaced as a whole while requests run (an intermediate commit),
     * with node_set_below, by one who waits for them before the old is closed. */
    struct node *_Atomic backing;
    /* Of this layer and those below, once it was read through another: merged_map.h. */
    struct merged_map *_Atomic merged;
    /* What is open is another node's, which other chains may read as well: shared_layer.h.
     * NULL: it is its own. */
    struct shared_layer *shared;
    struct gate_member readers; /* of that: those of this chain */
    /* ... and others won't read it, for what lies below this layer, or what it is, changes. */
    _Atomic bool shared_alone;

    uint64_t size;         /* virtual size, bytes */
    uint32_t cluster_size; /* bytes; 1 for raw */
    /* What is allocated, zeroed and copied on write at once; less than a cluster where
     * clusters have parts of their own. */
    uint32_t subcluster_size;
    const struct codec *codec; /* of compressed clusters; NULL: there are none */
    /* Owned; NULL: guest data isn't encrypted.  by_place: sectors are numbered by where they
     * lie in the file, else by where the guest sees them. */
    struct cipher *cipher;
    bool cipher_by_place;
    const char *encryption; /* static: the method; without a cipher nothing can be read */
    bool can_write; /* the file is open read/write, and the format can be written on it */
    const char *cannot;  /* static: why the format can't; NULL: it can */
    _Atomic bool active; /* activated for writing */
    /* What is zero in the file is zero for the guest: not so where data is encrypted.  Set by
     * the driver's open. */
    bool host_zeroes_show;
    /* How often clusters lost their place in a way in which they can get it back
     * (node_took_place). */
    _Atomic uint64_t places_taken;
    _Atomic bool changed; /* driver->first_change isn't wanted any more */
    /* An entry that can't be right was met; and that while active: writes fail. */
    _Atomic bool corrupt, corrupt_fatal;
    /* Another node of ours writes to the same file, or did (a commit, to a base that is
     * read through this one): where its metadata lies and its file ends may be news. */
    _Atomic bool written_elsewhere;

    /* As the image says; owned; NULL: none.  Read inside the gate, where node_set_backing may be
     * called. */
    char *_Atomic backing_name, *_Atomic backing_format;

    struct range_lock ranges;     /* guest ranges of allocating writes and of zeroing */
    struct observers observers;   /* who is told of changes */
    struct dirty_bitmaps bitmaps; /* named ones */
    struct frozen_points frozen_points;
    _Atomic bool told_not_kept; /* what is read can't be kept: said once */
    struct timer write_back;    /* commits what got old without a flush */
    _Atomic bool write_back_armed;

    struct snapshot_nodes snapshots; /* that were opened of it: snapshot.h */
    struct node *snapshot_of;        /* it is one of these; NULL: it is an image */
    uint64_t snapshot_key;           /* which one */
    /* Under the lock of snapshot_of's `snapshots`. */
    struct list snapshot_link;
    unsigned openers; /* who have to close it */
    /* It is about to name a backing file: what reads as zeroes and has to go on doing so is
     * told from holes.  Set alone with the image. */
    bool expects_backing;
    /* So many show what it has (server/view.h): it isn't closed, nor repaired, meanwhile. */
    _Atomic unsigned viewers;
};

/* Do holes show something else than zeroes, now or once the image is opened with the
 * backing file that it names (and that the user has set aside for now)? */
static inline bool node_holes_may_show(const struct node *node)
{
    return node->backing || node->backing_name || node->expects_backing;
}

/* Why nothing can be stored compressed in it, for messages: "raw images have ..."; static.
 * NULL: it can. */
const char *node_why_not_compress(const struct node *node);

/* Opens one image over `file`, which it takes over whatever happens; the backing file is
 * opened by chain_open.  Changes no byte. */
int node_open(struct block_context *ctx, const struct driver *driver, struct storage *file,
              const char *filename, const struct node_options *options, struct node **out,
              struct diag *diag) MUST_USE;

/* Guest data lies in this store, which the node takes over.  Before anything is read. */
void node_set_data_file(struct node *node, struct storage *file);

/* Why the node can't be written, for messages: "Permission denied". */
const char *node_why_read_only(const struct node *node);

/* Makes the node writable (its backing chain stays read-only).  Again: does nothing. */
int node_activate(struct node *node, struct diag *diag) MUST_USE;

/* An active node isn't any more, until it is activated again: its file is complete, as after
 * node_close, and the lock stays a writer's.  Nobody changes it meanwhile; waits for requests that
 * are inside the gate.  0 or -errno; then node_close tries all that again. */
int node_settle(struct node *node) MUST_USE;

/* Before its file rests, so that others can have it: an active node isn't any more, as after
 * node_freeze, until it is activated again.  0 or -errno. */
int node_pause(struct node *node) MUST_USE;

/* Nobody changes the node any more, who reads it goes on: flushed, its marks cleared, what was
 * reserved ahead given back, its lock a reader's.  It can't be activated again.  Waits for
 * requests that are inside the gate.  0; or -errno: then node_close tries all that again. */
int node_freeze(struct node *node) MUST_USE;

/* Before another node of ours writes to the file of `layer`, which isn't the top of a chain: it is
 * frozen already, unless that failed, and then it is tried again.  -errno with diag: it still has
 * metadata to write, and nobody else may write there. */
int node_end_writing(struct node *layer, struct diag *diag) MUST_USE;

/* Flushes, ends cleanly and frees the node and its backing chain; NULL is allowed.  0 or
 * -errno of what could not be made durable. */
int node_close(struct node *node);

/* For the engine and drivers: the image changed; to be called after the change and before
 * the reply.  Not under META. */
void node_wrote(struct node *node);

/* For drivers whose clusters may lose their place and get the same one back, without that who
 * wrote there has left the gate: after the loss.  Whoever wrote in place at the same time then
 * looks whether his bytes are where they can be seen, before he answers. */
static inline void node_took_place(struct node *node)
{
    atomic_fetch_add(&node->places_taken, 1);
}

/* `below` lies below the layer from here on, and below its snapshots. */
void node_set_below(struct node *layer, struct node *below);

/* Another node of ours is going to write to the file of `layer`, which lies in the chain of top:
 * it is read with care from here on. */
void node_note_writer(struct node *top, struct node *layer);

/* After node_set_below, when everybody has left who could have seen the chain as it was, and
 * before any layer of that is closed: what is known of its frozen layers is forgotten. */
void node_forget_merged(struct node *top);

/* For drivers, outside of a commit: a flush of the node's file.  When it fails nobody knows
 * what is durable, and the node refuses writes from then on.  0 or -errno. */
int node_barrier(struct node *node) MUST_USE;

/* For drivers: a request met an entry of the tables that can't be right.  An active node is
 * not written to any more: true when that is so from now on.  Under any lock. */
bool node_met_corruption(struct node *node);

/* For drivers, whose `activate` has changed the file below the image (a repair): opens it
 * anew.  What was there is freed when those who read it have left.  On failure all is as
 * before. */
int node_reopen(struct node *node, void (*free_state)(void *state),
                struct diag *diag) MUST_USE;

/* For drivers that have changed the file below a settled node: as node_reopen, and nothing that
 * memory has of the image (bitmaps, decoded clusters) is believed any more. */
int node_open_anew(struct node *node, void (*free_state)(void *state),
                   struct diag *diag) MUST_USE;

/* For drivers, first of all in `activate`: where others could write to the image since it was
 * opened it is opened anew.  -ESTALE: it is another image now (of another size, or over another
 * file); -EBUSY: somebody looks at it in a way that can't be renewed. */
int node_refresh(struct node *node, void (*free_state)(void *state),
                 struct diag *diag) MUST_USE;

/* For the engine, and drivers that change more than the mapping: before a change of the
 * image. */
int node_first_change(struct node *node) MUST_USE;

static inline int node_begin_change(struct node *node)
{
    return LIKELY(atomic_load_explicit(&node->changed, memory_order_acquire))
               ? 0
               : node_first_change(node);
}

/* For the engine: 0, or -EINVAL for a range that isn't inside the virtual size. */
int node_check_range(const struct node *node, uint64_t off, uint64_t len);

/* ---- what jobs and servers ask of a node; they go through no other door ---- */

/* Grows the virtual size, and the bitmaps with it; the caller has the node to itself.
 * -ENOTSUP with a sentence without DRIVER_GROWS. */
int node_grow(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

/* Lowers it; the same of the caller, and of the bitmaps.  -ENOTSUP with a sentence without
 * DRIVER_SHRINKS. */
int node_shrink(struct node *node, uint64_t size, struct diag *diag) MUST_USE;

/* See driver.h.  -ENOTSUP without a sentence: the format can't, and nothing happened. */
int node_make_empty(struct node *node, struct diag *diag) MUST_USE;

/* Goes over to another cache mode, while nobody changes the node; `direct` can't be changed.
 * From volatile to another everything is durable on return; when that fails it stays volatile.
 * 0 or -errno with diag. */
int node_set_cache(struct node *node, const struct cache_mode *mode,
                   struct diag *diag) MUST_USE;

/* See driver.h: the image names another backing file from here on.  -ENOTSUP with a
 * sentence without DRIVER_BACKING. */
int node_set_backing(struct node *node, const char *name, const char *format,
                     struct diag *diag) MUST_USE;

/* Locks the file against other processes as storage_lock does, for one who reads or who
 * writes, in place of the lock it has; does nothing where the user wants no locks. */
int node_lock_for_reading(struct node *node, struct diag *diag) MUST_USE;
int node_lock_for_writing(struct node *node, struct diag *diag) MUST_USE;
/* After the latter, of a layer that reads the same as before: others may have it below them again. */
void node_unlock_for_writing(struct node *layer);

/* The same for a file that was opened with lock_off, as the node uses it. */
int node_lock_now(struct node *node, struct diag *diag) MUST_USE;

/* Bytes that the file takes on its disk.  0 or -errno. */
int node_allocated(struct node *node, uint64_t *bytes) MUST_USE;

/* Of its tables. */
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

/* What its file is opened by again: the filename, with the secrets that may hide there. */
const char *node_location(const struct node *node);

/* Does a name (a path, an NBD URI or an RBD name as users write it) lead to the node's file?
 * A relative path is taken as the process' folder has it. */
bool node_is_called(const struct node *node, const char *name);

/* Was an entry met that can't be right; fatal: while it was active? */
bool node_is_corrupt(struct node *node, bool fatal);

/* Does it lie in another server's export?  That can't be opened once more, to be written. */
bool node_is_remote(const struct node *node);

/* Does each instance of the image that is written to take the lock for itself?  Else the lock of
 * one holds for the others of this process, which couldn't have one beside it. */
bool node_locks_apart(const struct node *node);

struct storage_protocol;

/* How its file was opened, to open it once more by the node's filename. */
const struct storage_protocol *node_protocol(const struct node *node);

/* How often a flush of the file failed, whoever asked for it: what was written before may
 * be lost, and the next flush that succeeds says nothing of that. */
uint64_t node_flush_failures(struct node *node);

/* While on, a failed flush is the caller's to deal with: it writes again what may be lost.
 * Only where there are no clusters. */
void node_set_forgiving(struct node *node, bool on);

/* See storage.h; of the node's file. */
uint64_t node_lost_writes(const struct node *node);
bool node_persist(struct node *node, unsigned patience_ms);
void node_abort(struct node *node);
uint32_t node_preferred(const struct node *node);

/* Whoever keeps the file answers, and the next flush will reach it. */
int node_prove(struct node *node, bool by_reading, unsigned timeout_ms) MUST_USE;

#define BLOCK_FUA       0x1u
#define BLOCK_MAY_UNMAP 0x2u /* block_zero: without it, allocation stays */
#define BLOCK_FAST      0x4u /* block_zero: -ENOTSUP, nothing touched, when it would be slow */
/* The caller is inside the gate, as an observer is: nobody may be waited for.  Otherwise a
 * write that finds no space waits for clusters that were let go of, and tries again. */
#define BLOCK_INSIDE 0x8u

int block_read(struct node *node, void *buf, uint64_t off, uint64_t len) MUST_USE;
int block_write(struct node *node, const void *buf, uint64_t off, uint64_t len,
                unsigned flags) MUST_USE;
int block_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags) MUST_USE;
/* As block_write, of bytes that lie in another file; the kernel moves them (storage_copy).
 * Not 0, and mostly -ENOTSUP: the range has to be written by block_write. */
int block_copy(struct node *node, uint64_t off, struct storage *from, uint64_t from_off,
               uint64_t len) MUST_USE;
/* All of the range, to which nobody wrote before, is going to be written: the file may get
 * ready for it (storage_expect).  True: what isn't written after all is to be discarded. */
bool block_expect(struct node *node, uint64_t off, uint64_t len);
/* What a part of the disk has of the layers between the node and `base` (NULL: of all below)
 * becomes the node's own; it reads as before, and nobody is told.  Users may write to it
 * meanwhile. *copied: bytes of data that were written.  The node is active. */
int block_populate(struct node *node, uint64_t off, uint64_t len, const struct node *base,
                   uint64_t *copied) MUST_USE;
int block_discard(struct node *node, uint64_t off, uint64_t len, unsigned flags) MUST_USE;

/* Everything replied to before is durable afterwards; see mcache_commit. */
int block_flush(struct node *node) MUST_USE;

/* A driver's `settle` where there are no tables: all is in the file, also in a session whose
 * flushes did nothing. */
int block_settle(struct node *node) MUST_USE;

/* The end of a session whose flushes did nothing: all is durable, or at least out of this process
 * where the user wants no sync.  Data first, as in each barrier. */
int block_end_void(struct node *node) MUST_USE;

/* Loads the tables for a range and asks the host to read its data ahead. */
int block_cache(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* The same as block_read and block_cache, and what comes from below becomes the node's own, in
 * whole subclusters, if it is active; several readers of one fetch it once.  When that fails they
 * read it as always.  Outside the gate, and as one who changes the disk: whoever freezes the
 * node, or
 * takes a snapshot of it, keeps such reads away, too. */
int block_read_and_keep(struct node *node, void *buf, uint64_t off, uint64_t len) MUST_USE;
int block_cache_and_keep(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* What a user's read is, by options.copy_on_read. */
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

/* Gives every cluster of a range an allocation, contents unchanged (preallocation=metadata):
 * also where a backing file shows, if clusters have parts of their own, else -ENOTSUP. */
int block_preallocate(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* One run of the chain's view. */
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

/* As block_status, for who shows it and copies nothing: where the user asked the server of a raw
 * image for other marks (storage_marks), these stand for data, zero and present. */
int block_status_shown(struct node *node, uint64_t off, uint64_t len,
                       struct block_status *out) MUST_USE;

/* The run at off, at most len bytes; not merged with its neighbours. */
int block_status(struct node *node, uint64_t off, uint64_t len,
                 struct block_status *out) MUST_USE;

#endif
