/* SPDX-License-Identifier: BSD-3-Clause */
/* L2 tables: each is read once, and the clusters to which its entries point are counted. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"

/* Adjacent tables are read together, up to READ_BYTES; tables are prefetched AHEAD_BYTES ahead. */
#define READ_BYTES  (2u << 20)
#define AHEAD_BYTES (1u << 20)

/* The table that is being checked. */
struct table {
    struct check *c;
    uint64_t cluster;
    uint64_t weight, active; /* how many L1 entries point here; how many of the disk's */
    const struct l2_table *listed;
    uint64_t next; /* a data cluster here isn't a fragment; 0: it is none anywhere */
    uint64_t n_used, n_odd; /* entries that aren't zero; those that are impossible */
};

bool qcheck_table_of(const struct check *c, uint64_t l1_entry, uint64_t *cluster)
{
    *cluster = (l1_entry & L1_OFFSET) >> c->in.h.cluster_bits;
    return !(qcheck_l1_faults(c, l1_entry) & (FAULT_MISALIGNED | FAULT_PAST_END));
}

static void to_host_order(uint64_t *words, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        words[i] = be64toh(words[i]);
}

static int read_tables(struct check *c, uint64_t offset, uint64_t bytes, uint64_t *words)
{
    int err = storage_read(c->in.st, words, offset, bytes);

    if (err) {
        check_message(c->in.options, "L2 table at offset %" PRIu64 " can't be read",
                      offset);
        c->pass.found.check_errors++;
        return err;
    }
    to_host_order(words, bytes / 8);
    return 0;
}

int qcheck_read_table(struct check *c, uint64_t offset, uint64_t *table)
{
    return read_tables(c, offset, c->in.cluster_size, table);
}

/* Notes data clusters that metadata claims, too. */
static void note_contested(struct table *t, uint64_t first, uint64_t n)
{
    struct check *c = t->c;

    if (!bits_any(c->pass.meta, first, n) && !bits_any(c->pass.is_table, first, n))
        return;
    for (uint64_t i = first; i < first + n; i++) {
        if (!bit_test(c->pass.meta, i) && !bit_test(c->pass.is_table, i))
            continue;
        check_message(c->in.options,
                      "L2 table at offset %" PRIu64
                      ": an entry's cluster, at offset %" PRIu64 ", holds metadata",
                      t->cluster << c->in.h.cluster_bits, i << c->in.h.cluster_bits);
        bit_set(c->pass.contested, i);
        c->pass.n_contested++;
        c->pass.impossible++;
    }
}

static void count_fragments(struct table *t, uint64_t offset, uint64_t n)
{
    struct check_result *found = &t->c->pass.found;

    found->allocated_clusters += t->active * n;
    if (t->next && offset != t->next)
        found->fragmented_clusters += t->active;
    t->next = offset + n * t->c->in.cluster_size;
}

static void report_copied(struct table *t, uint64_t entry, uint64_t count)
{
    qcheck_wrong_flag(t->c, t->active,
                      "ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64
                      " refcount=%" PRIu64,
                      entry, count);
}

/* Compares the copied flag of entries for n contiguous clusters with the refcounts in the file. */
static void check_copied(struct table *t, uint64_t entry, uint64_t first, uint64_t n)
{
    struct check *c = t->c;
    bool copied = entry & L2_COPIED;
    const uint8_t *disk = c->pass.disk + first;
    uint64_t wrong = 0;

    if (!c->pass.rt_unknown) {
        for (uint64_t i = 0; i < n; i++)
            wrong += (disk[i] == 1) != copied;
        if (wrong == 0)
            return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count;
        if (qcheck_disk_count(c, first + i, &count) && (count == 1) != copied)
            report_copied(t, entry + (i << c->in.h.cluster_bits), count);
    }
}

