/* SPDX-License-Identifier: BSD-3-Clause */
/* An opened qcow2 image, in parts; private to this folder. */
#ifndef QCOW2_INTERNAL_H
#define QCOW2_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty_mark.h"
#include "block/node.h"
#include "qcow2/alloc/alloc.h"
#include "qcow2/header.h"
#include "qcow2/alloc/meta_set.h"
#include "qcow2/alloc/refcount.h"

#define TABLE_STRIPES 16

/* An internal snapshot, as its table says; the L1 table lies inside the file. */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns, vm_state_bytes;
    uint64_t icount; /* UINT64_MAX: none */
    char *id, *name;
};

/* A dirty bitmap that is stored in the image. */
struct qcow2_bitmap {
    char *name;
    uint32_t granularity, flags; /* bytes; BITMAP_* */
};

struct qcow2 {
    struct node *node;
    struct lock header_lock; /* serialises header writes and `header`'s feature fields */
    struct qcow2_header header;
    uint32_t cluster_bits, l2_bits;

    /* Mapping.  The L1 array is replaced only while the caller has the node to itself. */
    _Atomic uint64_t *l1;
    uint32_t l1_size;
    _Atomic uint64_t l1_offset;
    struct mcmap *l1_map, *l2_map;
    uint32_t page_bits; /* log2 of the L2 entries in a page */
    struct lock table_lock[TABLE_STRIPES];

    struct qcow2_snapshot *snapshots;
    uint32_t n_snapshots;
    uint64_t snapshot_bytes; /* of the table in the file */

    struct qcow2_bitmap *bitmaps;
    uint32_t n_bitmaps;

    struct refcounts refs;
    struct alloc alloc;
    struct meta_set metadata; /* filled when the image is activated */
    struct dirty_mark mark;
    bool lazy; /* refcounts are postponed while the mark is set; fixed once active */
    _Atomic bool corrupt_unwritten; /* the header's bit is still to be set */
};

static inline struct qcow2 *qcow2_of(const struct node *node)
{
    return node->state;
}

static inline uint64_t cluster_size(const struct qcow2 *q)
{
    return 1ull << q->cluster_bits;
}

/* ---- map.c ---- */

enum cluster_kind { CL_NONE, CL_ZERO, CL_ZERO_ALLOCATED, CL_DATA, CL_COMPRESSED };

struct cluster {
    enum cluster_kind kind;
    bool copied;   /* this entry is the only reference */
    uint64_t host; /* DATA, ZERO_ALLOCATED */
};

/* Does it lie at c->host?  (Compressed ones lie elsewhere.) */
static inline bool cluster_has_place(const struct cluster *c)
{
    return c->kind == CL_DATA || c->kind == CL_ZERO_ALLOCATED;
}

/* Decodes and checks an L2 entry; -EIO, with a message, when it is impossible. */
int qcow2_decode(struct qcow2 *q, uint64_t entry, uint64_t guest,
                 struct cluster *out) MUST_USE;

/* Checks an L1 entry that isn't zero. */
int qcow2_check_l1_entry(struct qcow2 *q, uint32_t l1_index, uint64_t entry) MUST_USE;

/* The page and word of a guest offset's L2 entry. */
static inline uint64_t l2_page_index(const struct qcow2 *q, uint64_t guest)
{
    return guest >> (q->cluster_bits + q->page_bits);
}

static inline uint32_t l2_page_word(const struct qcow2 *q, uint64_t guest)
{
    return (uint32_t)(guest >> q->cluster_bits) & ((1u << q->page_bits) - 1);
}

static inline uint32_t l1_index_of(const struct qcow2 *q, uint64_t guest)
{
    return (uint32_t)(guest >> (q->cluster_bits + q->l2_bits));
}

int qcow2_map(struct node *node, uint64_t off, uint64_t len, struct extent *out);
uint64_t qcow2_locate_l1(void *owner, uint64_t page_index);
uint64_t qcow2_locate_l2(void *owner, uint64_t page_index);

