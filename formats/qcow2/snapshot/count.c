/* SPDX-License-Identifier: BSD-3-Clause */
/* Walks L1 and L2 tables, and counts the clusters to which they refer. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/snapshot/change.h"

int shift_init(struct shift *s, struct qcow2 *q, struct diag *diag)
{
    *s = (struct shift){.q = q, .diag = diag};
    s->n_clusters = atomic_load(&q->alloc.file_end) >> q->geo.cluster_bits;
    s->blocks = calloc(MAX_RT_BYTES / 8 / 8, 1);
    s->single = calloc(s->n_clusters / 8 + 1, 1);
    s->none = calloc(s->n_clusters / 8 + 1, 1);
    if (s->blocks && s->single && s->none && counts_init(&s->up, s->n_clusters) == 0 &&
        counts_init(&s->down, s->n_clusters) == 0)
        return 0;
    return diag_errno(diag, ENOMEM, "%s", q->node->filename);
}

void shift_free(struct shift *s)
{
    free(s->blocks);
    free(s->single);
    free(s->none);
    counts_free(&s->up);
    counts_free(&s->down);
    *s = (struct shift){0};
}

int shift_clusters(struct shift *s, uint64_t host, uint64_t n, bool up)
{
    uint64_t first = host >> s->q->geo.cluster_bits, lost = 0;
    uint32_t block_bits = s->q->alloc.refs.block_bits;

    if (n == 0)
        return 0;
    for (uint64_t b = first >> block_bits; b <= (first + n - 1) >> block_bits; b++)
        if (b < MAX_RT_BYTES / 8)
            bit_set(s->blocks, b);
    return counts_add(up ? &s->up : &s->down, first, n, 1, UINT64_MAX, &lost)
               ? diag_errno(s->diag, ENOMEM, "%s", s->q->node->filename)
               : 0;
}

static int refuse_entry(struct shift *s, const char *what, uint64_t index, uint64_t entry,
                        const char *why)
{
    return diag_set(s->diag, EIO,
                    "%s: %s %" PRIu64 " (0x%" PRIx64
                    "): %s: the image must be checked (qimg check)",
                    s->q->node->filename, what, index, entry, why);
}

/* Reads an L2 table.  live: it is the disk's, and may have dirty pages; clients' flushes can write
 * them meanwhile. */
static int read_table(struct qcow2 *q, uint32_t l1_index, uint64_t offset, bool live,
                      uint8_t *table, bool *unwritten)
{
    uint32_t bits = q->geo.l2_bits - q->geo.page_bits;

    *unwritten = false;
    return live ? mcmap_read_as_is(q->live.l2_map, (uint64_t)l1_index << bits, 1ull << bits,
                                   offset, table, unwritten)
                : storage_read(q->node->file, table, offset, cluster_size(q));
}

int shift_read_table(struct shift *s, uint32_t l1_index, uint64_t entry, bool live,
                     uint8_t *table, bool *unwritten)
{
    struct qcow2 *q = s->q;
    uint64_t offset = entry & L1_OFFSET;
    unsigned faults = l1_entry_faults(&q->geo, entry);

    if (!faults && !alloc_inside_file(&q->alloc, offset, cluster_size(q)))
        faults = FAULT_PAST_END;
    if (faults)
        return refuse_entry(s, "L1 entry", l1_index, entry, entry_fault_text(faults));
    bool any;
    int err = read_table(q, l1_index, offset, live, table, &any);
    if (err)
        return diag_errno(s->diag, -err, "%s: reading the L2 table at %" PRIu64,
                          q->node->filename, offset);
    if (unwritten)
        *unwritten = any;
    return 0;
}

/* A run of data clusters that is being counted. */
struct counted_run {
    uint64_t host, n;
};

static int end_run(struct shift *s, struct counted_run *run, bool up)
{
    int err = shift_clusters(s, run->host, run->n, up);

    run->n = 0;
    return err;
}

