/* SPDX-License-Identifier: BSD-3-Clause */
/* One pass over the file: counting references, and comparing them with the refcounts. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "qcow2/check/check.h"

/* The most text that is kept for the end of the pass; more findings are printed at once. */
#define MAX_LATER (1u << 20)
#define TEXT_MAX  512

static bool is_told(const struct check *c)
{
    return c->in.options->message && c->progress.stage == 0;
}

static void give_message(struct check *c, const char *fmt, va_list ap)
{
    static const char word[] = "ERROR ";
    char text[TEXT_MAX];

    if (!is_told(c))
        return;
    bool plain = strncmp(fmt, word, strlen(word) - 1) == 0;
    strcpy(text, plain ? "" : word);
    size_t n = strlen(text);
    vsnprintf(text + n, sizeof text - n, fmt, ap);
    c->in.options->message(c->in.options->opaque, text);
}

void qcheck_leak(struct check *c, const char *fmt, ...)
{
    va_list ap;
    char text[TEXT_MAX];

    c->pass.found.leaks++;
    if (!is_told(c))
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->in.options->message(c->in.options->opaque, text);
}

static bool keep_for_later(struct later_texts *later, const char *text)
{
    size_t bytes = strlen(text) + 1;

    if (later->bytes + bytes > later->capacity) {
        size_t capacity = MAX(2 * later->capacity, 4096);
        char *grown = capacity <= MAX_LATER ? realloc(later->text, capacity) : NULL;
        if (!grown)
            return false;
        later->text = grown;
        later->capacity = capacity;
    }
    memcpy(later->text + later->bytes, text, bytes);
    later->bytes += bytes;
    return true;
}

void qcheck_wrong_flag(struct check *c, uint64_t weight, const char *fmt, ...)
{
    va_list ap;
    char text[TEXT_MAX];

    c->pass.found.corruptions += weight;
    c->pass.wrong_flags += weight;
    /* `-r all` prints which flags it corrects instead. */
    if (weight == 0 || !is_told(c) || c->in.options->repair == REPAIR_ALL)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!keep_for_later(&c->pass.later, text))
        c->in.options->message(c->in.options->opaque, text);
}

/* Prints the findings that were kept, unless a repair prints which flags it corrects instead. */
static void tell_later_texts(struct check *c)
{
    const struct later_texts *later = &c->pass.later;

    if (c->in.options->repair == REPAIR_LEAKS &&
        c->pass.found.corruptions == c->pass.wrong_flags)
        return;

    for (size_t at = 0; at < later->bytes; at += strlen(later->text + at) + 1)
        c->in.options->message(c->in.options->opaque, later->text + at);
}

void qcheck_corrupt(struct check *c, uint64_t weight, const char *fmt, ...)
{
    va_list ap;

    c->pass.found.corruptions += weight;
    va_start(ap, fmt);
    give_message(c, fmt, ap);
    va_end(ap);
}

void qcheck_impossible(struct check *c, uint64_t weight, const char *fmt, ...)
{
    va_list ap;

    c->pass.found.corruptions += weight;
    c->pass.impossible++;
    va_start(ap, fmt);
    give_message(c, fmt, ap);
    va_end(ap);
}

void qcheck_progress(struct check *c, uint64_t done)
{
    c->pass.done += done;
    if (!c->in.options->progress || !c->pass.total)
        return;
    uint64_t now =
        c->progress.stage * 1000ull + MIN(1000, c->pass.done * 1000 / c->pass.total);
    c->progress.reported = MAX(c->progress.reported, now);
    c->in.options->progress(c->in.options->opaque, c->progress.reported,
                            c->progress.stages * 1000ull);
}

