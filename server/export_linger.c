/* SPDX-License-Identifier: BSD-3-Clause */
/* Closes images of a folder that have been unused for the linger time.  Closing writes and may
 * take long on a disk that doesn't answer.  So several threads do it: only if all of them hang
 * are other images not closed. */
#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "export_table_internal.h"

#define CLOSERS 4
/* Memory is returned to the system after this many closed images; it takes a few milliseconds. */
#define TRIM_AFTER 64

struct export_closers {
    /* under the table's lock */
    bool stop;
    unsigned closed; /* since memory was given back */

    unsigned n;
    pthread_t thread[CLOSERS];
};

/* Under the lock: an image that has been unused for `ms`.  NULL: none; then *next is the time
 * (clock_ms) at which there may be one, or UINT64_MAX. */
static struct served_export *find_unused(struct export_table *table, uint64_t ms,
                                         uint64_t *next)
{
    uint64_t now = clock_ms();

    *next = UINT64_MAX;
    LIST_FOR_EACH (pos, &table->exports) {
        struct served_export *exp = export_at(pos);
        if (!export_is_unused(exp) || !exp->idle_since)
            continue;
        if (exp->idle_since + ms <= now)
            return exp;
        if (exp->idle_since + ms < *next)
            *next = exp->idle_since + ms;
    }
    return NULL;
}

/* Under the lock, which is released meanwhile.  The blocks of closed images lie scattered among
 * those of open ones, in the heaps of many threads; without this call free() would keep them
 * for the process. */
static void give_memory_back(struct export_table *table)
{
    table->closers->closed = 0;
    LOCK_GAP(&table->lock);
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

/* Under the lock, which is released meanwhile. */
static void close_unused(struct export_table *table, struct served_export *exp)
{
    export_close_unlocked(table, exp);
    if (++table->closers->closed >= TRIM_AFTER || list_empty(&table->exports))
        give_memory_back(table);
}

static void *closer_main(void *opaque)
{
    struct export_table *table = opaque;

    LOCK_GUARD(&table->lock);
    while (!table->closers->stop) {
        uint64_t next;
        struct served_export *exp = find_unused(table, table->linger_ms, &next);
        if (exp)
            close_unused(table, exp);
        else if (next == UINT64_MAX)
            lock_wait(&table->lock, &table->idle);
        else
            lock_wait_until(&table->lock, &table->idle, next * 1000000);
    }
    return NULL;
}

void export_close_idle(struct export_table *table)
{
    struct served_export *exp;
    uint64_t ignored;

    LOCK_GUARD(&table->lock);
    while ((exp = find_unused(table, 0, &ignored)))
        export_close_unlocked(table, exp);
}

int export_closers_start(struct export_table *table)
{
    struct export_closers *closers = calloc(1, sizeof *closers);

    if (!closers)
        return -ENOMEM;
    table->closers = closers;
    for (; closers->n < CLOSERS; closers->n++) {
        int err = thread_start(&closers->thread[closers->n], closer_main, table);
        if (err)
            return err;
    }
    return 0;
}

static void tell_to_stop(struct export_table *table)
{
    LOCK_GUARD(&table->lock);
    table->closers->stop = true;
    pthread_cond_broadcast(&table->idle);
}

void export_closers_stop(struct export_table *table)
{
    if (!table->closers)
        return;
    tell_to_stop(table);
    for (unsigned i = 0; i < table->closers->n; i++)
        pthread_join(table->closers->thread[i], NULL);
    free(TAKE(&table->closers));
}
