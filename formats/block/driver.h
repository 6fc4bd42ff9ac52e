/* SPDX-License-Identifier: BSD-3-Clause */
/* What a format driver does: it maps guest ranges to host ranges and keeps the mapping.  It
 * moves no guest data; the engine (read.c, write.c, zero.c) does, once for all formats.
 *
 * Threads: `map` and `zero_is_fast` from any thread inside the gate, without locks, may
 * load a page; `reserve`, `link`, `release`, `zero` with the guest range locked by the
 * caller (without DRIVER_CLUSTERS nothing is locked) and inside the gate; `open`, `activate`,
 * `resize`, `close` alone. Offsets and
 * lengths are bytes; functions return 0 or -errno.  Layer: block. */
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
    uint64_t length; /* from the asked offset on: 1..asked length */
    /* Its place: DATA, and ZERO with an allocation that is kept.  NULL: it has none. */
    struct storage *file;
    uint64_t host_offset; /* in `file`; any, 0 too.  COMPRESSED: where the cluster begins */
    /* COMPRESSED: bytes to read there at most, and where the range begins in what they
     * give. */
    uint32_t stored_bytes, skip;
};

/* A run of clusters made ready to take data; nothing of it is reachable yet. */
struct reservation {
    uint64_t guest_offset; /* cluster aligned */
    /* Whole clusters, which may reach past the virtual size; or to that, of a file that is as
     * long as the disk. */
    uint64_t length;
    struct storage *file;
    uint64_t host_offset; /* in `file` */
    bool fresh;    /* the host range reads as zeroes, and still would after a crash or,
                             before its growth is durable, the group is made strict */
    bool retained; /* its place was its own before: release frees nothing */
    /* Set by the caller, where subclusters are smaller than clusters: `link` gives the
     * clusters their place and nothing else, so that what lies below goes on showing. */
    bool place_only;
    /* Set by the caller: `link` gives the clusters their place, and they read as zeroes whatever
     * bytes are there.  -ENOTSUP where the format can't say it. */
    bool as_zero;
    /* Not 0: the place of one cluster, `length` long, that is stored compressed in so many
     * bytes. */
    uint32_t stored_bytes;
};

/* What `zero` may do with clusters. */
enum zero_how {
    ZERO_KEEP,    /* write zeroes without a hole: allocation stays */
    ZERO_UNMAP,   /* write zeroes, may unmap */
    ZERO_DISCARD, /* trim: may unmap, and may leave what it can't unmap as it is */
};

/* What a format can do, besides what every driver does.  In brackets, which operations are
 * there with it, and only with it. */
enum driver_feature {
    DRIVER_CLUSTERS =
        1 << 0, /* it allocates: data lies elsewhere (reserve, link, release) */
    DRIVER_BACKING = 1 << 1, /* an image can have a backing file (set_backing) */
    DRIVER_GROWS = 1 << 2,   /* the virtual size can be raised (grow) */
    DRIVER_SHRINKS = 1 << 3, /* and lowered (shrink) */
    DRIVER_CHECKS = 1 << 4,  /* there are tables that can be wrong (check) */
    DRIVER_MARKS = 1 << 5,   /* a mark says that an image isn't closed (clear_mark) */
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

    /* Does an image start with these bytes?  n may be short.  Absent for raw, which any
     * bytes are. */
    bool (*probe)(const uint8_t *head, size_t n);

    /* Reads and validates the image, fills node->state, size, cluster_size, backing_name,
     * backing_format; changes no byte.  Called with node->file set; on failure it leaves
     * nothing behind. */
    int (*open)(struct node *node, struct diag *diag);

    /* Optional, after `open` of an image with node->encryption, before anything is read: sets
     * node->cipher.  -EKEYREJECTED with a sentence when it is another passphrase. */
    int (*unlock)(struct node *node, const void *passphrase, size_t len, struct diag *diag);

    /* Optional: whether guest data lies in another file; then *name is what the image calls
     * it, or NULL when it doesn't say.  The caller opens it (node_set_data_file). */
    bool (*data_file)(const struct node *node, const char **name);

    /* First writable use: clears unknown autoclear bits, prepares allocation. */
    int (*activate)(struct node *node, struct diag *diag);

