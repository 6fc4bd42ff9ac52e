/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent dirty bitmaps (qcow2.rst, "Bitmaps").  Private to this folder.
 *
 * The bitmap directory has an entry for each bitmap, which leads to a table, which leads to the
 * bits.  While the disk changes, bits change in memory only (block/dirty_bitmap.h), and the
 * in-use flag is set in the entries of the bitmaps concerned: a program that opens the image and
 * finds the flag doesn't trust the bitmap.
 *
 *   STORED  --first change of the disk, or of the bitmap-->       IN USE  (bitmaps_mark.c)
 *   IN USE  --the image is closed, or wasn't changed a while-->   STORED  (bitmaps_store.c)
 *
 *   (1) the flag is durable before anything changes;
 *   (2) new bits, tables and directories are written to clusters that nothing points to, and are
 *       durable with their refcounts before the header points to them; the old ones are freed
 *       afterwards;
 *   (3) while bits are written no lock is held that a guest's write waits for: a change that
 *       comes meanwhile raises `epoch`, and what was written is discarded.
 * When there is no space for new clusters, the bits and tables of bitmaps in use are overwritten
 * in place (bitmaps_in_place.c).  So after a crash each bitmap is right or marked as in use, and
 * the image is clean or has leaks.
 *
 * node->changed tells whether anything changes.  To watch for changes it is set to false.  The
 * next change then comes through qcow2_first_change, inside the gate; and a change that had
 * passed it before has ended once all changers have left the gate (gate_changers_passed). */
#ifndef QCOW2_BITMAPS_H
#define QCOW2_BITMAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/housekeeper.h"
#include "base/lock.h"

struct node;
struct dirty_bitmap;
struct qcow2;
struct qcow2_info;

/* An entry of the directory. */
struct qcow2_bitmap {
    char *name;
    uint32_t granularity, flags; /* bytes; BITMAP_* */
    uint64_t table_offset;
    uint32_t table_size; /* entries */
    uint32_t at;         /* its place in the directory */
    uint64_t *table;     /* entries in host order; NULL: not read yet, see `loaded` */
    uint8_t *extra;      /* extra data of unknown meaning, which is kept */
    uint32_t extra_bytes;
};

struct qcow2_bitmaps {
    struct lock in_use; /* RANK_IN_USE */
    /* The entries of the directory; changed under in_use and the header lock.  An entry's index
     * is the slot of its dirty bitmap (dirty_bitmap_slot). */
    struct qcow2_bitmap *entry;
    uint32_t n;
    unsigned paused; /* above 0: nothing is stored; under node->bitmaps.keep */
    bool loaded;     /* loading was tried; set by the thread that opens or activates */
    bool lost; /* the directory is damaged and can't be used; under the header lock, too */
    bool claimed; /* their clusters are in the metadata set */

    /* under in_use */
    uint64_t epoch;    /* incremented when a change begins or ends */
    unsigned changing; /* how many bitmaps are being changed other than by writes */
    bool watching;     /* for a period without changes, since watch_epoch and watch_stamp */
    uint64_t watch_epoch, watch_stamp;
    struct timer timer; /* run by the housekeeper; looks whether there were changes */
};

/* The size of one bitmap's bits, in bytes; QEMU's limit. */
#define MAX_BITMAP_BYTES (512ull << 20)

/* The size of all bits of an image, in bytes, which are in memory while it is open.  QEMU has no
 * limit.  A hundred bitmaps of a large disk, one for each backup, take a gigabyte and more. */
#define MAX_BITMAPS_BYTES (2ull << 30)

/* ---- bitmaps.c ---- */

void qcow2_bitmaps_init(struct qcow2 *q);
void qcow2_bitmaps_destroy(struct qcow2 *q);
void qcow2_free_bitmap_entries(struct qcow2_bitmap *entry, uint32_t n);

/* Reads the directory.  A damaged one is ignored, with a warning in the log. */
void qcow2_read_bitmaps(struct qcow2 *q);

/* Ignores the image's bitmaps from now on, with a warning in the log. */
void qcow2_lose_bitmaps(struct qcow2 *q, const char *why);

/* Is there a directory that can be used?  Under header_lock, or with exclusive access. */
bool qcow2_has_bitmaps(const struct qcow2 *q);

/* The number of entries in a bitmap's table for a disk of `size` bytes. */
uint64_t qcow2_bitmap_table_size(const struct qcow2 *q, uint64_t size,
                                 uint64_t granularity);

