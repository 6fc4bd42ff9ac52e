/* SPDX-License-Identifier: BSD-3-Clause */
/* Check and repair of a QED image.  Walks from the header and the L1 table to each L2 table,
 * reads these in pieces, and notes the clusters in use in a bitmap.
 *
 * QED has no reference counts.  An invalid entry is set to 0.  A cluster that two entries point
 * to can't be repaired.  Clusters that no entry points to are leaks; those at the end of the
 * file are cut off by a repair.
 *
 * All tables are read before the first is written: an L1 entry may point to what another entry
 * says is data, and repairing that data as if it were a table would destroy it.  Each write
 * then repairs a piece of one table, so a repair that is killed can be continued by running it
 * again; NEED_CHECK is cleared last. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/check.h"
#include "qed/image.h"

/* Bytes of a table that are read at once. */
#define PIECE_BYTES (1u << 20)
/* The limit: a bitmap for more clusters would take over 2 GiB. */
#define MAX_CLUSTERS (UINT64_C(1) << 34)

struct check {
    struct storage *st;
    const struct check_options *options;
    struct check_result *result;
    struct diag *diag;
    struct qed_header header;
    struct qed_geometry geo;
    uint64_t file_size;
    uint64_t n_clusters; /* number of whole clusters in the file */
    uint8_t *used;       /* bitmap: clusters in use */
    uint8_t *shared;     /* bitmap: clusters that several entries point to */
    uint64_t last;       /* previous data cluster in the table, 0: none */
    uint64_t total;      /* number of entries of the L1 table */
    bool wrote;
};

static const char past_end[] = "past the end of the file";

typedef int visit_entry(struct check *c, uint64_t index, uint64_t *entry);

static bool is_mending(const struct check *c)
{
    return c->options->repair == REPAIR_ALL;
}

