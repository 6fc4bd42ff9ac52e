/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the metadata of a qcow2 file, after the specification alone: walks all tables, counts
 * the references to each cluster and compares them with the refcounts. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "structure.h"
#include "structure_book.h"

#define BITMAPS_EXTENSION 0x23852875u
#define LUKS_EXTENSION    0x0537be77u

struct walk {
    struct storage *st;
    struct structure *out;
    uint64_t file_size, cluster, n_clusters;
    unsigned order;
    bool external;     /* guest data is in an external data file */
    unsigned words;    /* 64-bit words of an L2 entry: 1, or 2 with extended entries */
    uint64_t *counted; /* the refcount of each cluster up to the end of the file */
    uint64_t *found;   /* references found, for each cluster */
    uint64_t *packed;  /* those of them that are from compressed clusters */
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

/* Counts a reference to [off, off+len); false when the reference is invalid. */
static bool refer(struct walk *w, const char *what, uint64_t index, uint64_t off,
                  uint64_t len)
{
    if (off % w->cluster != 0) {
        complain(w, &w->out->corruptions, "%s %" PRIu64 ": 0x%" PRIx64 " isn't aligned",
                 what, index, off);
        return false;
    }
    /* The file may end within its last cluster. */
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

static void walk_packed(struct walk *w, uint64_t entry)
{
    uint64_t end, host = packed_place(w->cluster, entry, &end);

    if (entry & COPIED)
        complain(w, &w->out->corruptions, "compressed and copied: 0x%" PRIx64, entry);
    if (w->external || host == 0 || host >= w->file_size) {
        complain(w, &w->out->corruptions, "compressed entry 0x%" PRIx64 ": no such place",
                 entry);
        return;
    }
    for (uint64_t c = host / w->cluster; c * w->cluster < end && c < w->n_clusters; c++) {
        w->found[c]++;
        w->packed[c]++;
    }
}

/* The second word of an extended entry is a bitmap: 32 allocated bits and 32 zero bits. */
static void check_subclusters(struct walk *w, uint64_t entry, uint64_t bitmap, bool placed)
{
    uint32_t allocated = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);

    if ((allocated & zero) || ((entry & COMPRESSED) && bitmap) || (allocated && !placed))
        complain(w, &w->out->corruptions, "entry 0x%" PRIx64 ": subclusters 0x%" PRIx64,
                 entry, bitmap);
    if (!(entry & COMPRESSED) && (entry & 1))
        complain(w, &w->out->corruptions, "the zero bit of an extended entry: 0x%" PRIx64,
                 entry);
}

/* A cluster in the data file must have the guest's offset, and COPIED set. */
static void check_external(struct walk *w, uint64_t guest, uint64_t entry)
{
    if ((entry & OFFSET_MASK) != guest || !(entry & COPIED))
        complain(w, &w->out->corruptions, "data of 0x%" PRIx64 " by entry 0x%" PRIx64,
                 guest, entry);
}

static void walk_entry(struct walk *w, uint64_t i, uint64_t guest, const uint8_t *at,
                       bool active)
{
    uint64_t entry = u64(at), host = entry & OFFSET_MASK;
    bool placed = host != 0 || (w->external && (entry & COPIED));

    if (w->words > 1)
        check_subclusters(w, entry, u64(at + 8), placed);
    if (entry & COMPRESSED) {
        walk_packed(w, entry);
        return;
    }
    if (entry & UINT64_C(0x3f000000000001fe))
        complain(w, &w->out->corruptions, "reserved bits: 0x%" PRIx64, entry);
    if (!placed)
        return;
    if (w->external)
        check_external(w, guest, entry);
    else if (refer(w, "L2 entry", i, host, w->cluster) && active)
        check_copied(w, "L2", entry);
}

static void walk_l2(struct walk *w, uint64_t off, uint64_t l1_index, bool active)
{
    uint8_t *table = read_bytes(w, off, w->cluster);
    uint64_t n = w->cluster / 8 / w->words;

    for (uint64_t i = 0; i < n; i++)
        walk_entry(w, i, (l1_index * n + i) * w->cluster, table + i * w->words * 8, active);
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
        walk_l2(w, entry & OFFSET_MASK, i, active);
    }
    free(table);
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

/* For images without snapshots: a cluster with two references is corrupt whatever its refcount,
 * except that several compressed clusters may share a host cluster. */
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
    *w = (struct walk){.st = st, .out = out, .order = 4, .words = 1};
    if (storage_size(st, &w->file_size))
        abort();
    w->cluster = UINT64_C(1) << u32(header + 20);
    if (u32(header + 4) >= 3) {
        w->order = u32(header + 96);
        w->external = u64(header + 72) & DATA_FILE;
        w->words = u64(header + 72) & EXTENDED ? 2 : 1;
    }
    w->n_clusters = (w->file_size + w->cluster - 1) / w->cluster;
}

