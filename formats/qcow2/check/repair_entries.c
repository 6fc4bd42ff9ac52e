/* SPDX-License-Identifier: BSD-3-Clause */
/* Repairs impossible entries: keeps what can be saved of an entry, and clears it otherwise.
 * check.h says which of two structures is believed when both claim a cluster. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"
#include "qcow2/header_ext.h"

/* Enough for all known extensions. */
#define EXTENSIONS_LOOKED_AT 4096

/* Is the cluster guest data, although a table claims it, too?  Then the table's claim is
 * dropped. */
static bool is_really_data(const struct check *c, uint64_t cluster)
{
    return bit_test(c->pass.contested, cluster) && bit_test(c->pass.bad, cluster);
}

/* Does one of the clusters hold metadata that is believed? */
static bool hits_metadata(const struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> c->in.h.cluster_bits;

    for (uint64_t i = offset >> c->in.h.cluster_bits; i <= last; i++)
        if (bit_test(c->pass.fixed, i) ||
            ((bit_test(c->pass.is_table, i) || bit_test(c->pass.meta, i)) &&
             !is_really_data(c, i)))
            return true;
    return false;
}

/* ---- L2 entries ---- */

/* An entry that reads as zeroes even with a backing file; of an extended entry, those subclusters
 * that had a place or were zero. */
static struct l2_words lost_words(const struct check *c, const struct cluster *cluster)
{
    uint32_t had_place = cluster->allocated | cluster->zero;

    if (c->in.geo.word_bits == 0)
        return (struct l2_words){c->in.h.version >= 3 ? L2_ZERO : 0, 0};
    if (cluster->kind == CL_COMPRESSED)
        had_place = ALL_SUBCLUSTERS;
    return (struct l2_words){0, l2_extended_bitmap(0, had_place)};
}

static struct l2_words mend_compressed(const struct check *c, struct l2_words words,
                                       const struct cluster *cluster, unsigned faults)
{
    if ((faults & (FAULT_PAST_END | FAULT_COMPRESSED_EXTERNAL)) ||
        hits_metadata(c, cluster->host, cluster->compressed_bytes))
        return lost_words(c, cluster);
    return (struct l2_words){words.entry & ~L2_COPIED, 0};
}

/* Repairs the bitmap of an extended entry.  A subcluster that is both allocated and zero, or
 * allocated without a place, becomes zero, because its content is unknown. */
static uint64_t mend_bitmap(const struct cluster *cluster)
{
    if (!cluster_has_place(cluster))
        return l2_extended_bitmap(0, cluster->zero | cluster->allocated);
    return l2_extended_bitmap(cluster->allocated & ~cluster->zero, cluster->zero);
}

/* In an external data file a cluster can only lie at its guest offset. */
static bool has_known_place(const struct check *c, uint64_t guest)
{
    return c->in.geo.external && (guest & ~L2_OFFSET) == 0;
}

/* Is the place of a cluster impossible? */
static bool is_lost(const struct check *c, const struct cluster *cluster, unsigned faults)
{
    return (faults & (FAULT_MISALIGNED | FAULT_PAST_END | FAULT_PLACE)) ||
           (!c->in.geo.external && hits_metadata(c, cluster->host, c->in.cluster_size));
}

static struct l2_words mend_standard(const struct check *c, struct l2_words words,
                                     uint64_t guest, const struct cluster *cluster,
                                     unsigned faults)
{
    if (cluster_has_place(cluster) && is_lost(c, cluster, faults)) {
        if (!has_known_place(c, guest))
            return lost_words(c, cluster);
        words.entry = (words.entry & ~L2_OFFSET) | guest | L2_COPIED;
    }
    words.entry &= ~L2_RESERVED;
    if (c->in.geo.word_bits)
        return (struct l2_words){words.entry & ~L2_ZERO, mend_bitmap(cluster)};
    if (c->in.h.version < 3)
        words.entry &= ~L2_ZERO;
    return words;
}

static bool same_words(struct l2_words a, struct l2_words b)
{
    return a.entry == b.entry && a.bitmap == b.bitmap;
}

/* Does the new entry map less than the old one? */
static bool is_less(const struct check *c, struct l2_words now, struct l2_words old,
                    const struct cluster *cluster)
{
    return !same_words(now, old) && (same_words(now, lost_words(c, cluster)) ||
                                     (uint32_t)now.bitmap != cluster->allocated);
}

/* Returns the repaired entry of a guest cluster. */
static struct l2_words mend_l2(struct check *c, struct l2_words words, uint64_t guest)
{
    struct cluster cluster;
    unsigned faults = qcheck_decode_at(c, words, guest, &cluster);
    bool compressed = cluster.kind == CL_COMPRESSED;

