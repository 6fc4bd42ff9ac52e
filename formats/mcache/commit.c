/* SPDX-License-Identifier: BSD-3-Clause */
/* Group commit: one thread, the leader, commits for all threads that are waiting.
 *
 * A commit makes everything durable that happened before it began.  So any commit that begins
 * after a thread's call serves that thread, whichever thread leads it.  Threads that call while
 * a commit runs wait for the next one, which one of them leads.  However many threads flush at
 * the same time, each waits for two commits at most.
 *
 * The leader freezes the dirty pages into a group under the meta lock, which takes
 * microseconds, and then writes the group without any lock, class by class. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "mcache/internal.h"

struct mcache *mcache_new(struct mc_pool *pool, struct gate *gate, struct storage *st,
                          const struct mcache_hooks *hooks, void *owner)
{
    struct mcache *mc = calloc(1, sizeof *mc);

    if (!mc)
        return NULL;
    mc->pool = pool;
    mc->gate = gate;
    mc->st = st;
    if (hooks)
        mc->hooks = *hooks;
    mc->owner = owner;
    list_init(&mc->maps);
    list_init(&mc->retired);
    list_init(&mc->retiring);
    lock_init(&mc->meta, RANK_META);
    for (int cls = 0; cls < MC_CLASSES; cls++)
        list_init(&mc->dirty[cls]);
    for (unsigned i = 0; i < LOAD_STRIPES; i++) {
        lock_init(&mc->load[i].lock, RANK_LOAD);
        pthread_cond_init(&mc->load[i].done, NULL);
        list_init(&mc->load[i].loading);
    }
    lock_init(&mc->commit, RANK_COMMIT);
    pthread_cond_init(&mc->commit_done, NULL);
    return mc;
}

void mcache_free(struct mcache *mc)
{
    if (!mc)
        return;
    LIST_FOR_EACH_SAFE (pos, &mc->maps)
        mcmap_free(CONTAINER_OF(pos, struct mcmap, link));
    mc_pool_leave(mc);
    for (unsigned i = 0; i < LOAD_STRIPES; i++) {
        lock_destroy(&mc->load[i].lock);
        pthread_cond_destroy(&mc->load[i].done);
    }
    lock_destroy(&mc->meta);
    lock_destroy(&mc->commit);
    pthread_cond_destroy(&mc->commit_done);
    mc_room_free(&mc->room);
    free(mc);
}

struct lock *mcache_meta(struct mcache *mc)
{
    return &mc->meta;
}

void mcache_strict(struct mcache *mc)
{
    lock_assert_held(&mc->meta);
    mc->strict = true;
}

void mcache_set_postpone(struct mcache *mc, bool on)
{
    LOCK_GUARD(&mc->meta);
    mc->postpone = on;
}

void mcache_note_write(struct mcache *mc)
{
    atomic_fetch_add_explicit(&mc->written, 1, memory_order_release);
}

bool mcache_has_dirty(struct mcache *mc)
{
    return atomic_load(&mc->n_links) != 0;
}

int mcache_health(struct mcache *mc)
{
    return UNLIKELY(atomic_load_explicit(&mc->poisoned, memory_order_relaxed)) ? -EIO : 0;
}

bool mcache_refuse(struct mcache *mc)
{
    return !atomic_exchange(&mc->poisoned, true);
}

void mcache_poison(struct mcache *mc)
{
    if (mcache_refuse(mc))
        log_error(
            "%s: it is unknown what reached the disk: no more writes until it is reopened",
            mc->st->name);
}

void mcache_set_forgiving(struct mcache *mc, bool on)
{
    atomic_store(&mc->forgiving, on);
}

uint64_t mcache_failures(struct mcache *mc)
{
    return atomic_load(&mc->failures);
}

void mcache_note_failure(struct mcache *mc)
{
    atomic_fetch_add(&mc->failures, 1);
}

void mcache_add_data_store(struct mcache *mc, struct storage *st)
{
    assert(mc->n_data < MC_DATA_STORES);
    mc->data[mc->n_data++] = st;
}

/* After a failed barrier it is unknown what reached the disk, so the cache is poisoned.  A store
 * that keeps unflushed writes until they are durable is an exception: there a failed barrier is
 * like a failed write, and can be tried again. */
static int flush_store(struct mcache *mc, struct storage *st)
{
    int err = storage_flush(st);

    if (err)
        mcache_note_failure(mc);
    if (err && !st->keeps_writes && !atomic_load(&mc->forgiving)) {
        log_error("%s: flushing failed: %s", st->name, strerror(-err));
        mcache_poison(mc);
    }
    return err;
}

/* Flushes the data before the metadata that refers to it. */
static int flush_stores(struct mcache *mc)
{
    for (unsigned i = 0; i < mc->n_data; i++) {
        int err = flush_store(mc, mc->data[i]);
        if (err)
            return err;
    }
    return flush_store(mc, mc->st);
}

