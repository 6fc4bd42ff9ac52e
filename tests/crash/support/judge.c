/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the image that a crash left; see judge.h. */
#include "judge.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "bitmaps.h"
#include "block/check.h"
#include "mem_storage.h"
#include "stamp.h"

#define PIECE (256u << 10)

static void fail(struct verdict *v, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void fail(struct verdict *v, const char *fmt, ...)
{
    va_list ap;

    if (v->failed)
        return;
    v->failed = true;
    va_start(ap, fmt);
    vsnprintf(v->why, sizeof v->why, fmt, ap);
    va_end(ap);
}

#define CLEANUP_FILES __attribute__((cleanup(files_close)))

/* ---- contents ---- */

static void check_sectors(const struct oracle *o, const uint8_t *buf, uint64_t sector,
                          uint64_t n, const char *reader, struct verdict *v)
{
    char why[240];

    for (uint64_t i = 0; i < n && !v->failed; i++) {
        struct stamp stamp = stamp_read(buf + i * SECTOR_BYTES);
        if (!oracle_allows(o, sector + i, &stamp, why, sizeof why)) {
            fail(v, "%s: %s", reader, why);
            v->sector = (int64_t)(sector + i);
        }
    }
}

/* Reads zeroes past the end of a disk that hadn't grown yet at the crash. */
static int read_padded(struct node *node, uint8_t *buf, uint64_t off, uint64_t len)
{
    uint64_t inside = off < node->size ? MIN(len, node->size - off) : 0;

    memset(buf + inside, 0, len - inside);
    return block_read(node, buf, off < node->size ? off : 0, inside);
}

static void check_contents(const struct subject *s, const struct oracle *o,
                           struct files state, const char *reader, struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = malloc(PIECE);
    struct session se;

    if (!buf)
        abort();
    int err = session_open(&se, s, files_share(state), false);
    if (err) {
        fail(v, "%s: opening failed (errno %d)", reader, -err);
        return;
    }
    for (uint64_t off = 0; off < s->config->disk_bytes && !v->failed; off += PIECE) {
        uint64_t len = MIN(PIECE, s->config->disk_bytes - off);
        err = read_padded(se.node, buf, off, len);
        if (err)
            fail(v, "%s: reading %" PRIu64 " failed (errno %d)", reader, off, -err);
        else
            check_sectors(o, buf, off / SECTOR_BYTES, len / SECTOR_BYTES, reader, v);
    }
    session_close(&se);
}

/* A sector that a consistent bitmap calls clean must be as it was when the recording began. */
static void check_bitmaps(const struct subject *s, const struct oracle *o,
                          struct files state, const char *reader, struct verdict *v)
{
    CLEANUP_FREE uint32_t *versions = malloc(s->n_sectors * sizeof *versions);
    struct session se;
    char why[240];

    if (!versions)
        abort();
    judge_read_versions(s, state, versions);
    int err = session_open(&se, s, files_share(state), false);
    if (err) {
        fail(v, "%s: opening failed (errno %d)", reader, -err);
        return;
    }
    node_bitmaps_load(se.node);
    if (!kept_bitmaps_judge(se.node, o->h->initial, versions, s->n_sectors, why,
                            sizeof why))
        fail(v, "%s: %s", reader, why);
    session_close(&se);
}

static bool is_version(const struct stamp *stamp, uint64_t sector, uint32_t version)
{
    if (version == 0)
        return stamp->kind == STAMP_ZEROES;
    return stamp->kind == STAMP_VERSION && stamp->sector == sector &&
           stamp->version == version;
}

/* A raw data file must read as the disk by itself, without the tables.  After an earlier crash a
 * sector of the file (s->raw) may differ at the start from what the tables say (initial).  A
 * write to such a cluster makes all of it as the tables say, so that either is accepted. */
static void check_raw(const struct subject *s, const struct oracle *oracle,
                      struct files state, struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = malloc(PIECE);
    struct history history = *oracle->h;
    struct oracle o = *oracle;
    char why[240];

    o.h = &history;
    if (s->raw)
        history.initial = s->raw;

    for (uint64_t off = 0; off < s->config->disk_bytes && !v->failed; off += PIECE) {
        uint64_t len = MIN(PIECE, s->config->disk_bytes - off);
        if (!buf || storage_read(state.data, buf, off, len))
            abort();
        for (uint64_t i = 0; i < len / SECTOR_BYTES && !v->failed; i++) {
            uint64_t sector = off / SECTOR_BYTES + i;
            struct stamp stamp = stamp_read(buf + i * SECTOR_BYTES);
            if (!oracle_allows(oracle, sector, &stamp, why, sizeof why))
                check_sectors(&o, buf + i * SECTOR_BYTES, sector, 1, "the data file", v);
        }
    }
}

static void check_snapshot(const struct subject *s, struct files state, struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = malloc(4096);
    struct stamp backing = {.kind = STAMP_ZEROES};

    if (s->config->encrypt) /* structure_read_snapshot can't decrypt; qemu-img checks it */
        return;
    for (uint64_t sector = 0; sector < s->n_sectors && !v->failed; sector++) {
        bool found;
        if (structure_read_snapshot(state.image, buf, sector * SECTOR_BYTES, SECTOR_BYTES,
                                    &found)) {
            fail(v, "the snapshot can't be read at sector %" PRIu64, sector);
            return;
        }
        struct stamp stamp = found ? stamp_read(buf) : backing;
        /* Without an entry in the snapshot the data comes from the backing file. */
        if (!found && s->snapshot[sector] == VERSION_BACKING)
            continue;
        if (!is_version(&stamp, sector, s->snapshot[sector]))
            fail(v, "sector %" PRIu64 " of the snapshot changed", sector);
    }
}

void judge_read_versions(const struct subject *s, struct files state, uint32_t *versions)
{
    CLEANUP_FREE uint8_t *buf = malloc(PIECE);
    struct session se;

    if (!buf || session_open(&se, s, files_share(state), false))
        abort();
    for (uint64_t sector = 0; sector < s->n_sectors; sector += PIECE / SECTOR_BYTES) {
        uint64_t n = MIN(PIECE / SECTOR_BYTES, s->n_sectors - sector);
        if (read_padded(se.node, buf, sector * SECTOR_BYTES, n * SECTOR_BYTES))
            abort();
        for (uint64_t i = 0; i < n; i++)
            versions[sector + i] = stamp_read(buf + i * SECTOR_BYTES).version;
    }
    session_close(&se);
}

void judge_read_raw(const struct subject *s, struct files state, uint32_t *versions)
{
    uint8_t sector[SECTOR_BYTES];

    for (uint64_t i = 0; i < s->n_sectors; i++) {
        if (storage_read(state.data, sector, i * SECTOR_BYTES, SECTOR_BYTES))
            abort();
        versions[i] = stamp_read(sector).version;
    }
}

/* ---- structure ---- */

static void check_structure(const struct subject *s, struct files state, bool repaired,
                            struct verdict *v)
{
    struct structure found;

    subject_structure(s, state.image, &found);
    if (!repaired) {
        v->marked = found.marked;
        v->leaks = found.leaks;
    }
    if (found.corruptions || (found.refcount_errors && (repaired || !found.marked)))
        fail(v, "structure%s%s: %s", repaired ? " after repair" : "",
             found.marked ? " (marked)" : "", found.first);
    if (repaired && found.marked)
        fail(v, "still marked after repair");
}

static int open_to_write(const struct subject *s, struct files state, struct session *se)
{
    struct files files = files_share(state);

    files.image->fixed_size = s->config->fixed_size;
    return session_open(se, s, files, true);
}

/* The image must not only be readable: writes to it must leave it sound as well. */
static void check_reuse(const struct subject *s, struct files state, struct verdict *v)
{
    CLEANUP_FILES struct files copy = files_clone(state);
    CLEANUP_FREE uint8_t *data = calloc(1, 64 * SECTOR_BYTES);
    struct structure found;
    struct session se;

    int err = open_to_write(s, copy, &se);
    if (err) {
        fail(v, "opening for writing failed (errno %d)", -err);
        return;
    }
    uint64_t sectors = se.node->size / SECTOR_BYTES;
    for (uint64_t at = 0; at < sectors && !err; at += sectors / 7) {
        uint64_t n = MIN(64, sectors - at);
        stamp_fill(data, at, n, VERSION_BASE);
        err = block_write(se.node, data, at * SECTOR_BYTES, n * SECTOR_BYTES, 0);
    }
    int closed = session_close(&se);
    subject_structure(s, copy.image, &found);
    if (err || closed)
        fail(v, "writing to it failed (errno %d, close %d)", -err, -closed);
    if (found.corruptions || found.refcount_errors || found.marked)
        fail(v, "after more writes and a clean close: %s", found.first);
    if (s->snapshot)
        check_snapshot(s, copy, v);
}

/* ---- our own repair ---- */

/* A copy of the state after it was opened for writing, which repairs a marked image, and closed.
 * Without files when opening or closing failed. */
static struct files reopened(const struct subject *s, struct files state, struct verdict *v)
{
    struct files copy = files_clone(state);
    struct session se;

    int err = open_to_write(s, copy, &se);
    if (!err)
        err = session_close(&se);
    if (!err)
        return copy;
    fail(v, "opening for writing failed (errno %d)", -err);
    files_close(&copy);
    return copy;
}

static void check_reopening(const struct subject *s, const struct oracle *o,
                            struct files state, struct verdict *v)
{
    CLEANUP_FILES struct files copy = reopened(s, state, v);

    if (!copy.image)
        return;
    check_structure(s, copy, true, v);
    check_contents(s, o, copy, "our reader after our repair", v);
    if (!v->failed && s->config->bitmaps)
        check_bitmaps(s, o, copy, "after our repair", v);
    if (!v->failed && s->snapshot)
        check_snapshot(s, copy, v);
    if (!v->failed)
        check_reuse(s, copy, v);
}

/* Our check; returns what qemu-img check's exit status would be; -1: it couldn't check. */
static int own_check(const struct subject *s, struct storage *st, enum check_repair repair)
{
    const struct check_options options = {.repair = repair};
    struct check_result found = {0};

    if (driver_find(s->config->format)->check(st, &options, &found, NULL) ||
        found.check_errors)
        return -1;
    return found.corruptions ? 2 : found.leaks ? 3 : 0;
}

/* ---- QEMU's tools ---- */

static int qemu_check(const struct subject *s, bool repair)
{
    static const char *const check[] = {"-q", NULL}, *const fix[] = {"-q", "-r", "all",
                                                                     NULL};

    return run_tool(s, "check", repair ? fix : check, NULL);
}

/* The disk as qemu-img reads it, or a snapshot with the words "-l" and its name.  The caller frees
 * the bytes.  NULL: qemu-img failed. */
static uint8_t *convert(const struct subject *s, const char *option, const char *name)
{
    CLEANUP_FREE char *raw = scratch_path(&s->scratch, "converted");
    CLEANUP_FREE uint8_t *buf = malloc(s->config->disk_bytes);
    CLEANUP_STORAGE struct storage *st = NULL;
    const char *words[] = {"-q", "-O", "raw", option, name, NULL}, *more[] = {raw, NULL};

    if (run_tool(s, "convert", words, more) != 0 || mem_storage_load(raw, &st) ||
        storage_read(st, buf, 0, s->config->disk_bytes))
        return NULL;
    return TAKE(&buf);
}

static void check_converted(const struct subject *s, const struct oracle *o,
                            struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = convert(s, NULL, NULL);

    if (buf)
        check_sectors(o, buf, 0, s->n_sectors, "qemu-img convert", v);
    else
        fail(v, "qemu-img convert failed");
}

static void check_converted_snapshot(const struct subject *s, struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = convert(s, "-l", "first");

    if (!buf) {
        fail(v, "qemu-img convert -l failed");
        return;
    }
    for (uint64_t i = 0; i < s->n_sectors; i++) {
        struct stamp stamp = stamp_read(buf + i * SECTOR_BYTES);
        if (!is_version(&stamp, i, s->snapshot[i]))
            fail(v, "qemu-img convert -l: sector %" PRIu64 " of the snapshot changed", i);
    }
}

/* Our check and qemu-img check must agree about the state, and neither may find anything after
 * our repair. */
static void compare_verdicts(const struct subject *s, struct files state, struct verdict *v)
{
    CLEANUP_FILES struct files copy = files_clone(state);
    int ours = own_check(s, copy.image, REPAIR_NONE), theirs = qemu_check(s, false);

    if (ours != theirs)
        fail(v, "our check says %d, qemu-img check %d", ours, theirs);
    int repaired = own_check(s, copy.image, REPAIR_ALL);
    /* QED can't free leaked clusters in the middle of the file. */
    bool may_leak = strcmp(s->config->format, "qed") == 0;
    if (repaired != 0 && !(repaired == 3 && may_leak))
        fail(v, "our check -r all: status %d", repaired);
    check_structure(s, copy, true, v);
    if (files_save(copy, s))
        fail(v, "the repaired state can't be saved");
    theirs = qemu_check(s, false);
    if (theirs != repaired)
        fail(v, "after our check -r all qemu-img check says %d", theirs);
}

static void check_with_tools(const struct subject *s, const struct oracle *o,
                             struct files state, struct verdict *v)
{
    if (files_save(state, s)) {
        fail(v, "the state can't be saved");
        return;
    }
    compare_verdicts(s, state, v);
    if (files_save(state, s)) {
        fail(v, "the state can't be saved");
        return;
    }
    if (v->marked) {
        int fixed = qemu_check(s, true);
        if (fixed != 0 && fixed != 3)
            fail(v, "qemu-img check -r all: status %d", fixed);
    }
    int status = qemu_check(s, false);
    if (status != 0 && status != 3)
        fail(v, "qemu-img check: status %d", status);
    check_converted(s, o, v);
    if (s->snapshot)
        check_converted_snapshot(s, v);
    if (!v->marked || v->failed)
        return;
    CLEANUP_FILES struct files repaired = {0};
    if (files_load(&repaired, s)) {
        fail(v, "the repaired state can't be loaded");
        return;
    }
    check_structure(s, repaired, true, v);
    check_contents(s, o, repaired, "our reader after repair", v);
    if (!v->failed)
        check_reuse(s, repaired, v);
}

void judge_state(const struct subject *s, const struct oracle *oracle, struct files state,
                 enum judge_depth depth, struct verdict *out)
{
    *out = (struct verdict){.sector = -1};
    check_structure(s, state, false, out);
    if (!out->failed)
        check_contents(s, oracle, state, "our reader", out);
    if (!out->failed && s->config->data == DATA_RAW && !s->config->encrypt)
        check_raw(s, oracle, state, out);
    if (!out->failed && s->snapshot)
        check_snapshot(s, state, out);
    if (!out->failed && s->config->bitmaps)
        check_bitmaps(s, oracle, state, "our reader", out);
    if (!out->failed && depth >= JUDGE_REUSE)
        check_reopening(s, oracle, state, out);
    if (!out->failed && depth >= JUDGE_TOOLS)
        check_with_tools(s, oracle, state, out);
}
