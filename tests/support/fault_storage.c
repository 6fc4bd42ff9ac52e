/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage that passes calls on, and fails or delays those that its plan names. */
#include "fault_storage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECTOR 512u

struct fault_storage {
    struct storage st;
    struct storage *below;
    struct fault_plan *plan;
};

static struct fault_storage *fault_of(struct storage *st)
{
    return (struct fault_storage *)st;
}

/* ---- the plan ---- */

void fault_plan_init(struct fault_plan *plan)
{
    *plan = (struct fault_plan){0};
    lock_init(&plan->lock, RANK_LEAF);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&plan->arrived, &attr);
    pthread_condattr_destroy(&attr);
}

void fault_plan_destroy(struct fault_plan *plan)
{
    pthread_cond_destroy(&plan->arrived);
    lock_destroy(&plan->lock);
}

void fault_plan_fail(struct fault_plan *plan, enum fault_kind kind, uint64_t nth, int err,
                     enum fault_how how)
{
    LOCK_GUARD(&plan->lock);

    plan->rules[kind] =
        (struct fault_rule){.nth = nth, .base = plan->calls[kind], .err = err, .how = how};
}

void fault_plan_heal(struct fault_plan *plan)
{
    LOCK_GUARD(&plan->lock);

    memset(plan->rules, 0, sizeof plan->rules);
}

#define DEFINE_COUNTER(name, type, expr) \
    type name(struct fault_plan *plan)   \
    {                                    \
        LOCK_GUARD(&plan->lock);         \
        return plan->expr;               \
    }

DEFINE_COUNTER(fault_plan_bytes_written, uint64_t, bytes_written)
DEFINE_COUNTER(fault_plan_fua_writes, uint64_t, fua_writes)
DEFINE_COUNTER(fault_plan_holes, uint64_t, holes)
DEFINE_COUNTER(fault_plan_injected, uint64_t, injected)
DEFINE_COUNTER(fault_plan_most_in_flight, unsigned, most_in_flight)

uint64_t fault_plan_calls(struct fault_plan *plan, enum fault_kind kind)
{
    LOCK_GUARD(&plan->lock);

    return plan->calls[kind];
}

void fault_plan_reset_counters(struct fault_plan *plan)
{
    LOCK_GUARD(&plan->lock);

    for (int k = 0; k < FAULT_KINDS; k++) {
        /* A rule that is set goes on counting: the difference stays the same. */
        plan->rules[k].base -= plan->calls[k];
        plan->calls[k] = 0;
    }
    plan->bytes_written = plan->injected = 0;
    plan->fua_writes = plan->holes = 0;
    plan->most_in_flight = plan->in_flight;
}

void fault_plan_delay_writes(struct fault_plan *plan, uint64_t ns, uint64_t min_bytes)
{
    LOCK_GUARD(&plan->lock);

    plan->delay_ns = ns;
    plan->delay_min_bytes = min_bytes;
}

void fault_plan_delay_discards(struct fault_plan *plan, uint64_t ns)
{
    LOCK_GUARD(&plan->lock);
    plan->discard_delay_ns = ns;
}

static uint64_t discard_delay(struct fault_plan *plan)
{
    LOCK_GUARD(&plan->lock);
    return plan->discard_delay_ns;
}

static void count_hole(struct fault_plan *plan)
{
    LOCK_GUARD(&plan->lock);
    plan->holes++;
}

void fault_plan_delay_reply(struct fault_plan *plan, uint64_t ns)
{
    LOCK_GUARD(&plan->lock);

    plan->reply_delay_ns = ns;
}

void fault_plan_gather_writes(struct fault_plan *plan, unsigned n, uint64_t min_bytes,
                              unsigned timeout_ms)
{
    LOCK_GUARD(&plan->lock);

    plan->gather = n;
    plan->gather_min_bytes = min_bytes;
    plan->gather_timeout_ms = timeout_ms;
    pthread_cond_broadcast(&plan->arrived);
}

/* ---- counting and failing ---- */

/* Counts a call of the kind; true, with the rule in *hit, if the rule makes it fail.  Call
 * with the lock held. */