int qcheck_add_range(struct check *c, uint64_t offset, uint64_t bytes, uint64_t weight,
                     const char *what, bool *inside)
{
    uint64_t lost = 0;

    *inside = true;
    if (bytes == 0)
        return 0;
    if (qcheck_past_end(c, offset, bytes)) {
        *inside = false;
        qcheck_impossible(c, weight,
                          "ERROR: counting reference for region exceeding the end of the "
                          "file by one cluster or more: offset 0x%" PRIx64
                          " size 0x%" PRIx64,
                          offset, bytes);
        return 0;
    }
    uint64_t first = offset >> c->in.h.cluster_bits;
    uint64_t last = (offset + bytes - 1) >> c->in.h.cluster_bits;
    c->pass.n_compare = MAX(c->pass.n_compare, last + 1);
    if (counts_add(&c->pass.refs, first, last - first + 1, weight, c->in.max_count, &lost))
        return diag_errno(c->in.diag, ENOMEM, "%s: counting references", c->in.st->name);
    if (lost)
        qcheck_corrupt(c, lost,
                       "%s at offset %" PRIu64 ": more references than a refcount can say",
                       what, offset);
    return 0;
}

int qcheck_add_meta(struct check *c, uint64_t offset, uint64_t bytes, uint64_t weight,
                    const char *what, bool *inside)
{
    int err = qcheck_add_range(c, offset, bytes, weight, what, inside);

    if (!err && *inside)
        qcheck_mark(c, c->pass.meta, offset, bytes);
    return err;
}

void qcheck_mark(struct check *c, uint8_t *bits, uint64_t offset, uint64_t bytes)
{
    uint64_t end = bytes ? ((offset + bytes - 1) >> c->in.h.cluster_bits) + 1 : 0;

    for (uint64_t i = offset >> c->in.h.cluster_bits; i < MIN(end, c->in.n_clusters + 1);
         i++)
        bit_set(bits, i);
}

bool qcheck_any(const struct check *c, const uint8_t *bits, uint64_t offset, uint64_t bytes)
{
    uint64_t first = offset >> c->in.h.cluster_bits;
    uint64_t end =
        MIN(c->in.n_clusters + 1, ((offset + bytes - 1) >> c->in.h.cluster_bits) + 1);

    return bytes && first < end && bits_any(bits, first, end - first);
}

void qcheck_forget(struct check *c)
{
    free(c->pass.snapshots);
    free(c->pass.l1s);
    free(c->pass.rt);
    free(c->pass.disk);
    free(c->pass.block);
    counts_free(&c->pass.refs);
    l2_tables_free(&c->pass.tables);
    free(c->pass.fixed);
    free(c->pass.meta);
    free(c->pass.is_table);
    free(c->pass.contested);
    free(c->pass.bad);
    free(c->pass.later.text);
    c->pass = (struct check_pass){0};
}

static int start_pass(struct check *c)
{
    uint64_t n = c->in.n_clusters + 1; /* a compressed cluster may reach into one more */
    uint8_t **bitmaps[] = {&c->pass.fixed, &c->pass.meta, &c->pass.is_table,
                           &c->pass.contested, &c->pass.bad};

    c->repair.missed += c->pass.found.check_errors;
    qcheck_forget(c);
    c->pass.n_compare = c->in.n_clusters;
    bool failed = counts_init(&c->pass.refs, n);
    for (size_t i = 0; i < ARRAY_LEN(bitmaps) && !failed; i++)
        failed = !(*bitmaps[i] = calloc(n / 8 + 1, 1));
    c->pass.disk = failed ? NULL : calloc(n, 1);
    if (!c->pass.disk)
        return diag_errno(c->in.diag, ENOMEM,
                          "%s: counting references to %" PRIu64 " clusters", c->in.st->name,
                          n);
    return 0;
}

/* Counts a structure without which the image can't be used at all.  The pass doesn't read it, so no
 * read shows whether it is there; it must lie inside the file by the rule for opening the image. */
static int count_vital(struct check *c, uint64_t offset, uint64_t bytes, const char *what,
                       const char *lost)
{
    bool inside;

    int err = qcheck_add_meta(c, offset, bytes, 1, what, &inside);
    if (err)
        return err;
    if (inside && offset + bytes > align_up(c->in.file_size, c->in.cluster_size)) {
        qcheck_impossible(c, 1, "%s: ends past the end of the file", what);
        inside = false;
    }
    if (!inside)
        c->pass.hopeless = lost;
    qcheck_mark(c, c->pass.fixed, offset, bytes);
    return 0;
}

