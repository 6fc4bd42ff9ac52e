/* SPDX-License-Identifier: BSD-3-Clause */
/* The refcounts in the file: reading them, judging where they lie, and comparing. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"

/* What qcheck_disk_count keeps of a block. */
#define LOOKUP_BYTES 512

/* ---- the table ---- */

static int load_table(struct check *c)
{
    uint64_t offset = c->h.refcount_table_offset;
    uint64_t bytes = (uint64_t)c->h.refcount_table_clusters << c->h.cluster_bits;

    c->n_rt = 0;
    c->rt_unknown = false;
    if (bytes == 0)
        c->rebuild = true;
    if (bytes > MAX_RT_BYTES || !is_aligned(offset, c->cluster_size) ||
        offset > INT64_MAX / 2) {
        qcheck_corrupt(c, 1,
                       "header: a refcount table of %" PRIu64 " bytes at offset %" PRIu64,
                       bytes, offset);
        c->rebuild = true;
        bytes = 0;
    }
    c->rt = calloc(bytes / 8 + 1, 8);
    if (!c->rt)
        return diag_errno(c->diag, ENOMEM, "%s: refcount table", c->st->name);
    int err = storage_read(c->st, c->rt, offset, bytes);
    if (err)
        return diag_errno(c->diag, -err, "%s: reading the refcount table", c->st->name);
    c->n_rt = bytes / 8;
    for (uint64_t i = 0; i < c->n_rt; i++) {
        c->rt[i] = load_be64(&c->rt[i]);
        c->rt_unknown |= !is_aligned(c->rt[i] & RT_OFFSET, c->cluster_size);
    }
    return 0;
}

uint64_t qcheck_block_offset(const struct check *c, uint64_t index)
{
    uint64_t offset = index < c->n_rt ? c->rt[index] & RT_OFFSET : 0;

    return is_aligned(offset, c->cluster_size) && offset < c->file_size ? offset : 0;
}

/* ---- blocks ---- */

uint64_t qcheck_unpack(uint32_t order, const uint8_t *block, uint64_t index)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return load_be16(block + index * 2);
    case 5:
        return load_be32(block + index * 4);
    case 6:
        return load_be64(block + index * 8);
    default: {
        uint64_t bit = index << order;
        return (uint64_t)block[bit / 8] >> (bit & 7) & ((1ull << (1u << order)) - 1);
    }
    }
}

/* Entries as bytes, what doesn't fit as COUNT_LARGE. */
static void unpack_bytes(uint32_t order, const uint8_t *block, uint64_t n, uint8_t *out)
{
    if (order == 4) { /* what nearly all images have; compilers make this loop fast */
        for (uint64_t i = 0; i < n; i++)
            out[i] = block[2 * i] ? COUNT_LARGE : block[2 * i + 1];
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count = qcheck_unpack(order, block, i);
        out[i] = count < COUNT_LARGE ? (uint8_t)count : COUNT_LARGE;
    }
}

static void load_block(struct check *c, uint64_t index, uint8_t *buffer)
{
    uint32_t bits = qcheck_block_bits(c);
    uint64_t first = index << bits, offset = qcheck_block_offset(c, index);

    if (first > c->n_clusters || offset == 0)
        return;
    uint64_t n = MIN(1ull << bits, c->n_clusters + 1 - first);
    if (storage_read(c->st, buffer, offset, ((n << c->h.refcount_order) + 7) / 8)) {
        check_message(c->options,
                      "refcount block %" PRIu64 " at offset %" PRIu64 " can't be read",
                      index, offset);
        c->found.check_errors++;
        return;
    }
    unpack_bytes(c->h.refcount_order, buffer, n, c->disk + first);
}

int qcheck_load_refcounts(struct check *c)
{
    int err = load_table(c);
    if (err)
        return err;
    CLEANUP_FREE uint8_t *buffer = malloc(c->cluster_size);
    c->block = malloc(LOOKUP_BYTES);
    if (!buffer || !c->block)
        return diag_errno(c->diag, ENOMEM, "%s: refcount blocks", c->st->name);
    for (uint64_t i = 0; i < c->n_rt; i++) {
        uint64_t ahead = qcheck_block_offset(c, i + 8);
        if (ahead && c->cluster_size >= 4096)
            storage_prefetch(c->st, ahead, c->cluster_size);
        load_block(c, i, buffer);
    }
    return 0;
}

