/* SPDX-License-Identifier: BSD-3-Clause */
/* The refcounts in the file: reading them, checking their places, and comparing. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"

/* The part of a block that qcheck_disk_count keeps in its buffer. */
#define LOOKUP_BYTES 512

/* ---- the table ---- */

static int load_table(struct check *c)
{
    uint64_t offset = c->in.h.refcount_table_offset;
    uint64_t bytes = (uint64_t)c->in.h.refcount_table_clusters << c->in.h.cluster_bits;

    c->pass.n_rt = 0;
    c->pass.rt_unknown = false;
    if (bytes == 0)
        c->pass.rebuild = true;
    if (bytes > MAX_RT_BYTES || !is_aligned(offset, c->in.cluster_size) ||
        offset > INT64_MAX / 2) {
        qcheck_corrupt(c, 1,
                       "header: a refcount table of %" PRIu64 " bytes at offset %" PRIu64,
                       bytes, offset);
        c->pass.rebuild = true;
        bytes = 0;
    }
    c->pass.rt = calloc(bytes / 8 + 1, 8);
    if (!c->pass.rt)
        return diag_errno(c->in.diag, ENOMEM, "%s: refcount table", c->in.st->name);
    int err = storage_read(c->in.st, c->pass.rt, offset, bytes);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: reading the refcount table",
                          c->in.st->name);
    c->pass.n_rt = bytes / 8;
    for (uint64_t i = 0; i < c->pass.n_rt; i++) {
        c->pass.rt[i] = load_be64(&c->pass.rt[i]);
        c->pass.rt_unknown |= !is_aligned(c->pass.rt[i] & RT_OFFSET, c->in.cluster_size);
    }
    return 0;
}

uint64_t qcheck_block_offset(const struct check *c, uint64_t index)
{
    uint64_t offset = index < c->pass.n_rt ? c->pass.rt[index] & RT_OFFSET : 0;

    return is_aligned(offset, c->in.cluster_size) && offset < c->in.file_size ? offset : 0;
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

/* Converts entries to bytes; larger values become COUNT_LARGE. */
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

    if (first > c->in.n_clusters || offset == 0)
        return;
    uint64_t n = MIN(1ull << bits, c->in.n_clusters + 1 - first);
    if (storage_read(c->in.st, buffer, offset, ((n << c->in.h.refcount_order) + 7) / 8)) {
        check_message(c->in.options,
                      "refcount block %" PRIu64 " at offset %" PRIu64 " can't be read",
                      index, offset);
        c->pass.found.check_errors++;
        return;
    }
    unpack_bytes(c->in.h.refcount_order, buffer, n, c->pass.disk + first);
}

int qcheck_load_refcounts(struct check *c)
{
    int err = load_table(c);
    if (err)
        return err;
    CLEANUP_FREE uint8_t *buffer = malloc(c->in.cluster_size);
    c->pass.block = malloc(LOOKUP_BYTES);
    if (!buffer || !c->pass.block)
        return diag_errno(c->in.diag, ENOMEM, "%s: refcount blocks", c->in.st->name);
    for (uint64_t i = 0; i < c->pass.n_rt; i++) {
        uint64_t ahead = qcheck_block_offset(c, i + 8);
        if (ahead && c->in.cluster_size >= 4096)
            storage_prefetch(c->in.st, ahead, c->in.cluster_size);
        load_block(c, i, buffer);
    }
    return 0;
}

bool qcheck_disk_count(struct check *c, uint64_t cluster, uint64_t *count)
{
    uint32_t order = c->in.h.refcount_order;
    uint64_t index = cluster >> qcheck_block_bits(c);

    *count = 0;
    if (index >= c->pass.n_rt)
        return true;
    if (c->pass.rt_unknown &&
        !is_aligned(c->pass.rt[index] & RT_OFFSET, c->in.cluster_size))
        return false;
    if (cluster <= c->in.n_clusters && c->pass.disk[cluster] != COUNT_LARGE) {
        *count = c->pass.disk[cluster];
        return true;
    }
    uint64_t offset = qcheck_block_offset(c, index);
    if (offset == 0)
        return true; /* behind the end of the file, which reads as zeroes */
    uint64_t in_block = cluster & ((1ull << qcheck_block_bits(c)) - 1);
    uint64_t at = offset + align_down((in_block << order) / 8, LOOKUP_BYTES);
    if (c->pass.block_offset != at) {
        c->pass.block_offset = 0;
        if (storage_read(c->in.st, c->pass.block, at, LOOKUP_BYTES))
            return false;
        c->pass.block_offset = at;
    }
    *count = qcheck_unpack(order, c->pass.block,
                           in_block & ((LOOKUP_BYTES * 8ull >> order) - 1));
    return true;
}

