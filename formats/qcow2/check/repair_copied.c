/* SPDX-License-Identifier: BSD-3-Clause */
/* Corrects the copied flags of the disk's tables: an entry has the flag if and only if the refcount
 * of its cluster is 1.  The refcounts are right by now. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/check/check.h"

_Static_assert(L1_COPIED == L2_COPIED, "one function for both");

static uint64_t references(const struct check *c, uint64_t offset)
{
    return counts_get(&c->pass.refs, offset >> c->in.h.cluster_bits);
}

static uint64_t mend_flag(const struct check *c, uint64_t entry, uint64_t offset)
{
    return references(c, offset) == 1 ? entry | L2_COPIED : entry & ~L2_COPIED;
}

/* Returns the first word of an L2 entry with the right flag.  A cluster in an external data file
 * always has it, as there is no second reference. */
static uint64_t mend_flag_of_data(const struct check *c, struct l2_words words)
{
    struct cluster decoded;

    if (qcheck_decode(c, words, &decoded) || !cluster_has_place(&decoded))
        return words.entry;
    return c->in.geo.external ? words.entry | L2_COPIED
                              : mend_flag(c, words.entry, decoded.host);
}

static void say_data_flag(struct check *c, uint64_t entry)
{
    qcheck_say(
        c, "Repairing OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64,
        entry, c->in.geo.external ? 1 : references(c, entry & L2_OFFSET));
    c->repair.flags++;
}

static int mend_table(struct check *c, uint64_t cluster, uint64_t *table)
{
    uint64_t offset = cluster << c->in.h.cluster_bits;
    bool changed = false;

    if (qcheck_read_table(c, offset, table))
        return 0; /* counted */
    for (uint64_t i = 0; i < c->in.cluster_size / 8; i += qcheck_step(c)) {
        uint64_t entry = mend_flag_of_data(c, qcheck_words(c, table + i));
        if (entry == table[i])
            continue;
        say_data_flag(c, table[i]);
        table[i] = entry;
        changed = true;
    }
    return changed ? qrepair_write_table(c, table, offset) : 0;
}

struct tables {
    uint64_t *buffer;
    uint8_t *done; /* bitmap of clusters */
};

static int visit_l1(struct l1_walk *walk, uint32_t i, void *opaque)
{
    struct check *c = walk->c;
    struct tables *tables = opaque;
    uint64_t entry = walk->entries[i], cluster;

    if (!qcheck_table_of(c, entry, &cluster))
        return 0;
    uint64_t mended = mend_flag(c, entry, entry & L1_OFFSET);
    if (mended != entry) {
        qcheck_say(c,
                   "Repairing OFLAG_COPIED L2 cluster: l1_index=%" PRIu32
                   " l1_entry=%" PRIx64 " refcount=%" PRIu64,
                   walk->first + i, entry, references(c, entry & L1_OFFSET));
        c->repair.flags++;
        walk->entries[i] = mended;
        walk->changed = true;
    }
    /* Nothing is written to a table whose cluster something else claims, too. */
    if (bit_test(tables->done, cluster) || bit_test(c->pass.meta, cluster) ||
        bit_test(c->pass.contested, cluster))
        return 0;
    bit_set(tables->done, cluster);
    return mend_table(c, cluster, tables->buffer);
}

int qrepair_copied(struct check *c)
{
    CLEANUP_FREE uint64_t *buffer = malloc(c->in.cluster_size);
    CLEANUP_FREE uint8_t *done = calloc(c->in.n_clusters / 8 + 1, 1);
    struct tables tables = {.buffer = buffer, .done = done};

    if (!buffer || !done)
        return diag_errno(c->in.diag, ENOMEM, "%s: repairing", c->in.st->name);
    /* The disk's table is the first. */
    return qcheck_walk_l1(c, &c->pass.l1s[0], visit_l1, &tables);
}
