/* SPDX-License-Identifier: BSD-3-Clause */
/* L1 tables: reading them in pieces, and counting the L2 tables to which they point. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/zero_bytes.h"
#include "qcow2/check/check.h"

/* How many entries are read at once. */
#define PIECE_ENTRIES (128u << 10)

/* Writes back a piece that a callback changed. */
static int write_piece(struct l1_walk *walk)
{
    uint64_t offset = walk->l1->offset + (uint64_t)walk->first * 8;

    for (uint32_t i = 0; i < walk->n; i++)
        store_be64(&walk->entries[i], walk->entries[i]);
    walk->changed = false;
    return qrepair_write(walk->c, walk->entries, offset, (uint64_t)walk->n * 8, "L1 table");
}

static int visit_piece(struct l1_walk *walk, l1_visit *visit, void *opaque)
{
    for (uint32_t i = 0; i < walk->n; i++) {
        int err = walk->entries[i] ? visit(walk, i, opaque) : 0;
        if (err)
            return err;
    }
    return walk->changed ? write_piece(walk) : 0;
}

int qcheck_walk_l1(struct check *c, const struct check_l1 *l1, l1_visit *visit,
                   void *opaque)
{
    struct l1_walk walk = {.c = c, .l1 = l1};
    CLEANUP_FREE uint64_t *entries = malloc(MIN(l1->n, PIECE_ENTRIES) * 8ull + 8);

    if (!entries)
        return diag_errno(c->in.diag, ENOMEM, "%s: L1 table", c->in.st->name);
    walk.entries = entries;
    for (; walk.first < l1->n; walk.first += walk.n) {
        walk.n = MIN(l1->n - walk.first, PIECE_ENTRIES);
        uint64_t offset = l1->offset + (uint64_t)walk.first * 8;
        int err = storage_read(c->in.st, entries, offset, walk.n * 8ull);
        if (err) {
            check_message(c->in.options, "L1 table at offset %" PRIu64 " can't be read",
                          offset);
            c->pass.found.check_errors++;
            return 0;
        }
        for (uint32_t i = 0; i < walk.n; i++)
            entries[i] = load_be64(&entries[i]);
        err = visit_piece(&walk, visit, opaque);
        if (err)
            return err;
        qcheck_progress(c, walk.n);
    }
    return 0;
}

static void check_copied(struct check *c, uint32_t index, uint64_t entry)
{
    uint64_t count;

    if ((entry & L1_OFFSET) == 0 ||
        !qcheck_disk_count(c, (entry & L1_OFFSET) >> c->in.h.cluster_bits, &count))
        return;
    if ((count == 1) != ((entry & L1_COPIED) != 0))
        qcheck_wrong_flag(c, 1,
                          "ERROR OFLAG_COPIED L2 cluster: l1_index=%" PRIu32
                          " l1_entry=%" PRIx64 " refcount=%" PRIu64,
                          index, entry, count);
}

/* How many entries of one table are not zero, and how many of those are impossible. */
struct tally {
    uint64_t n_used, n_odd;
};

static int count_entry(struct l1_walk *walk, uint32_t i, void *opaque)
{
    struct check *c = walk->c;
    const struct check_l1 *l1 = walk->l1;
    uint64_t entry = walk->entries[i], offset = entry & L1_OFFSET;
    unsigned faults = qcheck_l1_faults(c, entry), others = faults & ~FAULT_PAST_END;
    struct tally *tally = opaque;
    bool inside;

    tally->n_used++;
    tally->n_odd += faults != 0;
    if (others)
        qcheck_impossible(c, l1->weight * (uint64_t)__builtin_popcount(others),
                          "L1 entry %" PRIu32 " (0x%" PRIx64 "): %s", walk->first + i,
                          entry, entry_fault_text(others));
    int err =
        qcheck_add_range(c, offset, c->in.cluster_size, l1->weight, "L2 table", &inside);
    if (!err && !(faults & (FAULT_MISALIGNED | FAULT_PAST_END))) {
        uint64_t cluster = offset >> c->in.h.cluster_bits;
        bit_set(c->pass.is_table, cluster);
        err = l2_tables_add(&c->pass.tables, cluster, walk->first + i, l1->weight,
                            l1->active);
        if (err)
            return diag_errno(c->in.diag, ENOMEM, "%s: counting references",
                              c->in.st->name);
        /* Other metadata lies there, so this can't be an L2 table even if the refcounts allow
         * it. */
        if (bit_test(c->pass.meta, cluster)) {
            c->pass.impossible += bit_test(c->pass.fixed, cluster);
            bit_set(c->pass.contested, cluster);
            c->pass.n_contested++;
        }
    }
    if (l1->active)
        check_copied(c, walk->first + i, entry);
    return err;
}

/* *something: is any byte behind the table in its last cluster not zero? */
static int look_behind(struct check *c, const struct check_l1 *l1, bool *something)
{
    uint64_t end = l1->offset + l1->n * 8ull,
             bytes = align_up(end, c->in.cluster_size) - end;
    CLEANUP_FREE uint8_t *rest = malloc(c->in.cluster_size);

    *something = false;
    if (!rest)
        return diag_errno(c->in.diag, ENOMEM, "%s: L1 table", c->in.st->name);
    if (storage_read(c->in.st, rest, end, bytes)) {
        check_message(c->in.options,
                      "what follows the L1 table at offset %" PRIu64 " can't be read",
                      l1->offset);
        c->pass.found.check_errors++;
        return 0;
    }
    *something = !bytes_are_zero(rest, bytes);
    return 0;
}

/* *bad: is this most likely not an L1 table?  That is so if most entries are impossible; and for a
 * snapshot's table also if it is empty but other bytes follow it, because guest data often
 * begins with zeroes. */
static int is_bad(struct check *c, const struct check_l1 *l1, const struct tally *tally,
                  bool *bad)
{
    *bad = tally->n_odd > tally->n_used / 2;
    return tally->n_used == 0 && !l1->active ? look_behind(c, l1, bad) : 0;
}

int qcheck_l1_tables(struct check *c)
{
    for (uint32_t i = 0; i < c->pass.n_l1s; i++) {
        const struct check_l1 *l1 = &c->pass.l1s[i];
        struct tally tally = {0};
        bool bad = false;
        int err = qcheck_walk_l1(c, l1, count_entry, &tally);
        if (!err)
            err = is_bad(c, l1, &tally, &bad);
        if (err)
            return err;
        if (bad)
            qcheck_mark(c, c->pass.bad, l1->offset, l1->n * 8ull);
    }
    l2_tables_sort(&c->pass.tables);
    return 0;
}
