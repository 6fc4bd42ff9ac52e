/* SPDX-License-Identifier: BSD-3-Clause */
/* What was asked of an image, when it was asked and when it was answered, and from that
 * what each sector may hold after a crash.
 *
 * Times are positions in the crash log: a request notes its beginning and its end there
 * with marks.  At a crash point p a request was sent when its beginning lies before p, and
 * answered when its end does.  A *durable* request was answered before a flush was asked
 * for that was itself answered before p, or was answered and asked for durability (FUA,
 * write-through).
 *
 * A sector may hold what a sent request gave it, or what it held at the start, unless a
 * durable write or zero was asked for after that request had been answered.  A trim allows
 * zeroes and forbids nothing.
 *
 * Threads: history_begin and history_end from any thread; the rest alone. */
#ifndef CRASH_HISTORY_H
#define CRASH_HISTORY_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "crash_storage.h"
#include "stamp.h"

enum request_kind {
    REQ_WRITE,
    REQ_ZERO,
    REQ_TRIM,
    REQ_FLUSH,      /* and a clean close */
    REQ_BACKGROUND, /* timers: promises nothing */
};

struct request {
    enum request_kind kind;
    bool fua;
    uint64_t sector, n;
    int64_t begin, end; /* INT64_MAX: never */
};

struct history {
    struct crash_log *log;
    uint64_t n_sectors;
    uint32_t *initial; /* versions */
    uint32_t first_version;
    pthread_mutex_t mutex;
    /* under mutex */
    struct request *requests;
    size_t n_requests, capacity;
    /* after history_index: the requests of each sector, in order */
    uint32_t *of_sector;
    size_t *sector_start; /* n_sectors + 1 */
};

/* initial: one version for each sector, copied; the requests' versions start at
 * first_version, which is greater than all of them. */
void history_init(struct history *h, struct crash_log *log, const uint32_t *initial,
                  uint64_t n_sectors, uint32_t first_version);
void history_free(struct history *h);

/* Returns the version of what the request writes; notes the beginning in the log. */
uint32_t history_begin(struct history *h, enum request_kind kind, uint64_t sector,
                       uint64_t n, bool fua);
void history_end(struct history *h, uint32_t version);

/* After the recording: finds the times in the log and sorts requests by sector. */
void history_index(struct history *h);

/* What is true at one crash point. */
struct oracle {
    const struct history *h;
    int64_t point;
    int64_t covered; /* what ended before this is durable */
};

struct oracle oracle_at(const struct history *h, uint64_t point);

/* May the sector hold this?  If not, `why` says what is wrong with it. */
bool oracle_allows(const struct oracle *o, uint64_t sector, const struct stamp *found,
                   char *why, size_t why_size);

/* What a mark in the log was made by: for predicates on flushes. */
struct request history_request_of_mark(const struct history *h, uint64_t what,
                                       bool *is_end);

/* One line for each request that touched the sector. */
void history_print(const struct history *h, uint64_t sector, FILE *to);

#endif
