/* SPDX-License-Identifier: BSD-3-Clause */
/* What must hold in a qcow2 file, read by the book. */
#include <endian.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "structure.h"

#define OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define COPIED      (UINT64_C(1) << 63)
#define COMPRESSED  (UINT64_C(1) << 62)
#define EXTENDED_L2 (UINT64_C(1) << 4)

struct walk {
    struct storage *st;
    struct structure *out;
    uint64_t file_size, cluster, n_clusters;
    unsigned order, cluster_bits;
    bool extended;     /* L2 entries have two words */
    uint64_t *counted; /* by the refcount blocks; clusters past the end aren't looked at */
    uint64_t *found;   /* references */
    uint64_t *packed;  /* those of compressed clusters, which may share theirs */
};

static void complain(struct walk *w, unsigned *counter, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void complain(struct walk *w, unsigned *counter, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (w->out->corruptions + w->out->refcount_errors == 0)
        vsnprintf(w->out->first, sizeof w->out->first, fmt, ap);
    va_end(ap);
    ++*counter;
}

static void *read_bytes(struct walk *w, uint64_t off, uint64_t len)
{
    void *buf = calloc(1, len + 8);

    if (!buf || storage_read(w->st, buf, off, len))
        abort();
    return buf;
}

static uint64_t u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

static uint32_t u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return be32toh(v);
}

/* Counts a reference to [off, off+len); false when it can't be one. */
static bool refer(struct walk *w, const char *what, uint64_t index, uint64_t off,
                  uint64_t len)
{
    if (off % w->cluster != 0) {
        complain(w, &w->out->corruptions, "%s %" PRIu64 ": 0x%" PRIx64 " isn't aligned",
                 what, index, off);
        return false;
    }
    /* The last cluster of the file may be cut short. */
    if (off >= w->file_size || len > w->file_size - off + w->cluster - 1) {
        complain(w, &w->out->corruptions, "%s %" PRIu64 ": 0x%" PRIx64 " is past the end",
                 what, index, off);
        return false;
    }
    for (uint64_t c = off / w->cluster; c * w->cluster < off + len && c < w->n_clusters;
         c++)
        w->found[c]++;
    return true;
}

static uint64_t get_entry(const uint8_t *block, unsigned order, uint64_t index)
{
    uint64_t bit = index << order, value = 0;

    if (order < 3)
        return (uint64_t)(block[bit / 8] >> (bit % 8)) & ((1u << (1u << order)) - 1);
    for (unsigned i = 0; i < (1u << order) / 8; i++)
        value = value << 8 | block[bit / 8 + i];
    return value;
}

static void read_refcounts(struct walk *w, uint64_t table_off, uint64_t table_clusters)
{
    uint64_t entries = table_clusters * w->cluster / 8,
             per_block = w->cluster * 8 >> w->order;
    uint8_t *table = read_bytes(w, table_off, entries * 8);

    refer(w, "refcount table", 0, table_off, entries * 8);
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t off = u64(table + i * 8);
        if (off == 0 || !refer(w, "refcount block", i, off, w->cluster))
            continue;
        uint8_t *block = read_bytes(w, off, w->cluster);
        for (uint64_t c = 0; c < per_block && i * per_block + c < w->n_clusters; c++)
            w->counted[i * per_block + c] = get_entry(block, w->order, c);
        free(block);
    }
    free(table);
}

static void check_copied(struct walk *w, const char *what, uint64_t entry)
{
    uint64_t c = (entry & OFFSET_MASK) / w->cluster;

    if (c < w->n_clusters && (w->counted[c] == 1) != !!(entry & COPIED))
        complain(w, &w->out->refcount_errors,
                 "%s entry 0x%" PRIx64 " and a refcount of %" PRIu64, what, entry,
                 w->counted[c]);
}

/* The last sectors of a compressed cluster may lie behind the file's end. */
static void walk_compressed(struct walk *w, uint64_t entry)
{
    unsigned shift = 62 - (w->cluster_bits - 8);
    uint64_t host = entry & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = (entry >> shift) & ((UINT64_C(1) << (w->cluster_bits - 8)) - 1);
    uint64_t end = (host / 512 + sectors + 1) * 512;

    if (entry & COPIED)
        complain(w, &w->out->corruptions, "a compressed cluster with the copied flag");
    if (host < w->cluster || host >= w->file_size) {
        complain(w, &w->out->corruptions, "a compressed cluster at 0x%" PRIx64, host);
        return;
    }
    for (uint64_t c = host / w->cluster; c * w->cluster < end && c < w->n_clusters; c++) {
        w->found[c]++;
        w->packed[c]++;
    }
}

static void check_subclusters(struct walk *w, uint64_t entry, uint64_t bitmap)
{
    uint32_t allocated = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);

    bool odd = entry & COMPRESSED ? bitmap != 0
                                  : (entry & 1) || (allocated & zero) ||
                                        (allocated && !(entry & OFFSET_MASK));

    if (odd)
        complain(w, &w->out->corruptions,
                 "subclusters 0x%" PRIx64 " of the entry 0x%" PRIx64, bitmap, entry);
}

static void walk_l2(struct walk *w, uint64_t off, bool active)
{
    uint8_t *table = read_bytes(w, off, w->cluster);
    uint64_t bytes = w->extended ? 16 : 8;

    for (uint64_t i = 0; i < w->cluster / bytes; i++) {
        uint64_t entry = u64(table + i * bytes), host = entry & OFFSET_MASK;
        if (w->extended)
            check_subclusters(w, entry, u64(table + i * bytes + 8));
        if (entry & COMPRESSED) {
            walk_compressed(w, entry);
            continue;
        }
        if (entry & UINT64_C(0x3f000000000001fe))
            complain(w, &w->out->corruptions, "reserved bits: 0x%" PRIx64, entry);
        if (host == 0)
            continue;
        if (refer(w, "L2 entry", i, host, w->cluster) && active)
            check_copied(w, "L2", entry);
    }
    free(table);
}