static bool count_call(struct fault_plan *plan, enum fault_kind kind,
                       struct fault_rule *hit)
{
    const struct fault_rule *rule = &plan->rules[kind];
    uint64_t n = ++plan->calls[kind] - rule->base;

    if (rule->nth == 0 || n < rule->nth ||
        (n > rule->nth && rule->how != FAULT_FROM_THEN_ON))
        return false;
    *hit = *rule;
    return true;
}

/* Counts a call; hit->err is 0 unless a rule makes it fail. */
static void enter(struct fault_plan *plan, enum fault_kind kind, struct fault_rule *hit)
{
    LOCK_GUARD(&plan->lock);

    *hit = (struct fault_rule){0};
    bool failing = count_call(plan, kind, hit);
    if (kind != FAULT_READ && count_call(plan, FAULT_CHANGE, hit))
        failing = true;
    plan->injected += failing;
}

static bool fails_at_once(const struct fault_rule *hit)
{
    return hit->err && hit->how != FAULT_ONCE_AFTER;
}

static int result(const struct fault_rule *hit, int err)
{
    return hit->err ? -hit->err : err;
}

/* ---- delaying writes ---- */

static bool is_watched(const struct fault_plan *plan, uint64_t len)
{
    if (plan->gather == 0 && plan->delay_ns == 0)
        return true;
    return (plan->gather > 0 && len >= plan->gather_min_bytes) ||
           (plan->delay_ns > 0 && len >= plan->delay_min_bytes);
}

/* Waits for fault_plan_gather_writes.  Call with the lock held. */
static void wait_for_others(struct fault_plan *plan)
{
    struct timespec until;
    int err = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += plan->gather_timeout_ms / 1000;
    until.tv_nsec += (long)(plan->gather_timeout_ms % 1000) * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    /* Compares the maximum, not the current number: other writes may have ended already. */
    while (plan->most_in_flight < plan->gather && err != ETIMEDOUT)
        err = pthread_cond_timedwait(&plan->arrived, &plan->lock.mutex, &until);
}

static void sleep_ns(uint64_t ns)
{
    struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000u),
                          .tv_nsec = (long)(ns % 1000000000u)};

    if (ns)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

/* Called before a write is passed on: counts it as in flight, if its size is watched, and
 * delays it.  Returns whether it was counted, for land. */
static bool take_off(struct fault_plan *plan, uint64_t len, bool fua)
{
    uint64_t delay_ns = 0;
    bool watched;

    lock_acquire(&plan->lock);
    plan->bytes_written += len;
    plan->fua_writes += fua;
    watched = is_watched(plan, len);
    if (watched) {
        plan->in_flight++;
        if (plan->in_flight > plan->most_in_flight) {
            plan->most_in_flight = plan->in_flight;
            pthread_cond_broadcast(&plan->arrived);
        }
        if (plan->gather > 0 && len >= plan->gather_min_bytes)
            wait_for_others(plan);
    }
    if (plan->delay_ns > 0 && len >= plan->delay_min_bytes)
        delay_ns = plan->delay_ns;
    lock_release(&plan->lock);

    sleep_ns(delay_ns);
    return watched;
}

static void land(struct fault_plan *plan, bool watched)
{
    uint64_t delay_ns;

    {
        LOCK_GUARD(&plan->lock);
        plan->in_flight -= watched;
        delay_ns = plan->reply_delay_ns;
        plan->reply_delay_ns = 0;
    }
    sleep_ns(delay_ns);
}

/* ---- the operations ---- */

static int fault_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;

    enter(f->plan, FAULT_READ, &hit);
    if (fails_at_once(&hit))
        return -hit.err;
    int err = storage_read(f->below, buf, off, len);
    if (f->plan->behind_read)
        f->plan->behind_read(f->plan->behind_read_opaque);
    return result(&hit, err);
}

/* Writes the first half of the sectors only. */
static void write_torn(struct storage *below, const struct iovec *iov, int count,
                       uint64_t off, uint64_t len)
{
    uint64_t left = len / SECTOR / 2 * SECTOR;

    for (int i = 0; i < count && left > 0; i++) {
        uint64_t n = MIN(iov[i].iov_len, left);
        if (storage_write(below, iov[i].iov_base, off, n, 0) != 0)
            return;
        off += n;
        left -= n;
    }
}

