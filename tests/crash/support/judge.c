/* SPDX-License-Identifier: BSD-3-Clause */
/* Is the image that a crash left a good one? */
#include "judge.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
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

/* A disk that had not grown yet has zeroes where nobody could have written. */
static int read_padded(struct node *node, uint8_t *buf, uint64_t off, uint64_t len)
{
    uint64_t inside = off < node->size ? MIN(len, node->size - off) : 0;

    memset(buf + inside, 0, len - inside);
    return block_read(node, buf, off < node->size ? off : 0, inside);
}

static void check_contents(const struct subject *s, const struct oracle *o,
                           struct storage *state, const char *reader, struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = malloc(PIECE);
    struct session se;

    if (!buf)
        abort();
    int err = session_open(&se, s, mem_storage_share(state), false);
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

static bool is_version(const struct stamp *stamp, uint64_t sector, uint32_t version)
{
    if (version == 0)
        return stamp->kind == STAMP_ZEROES;
    return stamp->kind == STAMP_VERSION && stamp->sector == sector &&
           stamp->version == version;
}

static void check_snapshot(const struct subject *s, struct storage *state,
                           struct verdict *v)
{
    CLEANUP_FREE uint8_t *buf = malloc(4096);
    struct stamp backing = {.kind = STAMP_ZEROES};

    for (uint64_t sector = 0; sector < s->n_sectors && !v->failed; sector++) {
        bool found;
        if (structure_read_snapshot(state, buf, sector * SECTOR_BYTES, SECTOR_BYTES,
                                    &found)) {
            fail(v, "the snapshot can't be read at sector %" PRIu64, sector);
            return;
        }
        struct stamp stamp = found ? stamp_read(buf) : backing;
        /* What the snapshot has no entry for comes from the backing file. */
        if (!found && s->snapshot[sector] == VERSION_BACKING)
            continue;
        if (!is_version(&stamp, sector, s->snapshot[sector]))
            fail(v, "sector %" PRIu64 " of the snapshot changed", sector);
    }
}

void judge_read_versions(const struct subject *s, struct storage *state, uint32_t *versions)
{
    CLEANUP_FREE uint8_t *buf = malloc(PIECE);
    struct session se;

    if (!buf || session_open(&se, s, mem_storage_share(state), false))
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

/* ---- structure ---- */

static void check_structure(const struct subject *s, struct storage *state, bool repaired,
                            struct verdict *v)
{
    struct structure found;

    subject_structure(s, state, &found);
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

/* Such an image must be good for more than reading. */
static void check_reuse(const struct subject *s, struct storage *state, struct verdict *v)
{
    CLEANUP_STORAGE struct storage *copy = mem_storage_clone(state);
    CLEANUP_FREE uint8_t *data = calloc(1, 64 * SECTOR_BYTES);
    struct storage *file = mem_storage_share(copy);
    struct structure found;
    struct session se;

    file->fixed_size = s->config->fixed_size;
    int err = session_open(&se, s, file, true);
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
    subject_structure(s, copy, &found);
    if (err || closed)
        fail(v, "writing to it failed (errno %d, close %d)", -err, -closed);
    if (found.corruptions || found.refcount_errors || found.marked)
        fail(v, "after more writes and a clean close: %s", found.first);
    if (s->snapshot)
        check_snapshot(s, copy, v);
}

/* ---- our own repair ---- */

/* What opening for writing makes of a state, repairing it when it is marked; a new mem
 * storage, or NULL when that was refused. */
static struct storage *reopened(const struct subject *s, struct storage *state,
                                struct verdict *v)
{
    struct storage *copy = mem_storage_clone(state), *file = mem_storage_share(copy);
    struct session se;

    file->fixed_size = s->config->fixed_size;
    int err = session_open(&se, s, file, true);
    if (!err)
        err = session_close(&se);
    if (!err)
        return copy;
    fail(v, "opening for writing failed (errno %d)", -err);
    storage_close(copy);
    return NULL;
}

static void check_reopening(const struct subject *s, const struct oracle *o,
                            struct storage *state, struct verdict *v)
{
    CLEANUP_STORAGE struct storage *copy = reopened(s, state, v);

    if (!copy)
        return;
    check_structure(s, copy, true, v);
    check_contents(s, o, copy, "our reader after our repair", v);
    if (!v->failed && s->snapshot)
        check_snapshot(s, copy, v);
    if (!v->failed)
        check_reuse(s, copy, v);
}

/* As qemu-img check's exit status; -1: it could not be checked. */
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
    const char *check[] = {"qemu-img",        "check",       "-q", "-f",
                           s->config->format, s->image_path, NULL};
    const char *fix[] = {"qemu-img", "check",           "-q",          "-r", "all",
                         "-f",       s->config->format, s->image_path, NULL};

    return run_tool(s, repair ? fix : check);
}

static void check_converted(const struct subject *s, const struct oracle *o,
                            struct verdict *v)
{
    CLEANUP_FREE char *raw = scratch_path(&s->scratch, "converted");
    CLEANUP_FREE uint8_t *buf = malloc(s->config->disk_bytes);
    CLEANUP_STORAGE struct storage *st = NULL;
    const char *words[] = {"qemu-img", "convert", "-q",          "-f", s->config->format,
                           "-O",       "raw",     s->image_path, raw,  NULL};

    if (run_tool(s, words) != 0 || mem_storage_load(raw, &st) ||
        storage_read(st, buf, 0, s->config->disk_bytes)) {
        fail(v, "qemu-img convert failed");
        return;
    }
    check_sectors(o, buf, 0, s->n_sectors, "qemu-img convert", v);
}

static void check_converted_snapshot(const struct subject *s, struct verdict *v)
{
    CLEANUP_FREE char *raw = scratch_path(&s->scratch, "converted");
    CLEANUP_FREE uint8_t *buf = malloc(s->config->disk_bytes);
    CLEANUP_STORAGE struct storage *st = NULL;
    const char *words[] = {"qemu-img", "convert", "-q", "-f",  s->config->format,
                           "-l",       "first",   "-O", "raw", s->image_path,
                           raw,        NULL};

    if (run_tool(s, words) != 0 || mem_storage_load(raw, &st) ||
        storage_read(st, buf, 0, s->config->disk_bytes)) {
        fail(v, "qemu-img convert -l failed");
        return;
    }
    for (uint64_t i = 0; i < s->n_sectors; i++) {
        struct stamp stamp = stamp_read(buf + i * SECTOR_BYTES);
        if (!is_version(&stamp, i, s->snapshot[i]))
            fail(v, "qemu-img convert -l: sector %" PRIu64 " of the snapshot changed", i);
    }
}

/* Our check and QEMU's say the same of the state, and after our repair nothing is left to
 * say. */
static void compare_verdicts(const struct subject *s, struct storage *state,
                             struct verdict *v)
{
    CLEANUP_STORAGE struct storage *copy = mem_storage_clone(state);
    int ours = own_check(s, copy, REPAIR_NONE), theirs = qemu_check(s, false);

    if (ours != theirs)
        fail(v, "our check says %d, qemu-img check %d", ours, theirs);
    int repaired = own_check(s, copy, REPAIR_ALL);
    /* What a QED image leaks before its end can't be given back. */
    bool may_leak = strcmp(s->config->format, "qed") == 0;
    if (repaired != 0 && !(repaired == 3 && may_leak))
        fail(v, "our check -r all: status %d", repaired);
    check_structure(s, copy, true, v);
    if (mem_storage_save(copy, s->image_path))
        fail(v, "the repaired state can't be saved");
    theirs = qemu_check(s, false);
    if (theirs != repaired)
        fail(v, "after our check -r all qemu-img check says %d", theirs);
}

static void check_with_tools(const struct subject *s, const struct oracle *o,
                             struct storage *state, struct verdict *v)
{
    if (mem_storage_save(state, s->image_path)) {
        fail(v, "the state can't be saved");
        return;
    }
    compare_verdicts(s, state, v);
    if (mem_storage_save(state, s->image_path)) {
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
    CLEANUP_STORAGE struct storage *repaired = NULL;
    if (mem_storage_load(s->image_path, &repaired)) {
        fail(v, "the repaired state can't be loaded");
        return;
    }
    check_structure(s, repaired, true, v);
    check_contents(s, o, repaired, "our reader after repair", v);
    if (!v->failed)
        check_reuse(s, repaired, v);
}

void judge_state(const struct subject *s, const struct oracle *oracle,
                 struct storage *state, enum judge_depth depth, struct verdict *out)
{
    *out = (struct verdict){.sector = -1};
    check_structure(s, state, false, out);
    if (!out->failed)
        check_contents(s, oracle, state, "our reader", out);
    if (!out->failed && s->snapshot)
        check_snapshot(s, state, out);
    if (!out->failed && depth >= JUDGE_REUSE)
        check_reopening(s, oracle, state, out);
    if (!out->failed && depth >= JUDGE_TOOLS)
        check_with_tools(s, oracle, state, out);
}
