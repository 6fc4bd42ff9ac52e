/* SPDX-License-Identifier: BSD-3-Clause */
/* What a format driver does: it maps guest ranges to host ranges and maintains the mapping.  It
 * moves no guest data: the engine (read.c, write.c, zero.c) does that, once for all formats.
 *
 * Offsets and lengths are bytes; functions return 0 or -errno.
 *
 * Threads: `map` and `zero_is_fast` from any thread inside the gate, without locks; they may
 * load a page.  `reserve`, `link`, `release`, `zero` inside the gate, with the guest range locked
 * by the caller (without DRIVER_CLUSTERS nothing is locked).  `open`, `activate`, `grow`,
 * `shrink`, `close` alone.  Layer: block. */
#ifndef BLOCK_DRIVER_H
#define BLOCK_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "block/check.h"
#include "block/create.h"
#include "storage/storage.h"

struct amend_request;
struct dirty_bitmap;
struct image_info;
struct image_measure;
struct node;
struct snapshot_change;
struct snapshot_list;
struct snapshot_request;

enum extent_kind {
    EXTENT_DATA,       /* host bytes of this layer */
    EXTENT_ZERO,       /* reads as zeroes, whatever lies below */
    EXTENT_BACKING,    /* nothing here: ask the backing node (only when there is one) */
    EXTENT_ENCRYPTED,  /* as DATA, in the node's cipher */
    EXTENT_COMPRESSED, /* part of a cluster that is stored compressed */
    EXTENT_ELSEWHERE,  /* data that only the driver's `read` can get */
};

/* Are there bytes of this layer, in whatever shape? */
static inline bool extent_is_data(enum extent_kind kind)
{
    return kind == EXTENT_DATA || kind >= EXTENT_ENCRYPTED;
}

struct extent {
    enum extent_kind kind;
    bool writable;   /* DATA, ENCRYPTED: may be overwritten where it is */
    bool allocated;  /* this layer has an entry for it (ZERO: an explicit zero cluster) */
    uint64_t length; /* bytes from the offset asked for: 1..length asked for */
    /* The host clusters: with DATA, and with ZERO that is allocated.  NULL: there are none. */
    struct storage *file;
    /* Bytes, in `file`; may be 0.  COMPRESSED: where the stored cluster begins. */
    uint64_t host_offset;
    /* COMPRESSED: at most so many bytes are stored; the range begins `skip` bytes into the
     * decompressed cluster. */
    uint32_t stored_bytes, skip;
};

/* Host clusters for a run of guest clusters, ready to take data; no table points to them yet. */
struct reservation {
    uint64_t guest_offset; /* subcluster aligned */
    /* Whole subclusters, which may reach past the virtual size; with raw external data at most to
     * the virtual size. */
    uint64_t length;
    struct storage *file;
    uint64_t host_offset; /* in `file` */
    /* The host range reads as zeroes, also after a crash (where the growth of the file isn't
     * durable yet, `link` makes the group strict). */
    bool fresh;
    bool retained; /* the clusters were allocated before: release frees nothing */
    /* Set by the caller, with extended L2 entries: `link` allocates the clusters but marks no
     * subcluster as used, so that the backing file goes on showing. */
    bool place_only;
    /* Set by the caller: `link` makes allocated zero clusters, which read as zeroes whatever bytes
     * are in the file.  -ENOTSUP where the format has none. */
    bool as_zero;
    /* Not 0: one cluster, `length` bytes long, that is stored compressed in so many bytes. */
    uint32_t stored_bytes;
};

/* What `zero` may do with clusters. */
enum zero_how {
    ZERO_KEEP,    /* write zeroes without a hole: allocation stays */
    ZERO_UNMAP,   /* write zeroes, may unmap */
    ZERO_DISCARD, /* trim: may unmap, and may leave what it can't unmap as it is */
};

/* What a format can do beyond the mandatory operations.  In brackets: the operations that a driver
 * has if, and only if, it has the feature. */
enum driver_feature {
    DRIVER_CLUSTERS = 1 << 0, /* it allocates clusters (reserve, link, release) */
    DRIVER_BACKING = 1 << 1,  /* an image can have a backing file (set_backing) */
    DRIVER_GROWS = 1 << 2,    /* the virtual size can be raised (grow) */
    DRIVER_SHRINKS = 1 << 3,  /* and lowered (shrink) */
    DRIVER_CHECKS = 1 << 4,   /* there are tables that can be wrong (check) */
    DRIVER_MARKS = 1 << 5,    /* a mark says that an image isn't closed (clear_mark) */
    /* States of the disk can be kept in the image (snapshots, open_snapshot,
     * close_snapshot, begin_snapshot, prepare_snapshot, commit_snapshot,
     * abort_snapshot, finish_snapshot). */
    DRIVER_SNAPSHOTS = 1 << 6,
    DRIVER_BITMAPS = 1 << 7, /* dirty bitmaps are kept in an image (*_bitmap, *_bitmaps) */
};