bool qcheck_disk_count(struct check *c, uint64_t cluster, uint64_t *count)
{
    uint32_t order = c->h.refcount_order;
    uint64_t index = cluster >> qcheck_block_bits(c);

    *count = 0;
    if (index >= c->n_rt)
        return true;
    if (c->rt_unknown && !is_aligned(c->rt[index] & RT_OFFSET, c->cluster_size))
        return false;
    if (cluster <= c->n_clusters && c->disk[cluster] != COUNT_LARGE) {
        *count = c->disk[cluster];
        return true;
    }
    uint64_t offset = qcheck_block_offset(c, index);
    if (offset == 0)
        return true; /* past the end of the file: zeroes */
    uint64_t in_block = cluster & ((1ull << qcheck_block_bits(c)) - 1);
    uint64_t at = offset + align_down((in_block << order) / 8, LOOKUP_BYTES);
    if (c->block_offset != at) {
        c->block_offset = 0;
        if (storage_read(c->st, c->block, at, LOOKUP_BYTES))
            return false;
        c->block_offset = at;
    }
    *count =
        qcheck_unpack(order, c->block, in_block & ((LOOKUP_BYTES * 8ull >> order) - 1));
    return true;
}

/* ---- references to table and blocks ---- */

static int count_block(struct check *c, uint64_t index)
{
    uint64_t entry = c->rt[index], offset = entry & RT_OFFSET;
    const char *why = NULL;
    bool inside;

    if (entry & RT_RESERVED)
        why = "reserved bits are set";
    else if (!is_aligned(offset, c->cluster_size))
        why = "not cluster aligned";
    else if (offset >> c->h.cluster_bits >= c->n_compare)
        why = "past the end of the file";
    if (!why && offset) {
        /* Afterwards a count that is at its limit would not show it. */
        c->rebuild |= counts_get(&c->refs, offset >> c->h.cluster_bits) != 0;
        int err =
            qcheck_add_range(c, offset, c->cluster_size, 1, "refcount block", &inside);
        if (err)
            return err;
        if (inside && counts_get(&c->refs, offset >> c->h.cluster_bits) != 1)
            why = "other things are in the same cluster";
    }
    if (why) {
        qcheck_corrupt(c, 1, "refcount table entry %" PRIu64 " (0x%" PRIx64 "): %s", index,
                       entry, why);
        c->rebuild = true;
    }
    return 0;
}

/* Other things in the table's clusters, which should have that many references: it can't
 * stay there, whatever the refcounts say. */
static void check_table_place(struct check *c, uint64_t expected)
{
    uint64_t first = c->h.refcount_table_offset >> c->h.cluster_bits;

    for (uint64_t i = first; i < MIN(first + c->h.refcount_table_clusters, c->n_clusters);
         i++) {
        if (counts_get(&c->refs, i) == expected)
            continue;
        c->rebuild = true;
        bit_set(c->contested, i);
        c->n_contested++;
    }
}

int qcheck_count_refcounts(struct check *c)
{
    bool inside = true;

    if (c->n_rt)
        check_table_place(c, 0);
    int err = qcheck_add_range(c, c->n_rt ? c->h.refcount_table_offset : 0, c->n_rt * 8, 1,
                               "refcount table", &inside);
    for (uint64_t i = 0; !err && i < c->n_rt; i++)
        if (c->rt[i])
            err = count_block(c, i);
    if (!inside)
        c->rebuild = true;
    else if (!err && c->n_rt)
        check_table_place(c, 1);
    return err;
}

/* ---- comparing ---- */

static void compare_cluster(struct check *c, uint64_t cluster)
{
    uint64_t count, refs = counts_get(&c->refs, cluster);

    if (!qcheck_disk_count(c, cluster, &count) || count == refs)
        return;
    if (count > refs) {
        c->found.leaks++;
        check_message(c->options,
                      "cluster %" PRIu64 ": leaked: refcount %" PRIu64
                      ", references %" PRIu64,
                      cluster, count, refs);
        return;
    }
    if (qcheck_block_offset(c, cluster >> qcheck_block_bits(c)) == 0)
        c->rebuild = true;
    qcheck_corrupt(c, 1, "cluster %" PRIu64 ": refcount %" PRIu64 ", references %" PRIu64,
                   cluster, count, refs);
}

/* Eight counts at a time: are they the same, and none of them large? */
static bool same_eight(const uint8_t *a, const uint8_t *b)
{
    uint64_t x, y;

    memcpy(&x, a, 8);
    memcpy(&y, b, 8);
    /* A byte of 0xff makes the sum carry out of its upper bit. */
    return x == y && !((((x & 0x7f7f7f7f7f7f7f7full) + 0x0101010101010101ull) & x) &
                       0x8080808080808080ull);
}

static uint64_t end_of_use(struct check *c)
{
    uint64_t n = c->n_compare;

    while (n > 0 && c->refs.bytes[n - 1] == 0 && c->disk[n - 1] == 0)
        n--;
    return n;
}

void qcheck_compare(struct check *c)
{
    uint64_t i = 0;

    for (; i + 8 <= c->n_compare; i += 8) {
        if (LIKELY(same_eight(c->refs.bytes + i, c->disk + i)))
            continue;
        for (unsigned j = 0; j < 8; j++)
            compare_cluster(c, i + j);
    }
    for (; i < c->n_compare; i++)
        compare_cluster(c, i);
    c->found.image_end_offset = MAX(1, end_of_use(c)) * c->cluster_size;
}