    if (c->in.options->keep_mappings) {
        /* A cluster behind the end of the file read as zeroes already, so nothing is lost. */
        if (!compressed && faults == FAULT_PAST_END)
            return lost_words(c, &cluster);
        if (faults == FAULT_COPIED)
            words.entry &= ~L2_COPIED;
        return words;
    }
    struct l2_words now = compressed ? mend_compressed(c, words, &cluster, faults)
                                     : mend_standard(c, words, guest, &cluster, faults);
    if (is_less(c, now, words, &cluster))
        c->repair.dropped = true;
    return now;
}

/* Repairs the table's entry `index`, whose words begin at `at`; true if it changed. */
static bool mend_entry(struct check *c, const struct l2_table *table, uint64_t index,
                       uint64_t *at)
{
    struct l2_words old = qcheck_words(c, at), now;
    char before[WORDS_TEXT], after[WORDS_TEXT];

    if (old.entry == 0 && old.bitmap == 0)
        return false;
    now = mend_l2(c, old, qcheck_guest(c, table, index));
    if (same_words(now, old))
        return false;
    qcheck_say(c, "L2 table at offset %" PRIu64 ": entry %" PRIu64 ": %s becomes %s",
               (uint64_t)table->cluster << c->in.h.cluster_bits, index,
               qcheck_words_text(c, old, before), qcheck_words_text(c, now, after));
    at[0] = now.entry;
    if (c->in.geo.word_bits)
        at[1] = now.bitmap;
    return true;
}

static int mend_table(struct check *c, const struct l2_table *listed, uint64_t *table)
{
    uint64_t offset = (uint64_t)listed->cluster << c->in.h.cluster_bits;
    bool changed = false;

    if (qcheck_read_table(c, offset, table))
        return 0; /* counted */
    for (uint64_t i = 0; i < c->in.cluster_size / 8; i += qcheck_step(c))
        changed |= mend_entry(c, listed, i >> c->in.geo.word_bits, table + i);
    return changed ? qrepair_write_table(c, table, offset) : 0;
}

struct tables {
    uint64_t *buffer;
    uint8_t *done; /* bitmap of clusters */
};

static int visit_l2(struct l1_walk *walk, uint32_t i, void *opaque)
{
    struct check *c = walk->c;
    struct tables *tables = opaque;
    uint64_t cluster;

    /* Nothing is written to a table whose cluster holds other metadata, too. */
    if (!qcheck_table_of(c, walk->entries[i], &cluster) ||
        bit_test(tables->done, cluster) || bit_test(c->pass.meta, cluster))
        return 0;
    bit_set(tables->done, cluster);
    const struct l2_table *listed = l2_tables_find(&c->pass.tables, cluster);
    return listed ? mend_table(c, listed, tables->buffer) : 0;
}

/* ---- L1 entries ---- */

static uint64_t mend_l1(struct check *c, uint64_t entry)
{
    unsigned faults = qcheck_l1_faults(c, entry);
    uint64_t cluster;

    if (c->in.options->keep_mappings)
        return faults == FAULT_PAST_END ? 0 : entry;
    if (!qcheck_table_of(c, entry, &cluster) || bit_test(c->pass.meta, cluster) ||
        is_really_data(c, cluster)) {
        c->repair.dropped = true;
        return 0;
    }
    return entry & ~L1_RESERVED;
}

static int visit_l1(struct l1_walk *walk, uint32_t i, void *opaque)
{
    uint64_t entry = mend_l1(walk->c, walk->entries[i]);

    (void)opaque;
    if (entry == walk->entries[i])
        return 0;
    qcheck_say(walk->c,
               "L1 table at offset %" PRIu64 ": entry %" PRIu32 ": 0x%" PRIx64
               " becomes 0x%" PRIx64,
               walk->l1->offset, walk->first + i, walk->entries[i], entry);
    walk->entries[i] = entry;
    walk->changed = true;
    return 0;
}

static int mend_tables(struct check *c)
{
    CLEANUP_FREE uint64_t *buffer = malloc(c->in.cluster_size);
    CLEANUP_FREE uint8_t *done = calloc(c->in.n_clusters / 8 + 1, 1);
    struct tables tables = {.buffer = buffer, .done = done};
    int err = 0;

    if (!buffer || !done)
        return diag_errno(c->in.diag, ENOMEM, "%s: repairing", c->in.st->name);
    for (uint32_t i = 0; !err && i < c->pass.n_l1s; i++)
        err = qcheck_walk_l1(c, &c->pass.l1s[i], visit_l1, NULL);
    for (uint32_t i = 0; !err && i < c->pass.n_l1s; i++)
        err = qcheck_walk_l1(c, &c->pass.l1s[i], visit_l2, &tables);
    return err;
}

