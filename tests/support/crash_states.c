/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes from a crash log which changes are durable at a crash point, and what a crash
 * leaves in the file. */
#include "crash_log.h"

#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "mem_storage.h"
#include "rng.h"

#define SECTOR 512u

/* For calls that can't fail on a mem storage. */
static void must_be_0(int err)
{
    if (err)
        abort();
}

void crash_apply(struct storage *to, const struct crash_op *op)
{
    switch (op->kind) {
    case CRASH_WRITE:
        must_be_0(storage_write(to, op->data, op->off, op->len, 0));
        break;
    case CRASH_ZERO:
        must_be_0(storage_zero(to, op->off, op->len, 0));
        break;
    case CRASH_DISCARD:
        must_be_0(storage_discard(to, op->off, op->len));
        break;
    case CRASH_TRUNCATE:
        must_be_0(storage_truncate(to, op->len));
        break;
    case CRASH_FLUSH:
    case CRASH_MARK:
        break;
    }
}

void crash_forget_prefix(struct crash_log *log)
{
    for (unsigned i = 0; i < log->n_files; i++) {
        storage_close(log->file[i].folded);
        log->file[i].folded = NULL;
    }
}

/* The log as it is at one crash point.  Used under the log's mutex. */
struct view {
    const struct crash_choice *choice;
    uint64_t point;
    uint64_t covered[CRASH_FILES]; /* per file: changes that ended before it are durable */
    uint64_t now;                  /* the time of the crash */
};

static struct view look(const struct crash_log *log, uint64_t point,
                        const struct crash_choice *choice)
{
    struct view v = {
        .choice = choice, .point = MIN(point, log->count), .now = log->clock + 1};

    if (v.point < log->count)
        v.now = log->ops[v.point].recorded;
    for (uint64_t i = 0; i < v.point; i++) {
        const struct crash_op *op = &log->ops[i];
        if (op->kind != CRASH_FLUSH)
            continue;
        if (choice->ignore_flush && choice->ignore_flush(choice->opaque, op->off))
            continue;
        v.covered[op->file] = MAX(v.covered[op->file], op->called);
    }
    return v;
}

static bool is_change(const struct crash_op *op)
{
    return op->kind != CRASH_FLUSH && op->kind != CRASH_MARK;
}

static bool is_durable(const struct view *v, const struct crash_op *op)
{
    if (op->ended < v->covered[op->file])
        return true;
    return op->fua && !v->choice->ignore_fua && op->ended < v->now;
}

uint64_t crash_pending(struct crash_log *log, uint64_t point,
                       const struct crash_choice *choice)
{
    uint64_t pending = 0;

    pthread_mutex_lock(&log->mutex);
    struct view v = look(log, point, choice);
    for (uint64_t i = 0; i < v.point; i++)
        pending += is_change(&log->ops[i]) && !is_durable(&v, &log->ops[i]);
    pthread_mutex_unlock(&log->mutex);
    return pending;
}

/* Applies the operation to a random half of its sectors. */
static void apply_torn(struct storage *to, const struct crash_op *op, struct rng *rng)
{
    uint64_t end = op->off + op->len, next;

    for (uint64_t off = op->off; off < end; off = next) {
        next = MIN(end, align_down(off, SECTOR) + SECTOR);
        if (rng_one_in(rng, 2))
            continue;
        struct crash_op part = *op;
        part.off = off;
        part.len = next - off;
        if (op->data)
            part.data = op->data + (off - op->off);
        crash_apply(to, &part);
    }
}

/* Decides by the policy whether the nth pending change arrives, and applies it then. */
static void apply_pending(struct storage *to, const struct crash_op *op, uint64_t nth,
                          const struct crash_choice *choice, struct rng *rng)
{
    bool arrives = false;

    switch (choice->policy) {
    case CRASH_NONE:
        break;
    case CRASH_ALL:
        arrives = true;
        break;
    case CRASH_SUBSET:
        arrives = rng_one_in(rng, 2);
        break;
    case CRASH_ALL_BUT_ONE:
        arrives = nth != choice->one;
        break;
    case CRASH_ONLY_ONE:
        arrives = nth == choice->one;
        break;
    case CRASH_TORN:
        if (op->kind != CRASH_TRUNCATE && rng_one_in(rng, 2))
            apply_torn(to, op, rng);
        else
            arrives = rng_one_in(rng, 2);
        break;
    }
    if (arrives)
        crash_apply(to, op);
}

/* Clones the contents at the start, or (folded) those with the durable prefix applied. */
static void clone_all(const struct crash_log *log, bool folded,
                      struct storage *out[CRASH_FILES])
{
    for (unsigned i = 0; i < log->n_files; i++)
        out[i] = mem_storage_clone(folded ? log->file[i].folded : log->file[i].start);
}

static void restart_prefix(struct crash_log *log)
{
    crash_forget_prefix(log);
    for (unsigned i = 0; i < log->n_files; i++)
        log->file[i].folded = mem_storage_clone(log->file[i].start);
    log->folded = 0;
}

/* Sets `out` to new storages with the durable prefix of the log applied; returns how many
 * operations that is.  The prefix is kept from call to call: what is durable at a crash point
 * is durable at later ones.  When the choice ignores flushes or FUA it can't be used. */
static uint64_t take_prefix(struct crash_log *log, const struct view *v,
                            struct storage *out[CRASH_FILES])
{
    if (v->choice->ignore_flush || v->choice->ignore_fua) {
        clone_all(log, false, out);
        return 0;
    }
    if (!log->file[0].folded || v->point < log->fold_point)
        restart_prefix(log);
    log->fold_point = v->point;
    for (; log->folded < v->point; log->folded++) {
        const struct crash_op *op = &log->ops[log->folded];
        if (is_change(op) && !is_durable(v, op))
            break;
        crash_apply(log->file[op->file].folded, op);
    }
    clone_all(log, true, out);
    return log->folded;
}

void crash_materialise_files(struct crash_log *log, uint64_t point,
                             const struct crash_choice *choice,
                             struct storage *out[CRASH_FILES])
{
    struct rng rng;
    uint64_t pending = 0;

    for (unsigned i = 0; i < CRASH_FILES; i++)
        out[i] = NULL;
    rng_init(&rng, choice->seed);
    pthread_mutex_lock(&log->mutex);
    struct view v = look(log, point, choice);
    for (uint64_t i = take_prefix(log, &v, out); i < v.point; i++) {
        const struct crash_op *op = &log->ops[i];
        if (!is_change(op))
            continue;
        if (is_durable(&v, op))
            crash_apply(out[op->file], op);
        else
            apply_pending(out[op->file], op, pending++, choice, &rng);
    }
    pthread_mutex_unlock(&log->mutex);
}

struct storage *crash_materialise(struct crash_log *log, uint64_t point,
                                  const struct crash_choice *choice)
{
    struct storage *files[CRASH_FILES];

    crash_materialise_files(log, point, choice, files);
    for (unsigned i = 1; i < CRASH_FILES; i++)
        storage_close(files[i]);
    return files[0];
}

int crash_materialise_to(struct crash_log *log, uint64_t point,
                         const struct crash_choice *choice, const char *path)
{
    CLEANUP_STORAGE struct storage *image = crash_materialise(log, point, choice);

    return mem_storage_save(image, path);
}
