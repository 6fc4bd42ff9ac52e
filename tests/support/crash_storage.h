/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage in memory that records every change, so that a test can compute what a power
 * failure at any moment could have left in the file.
 *
 * The *log* holds the contents at the start, the current ("live") contents, and the list of
 * operations in the order in which they took effect.  Crash storages are handles that record
 * into the log.  The test owns the log, which must outlive the handles.
 *
 *     struct crash_log *log = crash_log_new(NULL);
 *     ... create an image through crash_storage_open(log), close it ...
 *     crash_log_rebase(log);
 *     ... run a workload through another handle; note replies with crash_log_mark ...
 *     for (uint64_t p = 0; p <= crash_log_count(log); p++) {
 *         struct crash_choice choice = {.policy = CRASH_TORN, .seed = p};
 *         struct storage *st = crash_materialise(log, p, &choice);
 *         ... open it, check it, close it ...
 *     }
 *
 * A log can have several *files*, of one image or of several.  The power fails for all of
 * them at the same moment, but a flush makes durable only what was written to its own file.
 *
 * A *crash point* p lies after the first p entries of the log.  At p these are durable:
 *   - each change that had ended before a flush of its file was called, if that flush
 *     completed before p (a flush doesn't cover changes that were still running when it was
 *     called);
 *   - each write with STORAGE_FUA that had ended before p.
 * All other changes recorded before p are *pending*: enum crash_policy says which of them
 * reached the disk.  Those are applied together with the durable ones, in the order of the
 * log.
 *
 * A pending truncate may be lost although later changes arrive.  If growth is lost, a later
 * write beyond the old end grows the file up to the end of that write, with zeroes in
 * between.  If a shortening is lost, the old bytes are still there.
 *
 * Threads: every function may be called from any thread.  While one thread materialises a
 * crash point, others may record: the log only grows after that point.  Functions abort when
 * memory is short. */
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
    CRASH_FLUSH,    /* recorded when it completes; off: its number, from 1 on */
    CRASH_MARK,     /* off: the value that the test passed to crash_log_mark */
};

#define CRASH_FILES 2

/* One entry of the log.  Times come from a counter that advances with every event. */
struct crash_op {
    enum crash_kind kind;
    bool fua;
    unsigned file; /* not for CRASH_MARK */
    uint64_t off, len;
    uint8_t *data;     /* CRASH_WRITE: len bytes */
    uint64_t called;   /* when the call began */
    uint64_t recorded; /* when it was appended to the log and became visible to readers */
    uint64_t ended;    /* just before the call returned; UINT64_MAX: it is still running */
};

enum crash_policy {
    CRASH_NONE,        /* no pending change arrives */
    CRASH_ALL,         /* all pending changes arrive: the process was killed */
    CRASH_SUBSET,      /* each pending change arrives or not, at random */
    CRASH_ALL_BUT_ONE, /* all pending changes except number choice.one */
    CRASH_ONLY_ONE, /* only pending change number choice.one (from 0; see crash_pending) */
    CRASH_TORN, /* at random: none, all, or some 512-byte sectors of each pending change */
};

struct crash_choice {
    enum crash_policy policy;
    uint64_t seed; /* CRASH_SUBSET, CRASH_TORN */
    uint64_t one;
    /* To prove that tests can fail: returns true if the nth flush (from 1 on) is to be
     * treated as if it had made nothing durable.  NULL: all flushes count. */
    bool (*ignore_flush)(void *opaque, uint64_t nth);
    void *opaque;
    bool ignore_fua; /* STORAGE_FUA makes nothing durable */
};

struct crash_log;

/* A log with one file, number 0, that starts with the contents of `base`, a mem storage
 * which stays unchanged and the caller's.  NULL: an empty file. */
struct crash_log *crash_log_new(struct storage *base);
void crash_log_free(struct crash_log *log);

/* Adds a file; the first one added is number 1.  Only while nothing is recorded yet. */
void crash_log_add_file(struct crash_log *log, struct storage *base);

/* A storage that records into the log: file 0, or the given one. */
struct storage *crash_storage_open(struct crash_log *log);
struct storage *crash_storage_open_file(struct crash_log *log, unsigned file);

/* A storage with the live contents of file 0 that doesn't record; for looking only. */
struct storage *crash_log_live(struct crash_log *log);

/* The live contents become those at the start, and all entries are dropped.  Only while no
 * call is running. */
void crash_log_rebase(struct crash_log *log);

/* Appends an event of the test to the log, such as "request 7 was answered". */
void crash_log_mark(struct crash_log *log, uint64_t what);

/* The hook lets a test make other calls in the middle of a change or a flush.  It is called
 * without locks: in every change after the change became visible and before it ends, and at
 * the beginning of every flush.  Calls made by the hook itself don't call it again.
 * NULL: no hook.  Set it while no call is running. */
typedef void crash_hook(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len);
void crash_log_set_hook(struct crash_log *log, crash_hook *hook, void *opaque);

/* The number of entries, and one of them, whose data the log still owns. */
uint64_t crash_log_count(struct crash_log *log);
struct crash_op crash_log_op(struct crash_log *log, uint64_t index);

/* Prints one line for each of the entries [from, until). */
void crash_log_print(struct crash_log *log, FILE *to, uint64_t from, uint64_t until);

/* How many changes are pending at the crash point, given the choice's ignore_flush and
 * ignore_fua. */
uint64_t crash_pending(struct crash_log *log, uint64_t point,
                       const struct crash_choice *choice);

/* What a crash at that point leaves with that choice, as new mem storages that the caller
 * closes: file 0 alone, or all files (NULL for those the log doesn't have).  Fastest when
 * called with rising points. */
struct storage *crash_materialise(struct crash_log *log, uint64_t point,
                                  const struct crash_choice *choice);
void crash_materialise_files(struct crash_log *log, uint64_t point,
                             const struct crash_choice *choice,
                             struct storage *out[CRASH_FILES]);

/* The same for file 0, saved as `path`.  0 or -errno. */
int crash_materialise_to(struct crash_log *log, uint64_t point,
                         const struct crash_choice *choice, const char *path) MUST_USE;

#endif