static bool has_bit(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

static void set_bit(uint8_t *bits, uint64_t i)
{
    bits[i / 8] = (uint8_t)(bits[i / 8] | 1u << (i % 8));
}

static int flush_repairs(struct check *c)
{
    int err = storage_flush(c->st);

    return err < 0 ? diag_errno(c->diag, -err, "%s: flushing", c->st->name) : 0;
}

/* Before the first change: clears unknown autoclear bits, since the repair doesn't maintain
 * their features. */
static int begin_writing(struct check *c)
{
    if (c->wrote)
        return 0;
    c->wrote = true;
    if (c->header.autoclear_features == 0)
        return 0;
    c->header.autoclear_features = 0;
    int err = qed_header_write_autoclear(c->st, 0);
    if (err < 0)
        return diag_errno(c->diag, -err, "%s: clearing autoclear_features", c->st->name);
    return flush_repairs(c);
}

/* ---- clusters in use ---- */

/* Marks n clusters as used.  Returns how many of them were in use already. */
static uint64_t take(struct check *c, uint64_t offset, uint64_t n)
{
    uint64_t twice = 0;

    for (uint64_t i = offset >> c->geo.cluster_bits; n > 0; i++, n--) {
        if (has_bit(c->used, i)) {
            set_bit(c->shared, i);
            twice++;
        }
        set_bit(c->used, i);
    }
    return twice;
}

/* Does another entry point to a cluster of this table?  Then it may not be a table. */
static bool is_shared(const struct check *c, uint64_t table)
{
    uint64_t first = table >> c->geo.cluster_bits;

    for (uint64_t i = first; i < first + c->header.table_size; i++)
        if (has_bit(c->shared, i))
            return true;
    return false;
}

static const char *place_fault(const struct check *c, uint64_t offset, uint64_t bytes)
{
    if (!is_aligned(offset, c->geo.cluster_size))
        return "not cluster aligned";
    if (offset < c->geo.header_bytes)
        return "inside the header";
    if (!range_inside(offset, bytes, c->n_clusters << c->geo.cluster_bits))
        return past_end;
    return NULL;
}

static void say_fault(struct check *c, const char *what, uint64_t entry, const char *why)
{
    check_message(c->options, "%s 0x%" PRIx64 ": %s", what, entry, why);
    c->result->corruptions++;
}

static void say_twice(struct check *c, const char *what, uint64_t entry, uint64_t n)
{
    check_message(c->options, "%s 0x%" PRIx64 ": %" PRIu64 " clusters are in use elsewhere",
                  what, entry, n);
    c->result->corruptions += n;
}

/* ---- tables ---- */

static int write_piece(struct check *c, const uint8_t *raw, uint64_t offset, uint64_t bytes)
{
    int err = begin_writing(c);

    if (err == 0 && (err = storage_write(c->st, raw, offset, bytes, 0)) < 0)
        err = diag_errno(c->diag, -err, "%s: writing the repaired table at offset %" PRIu64,
                         c->st->name, offset);
    return err;
}

/* Visits the entries of a piece that aren't 0, and writes the piece back if one changed. */
static int visit_piece(struct check *c, uint8_t *raw, uint64_t offset, uint64_t bytes,
                       uint64_t first, visit_entry *visit)
{
    bool changed = false;

    for (uint64_t i = 0; i < bytes / 8; i++) {
        uint64_t entry = load_le64(raw + i * 8), now = entry;
        int err = entry ? visit(c, first + i, &now) : 0;
        if (err < 0)
            return err;
        if (now != entry) {
            store_le64(raw + i * 8, now);
            changed = true;
        }
    }
    return changed ? write_piece(c, raw, offset, bytes) : 0;
}

static int visit_table(struct check *c, uint64_t offset, visit_entry *visit)
{
    uint64_t piece = MIN(c->geo.table_bytes, PIECE_BYTES);
    CLEANUP_FREE uint8_t *raw = malloc(piece);
    if (!raw)
        return diag_errno(c->diag, ENOMEM, "%s: table", c->st->name);

    for (uint64_t at = 0; at < c->geo.table_bytes; at += piece) {
        if (storage_read(c->st, raw, offset + at, piece) < 0) {
            check_message(c->options, "the table at offset %" PRIu64 " can't be read",
                          offset + at);
            c->result->check_errors++;
            return 0;
        }
        int err = visit_piece(c, raw, offset + at, piece, at / 8, visit);
        if (err < 0)
            return err;
    }
    return 0;
}

static int look_at_l2(struct check *c, uint64_t index, uint64_t *entry)
{
    struct check_result *result = c->result;

    (void)index;
    if (*entry == QED_ENTRY_ZERO)
        return 0;
    result->allocated_clusters++;
    if (c->last && c->last + c->geo.cluster_size != *entry)
        result->fragmented_clusters++;
    c->last = *entry;
    const char *why = place_fault(c, *entry, c->geo.cluster_size);
    if (why)
        say_fault(c, "L2 entry", *entry, why);
    else if (take(c, *entry, 1))
        say_twice(c, "L2 entry", *entry, 1);
    return 0;
}

static int look_at_l1(struct check *c, uint64_t index, uint64_t *entry)
{
    const char *why = place_fault(c, *entry, c->geo.table_bytes);

    if (c->options->progress)
        c->options->progress(c->options->opaque, index, c->total);
    if (why) {
        say_fault(c, "L1 entry", *entry, why);
        return 0;
    }
    uint64_t twice = take(c, *entry, c->header.table_size);
    if (twice) {
        say_twice(c, "L1 entry", *entry, twice);
        return 0; /* the table is also another one, or data */
    }
    c->last = 0;
    return visit_table(c, *entry, look_at_l2);
}

/* ---- repairing tables ---- */

/* Clears an invalid entry.  With keep_mappings only if it points behind the end of the file,
 * where no data can be. */
static void mend(struct check *c, const char *what, const char *why, uint64_t *entry)
{
    if (c->options->keep_mappings && (why != past_end || *entry < c->file_size))
        return;
    check_message(c->options, "%s 0x%" PRIx64 ": %s: becomes unallocated", what, *entry,
                  why);
    *entry = QED_ENTRY_UNALLOCATED;
    c->result->corruptions--;
    c->result->corruptions_fixed++;
}

static int mend_l2(struct check *c, uint64_t index, uint64_t *entry)
{
    const char *why =
        *entry == QED_ENTRY_ZERO ? NULL : place_fault(c, *entry, c->geo.cluster_size);

    (void)index;
    if (why)
        mend(c, "L2 entry", why, entry);
    return 0;
}

static int mend_l1(struct check *c, uint64_t index, uint64_t *entry)
{
    const char *why = place_fault(c, *entry, c->geo.table_bytes);

    (void)index;
    if (why)
        mend(c, "L1 entry", why, entry);
    else if (!is_shared(c, *entry))
        return visit_table(c, *entry, mend_l2);
    return 0;
}

/* ---- leaks ---- */

static void count_leaks(struct check *c)
{
    for (uint64_t i = c->header.header_size; i < c->n_clusters; i++) {
        if (c->used[i / 8] == 0xff) {
            i |= 7;
            continue;
        }
        if (!has_bit(c->used, i))
            c->result->leaks++;
    }
    if (c->result->leaks)
        check_message(c->options, "%" PRIu64 " clusters are leaked", c->result->leaks);
}

/* Cuts off the leaked clusters behind the last one in use. */
static int cut_tail(struct check *c)
{
    uint64_t end = c->n_clusters;

    while (end > c->header.header_size && !has_bit(c->used, end - 1))
        end--;
    uint64_t n = c->n_clusters - end;
    if (n == 0 || c->st->fixed_size)
        return 0;
    /* Repairs become durable before anything is cut off. */
    int err = begin_writing(c);
    if (err == 0)
        err = flush_repairs(c);
    if (err < 0)
        return err;
    err = storage_truncate(c->st, end << c->geo.cluster_bits);
    if (err < 0)
        return diag_errno(c->diag, -err, "%s: cutting off leaked clusters", c->st->name);
    c->result->leaks -= n;
    c->result->leaks_fixed += n;
    return 0;
}

static int clear_need_check(struct check *c)
{
    if (!(c->header.features & QED_F_NEED_CHECK))
        return 0;
    int err = begin_writing(c);
    if (err == 0)
        err = flush_repairs(c);
    if (err < 0)
        return err;
    err =
        qed_header_write_features(c->st, c->header.features & ~(uint64_t)QED_F_NEED_CHECK);
    if (err < 0)
        return diag_errno(c->diag, -err, "%s: clearing NEED_CHECK", c->st->name);
    return flush_repairs(c);
}

/* ---- the whole check ---- */

/* Extends a file that ends in the middle of a cluster, so that this cluster isn't lost. */
static int complete_last_cluster(struct check *c)
{
    uint64_t size = align_up(c->file_size, c->geo.cluster_size);

    if (!is_mending(c) || size == c->file_size || c->st->fixed_size)
        return 0;
    int err = begin_writing(c);
    if (err == 0 && (err = storage_truncate(c->st, size)) < 0)
        err = diag_errno(c->diag, -err, "%s: extending the file", c->st->name);
    if (err == 0)
        err = flush_repairs(c);
    c->file_size = err == 0 ? size : c->file_size;
    return err;
}

static int open_check(struct check *c)
{
    int err = qed_header_read(c->st, c->st->name, &c->header, c->diag);
    if (err < 0)
        return err;
    if ((err = storage_size(c->st, &c->file_size)) < 0)
        return diag_errno(c->diag, -err, "%s: size of the file", c->st->name);
    qed_geometry_init(&c->geo, &c->header);
    if (c->file_size >> c->geo.cluster_bits > MAX_CLUSTERS)
        return diag_set(c->diag, EFBIG, "%s: a file of %" PRIu64 " bytes can't be checked",
                        c->st->name, c->file_size);
    err = complete_last_cluster(c);
    if (err < 0)
        return err;
    c->n_clusters = c->file_size >> c->geo.cluster_bits;
    c->total = c->geo.table_bytes / 8;
    c->used = calloc(c->n_clusters / 8 + 1, 1);
    c->shared = calloc(c->n_clusters / 8 + 1, 1);
    return c->used && c->shared ? 0 : diag_errno(c->diag, ENOMEM, "%s: check", c->st->name);
}

static int check_tables(struct check *c)
{
    struct check_result *result = c->result;

    result->total_clusters = div_round_up(c->header.image_size, c->geo.cluster_size);
    take(c, c->geo.l1_offset, c->header.table_size);
    int err = visit_table(c, c->geo.l1_offset, look_at_l1);
    /* If a table can't be read, it might point to any cluster; then nothing is repaired. */
    if (err == 0 && is_mending(c) && result->corruptions && !result->check_errors)
        err = visit_table(c, c->geo.l1_offset, mend_l1);
    if (err < 0 || result->check_errors)
        return err;
    count_leaks(c);
    if (c->options->repair == REPAIR_NONE || result->corruptions)
        return c->wrote ? flush_repairs(c) : 0;
    err = cut_tail(c);
    if (err == 0)
        err = clear_need_check(c);
    if (err == 0 && c->wrote)
        err = flush_repairs(c);
    return err;
}

int qed_check(struct storage *st, const struct check_options *options,
              struct check_result *result, struct diag *diag)
{
    struct check c = {.st = st, .options = options, .result = result, .diag = diag};

    if (options->repair != REPAIR_NONE && st->read_only)
        return diag_set(diag, EROFS, "%s: is open read-only and can't be repaired",
                        st->name);
    int err = open_check(&c);
    if (err == 0)
        err = check_tables(&c);
    if (err == 0 && options->progress)
        options->progress(options->opaque, c.total, c.total);
    free(c.used);
    free(c.shared);
    return err;
}
