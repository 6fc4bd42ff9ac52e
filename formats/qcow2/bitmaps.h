/* SPDX-License-Identifier: BSD-3-Clause */
/* The dirty bitmaps that are kept in an image; private to this folder.
 *
 * The directory says of each where its table lies, and the table where its bits do.  While the
 * disk changes, bits change in memory alone (block/dirty_bitmap.h), and the directory has the
 * in-use flag of each bitmap that this concerns: whoever finds it set doesn't believe the bitmap.
 *
 *   STORED  --first change of the disk, or of the bitmap-->  IN USE       (bitmaps_mark.c)
 *   IN USE  --end, or nothing changed for a while-->         STORED       (bitmaps_store.c)
 *
 *   (1) the flag is durable before anything changes;
 *   (2) new bits, tables and the directory go to clusters that nothing points to, and are
 *       durable, with their refcounts, before the header leads to them; the old ones are let go
 *       of after;
 *   (3) storing takes no lock that a write waits for while it moves bits: a change that comes
 *       meanwhile raises `epoch`, and what was moved is thrown away.
 * Where there is no space for that, bits and tables that are in use are written over where they
 * are (bitmaps_in_place.c).
 * So after a crash each bitmap is right or in use, and the image clean or leaking.
 *
 * Who is asked whether anything changes: node->changed.  To watch for changes it is set to
 * false; the next change then comes through qcow2_first_change, inside the gate, and one that
 * had passed there before has left the gate when the changers have (gate_changers_passed). */
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
    uint64_t *table;     /* entries in host order; NULL: not read, see `loaded` */
    uint8_t *extra;      /* data that nobody knows the meaning of; kept */
    uint32_t extra_bytes;
};

struct qcow2_bitmaps {
    struct lock in_use; /* RANK_IN_USE */
    /* What the directory says; changed under in_use and the header lock.  An entry's index is
     * the slot of its dirty bitmap. */
    struct qcow2_bitmap *entry;
    uint32_t n;
    unsigned paused; /* under node->bitmaps.keep: nothing is stored */
    bool loaded;     /* or found to be damaged; by who opens or activates */
    bool lost;       /* what the directory says can't be used; under the header lock, too */
    bool claimed;

    /* under in_use */
    uint64_t epoch;    /* rises with each change that isn't known to be over */
    unsigned changing; /* bitmaps that are being changed other than by writes */
    bool watching;     /* since watch_epoch and watch_stamp, for a while without changes */
    uint64_t watch_epoch, watch_stamp;
    struct timer timer; /* of the housekeeper: looks whether there were changes */
};

/* Bits of one bitmap, in bytes: as many as QEMU takes. */
#define MAX_BITMAP_BYTES (512ull << 20)

/* Bits of all bitmaps of an image, in bytes, which memory has while it is open.  QEMU has no
 * limit: a hundred points of a large disk are a gigabyte and more. */
#define MAX_BITMAPS_BYTES (2ull << 30)

/* ---- bitmaps.c ---- */

void qcow2_bitmaps_init(struct qcow2 *q);
void qcow2_bitmaps_destroy(struct qcow2 *q);
void qcow2_free_bitmap_entries(struct qcow2_bitmap *entry, uint32_t n);

/* Reads the directory; one that can't be right is as none, and said. */
void qcow2_read_bitmaps(struct qcow2 *q);

/* What the image says of bitmaps is as nothing from here on, which is said in the log. */
void qcow2_lose_bitmaps(struct qcow2 *q, const char *why);

/* Is there a directory that can be used?  Under header_lock, or alone. */
bool qcow2_has_bitmaps(const struct qcow2 *q);

/* Entries of a table for a disk of that size. */
uint64_t qcow2_bitmap_table_size(const struct qcow2 *q, uint64_t size,
                                 uint64_t granularity);

/* Describes them; under header_lock.  0 or -ENOMEM. */
int qcow2_copy_bitmaps(const struct qcow2 *q, struct qcow2_info *part) MUST_USE;

