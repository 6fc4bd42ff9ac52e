/* SPDX-License-Identifier: BSD-3-Clause */
/* The history of a recording: which requests were sent to the image, and when each was sent and
 * answered.  From it the *oracle* derives what each sector may hold after a crash.
 *
 * Times are positions in the crash log: a request notes its beginning and its end there as
 * marks.  At a crash point p a request has been sent if its beginning lies before p, and
 * answered if its end lies before p.  A request is *durable* at p in two cases:
 *   - it was answered before a flush was sent, and that flush was answered before p;
 *   - it was answered before p and asked for durability itself (FUA, write-through).
 *
 * A sector may hold the data of any request that was sent, or its contents at the start, with
 * one exception: if a durable write or zero of the sector was sent after a request had been
 * answered, the data of that earlier request must not be there any more.  A trim allows zeroes
 * and excludes nothing.
 *
 * Threads: history_begin and history_end may be called from any thread; the other functions
 * only while no request is running. */
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
    REQ_FLUSH,      /* also a clean close */
    REQ_BACKGROUND, /* not a client's request (timers, say): makes no promise */
};

struct request {
    enum request_kind kind;
    bool fua;
    uint64_t sector, n;
    int64_t begin, end; /* positions in the crash log; INT64_MAX: never */
};

struct history {
    struct crash_log *log;
    uint64_t n_sectors;
    uint32_t *initial; /* the version of each sector at the start */
    uint32_t first_version;
    pthread_mutex_t mutex;
    /* under mutex */
    struct request *requests;
    size_t n_requests, capacity;
    /* Set by history_index: the indexes of the requests to sector s, in order, are
     * of_sector[sector_start[s]..sector_start[s + 1]). */
    uint32_t *of_sector;
    size_t *sector_start; /* n_sectors + 1 */
};

/* initial: the version of each sector at the start (copied).  The first request gets the version
 * first_version, which must be greater than all initial ones; each further one the next. */
void history_init(struct history *h, struct crash_log *log, const uint32_t *initial,
                  uint64_t n_sectors, uint32_t first_version);
void history_free(struct history *h);

/* Notes in the log that a request begins (history_begin), and that it was answered (history_end).
 * history_begin returns the request's version, with which the data to write is stamped. */
uint32_t history_begin(struct history *h, enum request_kind kind, uint64_t sector,
                       uint64_t n, bool fua);
void history_end(struct history *h, uint32_t version);

/* Call after the recording: finds the requests' times in the log and sorts them by sector. */
void history_index(struct history *h);

/* The history seen from one crash point. */
struct oracle {
    const struct history *h;
    int64_t point;
    int64_t covered; /* requests that were answered before this are durable */
};

struct oracle oracle_at(const struct history *h, uint64_t point);

/* May the sector hold `found` after the crash?  If not, `why` says what is wrong. */
bool oracle_allows(const struct oracle *o, uint64_t sector, const struct stamp *found,
                   char *why, size_t why_size);

/* The request that made a mark in the log (`what`: the mark's value), and whether the mark is its
 * end.  For predicates that choose flushes. */
struct request history_request_of_mark(const struct history *h, uint64_t what,
                                       bool *is_end);

/* Prints one line for each request to the sector. */
void history_print(const struct history *h, uint64_t sector, FILE *to);

#endif