struct driver {
    const char *name;
    unsigned features;                               /* enum driver_feature */
    const struct create_option_info *create_options; /* in the order of announcing */

    /* Is this the beginning of such an image?  n may be smaller than a header.  Absent for raw,
     * which any bytes can be. */
    bool (*probe)(const uint8_t *head, size_t n);

    /* Reads and validates the image, fills node->state, size, cluster_size, backing_name,
     * backing_format; changes no byte.  Called with node->file set; on failure it leaves
     * nothing behind. */
    int (*open)(struct node *node, struct diag *diag);

    /* Optional, after `open` of an image with node->encryption, before any guest data is read: sets
     * node->cipher.  -EKEYREJECTED with a sentence when the passphrase is wrong. */
    int (*unlock)(struct node *node, const void *passphrase, size_t len, struct diag *diag);

    /* Optional: does the image have an external data file?  Then *name is the name that the image
     * has for it, or NULL if it names none.  The caller opens it (node_set_data_file). */
    bool (*data_file)(const struct node *node, const char **name);

    /* Before the first write: clears unknown autoclear bits, prepares allocation. */
    int (*activate)(struct node *node, struct diag *diag);

    /* Optional: called before the first change of an active image, inside the gate, by several
     * threads at once if several changes come first.  Marks in the file that stored bitmaps are
     * out of date (in use), and clears the bits of features that this program doesn't update.
     * Durable on return.  A failure, which it logs, fails the request, and the next change calls
     * it again.  To have it called once more a driver sets node->changed to false. */
    int (*first_change)(struct node *node);

    /* Clean end: commits, clears the dirty marks, gives back what was reserved ahead, then
     * frees the state.  On failure it frees the state as well, and the marks stay. */
    int (*close)(struct node *node);

    /* The part of `close` before the state is freed, while others may still read but nobody changes
     * anything.  After a failure it can be called again, or `close`. */
    int (*settle)(struct node *node);

    /* The run that starts at off, as long as possible within len. */
    int (*map)(struct node *node, uint64_t off, uint64_t len, struct extent *out);

    /* Mandatory if `map` returns EXTENT_ELSEWHERE: reads a range of such an extent. */
    int (*read)(struct node *node, void *buf, uint64_t off, uint64_t len);

    /* DRIVER_CLUSTERS (without it everything is writable in place).  Reserves host clusters for the
     * beginning of [off, off+len): whole subclusters, none of them writable in place.  Within the
     * clusters of the range the reservation may begin earlier and end later. */
    int (*reserve)(struct node *node, uint64_t off, uint64_t len, struct reservation *out);
    /* Optional: the same for the cluster at off, which is to be stored compressed in `bytes` bytes,
     * fewer than a cluster has.  -ENOTSUP: not in this image. */
    int (*reserve_compressed)(struct node *node, uint64_t off, uint32_t bytes,
                              struct reservation *out);
    /* Makes the tables point to a reservation whose data is in the storage.  replaces_zero: the
     * guest saw zeroes there until now.  On failure the reservation is released. */
    int (*link)(struct node *node, const struct reservation *res, bool replaces_zero);
    /* Gives back a reservation that won't be linked. */
    void (*release)(struct node *node, const struct reservation *res);

    /* Makes whole clusters (cluster aligned; the last may reach past the virtual size) read
     * as zeroes.  *done: bytes that do so on return.  -ENOTSUP, with nothing changed from *done on,
     * when the format can't express it there (the engine then writes zeroes, except for
     * ZERO_DISCARD). */
    int (*zero)(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                uint64_t *done);
    /* Would `zero` do all of the range by metadata or by punching? */
    bool (*zero_is_fast)(struct node *node, uint64_t off, uint64_t len);

    /* Optional: are there unlinked clusters that will become free after a commit, when the requests
     * in flight have ended? */
    bool (*has_unlinked)(struct node *node);

    /* DRIVER_BACKING: writes the name and format of the backing file into the image; both NULL: it
     * has none.  Durable on return; a crash leaves the old name or the new one.  node->backing is
     * the caller's to change. */
    int (*set_backing)(struct node *node, const char *name, const char *format,
                       struct diag *diag);

    /* DRIVER_GROWS: grows the virtual size (the caller has the node to itself). */
    int (*grow)(struct node *node, uint64_t size, struct diag *diag);
    /* DRIVER_SHRINKS: lowers the virtual size; data behind it is lost.  A crash leaves the old or
     * the new size, and the data before the new size unchanged. */
    int (*shrink)(struct node *node, uint64_t size, struct diag *diag);
    /* Optional: drops all data of the image, so that the backing file shows; the caller has the
     * node to itself.  Durable on return; after a crash any part may be dropped. */
    int (*make_empty)(struct node *node, struct diag *diag);
    /* DRIVER_MARKS: commits and clears the dirty mark now, as the timer would. */
    int (*clear_mark)(struct node *node);

