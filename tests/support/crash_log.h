/* SPDX-License-Identifier: BSD-3-Clause */
/* The inside of a crash log, shared by crash_storage.c, which records into it, and
 * crash_states.c, which computes from it what a crash leaves. */
#ifndef SUPPORT_CRASH_LOG_H
#define SUPPORT_CRASH_LOG_H

#include <pthread.h>

#include "crash_storage.h"

struct crash_log {
    /* Not a lock with a rank: it is held during calls of the mem storages, which take locks
     * of their own, and our callers may already hold any lock that may be held during I/O. */
    pthread_mutex_t mutex;
    /* under mutex */
    struct crash_file {
        struct storage *start, *live;
        /* `start` with ops[0..folded) applied.  NULL (then in all files): not built yet. */
        struct storage *folded;
    } file[CRASH_FILES];
    unsigned n_files;
    struct crash_op *ops;
    uint64_t count, capacity;
    uint64_t clock;
    uint64_t flushes;
    /* Cache for crash_materialise: every change in ops[0..folded) is durable at all crash
     * points from fold_point on, so that it needs to be applied only once. */
    uint64_t folded, fold_point;

    crash_hook *hook;
    void *hook_opaque;
};

/* Applies the operation to a mem storage.  Flushes and marks change nothing. */
void crash_apply(struct storage *to, const struct crash_op *op);

/* Drops the `folded` storages.  Call with the mutex held. */
void crash_forget_prefix(struct crash_log *log);

#endif