static int fault_pwritev(struct storage *st, const struct iovec *iov, int count,
                         uint64_t off, unsigned flags)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;
    uint64_t len = 0;
    int err = 0;

    for (int i = 0; i < count; i++)
        len += iov[i].iov_len;
    enter(f->plan, FAULT_WRITE, &hit);
    bool watched = take_off(f->plan, len, flags & STORAGE_FUA);
    if (!fails_at_once(&hit))
        err = storage_writev(f->below, iov, count, off, flags);
    else if (hit.how == FAULT_ONCE_TORN)
        write_torn(f->below, iov, count, off, len);
    land(f->plan, watched);
    return result(&hit, err);
}

static int fault_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;

    enter(f->plan, FAULT_ZERO, &hit);
    if (flags & STORAGE_MAY_UNMAP) {
        count_hole(f->plan);
        sleep_ns(discard_delay(f->plan));
    }
    if (fails_at_once(&hit))
        return -hit.err;
    return result(&hit, storage_zero(f->below, off, len, flags));
}

static int fault_discard(struct storage *st, uint64_t off, uint64_t len)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;

    enter(f->plan, FAULT_DISCARD, &hit);
    sleep_ns(discard_delay(f->plan));
    if (fails_at_once(&hit))
        return -hit.err;
    return result(&hit, storage_discard(f->below, off, len));
}

static int fault_flush(struct storage *st)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;

    enter(f->plan, FAULT_FLUSH, &hit);
    if (fails_at_once(&hit))
        return -hit.err;
    return result(&hit, storage_sync(f->below));
}

static int fault_truncate(struct storage *st, uint64_t bytes)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;

    enter(f->plan, FAULT_TRUNCATE, &hit);
    if (fails_at_once(&hit))
        return -hit.err;
    return result(&hit, storage_truncate(f->below, bytes));
}

static int fault_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    struct fault_storage *f = fault_of(st);
    struct fault_rule hit;

    enter(f->plan, FAULT_PREALLOCATE, &hit);
    if (fails_at_once(&hit))
        return -hit.err;
    return result(&hit, storage_preallocate(f->below, off, len));
}

static int fault_size(struct storage *st, uint64_t *bytes)
{
    return storage_size(fault_of(st)->below, bytes);
}

static int fault_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                        uint64_t *run)
{
    return storage_extent(fault_of(st)->below, off, len, data, run);
}

static int fault_allocated(struct storage *st, uint64_t *bytes)
{
    return storage_allocated(fault_of(st)->below, bytes);
}

static int fault_identity(struct storage *st, uint64_t *device, uint64_t *inode)
{
    return storage_identity(fault_of(st)->below, device, inode);
}

static int fault_lock(struct storage *st, enum storage_lock_level level, struct diag *diag)
{
    return storage_lock(fault_of(st)->below, level, diag);
}

static void fault_prefetch(struct storage *st, uint64_t off, uint64_t len)
{
    storage_prefetch(fault_of(st)->below, off, len);
}

static void fault_close(struct storage *st)
{
    storage_close(fault_of(st)->below);
    free(st);
}

static const struct storage_ops fault_ops = {
    .pread = fault_pread,
    .pwritev = fault_pwritev,
    .flush = fault_flush,
    .size = fault_size,
    .truncate = fault_truncate,
    .close = fault_close,
    .zero = fault_zero,
    .discard = fault_discard,
    .extent = fault_extent,
    .prefetch = fault_prefetch,
    .allocated = fault_allocated,
    .preallocate = fault_preallocate,
    .lock = fault_lock,
    .identity = fault_identity,
};

struct storage *fault_storage_new(struct storage *below, struct fault_plan *plan)
{
    struct fault_storage *f = calloc(1, sizeof *f);

    if (!f)
        abort();
    f->below = below;
    f->plan = plan;
    f->st.ops = &fault_ops;
    f->st.name = strdup(below->name);
    f->st.align = below->align;
    f->st.fixed_size = below->fixed_size;
    f->st.read_only = below->read_only;
    f->st.no_flush = below->no_flush;
    return &f->st;
}