    /* Optional: before the first change of an active image, by whoever comes first (several
     * may at once), inside the gate: has the file say that what is kept of the disk's changes
     * is behind, and clears the bits of what is known, but not kept up.  Durable on return;
     * a failure, which it logs, fails the request, and the next change calls it again.  A driver
     * that sets node->changed to false has the next change call it anew. */
    int (*first_change)(struct node *node);

    /* Clean end: commits, clears the dirty marks, gives back what was reserved ahead, then
     * frees the state.  Frees it on failure too, with the image left marked. */
    int (*close)(struct node *node);

    /* What `close` does before it frees the state, while others read: nobody changes anything
     * any more.  After a failure it can be called again, as can `close`. */
    int (*settle)(struct node *node);

    /* The run that starts at off, as long as possible within len. */
    int (*map)(struct node *node, uint64_t off, uint64_t len, struct extent *out);

    /* There where `map` gives EXTENT_ELSEWHERE: reads all of a range that it gave so. */
    int (*read)(struct node *node, void *buf, uint64_t off, uint64_t len);

    /* DRIVER_CLUSTERS; without, everything is writable in place.  Makes the beginning of
     * [off, off+len) (whole subclusters, none of them writable in place) ready to take data.
     * The reservation may reach over more on both sides, in the clusters of the range. */
    int (*reserve)(struct node *node, uint64_t off, uint64_t len, struct reservation *out);
    /* Optional: the same of the cluster at off, which is to be stored in so many bytes, fewer
     * than a cluster's.  -ENOTSUP: not in this image. */
    int (*reserve_compressed)(struct node *node, uint64_t off, uint32_t bytes,
                              struct reservation *out);
    /* Publishes a reservation whose data is in the storage; replaces_zero: what the guest
     * saw there until now were zeroes.  On failure the reservation is released. */
    int (*link)(struct node *node, const struct reservation *res, bool replaces_zero);
    void (*release)(struct node *node, const struct reservation *res);

    /* Makes whole clusters (cluster aligned; the last may reach past the virtual size) read
     * as zeroes.  -ENOTSUP, with nothing changed from *done on, when the format can't say
     * so (the engine then writes zeroes there, except for ZERO_DISCARD).  *done: bytes
     * dealt with. */
    int (*zero)(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                uint64_t *done);
    /* Would `zero` do all of the range by metadata or by punching? */
    bool (*zero_is_fast)(struct node *node, uint64_t off, uint64_t len);

    /* Optional: are there clusters that were let go of, and can be taken when that is
     * durable and the requests under way have ended? */
    bool (*has_unlinked)(struct node *node);

    /* DRIVER_BACKING: from here on the image names this file as its backing file, of a format
     * that is never NULL; name and format NULL: it names none.  Durable on return; after a
     * crash the old name or the new one
     * holds.  What node->backing is is the caller's. */
    int (*set_backing)(struct node *node, const char *name, const char *format,
                       struct diag *diag);

    /* DRIVER_GROWS: grows the virtual size (the caller has the node to itself). */
    int (*grow)(struct node *node, uint64_t size, struct diag *diag);
    /* DRIVER_SHRINKS: lowers it; what lies behind is lost.  A crash leaves the old size or the
     * new one, and what lies before it as it was. */
    int (*shrink)(struct node *node, uint64_t size, struct diag *diag);
    /* Optional: lets go of all that the image has, so that what lies below shows; the caller has
     * the node to itself.  Durable on return; a crash leaves any part of it. */
    int (*make_empty)(struct node *node, struct diag *diag);
    /* DRIVER_MARKS: commits and clears the dirty mark now, as the timer would. */
    int (*clear_mark)(struct node *node);

    /* DRIVER_SNAPSHOTS: see node_snapshots, from any thread.  Opening one: `snapshot` has its
     * key, and what it borrows from its image; sets its size, state, and a driver that maps.
     * Nobody uses one that is closed. */
    int (*snapshots)(struct node *node, struct snapshot_list *out);
    int (*open_snapshot)(struct node *snapshot, struct diag *diag);
    void (*close_snapshot)(struct node *snapshot);
    /* The states of a change: see snapshot.h.  begin fills its info and state, and leaves
     * nothing behind when it fails. */
    int (*begin_snapshot)(struct snapshot_change *change,
                          const struct snapshot_request *request, struct diag *diag);
    int (*prepare_snapshot)(struct snapshot_change *change, struct diag *diag);
    void (*commit_snapshot)(struct snapshot_change *change);
    void (*abort_snapshot)(struct snapshot_change *change);
    int (*finish_snapshot)(struct snapshot_change *change, bool committed,
                           struct diag *diag);

