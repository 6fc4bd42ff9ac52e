/* SPDX-License-Identifier: BSD-3-Clause */
/* Records requests and decides what each sector may hold after a crash; see history.h. */
#include "history.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"

#define NEVER INT64_MAX

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

void history_init(struct history *h, struct crash_log *log, const uint32_t *initial,
                  uint64_t n_sectors, uint32_t first_version)
{
    *h = (struct history){
        .log = log, .n_sectors = n_sectors, .first_version = first_version};
    pthread_mutex_init(&h->mutex, NULL);
    h->initial = must(calloc(n_sectors, sizeof *h->initial));
    memcpy(h->initial, initial, n_sectors * sizeof *initial);
}

void history_free(struct history *h)
{
    pthread_mutex_destroy(&h->mutex);
    free(h->initial);
    free(h->requests);
    free(h->of_sector);
    free(h->sector_start);
}

uint32_t history_begin(struct history *h, enum request_kind kind, uint64_t sector,
                       uint64_t n, bool fua)
{
    pthread_mutex_lock(&h->mutex);
    if (h->n_requests == h->capacity) {
        h->capacity = MAX(256, h->capacity * 2);
        h->requests = must(realloc(h->requests, h->capacity * sizeof *h->requests));
    }
    uint32_t version = h->first_version + (uint32_t)h->n_requests;
    h->requests[h->n_requests++] = (struct request){
        .kind = kind, .fua = fua, .sector = sector, .n = n, .begin = NEVER, .end = NEVER};
    pthread_mutex_unlock(&h->mutex);
    crash_log_mark(h->log, (uint64_t)version * 2);
    return version;
}

void history_end(struct history *h, uint32_t version)
{
    crash_log_mark(h->log, (uint64_t)version * 2 + 1);
}

struct request history_request_of_mark(const struct history *h, uint64_t what, bool *is_end)
{
    *is_end = what & 1;
    return h->requests[what / 2 - h->first_version];
}

static bool changes_sectors(const struct request *r)
{
    return r->kind == REQ_WRITE || r->kind == REQ_ZERO || r->kind == REQ_TRIM;
}

static void find_times(struct history *h)
{
    uint64_t count = crash_log_count(h->log);

    for (uint64_t i = 0; i < count; i++) {
        struct crash_op op = crash_log_op(h->log, i);
        if (op.kind != CRASH_MARK)
            continue;
        struct request *r = &h->requests[op.off / 2 - h->first_version];
        if (op.off & 1)
            r->end = (int64_t)i;
        else
            r->begin = (int64_t)i;
    }
}

void history_index(struct history *h)
{
    find_times(h);
    h->sector_start = must(calloc(h->n_sectors + 2, sizeof *h->sector_start));
    size_t *count = h->sector_start + 1, total = 0;

    for (size_t i = 0; i < h->n_requests; i++)
        for (uint64_t s = 0; changes_sectors(&h->requests[i]) && s < h->requests[i].n;
             s++) {
            count[h->requests[i].sector + s]++;
            total++;
        }
    for (uint64_t s = 1; s <= h->n_sectors; s++)
        h->sector_start[s] += h->sector_start[s - 1];

    size_t *fill = must(calloc(h->n_sectors + 1, sizeof *fill));
    memcpy(fill, h->sector_start, (h->n_sectors + 1) * sizeof *fill);
    h->of_sector = must(calloc(total + 1, sizeof *h->of_sector));
    for (size_t i = 0; i < h->n_requests; i++)
        for (uint64_t s = 0; changes_sectors(&h->requests[i]) && s < h->requests[i].n; s++)
            h->of_sector[fill[h->requests[i].sector + s]++] = (uint32_t)i;
    free(fill);
}

struct oracle oracle_at(const struct history *h, uint64_t point)
{
    struct oracle o = {.h = h, .point = (int64_t)point, .covered = -1};

    for (size_t i = 0; i < h->n_requests; i++) {
        const struct request *r = &h->requests[i];
        if (r->kind == REQ_FLUSH && r->end < o.point)
            o.covered = MAX(o.covered, r->begin);
    }
    return o;
}