/* ---- bitmaps_load.c ---- */

void qcow2_load_bitmaps(struct node *node);

/* Of an image that is to be written: their clusters become metadata.  After
 * qcow2_collect_metadata; bitmaps that don't go with the rest of the image are lost. */
void qcow2_claim_bitmaps(struct qcow2 *q);

/* ---- bitmaps_mark.c ---- */

/* Under in_use: before the disk changes; durable on return. */
int qcow2_mark_bitmaps_in_use(struct qcow2 *q) MUST_USE;
/* The same of all of them, for the disk gets another size. */
int qcow2_mark_all_bitmaps_in_use(struct qcow2 *q) MUST_USE;
/* Under in_use: looks for changes from now on. */
void qcow2_watch_bitmaps(struct qcow2 *q);
/* Under in_use: has nothing changed since that was epoch? */
bool qcow2_bitmaps_are_quiet(const struct qcow2 *q, uint64_t epoch);

int qcow2_begin_bitmap_change(struct node *node, const struct dirty_bitmap *bitmap,
                              struct diag *diag) MUST_USE;
void qcow2_end_bitmap_change(struct node *node);

/* ---- bitmaps_store.c ---- */

int qcow2_check_bitmap(struct node *node, const char *name, uint64_t granularity,
                       struct diag *diag) MUST_USE;

/* Could those that are kept be kept of a disk of that size?  0, or -EFBIG with diag. */
int qcow2_check_bitmaps_size(struct qcow2 *q, uint64_t size, struct diag *diag) MUST_USE;

/* The directory lists the bitmaps there are, as they were stored: a new one is in use. */
int qcow2_keep_bitmaps(struct node *node, struct diag *diag) MUST_USE;

/* Stores all, as nothing has changed since `epoch`.  0 when all is stored, -EAGAIN when
 * something changed, -errno.  What it fails with is the caller's to say. */
int qcow2_store_bitmaps(struct qcow2 *q, uint64_t epoch) MUST_USE;

/* ---- between bitmaps_store.c and bitmaps_in_place.c ---- */

/* Metadata from then on.  Outside the gate. */
int qcow2_take_bitmap_clusters(struct qcow2 *q, uint64_t n, uint64_t *host) MUST_USE;
void qcow2_let_go_of_bitmap_clusters(struct qcow2 *q, uint64_t host, uint64_t bytes);

/* What the directory says of it now; NULL: nothing. */
const struct qcow2_bitmap *qcow2_stored_bitmap(const struct qcow2 *q,
                                               const struct dirty_bitmap *bitmap);

/* What was written, and the refcounts of its clusters. */
int qcow2_make_bitmaps_durable(struct qcow2 *q) MUST_USE;

/* Under keep, as there was no space for another directory: those that are in use are stored
 * where they are.  0, -EAGAIN, -ENOSPC: there is none; -errno. */
int qcow2_store_bitmaps_in_place(struct qcow2 *q, uint64_t epoch) MUST_USE;

/* ---- */

/* While paused, nothing is stored, and the directory isn't written: nobody takes clusters or
 * lets go of any. */
void qcow2_pause_bitmaps(struct qcow2 *q);
void qcow2_resume_bitmaps(struct qcow2 *q);

/* The same at the end, with nobody left; a failure is logged. */
void qcow2_store_bitmaps_at_end(struct qcow2 *q);

/* ---- bitmaps_header.c ---- */

/* Header lock: the header leads to this directory, of n entries (0: to none), and says so
 * durably.  After a failure either nothing has changed, or it may say either, and the node
 * refuses writes. */
int qcow2_point_to_bitmaps(struct qcow2 *q, uint32_t n, uint64_t offset,
                           uint64_t bytes) MUST_USE;

/* Header lock: would there be room for it?  0, -ENOSPC or another -errno. */
int qcow2_check_bitmaps_room(struct qcow2 *q) MUST_USE;

#endif