    /* DRIVER_BITMAPS.  The driver keeps the node's persistent bitmaps true by itself: marked as in
     * use before the first change of the disk, and stored at the end and when nothing changed
     * for a while.  See dirty_bitmap.h for what these are asked for. */
    void (*load_bitmaps)(struct node *node);
    int (*check_bitmap)(struct node *node, const char *name, uint64_t granularity,
                        struct diag *diag);
    int (*begin_bitmap_change)(struct node *node, const struct dirty_bitmap *bitmap,
                               struct diag *diag);
    void (*end_bitmap_change)(struct node *node);
    int (*keep_bitmaps)(struct node *node, struct diag *diag);

    /* Optional: fills what image_info.h says is the driver's.  0 or -ENOMEM, with what was
     * filled until then the caller's to free. */
    int (*info)(struct node *node, struct image_info *info);

    /* DRIVER_CHECKS: looks at the image in st, opened
     * or not, and repairs what it is asked to.  0: the pass ran to its end, *result says
     * what it found. -errno with a sentence: it could not be checked, or not be repaired.
     */
    int (*check)(struct storage *st, const struct check_options *options,
                 struct check_result *result, struct diag *diag);

    /* Optional: the options that an image can be given another value of (NULL: none), and
     * giving them in two steps: what needs the disk, of an active node, and then the rest, below
     * one that is settled, which it opens anew (node_open_anew).  Both judge all of it before
     * anything is touched, and a crash leaves an image that reads as before.  amend_disk may
     * return 1: it needs what `amend` changes, and is to be called again after it. */
    const struct create_option_info *amend_options;
    int (*amend_disk)(struct node *node, const struct amend_request *req,
                      struct diag *diag);
    int (*amend)(struct node *node, const struct amend_request *req, struct diag *diag);

    /* Optional: see measure_image. */
    int (*measure)(const struct create_request *req, struct node *source,
                   struct image_measure *out, struct diag *diag);

    /* Judges what is asked for, and touches nothing: options that it doesn't have, values
     * and sizes that can't be.  0, or -errno with a sentence. */
    int (*check_create)(const struct create_request *req, struct diag *diag);
    /* Writes an empty image into st, for a request that check_create let pass.  st is an
     * empty store or, when its size is fixed, one with anything in it; it is taken over,
     * and closed on return.  `data` is the same for the request's data file, NULL when it
     * has none.  After a failure what is in them means nothing. */
    int (*create)(struct storage *st, struct storage *data,
                  const struct create_request *req, struct diag *diag);
};

static inline bool driver_can(const struct driver *driver, enum driver_feature feature)
{
    return driver->features & feature;
}

/* Where in an image's header, of `limit` bytes, there is room for a new backing name beside
 * the old one ([old, old+old_len)) and behind what is used otherwise ([0, used)).  Over the old
 * one only where the header is a sector, which is then to be written at once.  0: there is
 * none. */
uint64_t driver_place_name(uint64_t used, uint64_t old, uint64_t old_len, uint64_t len,
                           uint64_t limit);

/* The drivers there are, NULL at the end; set once by the registry, before anything is
 * opened. Probing asks them in this order.  Debug builds assert that each has the
 * operations of its features. */
void drivers_set(const struct driver *const *table);

/* Their names, for messages: "qcow2, qed, raw". */
struct driver_names_text {
    char text[64];
};
const char *driver_names(struct driver_names_text *out);

/* NULL when there is none of that name, or no magic fits. */
const struct driver *driver_find(const char *name);
/* The same of a format that an image records of its backing file: what QEMU reads a file's or a
 * device's plain bytes by ("file", "host_device") is raw here. */
const struct driver *driver_find_recorded(const char *format);
/* The i-th from 0 on, in the order of probing; NULL behind the last. */
const struct driver *driver_at(size_t i);
const struct driver *driver_probe(const uint8_t *head, size_t n);

#endif