/* Writes writes[from..to), all of one class; pages that are adjacent in the file go into one
 * call. */
static int write_pages(struct mcache *mc, const struct mc_write *writes, size_t from,
                       size_t to)
{
    while (from < to) {
        struct iovec iov[STORAGE_MAX_IOV];
        uint64_t start = writes[from].host_offset, end = start;
        int n = 0;
        while (from < to && n < STORAGE_MAX_IOV && writes[from].host_offset == end) {
            iov[n].iov_base = writes[from].bytes;
            iov[n++].iov_len = writes[from].n_bytes;
            end += writes[from++].n_bytes;
        }
        int err = storage_writev(mc->st, iov, n, start, 0);
        if (err)
            return err;
    }
    return 0;
}

/* Writes a group class by class, with the barriers that invariant (1) needs. */
static int write_group(struct mcache *mc, const struct mc_group *group)
{
    size_t at = 0;

    for (enum mc_class cls = MC_PRE; cls < MC_CLASSES; cls++) {
        size_t end = at;
        while (end < group->n_writes && group->writes[end].cls == cls)
            end++;
        if (cls == MC_LINK && end > at && group->strict) {
            int err = flush_stores(mc);
            if (err)
                return err;
        }
        int err = write_pages(mc, group->writes, at, end);
        if (err)
            return err;
        if (cls == MC_PRE && end > at) {
            err = flush_stores(mc);
            if (err)
                return err;
        }
        at = end;
    }
    return flush_stores(mc);
}

static int commit_group(struct mcache *mc, bool everything)
{
    struct mc_group group;

    int err = mcache_health(mc);
    if (!err && mc->hooks.settle)
        err = mc->hooks.settle(mc->owner);
    if (err)
        return err;
    err = mc_group_freeze(mc, everything, &group);
    if (err)
        return err;
    err = write_group(mc, &group);
    mc_group_end(mc, &group, err == 0);
    if (!err && mc->hooks.durable)
        mc->hooks.durable(mc->owner);
    return err;
}

/* Commit lock, which is released during the commit so that other threads can queue up. */
static int lead_unlocked(struct mcache *mc, bool everything)
{
    LOCK_GAP(&mc->commit);
    return commit_group(mc, everything);
}

int mcache_commit(struct mcache *mc, enum mc_commit_scope what)
{
    int err = mcache_health(mc);
    if (err)
        return err;
    bool everything = what == MC_COMMIT_EVERYTHING;
    if (!everything && atomic_load(&mc->durable) >= atomic_load(&mc->written))
        return 0;

    LOCK_GUARD(&mc->commit);
    /* The next commit that starts makes everything durable that came before this call. */
    uint64_t mine = mc->started + 1;
    mc->want_everything |= everything;
    while (mc->finished < mine && mc->committing)
        lock_wait(&mc->commit, &mc->commit_done);
    if (mc->finished >= mine) {
        atomic_fetch_add_explicit(&mc->shared_commits, 1, memory_order_relaxed);
        return mc->finished_ok >= mine ? 0 : mc->last_result;
    }

    atomic_fetch_add_explicit(&mc->commits, 1, memory_order_relaxed);
    mc->committing = true;
    uint64_t running = ++mc->started;
    everything = mc->want_everything;
    mc->want_everything = false;
    err = lead_unlocked(mc, everything);
    mc->committing = false;
    mc->finished = running;
    if (!err)
        mc->finished_ok = running;
    mc->last_result = err;
    pthread_cond_broadcast(&mc->commit_done);
    return err;
}

void mcache_hold(struct mcache *mc)
{
    LOCK_GUARD(&mc->commit);
    while (mc->committing)
        lock_wait(&mc->commit, &mc->commit_done);
    mc->committing = true;
}

void mcache_release(struct mcache *mc)
{
    LOCK_GUARD(&mc->commit);
    mc->committing = false;
    pthread_cond_broadcast(&mc->commit_done);
}

void mcache_count(struct mcache *mc, struct mcache_counters *out)
{
    *out = (struct mcache_counters){
        .loads = atomic_load(&mc->loads),
        .commits = atomic_load(&mc->commits),
        .shared_commits = atomic_load(&mc->shared_commits),
        .dirty_bytes = atomic_load(&mc->dirty_bytes),
    };
}

void mcache_relieve(struct mcache *mc)
{
    size_t dirty = atomic_load_explicit(&mc->dirty_bytes, memory_order_relaxed);

    if (LIKELY(dirty == 0) || !mc_pool_is_too_dirty(mc->pool, dirty))
        return;
    int err = mcache_commit(mc, MC_COMMIT_EVERYTHING);
    if (err)
        log_error("%s: writing back metadata failed: %s; it stays in memory", mc->st->name,
                  strerror(-err));
}