    /* DRIVER_SNAPSHOTS.  snapshots: see node_snapshots; from any thread.  open_snapshot: the
     * caller has filled in the key and what is borrowed from the image; sets size, state, and a
     * driver that maps.  close_snapshot: nobody uses the node any more. */
    int (*snapshots)(struct node *node, struct snapshot_list *out);
    int (*open_snapshot)(struct node *snapshot, struct diag *diag);
    void (*close_snapshot)(struct node *snapshot);
    /* The steps of a change: see snapshot.h.  begin_snapshot fills in its info and state, and
     * leaves nothing behind when it fails. */
    int (*begin_snapshot)(struct snapshot_change *change,
                          const struct snapshot_request *request, struct diag *diag);
    int (*prepare_snapshot)(struct snapshot_change *change, struct diag *diag);
    void (*commit_snapshot)(struct snapshot_change *change);
    void (*abort_snapshot)(struct snapshot_change *change);
    int (*finish_snapshot)(struct snapshot_change *change, bool committed,
                           struct diag *diag);

    /* DRIVER_BITMAPS.  The driver itself marks the node's persistent bitmaps as in use before the
     * first change of the disk, and stores them at close and when nothing changed for a while.  See
     * dirty_bitmap.h for these operations. */
    void (*load_bitmaps)(struct node *node);
    int (*check_bitmap)(struct node *node, const char *name, uint64_t granularity,
                        struct diag *diag);
    int (*begin_bitmap_change)(struct node *node, const struct dirty_bitmap *bitmap,
                               struct diag *diag);
    void (*end_bitmap_change)(struct node *node);
    int (*keep_bitmaps)(struct node *node, struct diag *diag);

    /* Optional: fills in the driver's part of image_info.h.  0 or -ENOMEM; the caller frees what
     * was filled in, on failure too. */
    int (*info)(struct node *node, struct image_info *info);

    /* DRIVER_CHECKS: checks the image in st, whether it is opened or not, and repairs what the
     * options say.  0: the check ran to its end, and *result says what it found.  -errno with a
     * sentence: the image could not be checked, or not be repaired. */
    int (*check)(struct storage *st, const struct check_options *options,
                 struct check_result *result, struct diag *diag);

    /* Optional: the creation options whose value can be changed in an existing image (NULL: none),
     * and changing them in two steps: amend_disk on an active node, for what needs the disk; then
     * `amend`, on a settled node, for the rest: it changes the file below and opens it anew
     * (node_open_anew).  Both validate the whole request before they change anything, and after a
     * crash the disk reads as before.  amend_disk may return 1: it depends on what `amend` changes,
     * and has to be called again after it. */
    const struct create_option_info *amend_options;
    int (*amend_disk)(struct node *node, const struct amend_request *req,
                      struct diag *diag);
    int (*amend)(struct node *node, const struct amend_request *req, struct diag *diag);

    /* Optional: see measure_image. */
    int (*measure)(const struct create_request *req, struct node *source,
                   struct image_measure *out, struct diag *diag);

    /* Validates a request without touching anything: unknown options, impossible values and sizes.
     * 0, or -errno with a sentence. */
    int (*check_create)(const struct create_request *req, struct diag *diag);
    /* Writes an empty image into st, for a request that passed check_create.  st is an empty
     * store or, if its size is fixed, one with any content; it is taken over, and closed on
     * return.  `data` is the same for the request's data file, or NULL.  After a failure their
     * content is undefined. */
    int (*create)(struct storage *st, struct storage *data,
                  const struct create_request *req, struct diag *diag);
};

static inline bool driver_can(const struct driver *driver, enum driver_feature feature)
{
    return driver->features & feature;
}

/* An offset in an image's header of `limit` bytes where a backing name of `len` bytes has room:
 * behind [0, used), and not over the old name ([old, old+old_len)), so that the old one holds
 * after a crash.  If the header is a single sector it may overlap the old name; the caller then
 * writes the whole sector at once.  0: no room. */
uint64_t driver_place_name(uint64_t used, uint64_t old, uint64_t old_len, uint64_t len,
                           uint64_t limit);

/* The drivers there are, NULL at the end; set once by the registry, before anything is
 * opened.  Probing asks them in this order.  Debug builds assert that each has the
 * operations of its features. */
void drivers_set(const struct driver *const *table);

/* Their names, for messages: "qcow2, qed, raw". */
struct driver_names_text {
    char text[64];
};
const char *driver_names(struct driver_names_text *out);

/* NULL when there is none of that name, or no magic fits. */
const struct driver *driver_find(const char *name);
/* The same for a backing format recorded in an image, where QEMU's protocol drivers for plain bytes
 * ("file", "host_device") mean raw. */
const struct driver *driver_find_recorded(const char *format);
/* The i-th from 0 on, in the order of probing; NULL behind the last. */
const struct driver *driver_at(size_t i);
const struct driver *driver_probe(const uint8_t *head, size_t n);

#endif