static int count_run(struct table *t, uint64_t entry, uint64_t n)
{
    struct check *c = t->c;
    uint64_t first = (entry & L2_OFFSET) >> c->in.h.cluster_bits, lost = 0;

    if (counts_add(&c->pass.refs, first, n, t->weight, c->in.max_count, &lost))
        return diag_errno(c->in.diag, ENOMEM, "%s: counting references", c->in.st->name);
    if (lost)
        qcheck_corrupt(
            c, lost, "cluster %" PRIu64 " and on: more references than a refcount can say",
            first);
    note_contested(t, first, n);
    if (t->active) {
        count_fragments(t, entry & L2_OFFSET, n);
        check_copied(t, entry, first, n);
    }
    return 0;
}

static int count_compressed(struct table *t, const struct cluster *cluster)
{
    struct check *c = t->c;
    uint64_t offset = cluster->host, bytes = cluster->compressed_bytes;
    bool inside;

    int err = qcheck_add_range(c, offset, bytes, t->weight, "compressed cluster", &inside);
    if (err)
        return err;
    if (inside) {
        uint64_t first = offset >> c->in.h.cluster_bits;
        note_contested(t, first,
                       ((offset + bytes - 1) >> c->in.h.cluster_bits) - first + 1);
    }
    c->pass.found.allocated_clusters += t->active;
    c->pass.found.compressed_clusters += t->active;
    /* Compressed clusters always count as fragments, as in QEMU. */
    c->pass.found.fragmented_clusters += t->active;
    return 0;
}

/* Handles a cluster in the external data file, which has no refcounts, and where no two entries
 * share a cluster. */
static void count_external(struct table *t, uint64_t entry, const struct cluster *cluster)
{
    /* QEMU considers a zero cluster at offset 0 to have no place. */
    if (!t->active || (cluster->kind == CL_ZERO_ALLOCATED && cluster->host == 0))
        return;
    count_fragments(t, cluster->host, 1);
    if (!cluster->copied)
        report_copied(t, entry, 1);
}

/* Counts the place in an impossible entry of a cluster that isn't compressed. */
static int count_odd_place(struct table *t, uint64_t entry, const struct cluster *cluster)
{
    struct check *c = t->c;
    uint64_t offset = cluster->host, count;
    bool inside;

    int err =
        qcheck_add_range(c, offset, c->in.cluster_size, t->weight, "data cluster", &inside);
    if (err)
        return err;
    if (inside)
        note_contested(t, offset >> c->in.h.cluster_bits,
                       is_aligned(offset, c->in.cluster_size) ? 1 : 2);
    if (!t->active)
        return 0;
    count_fragments(t, offset, 1);
    if (qcheck_disk_count(c, offset >> c->in.h.cluster_bits, &count) &&
        (count == 1) != cluster->copied)
        report_copied(t, entry, count);
    return 0;
}

/* Reports an impossible entry, and counts its place as far as that is possible. */
static int count_odd(struct table *t, struct l2_words words, const struct cluster *cluster,
                     unsigned faults)
{
    struct check *c = t->c;
    unsigned others = faults & ~FAULT_PAST_END;
    char text[WORDS_TEXT];

    t->n_odd++;
    if (others)
        qcheck_impossible(c, t->weight * (uint64_t)__builtin_popcount(others),
                          "L2 table at offset %" PRIu64 ": entry %s: %s",
                          t->cluster << c->in.h.cluster_bits,
                          qcheck_words_text(c, words, text), entry_fault_text(others));
    /* QEMU doesn't count the place of a compressed cluster with one of these two faults. */
    if (cluster->kind == CL_COMPRESSED)
        return faults & (FAULT_SUBCLUSTERS | FAULT_COMPRESSED_EXTERNAL)
                   ? 0
                   : count_compressed(t, cluster);
    if (!cluster_has_place(cluster))
        return 0;
    if (!c->in.geo.external)
        return count_odd_place(t, words.entry, cluster);
    count_external(t, words.entry, cluster);
    return 0;
}

/* How many entries from the first on point to contiguous clusters and have the same flags. */
static uint64_t run_length(const struct check *c, const uint64_t *entries, uint64_t max)
{
    uint64_t n = 1, next = entries[0] + c->in.cluster_size;

    while (n < max && entries[n] == next) {
        next += c->in.cluster_size;
        n++;
    }
    return n;
}

/* Counts the entry at `at`, which isn't zero, together with entries after it that continue it, at
 * most `max` in all.  *n: how many; it is 1 on entry. */
