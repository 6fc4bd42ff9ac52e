/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the metadata of a QED file, after the specification alone. */
#include <endian.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "structure.h"

struct walk {
    struct storage *st;
    struct structure *out;
    uint64_t file_size, cluster, header_bytes, table_bytes, n_clusters;
    uint8_t *used;
};

static uint64_t u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

static uint32_t u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static void complain(struct walk *w, const char *what, uint64_t off)
{
    if (w->out->corruptions++ == 0)
        snprintf(w->out->first, sizeof w->out->first, "0x%" PRIx64 " %s", off, what);
}

/* Notes that the clusters [off, off+len) are used; false when the reference is invalid. */
static bool use(struct walk *w, uint64_t off, uint64_t len)
{
    const char *why = off % w->cluster        ? "isn't aligned"
                      : off < w->header_bytes ? "lies in the header"
                      : off >= w->file_size || len > w->file_size - off
                          ? "reaches past the end"
                          : NULL;
    for (uint64_t c = off / w->cluster; !why && c * w->cluster < off + len; c++) {
        if (w->used[c])
            why = "is used twice";
        w->used[c] = 1;
    }
    if (why)
        complain(w, why, off);
    return !why;
}

static uint8_t *read_table(struct walk *w, uint64_t off)
{
    uint8_t *table = malloc(w->table_bytes);

    if (!table || storage_read(w->st, table, off, w->table_bytes))
        abort();
    return table;
}

static void walk_l2(struct walk *w, uint64_t off)
{
    uint8_t *table = read_table(w, off);

    for (uint64_t i = 0; i < w->table_bytes / 8; i++) {
        uint64_t entry = u64(table + i * 8);
        if (entry > 1)
            use(w, entry, w->cluster);
    }
    free(table);
}

static void walk_l1(struct walk *w, uint64_t off)
{
    uint8_t *table = read_table(w, off);

    use(w, off, w->table_bytes);
    for (uint64_t i = 0; i < w->table_bytes / 8; i++) {
        uint64_t entry = u64(table + i * 8);
        if (entry && use(w, entry, w->table_bytes))
            walk_l2(w, entry);
    }
    free(table);
}

void structure_check_qed(struct storage *st, struct structure *out)
{
    uint8_t header[64];
    struct walk w = {.st = st, .out = out};

    *out = (struct structure){0};
    if (storage_read(st, header, 0, sizeof header) || storage_size(st, &w.file_size))
        abort();
    if (u32(header) != 0x00444551) {
        complain(&w, "isn't a header", 0);
        return;
    }
    out->marked = u64(header + 16) & 2;
    w.cluster = u32(header + 4);
    w.table_bytes = (uint64_t)u32(header + 8) * w.cluster;
    w.header_bytes = (uint64_t)u32(header + 12) * w.cluster;
    w.n_clusters = (w.file_size + w.cluster - 1) / w.cluster;
    w.used = calloc(1, w.n_clusters + 1);
    if (!w.used)
        abort();
    walk_l1(&w, u64(header + 40));
    for (uint64_t c = w.header_bytes / w.cluster; c < w.n_clusters; c++)
        out->leaks += !w.used[c];
    free(w.used);
}
