/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage that remembers what was not synced. */
#include "crash_storage.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "mem_storage.h"
#include "rng.h"

#define SECTOR  512u
#define RUNNING UINT64_MAX

struct crash_log {
    /* Not a ranked lock: it is held over calls of the mem storages, which take locks of
     * their own, while our callers may already hold any lock that can span I/O. */
    pthread_mutex_t mutex;
    /* under mutex */
    struct storage *start, *live;
    struct crash_op *ops;
    uint64_t count, capacity;
    uint64_t clock;
    uint64_t flushes;
    /* The durable prefix that is already applied: ops[0..folded) at points from fold_point
     * on. */
    struct storage *folded_image;
    uint64_t folded, fold_point;

    crash_hook *hook;
    void *hook_opaque;
};

struct crash_storage {
    struct storage st;
    struct crash_log *log;
};

static struct crash_log *log_of(struct storage *st)
{
    return ((struct crash_storage *)st)->log;
}

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* Of calls that can't fail on a mem storage. */
static void must_be_0(int err)
{
    if (err)
        abort();
}

/* ---- recording ---- */

/* Under the mutex. */
static uint64_t append(struct crash_log *log, const struct crash_op *op)
{
    if (log->count == log->capacity) {
        log->capacity = MAX(64, log->capacity * 2);
        log->ops = must(realloc(log->ops, log->capacity * sizeof *log->ops));
    }
    log->ops[log->count] = *op;
    log->ops[log->count].recorded = ++log->clock;
    return log->count++;
}

static uint64_t tick(struct crash_log *log)
{
    pthread_mutex_lock(&log->mutex);
    uint64_t now = ++log->clock;
    pthread_mutex_unlock(&log->mutex);
    return now;
}

static void run_hook(struct crash_log *log, enum crash_kind kind, uint64_t off,
                     uint64_t len)
{
    static _Thread_local bool inside;

    if (!log->hook || inside)
        return;
    inside = true;
    log->hook(log->hook_opaque, kind, off, len);
    inside = false;
}

static void apply(struct storage *to, const struct crash_op *op)
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

/* A change from its call to its end. */
static int record(struct crash_log *log, struct crash_op op)
{
    op.called = tick(log);
    op.ended = RUNNING;
    pthread_mutex_lock(&log->mutex);
    apply(log->live, &op);
    uint64_t index = append(log, &op);
    pthread_mutex_unlock(&log->mutex);

    run_hook(log, op.kind, op.off, op.len);

    pthread_mutex_lock(&log->mutex);
    log->ops[index].ended = ++log->clock;
    pthread_mutex_unlock(&log->mutex);
    return 0;
}

static int crash_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    return storage_read(log_of(st)->live, buf, off, len);
}

static int crash_pwritev(struct storage *st, const struct iovec *iov, int count,
                         uint64_t off, unsigned flags)
{
    struct crash_op op = {.kind = CRASH_WRITE, .off = off, .fua = flags & STORAGE_FUA};

    for (int i = 0; i < count; i++)
        op.len += iov[i].iov_len;
    op.data = must(malloc(op.len));
    uint64_t done = 0;
    for (int i = 0; i < count; i++) {
        memcpy(op.data + done, iov[i].iov_base, iov[i].iov_len);
        done += iov[i].iov_len;
    }
    return record(log_of(st), op);
}

static int crash_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    (void)flags;
    return record(log_of(st),
                  (struct crash_op){.kind = CRASH_ZERO, .off = off, .len = len});
}

static int crash_discard(struct storage *st, uint64_t off, uint64_t len)
{
    return record(log_of(st),
                  (struct crash_op){.kind = CRASH_DISCARD, .off = off, .len = len});
}

static int crash_truncate(struct storage *st, uint64_t bytes)
{
    return record(log_of(st), (struct crash_op){.kind = CRASH_TRUNCATE, .len = bytes});
}

static int crash_size(struct storage *st, uint64_t *bytes)
{
    return storage_size(log_of(st)->live, bytes);
}

/* Reserving blocks shows in nothing but the size. */
static int crash_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    uint64_t size;

    int err = crash_size(st, &size);
    return err || off + len <= size ? err : crash_truncate(st, off + len);
}

static int crash_flush(struct storage *st)
{
    struct crash_log *log = log_of(st);
    struct crash_op op = {.kind = CRASH_FLUSH, .called = tick(log)};

    run_hook(log, CRASH_FLUSH, 0, 0);

    pthread_mutex_lock(&log->mutex);
    op.off = ++log->flushes;
    op.ended = log->clock;
    append(log, &op);
    pthread_mutex_unlock(&log->mutex);
    return 0;
}

static int crash_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                        uint64_t *run)
{
    return storage_extent(log_of(st)->live, off, len, data, run);
}

static int crash_allocated(struct storage *st, uint64_t *bytes)
{
    return storage_allocated(log_of(st)->live, bytes);
}

static void crash_close(struct storage *st)
{
    free(st);
}

static const struct storage_ops crash_ops = {
    .pread = crash_pread,
    .pwritev = crash_pwritev,
    .flush = crash_flush,
    .size = crash_size,
    .truncate = crash_truncate,
    .close = crash_close,
    .zero = crash_zero,
    .discard = crash_discard,
    .extent = crash_extent,
    .allocated = crash_allocated,
    .preallocate = crash_preallocate,
};

/* ---- the log ---- */

struct crash_log *crash_log_new(struct storage *base)
{
    struct crash_log *log = must(calloc(1, sizeof *log));

    pthread_mutex_init(&log->mutex, NULL);
    log->start = base ? mem_storage_clone(base) : mem_storage_new(0);
    log->live = mem_storage_clone(log->start);
    return log;
}