/* Adds a description of each bitmap to *part; under header_lock.  0 or -ENOMEM. */
int qcow2_copy_bitmaps(const struct qcow2 *q, struct qcow2_info *part) MUST_USE;

/* ---- bitmaps_load.c ---- */

/* Loads all bitmaps, once. */
void qcow2_load_bitmaps(struct node *node);

/* Before the image is written to, and after qcow2_collect_metadata: adds the clusters of the
 * bitmaps to the metadata set.  If one is used for something else, too, the bitmaps are ignored
 * (qcow2_lose_bitmaps). */
void qcow2_claim_bitmaps(struct qcow2 *q);

/* ---- bitmaps_mark.c ---- */

/* Under in_use, before the disk changes: marks the bitmaps that will change as in use, durably. */
int qcow2_mark_bitmaps_in_use(struct qcow2 *q) MUST_USE;
/* The same for all bitmaps, before the disk gets another size. */
int qcow2_mark_all_bitmaps_in_use(struct qcow2 *q) MUST_USE;
/* Under in_use: starts the timer that stores the bitmaps after a period without changes. */
void qcow2_watch_bitmaps(struct qcow2 *q);
/* Under in_use: has nothing changed since the epoch was `epoch`? */
bool qcow2_bitmaps_are_quiet(const struct qcow2 *q, uint64_t epoch);

int qcow2_begin_bitmap_change(struct node *node, const struct dirty_bitmap *bitmap,
                              struct diag *diag) MUST_USE;
void qcow2_end_bitmap_change(struct node *node);

/* ---- bitmaps_limits.c ---- */

/* driver->check_bitmap. */
int qcow2_check_bitmap(struct node *node, const char *name, uint64_t granularity,
                       struct diag *diag) MUST_USE;

/* Could the persistent bitmaps be stored if the disk had that size?  0, or -EFBIG with diag. */
int qcow2_check_bitmaps_size(struct qcow2 *q, uint64_t size, struct diag *diag) MUST_USE;

/* ---- bitmaps_store.c ---- */

/* Writes a directory with the present set of persistent bitmaps, each with the bits that were
 * stored last.  New ones are marked as in use. */
int qcow2_keep_bitmaps(struct node *node, struct diag *diag) MUST_USE;

/* Stores all bitmaps, provided that nothing has changed since `epoch`.  0; -EAGAIN when something
 * changed; or -errno, which the caller reports. */
int qcow2_store_bitmaps(struct qcow2 *q, uint64_t epoch) MUST_USE;

/* ---- between bitmaps_store.c and bitmaps_in_place.c ---- */

/* Allocates n contiguous clusters at *host as metadata.  Outside the gate. */
int qcow2_take_bitmap_clusters(struct qcow2 *q, uint64_t n, uint64_t *host) MUST_USE;
void qcow2_let_go_of_bitmap_clusters(struct qcow2 *q, uint64_t host, uint64_t bytes);

/* The bitmap's entry in the present directory, or NULL. */
const struct qcow2_bitmap *qcow2_stored_bitmap(const struct qcow2 *q,
                                               const struct dirty_bitmap *bitmap);

/* Makes everything durable that was written for bitmaps, with the refcounts. */
int qcow2_make_bitmaps_durable(struct qcow2 *q) MUST_USE;

/* Under node->bitmaps.keep, when there was no space for a new directory: stores the bitmaps in
 * use over their old bits.  0; -EAGAIN when something changed; -ENOSPC when none can be stored
 * so; or -errno. */
int qcow2_store_bitmaps_in_place(struct qcow2 *q, uint64_t epoch) MUST_USE;

/* ---- */

/* While paused, bitmaps aren't stored and the directory isn't written, so that no clusters are
 * allocated or freed for them. */
void qcow2_pause_bitmaps(struct qcow2 *q);
void qcow2_resume_bitmaps(struct qcow2 *q);

/* Stores the bitmaps when the image is closed; no request is left.  A failure is logged. */
void qcow2_store_bitmaps_at_end(struct qcow2 *q);

/* ---- bitmaps_header.c ---- */

/* Header lock: makes the header point to this directory of n entries (0: to none), durably.
 * After a failure either nothing has changed, or it is unknown which directory the header points
 * to, and the node refuses writes. */
int qcow2_point_to_bitmaps(struct qcow2 *q, uint32_t n, uint64_t offset,
                           uint64_t bytes) MUST_USE;

/* Header lock: is there room in the header for the bitmaps extension?  0, -ENOSPC or another
 * -errno. */
int qcow2_check_bitmaps_room(struct qcow2 *q) MUST_USE;

#endif