/* ---- references to table and blocks ---- */

static int count_block(struct check *c, uint64_t index)
{
    uint64_t entry = c->pass.rt[index], offset = entry & RT_OFFSET;
    const char *why = NULL;
    bool inside;

    if (entry & RT_RESERVED)
        why = "reserved bits are set";
    else if (!is_aligned(offset, c->in.cluster_size))
        why = "not cluster aligned";
    else if (offset >> c->in.h.cluster_bits >= c->pass.n_compare)
        why = "past the end of the file";
    if (!why && offset) {
        /* Tested before the reference is counted, because a count at its limit doesn't rise. */
        c->pass.rebuild |= counts_get(&c->pass.refs, offset >> c->in.h.cluster_bits) != 0;
        int err =
            qcheck_add_range(c, offset, c->in.cluster_size, 1, "refcount block", &inside);
        if (err)
            return err;
        if (inside && counts_get(&c->pass.refs, offset >> c->in.h.cluster_bits) != 1)
            why = "other things are in the same cluster";
    }
    if (why) {
        qcheck_corrupt(c, 1, "refcount table entry %" PRIu64 " (0x%" PRIx64 "): %s", index,
                       entry, why);
        c->pass.rebuild = true;
    }
    return 0;
}

/* Checks that nothing else lies in the clusters of the refcount table: each must have `expected`
 * references.  Otherwise the table must be rebuilt elsewhere. */
static void check_table_place(struct check *c, uint64_t expected)
{
    uint64_t first = c->in.h.refcount_table_offset >> c->in.h.cluster_bits;

    for (uint64_t i = first;
         i < MIN(first + c->in.h.refcount_table_clusters, c->in.n_clusters); i++) {
        if (counts_get(&c->pass.refs, i) == expected)
            continue;
        c->pass.rebuild = true;
        bit_set(c->pass.contested, i);
        c->pass.n_contested++;
    }
}

int qcheck_count_refcounts(struct check *c)
{
    bool inside = true;

    if (c->pass.n_rt)
        check_table_place(c, 0);
    int err = qcheck_add_range(c, c->pass.n_rt ? c->in.h.refcount_table_offset : 0,
                               c->pass.n_rt * 8, 1, "refcount table", &inside);
    for (uint64_t i = 0; !err && i < c->pass.n_rt; i++)
        if (c->pass.rt[i])
            err = count_block(c, i);
    if (!inside)
        c->pass.rebuild = true;
    else if (!err && c->pass.n_rt)
        check_table_place(c, 1);
    return err;
}

/* ---- comparing ---- */

static void compare_cluster(struct check *c, uint64_t cluster)
{
    uint64_t count, refs = counts_get(&c->pass.refs, cluster);

    if (!qcheck_disk_count(c, cluster, &count) || count == refs)
        return;
    if (count > refs) {
        qcheck_leak(c, "Leaked cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                    cluster, count, refs);
        return;
    }
    if (qcheck_block_offset(c, cluster >> qcheck_block_bits(c)) == 0)
        c->pass.rebuild = true;
    qcheck_corrupt(c, 1,
                   "ERROR cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                   cluster, count, refs);
}

/* Compares eight counts at once: are they equal, and is none of them COUNT_LARGE? */
static bool same_eight(const uint8_t *a, const uint8_t *b)
{
    uint64_t x, y;

    memcpy(&x, a, 8);
    memcpy(&y, b, 8);
    /* For a byte of 0xff the sum sets the upper bit, and x has it, too. */
    return x == y && !((((x & 0x7f7f7f7f7f7f7f7full) + 0x0101010101010101ull) & x) &
                       0x8080808080808080ull);
}

static uint64_t end_of_use(struct check *c)
{
    uint64_t n = c->pass.n_compare;

    while (n > 0 && c->pass.refs.bytes[n - 1] == 0 && c->pass.disk[n - 1] == 0)
        n--;
    return n;
}

void qcheck_compare(struct check *c)
{
    uint64_t i = 0;

    for (; i + 8 <= c->pass.n_compare; i += 8) {
        if (LIKELY(same_eight(c->pass.refs.bytes + i, c->pass.disk + i)))
            continue;
        for (unsigned j = 0; j < 8; j++)
            compare_cluster(c, i + j);
    }
    for (; i < c->pass.n_compare; i++)
        compare_cluster(c, i);
    c->pass.found.image_end_offset = MAX(1, end_of_use(c)) * c->in.cluster_size;
}