static void walk_bitmap_table(struct walk *w, uint64_t off, uint32_t n)
{
    uint8_t *table = read_bytes(w, off, n * UINT64_C(8));

    refer(w, "bitmap table", 0, off, n * UINT64_C(8));
    for (uint32_t i = 0; i < n; i++) {
        uint64_t entry = u64(table + i * 8);
        if (entry & UINT64_C(0xff000000000001fe))
            complain(w, &w->out->corruptions, "reserved bits: 0x%" PRIx64, entry);
        if (entry & OFFSET_MASK)
            refer(w, "bitmap table entry", i, entry & OFFSET_MASK, w->cluster);
    }
    free(table);
}

static void walk_bitmaps(struct walk *w, const uint8_t *extension)
{
    uint32_t n = u32(extension);
    uint64_t bytes = u64(extension + 8), at = 0;
    uint8_t *directory = read_bytes(w, u64(extension + 16), bytes);

    refer(w, "bitmap directory", 0, u64(extension + 16), bytes);
    for (uint32_t i = 0; i < n && at + 24 <= bytes; i++) {
        const uint8_t *entry = directory + at;
        walk_bitmap_table(w, u64(entry), u32(entry + 8));
        at += (24 + u32(entry + 20) + (u32(entry + 16) & 0xffff) + 7) / 8 * 8;
    }
    if (n == 0 || at != bytes)
        complain(w, &w->out->corruptions, "%" PRIu32 " bitmaps take 0x%" PRIx64 " bytes", n,
                 at);
    free(directory);
}

/* Clusters that header extensions refer to: the LUKS header, and bitmaps if their autoclear bit
 * is set. */
static void walk_extensions(struct walk *w, const uint8_t *header)
{
    bool bitmaps = u32(header + 4) >= 3 && (u64(header + 88) & 1);
    uint64_t at = u32(header + 4) >= 3 ? u32(header + 100) : 72;
    uint8_t *all = read_bytes(w, 0, w->cluster);

    for (; at + 24 <= w->cluster && u32(all + at) != 0;
         at += 8 + (u32(all + at + 4) + 7) / 8 * 8)
        if (u32(all + at) == LUKS_EXTENSION)
            refer(w, "LUKS header", 0, u64(all + at + 8), u64(all + at + 16));
        else if (u32(all + at) == BITMAPS_EXTENSION && bitmaps)
            walk_bitmaps(w, all + at + 8);
    free(all);
}

static void walk_close(struct walk *w)
{
    free(w->counted);
    free(w->found);
    free(w->packed);
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
    walk_extensions(&w, header);
    read_refcounts(&w, u64(header + 48), u32(header + 56));
    walk_l1(&w, u64(header + 40), u32(header + 36), true);
    if (n_snapshots)
        walk_snapshots(&w, u64(header + 64), n_snapshots);
    else
        find_shared(&w);
    compare_counts(&w);
    walk_close(&w);
}
