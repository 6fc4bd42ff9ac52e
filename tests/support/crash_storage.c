/* SPDX-License-Identifier: BSD-3-Clause */
/* The recording half of the crash storage: every call is applied to the live contents and
 * appended to the log. */
#include "crash_log.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "mem_storage.h"

#define RUNNING UINT64_MAX

struct crash_storage {
    struct storage st;
    struct crash_log *log;
    unsigned file;
};

static struct crash_log *log_of(struct storage *st)
{
    return ((struct crash_storage *)st)->log;
}

static unsigned file_of(struct storage *st)
{
    return ((struct crash_storage *)st)->file;
}

static struct storage *live_of(struct storage *st)
{
    return log_of(st)->file[file_of(st)].live;
}

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* ---- recording ---- */

/* Returns the index of the new entry.  Call with the mutex held. */
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

/* Carries out a change and records it. */
static int record(struct storage *st, struct crash_op op)
{
    struct crash_log *log = log_of(st);

    op.file = file_of(st);
    op.called = tick(log);
    op.ended = RUNNING;
    pthread_mutex_lock(&log->mutex);
    crash_apply(log->file[op.file].live, &op);
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
    return storage_read(live_of(st), buf, off, len);
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
    return record(st, op);
}

static int crash_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    (void)flags;
    return record(st, (struct crash_op){.kind = CRASH_ZERO, .off = off, .len = len});
}

static int crash_discard(struct storage *st, uint64_t off, uint64_t len)
{
    return record(st, (struct crash_op){.kind = CRASH_DISCARD, .off = off, .len = len});
}

static int crash_truncate(struct storage *st, uint64_t bytes)
{
    return record(st, (struct crash_op){.kind = CRASH_TRUNCATE, .len = bytes});
}

static int crash_size(struct storage *st, uint64_t *bytes)
{
    return storage_size(live_of(st), bytes);
}

/* In memory there are no blocks to reserve: only the size may change. */
static int crash_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    uint64_t size;

    int err = crash_size(st, &size);
    return err || off + len <= size ? err : crash_truncate(st, off + len);
}

static int crash_flush(struct storage *st)
{
    struct crash_log *log = log_of(st);
    struct crash_op op = {.kind = CRASH_FLUSH, .file = file_of(st), .called = tick(log)};

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
    return storage_extent(live_of(st), off, len, data, run);
}

static int crash_allocated(struct storage *st, uint64_t *bytes)
{
    return storage_allocated(live_of(st), bytes);
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

static void add_file(struct crash_log *log, struct storage *base)
{
    struct crash_file *file = &log->file[log->n_files++];

    file->start = base ? mem_storage_clone(base) : mem_storage_new(0);
    file->live = mem_storage_clone(file->start);
}

struct crash_log *crash_log_new(struct storage *base)
{
    struct crash_log *log = must(calloc(1, sizeof *log));

    pthread_mutex_init(&log->mutex, NULL);
    add_file(log, base);
    return log;
}

void crash_log_add_file(struct crash_log *log, struct storage *base)
{
    if (log->n_files == CRASH_FILES)
        abort();
    add_file(log, base);
}

static void forget_ops(struct crash_log *log)
{
    for (uint64_t i = 0; i < log->count; i++)
        free(log->ops[i].data);
    free(log->ops);
    log->ops = NULL;
    log->count = log->capacity = log->flushes = 0;
    crash_forget_prefix(log);
}

void crash_log_free(struct crash_log *log)
{
    if (!log)
        return;
    forget_ops(log);
    for (unsigned i = 0; i < log->n_files; i++) {
        storage_close(log->file[i].start);
        storage_close(log->file[i].live);
    }
    pthread_mutex_destroy(&log->mutex);
    free(log);
}

void crash_log_rebase(struct crash_log *log)
{
    pthread_mutex_lock(&log->mutex);
    forget_ops(log);
    for (unsigned i = 0; i < log->n_files; i++) {
        storage_close(log->file[i].start);
        log->file[i].start = mem_storage_clone(log->file[i].live);
    }
    pthread_mutex_unlock(&log->mutex);
}

struct storage *crash_storage_open_file(struct crash_log *log, unsigned file)
{
    struct crash_storage *crash = must(calloc(1, sizeof *crash));

    if (file >= log->n_files)
        abort();
    crash->log = log;
    crash->file = file;
    crash->st.ops = &crash_ops;
    crash->st.name = must(strdup(file == 0 ? "crash" : "crash data"));
    crash->st.align = 1;
    return &crash->st;
}

struct storage *crash_storage_open(struct crash_log *log)
{
    return crash_storage_open_file(log, 0);
}

struct storage *crash_log_live(struct crash_log *log)
{
    return mem_storage_share(log->file[0].live);
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
        fprintf(to, "%6" PRIu64 " %u %-8s off %#" PRIx64 " len %#" PRIx64 "%s\n", i,
                op.file, names[op.kind], op.off, op.len, op.fua ? " fua" : "");
    }
}