static bool is_durable(const struct oracle *o, const struct request *r)
{
    return r->end < o->covered || (r->fua && r->end < o->point);
}

/* The latest beginning of a durable write or zero of the sector (-1: none).  The data of requests
 * that were answered before it must not be there any more. */
static int64_t floor_of(const struct oracle *o, uint64_t sector)
{
    const struct history *h = o->h;
    int64_t latest = -1;

    for (size_t i = h->sector_start[sector]; i < h->sector_start[sector + 1]; i++) {
        const struct request *r = &h->requests[h->of_sector[i]];
        if (r->kind != REQ_TRIM && is_durable(o, r))
            latest = MAX(latest, r->begin);
    }
    return latest;
}

static bool zeroes_allowed(const struct oracle *o, uint64_t sector, int64_t gone)
{
    const struct history *h = o->h;

    if (h->initial[sector] == 0 && gone < 0)
        return true;
    for (size_t i = h->sector_start[sector]; i < h->sector_start[sector + 1]; i++) {
        const struct request *r = &h->requests[h->of_sector[i]];
        if (r->kind != REQ_WRITE && r->begin < o->point && r->end >= gone)
            return true;
    }
    return false;
}

static bool refuse(char *why, size_t size, uint64_t sector, const struct stamp *found,
                   const char *what, int64_t gone)
{
    snprintf(why, size,
             "sector %" PRIu64 ": %s (found kind %d, sector %" PRIu64 ", version %" PRIu32
             "; what was answered before log entry %" PRId64 " is gone)",
             sector, what, (int)found->kind, found->sector, found->version, gone);
    return false;
}

bool oracle_allows(const struct oracle *o, uint64_t sector, const struct stamp *found,
                   char *why, size_t size)
{
    const struct history *h = o->h;
    int64_t gone = floor_of(o, sector);

    if (found->kind == STAMP_GARBAGE)
        return refuse(why, size, sector, found, "garbage", gone);
    if (found->kind == STAMP_ZEROES)
        return zeroes_allowed(o, sector, gone) ||
               refuse(why, size, sector, found, "zeroes in the place of durable data",
                      gone);
    if (found->sector != sector)
        return refuse(why, size, sector, found, "another sector's data", gone);
    if (found->version < h->first_version) {
        if (found->version != h->initial[sector])
            return refuse(why, size, sector, found, "data from before the start", gone);
        return gone < 0 || refuse(why, size, sector, found, "durable data was lost", gone);
    }
    if (found->version - h->first_version >= h->n_requests)
        return refuse(why, size, sector, found, "a version nobody wrote", gone);
    const struct request *r = &h->requests[found->version - h->first_version];
    if (r->kind != REQ_WRITE || sector < r->sector || sector >= r->sector + r->n)
        return refuse(why, size, sector, found, "a version of something else", gone);
    if (r->begin >= o->point)
        return refuse(why, size, sector, found, "data that was not sent yet", gone);
    return r->end >= gone ||
           refuse(why, size, sector, found, "durable data was lost", gone);
}

void history_print(const struct history *h, uint64_t sector, FILE *to)
{
    static const char *const names[] = {
        [REQ_WRITE] = "write", [REQ_ZERO] = "zero", [REQ_TRIM] = "trim"};

    fprintf(to, "  sector %" PRIu64 " was version %" PRIu32 " at the start\n", sector,
            h->initial[sector]);
    for (size_t i = h->sector_start[sector]; i < h->sector_start[sector + 1]; i++) {
        const struct request *r = &h->requests[h->of_sector[i]];
        fprintf(to,
                "  version %" PRIu32 ": %s%s of [%" PRIu64 ", %" PRIu64 ") from %" PRId64
                " to %" PRId64 "\n",
                h->first_version + h->of_sector[i], names[r->kind],
                r->fua ? " (durable)" : "", r->sector, r->sector + r->n, r->begin, r->end);
    }
}