/* Does an entry continue the run, with the same flags as the entry before it, which was checked?
 * Most entries do. */
static bool continues_run(const struct qcow2 *q, const struct counted_run *run,
                          uint64_t entry, uint64_t before)
{
    uint64_t next = run->host + (run->n << q->geo.cluster_bits);

    return run->n && !q->geo.word_bits && (entry & L2_OFFSET) == next &&
           !((entry ^ before) & ~L2_OFFSET) && !(entry & L2_COMPRESSED) &&
           alloc_inside_file(&q->alloc, next, cluster_size(q));
}

static int count_cluster(struct shift *s, const struct cluster *c, struct counted_run *run,
                         bool up)
{
    const struct qcow2 *q = s->q;

    if (cluster_has_place(c) && c->host == run->host + (run->n << q->geo.cluster_bits) &&
        run->n) {
        run->n++;
        return 0;
    }
    if (cluster_has_place(c)) {
        int err = end_run(s, run, up);
        *run = (struct counted_run){.host = c->host, .n = 1};
        return err;
    }
    if (c->kind != CL_COMPRESSED)
        return 0;
    uint64_t first = c->host >> q->geo.cluster_bits;
    uint64_t last = (c->host + c->compressed_bytes - 1) >> q->geo.cluster_bits;
    return shift_clusters(s, first << q->geo.cluster_bits, last - first + 1, up);
}

static unsigned place_fault(const struct qcow2 *q, const struct cluster *c)
{
    uint64_t start = align_down(c->host, cluster_size(q));
    uint64_t end = c->kind == CL_COMPRESSED
                       ? align_up(c->host + c->compressed_bytes, cluster_size(q))
                       : start + cluster_size(q);
    bool has_some = c->kind == CL_COMPRESSED || cluster_has_place(c);

    return has_some && !alloc_inside_file(&q->alloc, start, end - start) ? FAULT_PAST_END
                                                                         : 0;
}

static int count_table(struct shift *s, uint32_t l1_index, const uint8_t *table, bool up)
{
    const struct qcow2 *q = s->q;
    uint32_t step = 1u << q->geo.word_bits;
    struct counted_run run = {0};
    uint64_t before = 0;
    int err = 0;

    for (uint64_t i = 0; !err && i < cluster_size(q) / 8; i += step) {
        uint64_t entry = load_be64(table + i * 8);
        bool continues = continues_run(q, &run, entry, before);
        before = entry;
        if (continues) {
            run.n++;
            continue;
        }
        uint64_t bitmap = step == 2 ? load_be64(table + i * 8 + 8) : 0;
        struct cluster c;
        if (entry == 0 && bitmap == 0)
            continue;
        unsigned faults = l2_any_decode(&q->geo, entry, bitmap, &c);
        if (!faults)
            faults = place_fault(q, &c);
        err = faults ? refuse_entry(s, "L2 entry of guest cluster",
                                    ((uint64_t)l1_index << q->geo.l2_bits) + i / step,
                                    entry, entry_fault_text(faults))
                     : count_cluster(s, &c, &run, up);
    }
    return err ? err : end_run(s, &run, up);
}

int shift_tables(struct shift *s, const uint64_t *l1, uint32_t n, bool live, bool up)
{
    CLEANUP_FREE uint8_t *table = malloc(cluster_size(s->q));

    if (!table)
        return diag_errno(s->diag, ENOMEM, "%s", s->q->node->filename);
    for (uint32_t i = 0; i < n; i++) {
        if ((l1[i] & L1_OFFSET) == 0)
            continue;
        int err = shift_read_table(s, i, l1[i], live, table, NULL);
        if (!err)
            err = count_table(s, i, table, up);
        if (!err)
            err = shift_clusters(s, l1[i] & L1_OFFSET, 1, up);
        if (err)
            return err;
    }
    return 0;
}