static void forget_ops(struct crash_log *log)
{
    for (uint64_t i = 0; i < log->count; i++)
        free(log->ops[i].data);
    free(log->ops);
    log->ops = NULL;
    log->count = log->capacity = log->flushes = 0;
    storage_close(log->folded_image);
    log->folded_image = NULL;
}

void crash_log_free(struct crash_log *log)
{
    if (!log)
        return;
    forget_ops(log);
    storage_close(log->start);
    storage_close(log->live);
    pthread_mutex_destroy(&log->mutex);
    free(log);
}

void crash_log_rebase(struct crash_log *log)
{
    pthread_mutex_lock(&log->mutex);
    forget_ops(log);
    storage_close(log->start);
    log->start = mem_storage_clone(log->live);
    pthread_mutex_unlock(&log->mutex);
}

struct storage *crash_storage_open(struct crash_log *log)
{
    struct crash_storage *crash = must(calloc(1, sizeof *crash));

    crash->log = log;
    crash->st.ops = &crash_ops;
    crash->st.name = must(strdup("crash"));
    crash->st.align = 1;
    return &crash->st;
}

struct storage *crash_log_live(struct crash_log *log)
{
    return mem_storage_share(log->live);
}

void crash_log_mark(struct crash_log *log, uint64_t what)
{
    struct crash_op op = {.kind = CRASH_MARK, .off = what};

    pthread_mutex_lock(&log->mutex);
    op.called = op.ended = log->clock;
    append(log, &op);
    pthread_mutex_unlock(&log->mutex);
}

void crash_log_set_hook(struct crash_log *log, crash_hook *hook, void *opaque)
{
    log->hook = hook;
    log->hook_opaque = opaque;
}

uint64_t crash_log_count(struct crash_log *log)
{
    pthread_mutex_lock(&log->mutex);
    uint64_t count = log->count;
    pthread_mutex_unlock(&log->mutex);
    return count;
}

struct crash_op crash_log_op(struct crash_log *log, uint64_t index)
{
    pthread_mutex_lock(&log->mutex);
    if (index >= log->count)
        abort();
    struct crash_op op = log->ops[index];
    pthread_mutex_unlock(&log->mutex);
    return op;
}

void crash_log_print(struct crash_log *log, FILE *to, uint64_t from, uint64_t until)
{
    static const char *const names[] = {
        [CRASH_WRITE] = "write",       [CRASH_ZERO] = "zero",   [CRASH_DISCARD] = "discard",
        [CRASH_TRUNCATE] = "truncate", [CRASH_FLUSH] = "flush", [CRASH_MARK] = "mark",
    };

    for (uint64_t i = from; i < MIN(until, crash_log_count(log)); i++) {
        struct crash_op op = crash_log_op(log, i);
        fprintf(to, "%6" PRIu64 " %-8s off %#" PRIx64 " len %#" PRIx64 "%s\n", i,
                names[op.kind], op.off, op.len, op.fua ? " fua" : "");
    }
}

/* ---- what a crash leaves ---- */

/* One point of view on the log; everything here under the mutex. */
struct view {
    const struct crash_choice *choice;
    uint64_t point;
    uint64_t covered; /* what had ended before this time is durable */
    uint64_t now;     /* the time of the crash */
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
        v.covered = MAX(v.covered, op->called);
    }
    return v;
}

static bool is_change(const struct crash_op *op)
{
    return op->kind != CRASH_FLUSH && op->kind != CRASH_MARK;
}

static bool is_durable(const struct view *v, const struct crash_op *op)
{
    if (op->ended < v->covered)
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

/* Applies what lies in some of the op's sectors. */
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
        apply(to, &part);
    }
}

/* Decides about the nth pending change. */
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
        apply(to, op);
}

/* The durable prefix, kept from call to call: what is durable at a point stays so at later
 * ones. Returns how many ops are in *image, which is the caller's own. */
static uint64_t take_prefix(struct crash_log *log, const struct view *v,
                            struct storage **image)
{
    if (v->choice->ignore_flush || v->choice->ignore_fua) {
        *image = mem_storage_clone(log->start);
        return 0;
    }
    if (!log->folded_image || v->point < log->fold_point) {
        storage_close(log->folded_image);
        log->folded_image = mem_storage_clone(log->start);
        log->folded = 0;
    }
    log->fold_point = v->point;
    for (; log->folded < v->point; log->folded++) {
        const struct crash_op *op = &log->ops[log->folded];
        if (is_change(op) && !is_durable(v, op))
            break;
        apply(log->folded_image, op);
    }
    *image = mem_storage_clone(log->folded_image);
    return log->folded;
}

struct storage *crash_materialise(struct crash_log *log, uint64_t point,
                                  const struct crash_choice *choice)
{
    struct storage *image;
    struct rng rng;
    uint64_t pending = 0;

    rng_init(&rng, choice->seed);
    pthread_mutex_lock(&log->mutex);
    struct view v = look(log, point, choice);
    for (uint64_t i = take_prefix(log, &v, &image); i < v.point; i++) {
        const struct crash_op *op = &log->ops[i];
        if (!is_change(op))
            continue;
        if (is_durable(&v, op))
            apply(image, op);
        else
            apply_pending(image, op, pending++, choice, &rng);
    }
    pthread_mutex_unlock(&log->mutex);
    return image;
}

int crash_materialise_to(struct crash_log *log, uint64_t point,
                         const struct crash_choice *choice, const char *path)
{
    CLEANUP_STORAGE struct storage *image = crash_materialise(log, point, choice);

    return mem_storage_save(image, path);
}