static void walk_l1(struct walk *w, uint64_t off, uint64_t n, bool active)
{
    uint8_t *table = read_bytes(w, off, n * 8);

    if (n)
        refer(w, "L1 table", 0, off, n * 8);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t entry = u64(table + i * 8);
        if ((entry & OFFSET_MASK) == 0)
            continue;
        if (!refer(w, "L1 entry", i, entry & OFFSET_MASK, w->cluster))
            continue;
        if (active)
            check_copied(w, "L1", entry);
        walk_l2(w, entry & OFFSET_MASK, active);
    }
    free(table);
}

/* The first snapshot's L1 table and the length of its entry in the snapshot table. */
static uint64_t snapshot_entry(const uint8_t *e, uint64_t *l1, uint64_t *l1_size)
{
    uint64_t id = (uint64_t)e[12] << 8 | e[13], name = (uint64_t)e[14] << 8 | e[15];

    *l1 = u64(e);
    *l1_size = u32(e + 8);
    return (40 + u32(e + 36) + id + name + 7) / 8 * 8;
}

static void walk_snapshots(struct walk *w, uint64_t off, uint32_t n)
{
    uint8_t *table = read_bytes(w, off, 65536);
    uint64_t at = 0, l1, l1_size;

    for (uint32_t i = 0; i < n; i++) {
        at += snapshot_entry(table + at, &l1, &l1_size);
        walk_l1(w, l1, l1_size, false);
    }
    refer(w, "snapshot table", 0, off, at);
    free(table);
}

static void compare_counts(struct walk *w)
{
    for (uint64_t c = 0; c < w->n_clusters; c++) {
        if (w->found[c] > w->counted[c])
            complain(w, &w->out->refcount_errors,
                     "cluster 0x%" PRIx64 ": refcount %" PRIu64 ", references %" PRIu64,
                     c * w->cluster, w->counted[c], w->found[c]);
        else if (w->found[c] < w->counted[c])
            w->out->leaks++;
    }
}

/* Without snapshots two references are never right, whatever is counted, but for those of
 * compressed clusters. */
static void find_shared(struct walk *w)
{
    for (uint64_t c = 0; c < w->n_clusters; c++)
        if (w->found[c] > 1 && w->found[c] != w->packed[c])
            complain(w, &w->out->corruptions,
                     "cluster 0x%" PRIx64 " has %" PRIu64 " references", c * w->cluster,
                     w->found[c]);
}

static void walk_open(struct walk *w, struct storage *st, struct structure *out,
                      const uint8_t *header)
{
    *w = (struct walk){.st = st, .out = out, .order = 4};
    if (storage_size(st, &w->file_size))
        abort();
    w->cluster_bits = u32(header + 20);
    w->cluster = UINT64_C(1) << w->cluster_bits;
    if (u32(header + 4) >= 3) {
        w->order = u32(header + 96);
        w->extended = u64(header + 72) & EXTENDED_L2;
    }
    w->n_clusters = (w->file_size + w->cluster - 1) / w->cluster;
}

void structure_check_qcow2(struct storage *st, struct structure *out)
{
    uint8_t header[112];
    struct walk w;

    *out = (struct structure){0};
    if (storage_read(st, header, 0, sizeof header))
        abort();
    if (u32(header) != 0x514649fb) {
        out->corruptions++;
        snprintf(out->first, sizeof out->first, "no header");
        return;
    }
    walk_open(&w, st, out, header);
    uint32_t n_snapshots = u32(header + 60);
    out->marked = u32(header + 4) >= 3 && (u64(header + 72) & 1);
    w.counted = calloc(w.n_clusters + 1, sizeof *w.counted);
    w.found = calloc(w.n_clusters + 1, sizeof *w.found);
    w.packed = calloc(w.n_clusters + 1, sizeof *w.packed);
    if (!w.counted || !w.found || !w.packed)
        abort();
    refer(&w, "header", 0, 0, w.cluster);
    read_refcounts(&w, u64(header + 48), u32(header + 56));
    walk_l1(&w, u64(header + 40), u32(header + 36), true);
    if (n_snapshots)
        walk_snapshots(&w, u64(header + 64), n_snapshots);
    else
        find_shared(&w);
    compare_counts(&w);
    free(w.counted);
    free(w.found);
    free(w.packed);
}

int structure_read_snapshot(struct storage *st, void *buf, uint64_t off, uint64_t len,
                            bool *found)
{
    uint8_t header[112], entry[65], word[8];
    uint64_t l1, l1_size, cluster;

    *found = false;
    if (storage_read(st, header, 0, sizeof header) || u32(header + 60) == 0 ||
        storage_read(st, entry, u64(header + 64), sizeof entry))
        return -1;
    snapshot_entry(entry, &l1, &l1_size);
    cluster = UINT64_C(1) << u32(header + 20);
    uint64_t index = off / cluster, per_table = cluster / 8;
    if (index / per_table >= l1_size ||
        storage_read(st, word, l1 + index / per_table * 8, 8))
        return -1;
    uint64_t l2 = u64(word) & OFFSET_MASK;
    if (l2 == 0)
        return 0;
    if (storage_read(st, word, l2 + index % per_table * 8, 8))
        return -1;
    uint64_t host = u64(word) & OFFSET_MASK;
    if (u64(word) & 1) {
        memset(buf, 0, len);
        *found = true;
        return 0;
    }
    if (host == 0)
        return 0;
    *found = true;
    return storage_read(st, buf, host + off % cluster, len) ? -1 : 0;
}