/* ---- snapshots ---- */

/* Counts of a snapshot's L1 entries. */
struct tally {
    uint64_t n_used, n_data;
};

static int visit_suspect(struct l1_walk *walk, uint32_t i, void *opaque)
{
    struct tally *tally = opaque;
    uint64_t cluster;

    tally->n_used++;
    if (qcheck_table_of(walk->c, walk->entries[i], &cluster))
        tally->n_data += is_really_data(walk->c, cluster);
    else if (walk->c->in.geo.word_bits) /* more likely the bitmap of an L2 entry */
        tally->n_data++;
    return 0;
}

/* *lost: is something else at the place of the snapshot's L1 table?  When an L2 table is claimed at
 * the same place, it counts as an L1 table if its entries point to tables rather than data. */
static int judge_l1(struct check *c, const struct check_snapshot *s, bool *lost)
{
    uint64_t bytes = s->l1_size * 8ull;
    struct tally tally = {0};

    *lost = s->fault || s->overlaps;
    if (*lost)
        return 0;
    bool table = qcheck_any(c, c->pass.is_table, s->l1_offset, bytes);
    *lost = qcheck_any(c, c->pass.bad, s->l1_offset, bytes) &&
            (table || qcheck_any(c, c->pass.contested, s->l1_offset, bytes));
    if (!table || *lost)
        return 0;
    const struct check_l1 l1 = {.offset = s->l1_offset, .n = s->l1_size};
    int err = qcheck_walk_l1(c, &l1, visit_suspect, &tally);
    *lost = tally.n_data > tally.n_used / 2;
    return err;
}

/* Keeps the snapshot in the list without contents: sets offset and size of its L1 table, the first
 * fields of the entry, to 0. */
static int empty_snapshot(struct check *c, const struct check_snapshot *s)
{
    static const uint8_t none[offsetof(struct qcow2_disk_snapshot, id_bytes)];

    qcheck_say(c, "snapshot table entry at offset %" PRIu64 ": its L1 table is lost",
               s->entry_offset);
    c->repair.dropped = true;
    return qrepair_write(c, none, s->entry_offset, sizeof none, "snapshot table entry");
}

static int mend_snapshots(struct check *c, bool *changed)
{
    for (uint32_t i = 0; i < c->pass.n_snapshots; i++) {
        bool lost;
        int err = judge_l1(c, &c->pass.snapshots[i], &lost);
        if (!err && lost)
            err = empty_snapshot(c, &c->pass.snapshots[i]);
        if (err)
            return err;
        *changed |= lost;
    }
    return 0;
}

/* ---- bitmaps ---- */

/* Removes the bitmaps extension, because QEMU warns each time about one without the autoclear bit.
 * Only if it is the last: then four bytes have to be written, which can't be torn.  Moving other
 * extensions would risk them in a crash. */
static int drop_bitmaps_extension(struct check *c)
{
    uint8_t area[EXTENSIONS_LOOKED_AT], end[4];
    size_t n = (size_t)MIN(sizeof area, c->in.cluster_size - c->in.h.header_length), place;

    int err = storage_read(c->in.st, area, c->in.h.header_length, n);
    if (err || qcow2_header_ext_find_last(area, n, EXT_BITMAPS, &place))
        return err;
    err = qrepair_flush(c); /* the autoclear bit must be cleared first */
    store_be32(end, EXT_END);
    return err ? err
               : storage_write(c->in.st, end, c->in.h.header_length + place, sizeof end, 0);
}

/* Drops all bitmaps by clearing the autoclear bit, without which they are ignored. */
static int drop_bitmaps(struct check *c)
{
    int err = qrepair_begin(c);

    if (err)
        return err;
    qcheck_say(c, "the bitmaps are dropped");
    c->in.h.autoclear &= ~AUTOCLEAR_BITMAPS;
    err = qcow2_header_write_features(c->in.st, &c->in.h);
    if (!err)
        err = drop_bitmaps_extension(c);
    return err ? diag_errno(c->in.diag, -err, "%s: clearing the bitmaps bit",
                            c->in.st->name)
               : 0;
}

int qrepair_entries(struct check *c)
{
    bool changed = c->pass.bitmaps_broken;
    int err = c->pass.bitmaps_broken ? drop_bitmaps(c) : 0;

    if (!err && !c->in.options->keep_mappings)
        err = mend_snapshots(c, &changed);
    if (err)
        return err;
    /* Counts anew without the claims of what was just dropped. */
    err = changed ? qrepair_flush(c) : 0;
    if (!err && changed)
        err = qcheck_pass(c, true);
    return err || c->pass.hopeless || c->pass.found.check_errors ? err : mend_tables(c);
}
