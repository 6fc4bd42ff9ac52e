/* SPDX-License-Identifier: BSD-3-Clause */
/* The log of crash storages from inside: for those who fill it and those who read it. */
#ifndef SUPPORT_CRASH_LOG_H
#define SUPPORT_CRASH_LOG_H

#include <pthread.h>

#include "crash_storage.h"

struct crash_log {
    /* Not a ranked lock: it is held over calls of the mem storages, which take locks of
     * their own, while our callers may already hold any lock that can span I/O. */
    pthread_mutex_t mutex;
    /* under mutex */
    struct crash_file {
        struct storage *start, *live;
        /* With the durable prefix applied; NULL in all files: there is none. */
        struct storage *folded;
    } file[CRASH_FILES];
    unsigned n_files;
    struct crash_op *ops;
    uint64_t count, capacity;
    uint64_t clock;
    uint64_t flushes;
    /* The durable prefix is ops[0..folded) at points from fold_point on. */
    uint64_t folded, fold_point;

    crash_hook *hook;
    void *hook_opaque;
};

/* Does a change to a mem storage; flushes and marks change nothing. */
void crash_apply(struct storage *to, const struct crash_op *op);

/* Under the mutex. */
void crash_forget_prefix(struct crash_log *log);

#endif
