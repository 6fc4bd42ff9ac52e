/* SPDX-License-Identifier: BSD-3-Clause */
/* The state of one opened QED image, and the functions that the files of this folder share.
 *
 * The mapping: guest offset -> L1 word -> L2 word -> host cluster.  The L1 words that the
 * virtual size needs stay in memory; L2 tables are cached in pages of QED_PAGE_BYTES.  The
 * number of entries of a table is a power of two, so page number `guest cluster / words per
 * page` has the word of that cluster, whichever table it belongs to.
 *
 * Words come from the file and are validated each time before they are used, by qed_table_fault
 * and qed_cluster_fault.  Layer: qed. */
#ifndef QED_IMAGE_H
#define QED_IMAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/lock.h"
#include "block/dirty_mark.h"
#include "block/node.h"
#include "qed/header.h"
#include "qed/space.h"
#include "qed/trims.h"

#define QED_PAGE_BYTES  4096u
#define QED_PAGE_WORDS  (QED_PAGE_BYTES / 8)
#define QED_TABLE_LOCKS 16u

enum qed_probe { QED_UNKNOWN, QED_YES, QED_NO };

struct qed_image {
    struct node *node;
    struct lock header_lock; /* RANK_HEADER: `header` and its bytes in the file */
    /* Only features, autoclear_features, image_size and the backing name ever change. */
    struct qed_header header;

    /* Not changed after open. */
    struct qed_geometry geo;
    bool has_backing; /* from the header: then no NEED_CHECK, and holes aren't zeroes */

    /* Replaced only by qed_tables_load, which runs alone. */
    _Atomic uint64_t *l1;
    struct mcmap *l1_map, *l2_map;
    /* RANK_TABLE: for adding L2 tables, by L1 index. */
    struct lock table_locks[QED_TABLE_LOCKS];

    struct qed_space space;
    struct qed_trims trims;
    struct dirty_mark mark; /* initialised when the image is activated */
    bool active;
    _Atomic int fast_zero; /* enum qed_probe: can the storage zero without writing? */
};

/* ---- tables.c ---- */

/* Loads the L1 words for a virtual size, and makes maps of both levels, in place of the present
 * ones.  Returns 0 or -errno with nothing changed. */
int qed_tables_load(struct qed_image *img, uint64_t image_size, struct diag *diag) MUST_USE;
void qed_tables_free(struct qed_image *img);

/* *end: the largest end of a table or cluster that any table in the file points to, considering
 * only words that could have been valid before the file was cut short.  Reads all tables.
 * Returns 0 or -errno. */
int qed_last_reference(const struct qed_image *img, uint64_t *end) MUST_USE;

/* Ensures that the L2 table for off exists.  Takes a table lock; not under META.  Returns 0 or
 * -errno. */
int qed_ensure_table(struct qed_image *img, uint64_t off) MUST_USE;

/* META: must the open group be strict for a link to these clusters, because of the mark or
 * because of the clusters? */
bool qed_needs_barrier(const struct qed_image *img, const struct qed_clusters *clusters);

/* ---- map.c ---- */

enum qed_kind { QED_UNALLOCATED, QED_ZERO, QED_DATA };

struct qed_run {
    enum qed_kind kind;
    uint64_t length;      /* bytes, 1..length asked for */
    uint64_t host_offset; /* QED_DATA */
};

/* Looks up the run at off.  It is merged across pages and tables, up to a bounded number of
 * pages.  Returns 0 or -errno. */
int qed_lookup(struct qed_image *img, uint64_t off, uint64_t len,
               struct qed_run *run) MUST_USE;

/* Why a word of an L1 (or L2) table is invalid; NULL: it is valid. */
const char *qed_table_fault(const struct qed_image *img, uint64_t word);
const char *qed_cluster_fault(const struct qed_image *img, uint64_t word);

/* Logs an invalid word found by a lookup of guest offset off, and marks the node corrupt.
 * Returns -EIO. */
int qed_corrupt(const struct qed_image *img, const char *level, uint64_t off, uint64_t word,
                const char *fault);

static inline uint64_t qed_l1_index(const struct qed_image *img, uint64_t off)
{
    return off >> (img->geo.cluster_bits + img->geo.entry_bits);
}

static inline uint64_t qed_page_index(const struct qed_image *img, uint64_t off)
{
    return (off >> img->geo.cluster_bits) / QED_PAGE_WORDS;
}

static inline uint32_t qed_page_word(const struct qed_image *img, uint64_t off)
{
    return (uint32_t)((off >> img->geo.cluster_bits) % QED_PAGE_WORDS);
}

/* Guest bytes from off to the end of what its L2 table, or its page of that table, maps. */
static inline uint64_t qed_left_in_table(const struct qed_image *img, uint64_t off)
{
    uint64_t span = UINT64_C(1) << (img->geo.cluster_bits + img->geo.entry_bits);
    return span - (off & (span - 1));
}

static inline uint64_t qed_left_in_page(const struct qed_image *img, uint64_t off)
{
    uint64_t span = (uint64_t)QED_PAGE_WORDS << img->geo.cluster_bits;
    return span - (off & (span - 1));
}

/* ---- members of the driver table ---- */

int qed_map(struct node *node, uint64_t off, uint64_t len, struct extent *out);
int qed_reserve(struct node *node, uint64_t off, uint64_t len, struct reservation *out);
int qed_link(struct node *node, const struct reservation *res, bool replaces_zero);
void qed_release(struct node *node, const struct reservation *res);
int qed_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
             uint64_t *done);
bool qed_zero_is_fast(struct node *node, uint64_t off, uint64_t len);
int qed_set_backing(struct node *node, const char *name, const char *format,
                    struct diag *diag);
int qed_grow(struct node *node, uint64_t size, struct diag *diag);
extern const struct create_option_info qed_create_options[];
int qed_check_create(const struct create_request *req, struct diag *diag);
int qed_create(struct storage *st, struct storage *data, const struct create_request *req,
               struct diag *diag);
int qed_check(struct storage *st, const struct check_options *options,
              struct check_result *result, struct diag *diag);

#endif
