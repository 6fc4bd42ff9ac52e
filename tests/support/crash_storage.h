/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that remembers every change, so that a test can ask what a power cut at any
 * moment could have left behind.
 *
 * The *log* holds the contents at the start, the live contents, and the list of operations
 * in the order in which they took effect; storages are handles that record into it.  The
 * log belongs to the test and outlives the handles.
 *
 *     struct crash_log *log = crash_log_new(NULL);
 *     ... create an image through crash_storage_open(log), close it ...
 *     crash_log_rebase(log);
 *     ... run a workload through another handle, noting replies with crash_log_mark ...
 *     for (uint64_t p = 0; p <= crash_log_count(log); p++) {
 *         struct crash_choice choice = {.policy = CRASH_TORN, .seed = p};
 *         struct storage *st = crash_materialise(log, p, &choice);
 *         ... open it, check it, close it ...
 *     }
 *
 * A log may have several *files*, of one image or of several: the power is cut for all of
 * them at one moment, but a flush covers what went to its own file alone.
 *
 * A *crash point* p lies after the first p entries of the log.  What is durable there:
 *   - a change that had ended when a flush of its file was called which completed before p; a change
 *     that was still running when the flush was called is not covered by it;
 *   - a write with STORAGE_FUA that had ended before p.
 * All other changes recorded before p are *pending*: the policy says which of them arrived.
 * What arrives is applied in the order of the log, together with what is durable.
 *
 * A pending truncate may be missing while later ones arrive.  When growth is missing, a
 * write that lies behind it grows the file to its own end, with zeroes between; when a cut
 * is missing, the old bytes are still there.
 *
 * Threads: every function from any thread; materialising while others record sees a log
 * that may grow behind the point asked for.  Functions abort when memory is short. */
#ifndef SUPPORT_CRASH_STORAGE_H
#define SUPPORT_CRASH_STORAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "storage/storage.h"

enum crash_kind {
    CRASH_WRITE,
    CRASH_ZERO,
    CRASH_DISCARD,
    CRASH_TRUNCATE, /* len: the new size */
    CRASH_FLUSH,    /* stands where it completed; off: its number, from 1 on */
    CRASH_MARK,     /* off: what the test said */
};

#define CRASH_FILES 2

/* One entry.  Times are those of a clock that ticks with every event of the log. */
struct crash_op {
    enum crash_kind kind;
    bool fua;
    unsigned file; /* of changes and flushes */
    uint64_t off, len;
    uint8_t *data;     /* CRASH_WRITE: len bytes */
    uint64_t called;   /* when the call began */
    uint64_t recorded; /* when it got its place in the log, and became visible */
    uint64_t ended;    /* when it was about to return; UINT64_MAX: it is still running */
};

enum crash_policy {
    CRASH_NONE,        /* only what is durable */
    CRASH_ALL,         /* everything before the point: a killed process */
    CRASH_SUBSET,      /* each pending change or not, by coin */
    CRASH_ALL_BUT_ONE, /* all pending changes but choice.one; */
    CRASH_ONLY_ONE,    /* only choice.one (from 0 on; see crash_pending) */
    CRASH_TORN, /* each pending change not, wholly, or some of its 512-byte sectors */
};

struct crash_choice {
    enum crash_policy policy;
    uint64_t seed; /* CRASH_SUBSET, CRASH_TORN */
    uint64_t one;
    /* For tests that must fail: NULL, or is the nth flush (from 1 on) to have no effect? */
    bool (*ignore_flush)(void *opaque, uint64_t nth);
    void *opaque;
    bool ignore_fua;
};

struct crash_log;

/* The contents at the start are those of `base`, a mem storage, which is only looked at;
 * NULL: an empty file. */
struct crash_log *crash_log_new(struct storage *base);
void crash_log_free(struct crash_log *log);

/* One file more, before anything is recorded: the first that is added is number 1. */
void crash_log_add_file(struct crash_log *log, struct storage *base);

/* A handle that records: on file 0, or on another. */
struct storage *crash_storage_open(struct crash_log *log);
struct storage *crash_storage_open_file(struct crash_log *log, unsigned file);

/* A handle on the live contents of file 0 that doesn't record: for looking. */
struct storage *crash_log_live(struct crash_log *log);

/* Makes the live contents those of the start, and forgets the list.  While nothing runs. */
void crash_log_rebase(struct crash_log *log);

/* Notes an event of the test, such as "request 7 was answered". */
void crash_log_mark(struct crash_log *log, uint64_t what);

/* Called within every change after it became visible, and within every flush after it was
 * called, before either ends, under no lock: so that a test can put other calls there.  Not
 * called for calls made from within it.  NULL: nothing.  To be set while nothing runs. */
typedef void crash_hook(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len);
void crash_log_set_hook(struct crash_log *log, crash_hook *hook, void *opaque);

/* Entries, and one of them (its data stays the log's). */
uint64_t crash_log_count(struct crash_log *log);
struct crash_op crash_log_op(struct crash_log *log, uint64_t index);

/* One line for each of the entries [from, until). */
void crash_log_print(struct crash_log *log, FILE *to, uint64_t from, uint64_t until);

/* How many changes are pending at that point, seen with the choice's switches. */
uint64_t crash_pending(struct crash_log *log, uint64_t point,
                       const struct crash_choice *choice);

/* What the choice leaves of a crash at that point, as a new mem storage: of file 0, or of
 * all of them (NULL where there is none).  Fastest with points in rising order. */
struct storage *crash_materialise(struct crash_log *log, uint64_t point,
                                  const struct crash_choice *choice);
void crash_materialise_files(struct crash_log *log, uint64_t point,
                             const struct crash_choice *choice,
                             struct storage *out[CRASH_FILES]);

/* File 0, written to a file.  0 or -errno. */
int crash_materialise_to(struct crash_log *log, uint64_t point,
                         const struct crash_choice *choice, const char *path) MUST_USE;

#endif