/* ---- corrupt.c ---- */

/* An entry was met that can't be right.  Under any lock: the header is written by
 * qcow2_failed. */
void qcow2_mark_corrupt(struct qcow2 *q);

/* Returns err; sets the corrupt bit when that is due.  To be called at the end of a request
 * that failed, under no META. */
int qcow2_failed(struct qcow2 *q, int err);

/* ---- table.c ---- */

/* Makes the L2 table of an L1 entry exist and be ours alone: new, or copied from a shared
 * one. */
int qcow2_prepare_table(struct qcow2 *q, uint32_t l1_index) MUST_USE;

/* META, released while a page is loaded: the L2 page of a guest offset, to store to. */
int qcow2_peek_l2(struct qcow2 *q, uint64_t guest, struct mc_page **page) MUST_USE;

/* ---- write.c ---- */

/* Before metadata changes, until dirty_mark_end under META; with a mark that can't be
 * written, refcounts are no longer postponed. */
void qcow2_begin_change(struct qcow2 *q);
int qcow2_reserve(struct node *node, uint64_t off, uint64_t len, struct reservation *out);
int qcow2_link(struct node *node, const struct reservation *res, bool replaces_zero);
void qcow2_release(struct node *node, const struct reservation *res);

/* ---- zero.c ---- */
int qcow2_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
               uint64_t *done);
bool qcow2_zero_is_fast(struct node *node, uint64_t off, uint64_t len);

/* ---- snapshot.c ---- */

/* Reads the snapshot table; refuses one that can't be right. */
int qcow2_read_snapshots(struct qcow2 *q, struct diag *diag) MUST_USE;
void qcow2_free_snapshots(struct qcow2 *q);

/* Adds "snapshots" to qimg info's object. */
void qcow2_list_snapshots(struct qcow2 *q, json_t *object);

/* ---- bitmaps.c ---- */

/* Reads the directory of the stored bitmaps; one that can't be right is as none, and said.
 */
void qcow2_read_bitmaps(struct qcow2 *q);
void qcow2_free_bitmaps(struct qcow2 *q);

/* Says, of an image that is to be written, which bitmaps that will cost. */
void qcow2_warn_of_bitmaps(struct qcow2 *q);

/* Adds "bitmaps" to qimg info's object of qcow2's own; under header_lock. */
void qcow2_list_bitmaps(const struct qcow2 *q, json_t *object);

/* ---- info.c, luks_info.c ---- */
void qcow2_info(struct node *node, json_t *object);

/* Adds what the LUKS header says to the object "encrypt". */
void qcow2_describe_luks(struct qcow2 *q, json_t *object);

/* ---- resize.c ---- */

/* Header lock: points the header to a table that is durable; h has the new place, `write`
 * writes it.  After a failure the header may name the old table or the new one, and neither
 * may be written to, nor cut off: the node refuses writes from then on. */
int qcow2_point_header(struct qcow2 *q, const struct qcow2_header *h,
                       int (*write)(struct storage *st,
                                    const struct qcow2_header *h)) MUST_USE;

/* ---- create.c, rebase.c, resize.c, open.c ---- */
extern const struct create_option_info qcow2_create_options[];
int qcow2_create(struct create_request *req, struct diag *diag);
int qcow2_set_backing(struct node *node, const char *name, const char *format,
                      struct diag *diag);
int qcow2_grow(struct node *node, uint64_t size, struct diag *diag);

/* Replaces the L1 array and its map; what was there is freed.  Alone with the node, or at
 * open. */
int qcow2_set_l1(struct qcow2 *q, _Atomic uint64_t *l1, uint32_t l1_size,
                 uint64_t offset) MUST_USE;

/* Before the first change of an active image: clears the bits of what isn't kept up.
 * Durable on return.  Not under header_lock. */
int qcow2_first_change(struct node *node) MUST_USE;

#endif