static int count_entries(struct table *t, const uint64_t *at, uint64_t guest, uint64_t max,
                         uint64_t *n)
{
    struct check *c = t->c;
    struct l2_words words = qcheck_words(c, at);
    struct cluster cluster;
    unsigned faults = qcheck_decode_at(c, words, guest, &cluster);

    if (UNLIKELY(faults))
        return count_odd(t, words, &cluster, faults);
    if (cluster.kind == CL_COMPRESSED)
        return count_compressed(t, &cluster);
    if (!cluster_has_place(&cluster))
        return 0;
    if (UNLIKELY(c->in.geo.external)) {
        count_external(t, words.entry, &cluster);
        return 0;
    }
    /* Extended entries are handled one by one, as their bitmaps must be checked, too. */
    if (c->in.geo.word_bits == 0) {
        uint64_t inside = c->in.n_clusters - (cluster.host >> c->in.h.cluster_bits);
        *n = run_length(c, at, MIN(max, inside));
    }
    return count_run(t, words.entry, *n);
}

static int count_table(struct table *t, const uint64_t *words)
{
    struct check *c = t->c;
    uint64_t step = qcheck_step(c), n_words = c->in.cluster_size / 8, n;

    for (uint64_t i = 0; i < n_words; i += n * step) {
        n = 1;
        if (words[i] == 0 && (step == 1 || words[i + 1] == 0))
            continue;
        uint64_t guest = qcheck_guest(c, t->listed, i / step);
        int err = count_entries(t, words + i, guest, (n_words - i) / step, &n);
        if (err)
            return err;
        t->n_used += n;
    }
    if (t->n_odd > t->n_used / 2)
        bit_set(c->pass.bad, t->cluster);
    return 0;
}

/* ---- all tables, sorted by offset ---- */

/* How many tables from the first on are contiguous. */
static size_t tables_in_row(const struct l2_table *list, size_t max)
{
    size_t n = 1;

    while (n < max && list[n].cluster == list[0].cluster + n)
        n++;
    return n;
}

static void read_ahead(struct check *c, size_t index)
{
    size_t ahead = index + MAX(1, AHEAD_BYTES >> c->in.h.cluster_bits);

    /* Smaller tables share pages of the page cache, which were read for their neighbours. */
    if (c->in.cluster_size >= 4096 && ahead < c->pass.tables.n)
        storage_prefetch(
            c->in.st, (uint64_t)c->pass.tables.list[ahead].cluster << c->in.h.cluster_bits,
            c->in.cluster_size);
}

static int count_row(struct check *c, const struct l2_table *list, size_t n,
                     uint64_t *buffer)
{
    int err = read_tables(c, (uint64_t)list[0].cluster << c->in.h.cluster_bits,
                          (uint64_t)n << c->in.h.cluster_bits, buffer);
    if (err)
        return 0; /* counted */
    for (size_t i = 0; !err && i < n; i++) {
        struct table t = {
            .c = c,
            .cluster = list[i].cluster,
            .weight = list[i].weight,
            .active = list[i].active,
            .listed = &list[i],
        };
        err = count_table(&t, buffer + i * (c->in.cluster_size / 8));
    }
    return err;
}

int qcheck_l2_tables(struct check *c)
{
    const struct l2_tables *tables = &c->pass.tables;
    uint64_t bytes = MAX(READ_BYTES, c->in.cluster_size), before = c->pass.done;
    uint64_t left = c->pass.total > before ? c->pass.total - before : 0;
    CLEANUP_FREE uint64_t *buffer = malloc(bytes);
    size_t n, capacity = bytes >> c->in.h.cluster_bits;

    if (!buffer)
        return diag_errno(c->in.diag, ENOMEM, "%s: L2 tables", c->in.st->name);
    for (size_t i = 0; i < tables->n; i += n) {
        n = tables_in_row(tables->list + i, MIN(tables->n - i, capacity));
        read_ahead(c, i);
        int err = count_row(c, tables->list + i, n, buffer);
        if (err)
            return err;
        qcheck_progress(c, before + left * (i + n) / tables->n - c->pass.done);
    }
    return 0;
}
