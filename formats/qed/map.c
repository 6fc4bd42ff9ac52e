/* SPDX-License-Identifier: BSD-3-Clause */
/* The lookup: no locks, and two acquire loads per run if the page is in memory. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/log.h"
#include "qed/image.h"

/* Pages that a lookup has read stay in memory until its request leaves the gate.  So a run that
 * needs more pages of L2 tables than this is reported in parts. */
#define MAX_PAGES_PER_LOOKUP 256u

static const char *offset_fault(const struct qed_image *img, uint64_t off, uint64_t bytes)
{
    const struct qed_geometry *geo = &img->geo;
    uint64_t file_end = atomic_load_explicit(&img->space.file_end, memory_order_acquire);

    if (!is_aligned(off, geo->cluster_size))
        return "not a multiple of the cluster size";
    if (off < geo->header_bytes)
        return "inside the header";
    if (!range_inside(off, bytes, file_end))
        return "past the end of the file";
    if (ranges_overlap(off, bytes, geo->l1_offset, geo->table_bytes))
        return "inside the L1 table";
    return NULL;
}

const char *qed_table_fault(const struct qed_image *img, uint64_t word)
{
    return offset_fault(img, word, img->geo.table_bytes);
}

const char *qed_cluster_fault(const struct qed_image *img, uint64_t word)
{
    return offset_fault(img, word, img->geo.cluster_size);
}

int qed_corrupt(const struct qed_image *img, const char *level, uint64_t off, uint64_t word,
                const char *fault)
{
    log_error("%s: %s entry for guest offset %" PRIu64 ": 0x%" PRIx64 ": %s",
              img->node->filename, level, off, word, fault);
    node_met_corruption(img->node);
    return -EIO;
}

/* A lookup in progress, with the run found so far. */
struct lookup {
    struct qed_image *img;
    uint64_t off, len;
    struct qed_run run; /* length 0: nothing found yet */
    unsigned pages;     /* loaded */
};

/* An invalid word ends a run; only a lookup that begins there reports it. */
static int report_corruption(const struct lookup *l, const char *level, uint64_t off,
                             uint64_t word, const char *fault)
{
    return l->run.length ? -EIO : qed_corrupt(l->img, level, off, word, fault);
}

/* Decodes the L2 word of guest offset off. */
static int decode_entry(const struct lookup *l, uint64_t off, uint64_t word,
                        struct qed_run *out)
{
    *out = (struct qed_run){.kind = QED_DATA};
    if (word == QED_ENTRY_UNALLOCATED) {
        out->kind = QED_UNALLOCATED;
    } else if (word == QED_ENTRY_ZERO) {
        out->kind = QED_ZERO;
    } else {
        const char *fault = qed_cluster_fault(l->img, word);
        if (UNLIKELY(fault && atomic_load(&l->img->node->written_elsewhere))) {
            qed_space_look_again(&l->img->space, l->img->geo.cluster_size);
            fault = qed_cluster_fault(l->img, word);
        }
        if (fault)
            return report_corruption(l, "L2", off, word, fault);
        out->host_offset = word + (off & (l->img->geo.cluster_size - 1));
    }
    return 0;
}

/* Adds `piece` to the run; false: it isn't contiguous with the run. */
static bool extend_run(struct lookup *l, const struct qed_run *piece, uint64_t length)
{
    struct qed_run *run = &l->run;

    if (run->length == 0)
        *run = *piece;
    else if (run->kind != piece->kind ||
             (run->kind == QED_DATA &&
              run->host_offset + run->length != piece->host_offset))
        return false;
    run->length += MIN(length, l->len - run->length);
    return true;
}

/* Adds the clusters of one page that continue the run; *more: the run may continue behind the
 * page. */
static int walk_page(struct lookup *l, struct mc_page *page, bool *more)
{
    struct qed_image *img = l->img;
    uint64_t cluster = img->geo.cluster_size;
    uint64_t end = l->off + l->run.length + qed_left_in_page(img, l->off + l->run.length);

    *more = false;
    while (l->run.length < l->len && l->off + l->run.length < end) {
        uint64_t off = l->off + l->run.length;
        struct qed_run piece;
        int err = decode_entry(l, off, mc_load(page, qed_page_word(img, off)), &piece);
        if (err < 0)
            return err;
        if (!extend_run(l, &piece, cluster - (off & (cluster - 1))))
            return 0;
    }
    *more = l->run.length < l->len;
    return 0;
}

/* One step of the walk: a whole table that doesn't exist, or one page of a table. */
static int map_table(struct lookup *l, bool *more)
{
    struct qed_image *img = l->img;
    uint64_t off = l->off + l->run.length;
    uint64_t table =
        atomic_load_explicit(&img->l1[qed_l1_index(img, off)], memory_order_acquire);

    if (table == QED_ENTRY_UNALLOCATED) {
        struct qed_run hole = {.kind = QED_UNALLOCATED};
        *more = extend_run(l, &hole, qed_left_in_table(img, off)) && l->run.length < l->len;
        return 0;
    }
    *more = false;
    if (l->run.length && l->pages == MAX_PAGES_PER_LOOKUP)
        return 0;
    const char *fault = qed_table_fault(img, table);
    if (fault)
        return report_corruption(l, "L1", off, table, fault);
    struct mc_page *page;
    int err = mcmap_get(img->l2_map, qed_page_index(img, off), &page);
    if (err < 0)
        return err;
    l->pages++;
    return walk_page(l, page, more);
}

int qed_lookup(struct qed_image *img, uint64_t off, uint64_t len, struct qed_run *run)
{
    struct lookup l = {.img = img, .off = off, .len = len};
    bool more = true;

    while (more) {
        int err = map_table(&l, &more);
        /* What was found before an error is valid; a later lookup there reports the error. */
        if (err < 0 && l.run.length == 0)
            return err;
        if (err < 0)
            break;
    }
    *run = l.run;
    return 0;
}

int qed_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    struct qed_image *img = node->state;
    struct qed_run run;

    int err = qed_lookup(img, off, len, &run);
    if (err < 0)
        return err;
    *out = (struct extent){.kind = EXTENT_ZERO, .length = run.length};
    switch (run.kind) {
    case QED_DATA:
        out->kind = EXTENT_DATA;
        out->writable = out->allocated = true;
        out->file = node->file;
        out->host_offset = run.host_offset;
        break;
    case QED_ZERO:
        out->allocated = true;
        break;
    case QED_UNALLOCATED:
        if (node->backing)
            out->kind = EXTENT_BACKING;
        break;
    }
    return 0;
}