static int count_active_l1(struct check *c)
{
    uint64_t offset = c->in.h.l1_table_offset, bytes = c->in.h.l1_size * 8ull;

    if (bytes && offset == 0)
        c->pass.hopeless = "the header says that the L1 table overlaps it";
    qcheck_mark(c, c->pass.fixed, 0, c->in.cluster_size);
    return count_vital(c, offset, bytes, "active L1 table",
                       "the L1 table lies past the end of the file");
}

static int count_luks_header(struct check *c)
{
    uint64_t offset = c->in.h.luks_offset, bytes = c->in.h.luks_bytes;

    if (bytes == 0 && c->in.h.crypt_method != CRYPT_LUKS)
        return 0;
    if (bytes == 0)
        return diag_set(c->in.diag, EINVAL,
                        "%s: crypt_method: LUKS, but no header extension says where the "
                        "LUKS header is",
                        c->in.st->name);
    if (!is_aligned(offset, c->in.cluster_size) || offset > INT64_MAX / 2 ||
        bytes > MAX_LUKS_BYTES)
        return diag_set(c->in.diag, EINVAL,
                        "%s: header extension: a LUKS header of %" PRIu64
                        " bytes at %" PRIu64,
                        c->in.st->name, bytes, offset);
    if (qcheck_any(c, c->pass.meta, offset, bytes)) {
        qcheck_impossible(c, 1, "LUKS header: overlaps the header or the L1 table");
        c->pass.hopeless = "the header says that the LUKS header overlaps other metadata";
    }
    return count_vital(c, offset, bytes, "LUKS header",
                       "the LUKS header lies past the end of the file");
}

/* Checks whether what lies at the snapshot table's offset can be a snapshot table. */
static void judge_snapshot_table(struct check *c)
{
    uint64_t offset = c->in.h.snapshots_offset;
    if (c->pass.odd_snapshots > c->pass.n_snapshots / 2 &&
        (qcheck_any(c, c->pass.contested, offset, c->pass.snapshot_bytes) ||
         qcheck_any(c, c->pass.is_table, offset, c->pass.snapshot_bytes)))
        c->pass.hopeless =
            "where the header says that the snapshot table is, there is something else";
}

/* Reports clusters that both data and tables claim, if their refcount allows for both claims: else
 * they are reported as a wrong refcount. */
static void report_contested(struct check *c)
{
    for (uint64_t i = 0; c->pass.n_contested && i < c->in.n_clusters; i++) {
        uint64_t count;
        if (bit_test(c->pass.contested, i) && qcheck_disk_count(c, i, &count) &&
            count == counts_get(&c->pass.refs, i))
            qcheck_corrupt(c, 1, "cluster %" PRIu64 ": holds metadata and other things", i);
    }
}

/* Counts the header's cluster, and the structures to which the header points. */
static int count_headers(struct check *c)
{
    bool inside;

    int err = qcheck_add_meta(c, 0, c->in.cluster_size, 1, "header", &inside);
    if (err)
        return err;
    err = count_active_l1(c);
    return err ? err : count_luks_header(c);
}

/* Counts all references except those of refcount structures and bitmaps.  The order matters: of two
 * claims the first is believed. */
static int count_references(struct check *c)
{
    int (*const parts[])(struct check *) = {count_headers, qcheck_snapshots,
                                            qcheck_l1_tables, qcheck_l2_tables};

    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        int err = parts[i](c);
        if (err)
            return err;
    }
    return 0;
}

int qcheck_pass(struct check *c, bool with_refcounts)
{
    int err = start_pass(c);
    if (err)
        return err;
    err = qcheck_load_refcounts(c);
    if (err)
        return err;
    err = count_references(c);
    if (err)
        return err;
    if (c->pass.n_snapshots)
        judge_snapshot_table(c);
    if (with_refcounts)
        err = qcheck_count_refcounts(c);
    if (!err)
        err = qcheck_bitmaps(c);
    if (err || !with_refcounts)
        return err;
    qcheck_compare(c);
    report_contested(c);
    tell_later_texts(c);
    c->pass.found.total_clusters =
        div_round_up(align_down(c->in.h.size, 512), c->in.cluster_size);
    return 0;
}
