/* SPDX-License-Identifier: BSD-3-Clause */
/* Jobs must not depend on the system's time, which may be set at any moment. */
#include <sys/syscall.h>
#include <unistd.h>

#include "jobs_testing.h"

/* How far the wall clock is off, in seconds.  Set by the test. */
static _Atomic long off_by;

/* Replaces the C library's function for the whole program. */
int clock_gettime(clockid_t id, struct timespec *ts)
{
    long rc = syscall(SYS_clock_gettime, id, ts);

    if (rc == 0 && id == CLOCK_REALTIME)
        ts->tv_sec += atomic_load(&off_by);
    return (int)rc;
}

static uint64_t elapsed(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* M-23: when the time is set, a rate limit neither hangs nor lets everything through. */
Test(clock, may_be_set, .timeout = 120)
{
    static struct bench b;

    bench_init(&b, 4 * MIB);
    bench_fill(&b);
    struct mirror_params params = bench_params(&b);
    params.job.speed = 10 * MIB;
    uint64_t took = 0, began = elapsed();
    bench_must_start(&b, &params);
    for (long day = 86400; !bench_look(&b).ready && took < 30000000000u; day = -day) {
        atomic_store(&off_by, day);
        nap();
        took = elapsed() - began;
    }
    atomic_store(&off_by, 0);
    cr_assert(bench_look(&b).ready, "it hangs");
    cr_expect_geq(took, 200000000u, "after %lu ns", (unsigned long)took);
    bench_cancel(&b);
    bench_same(&b);
    bench_fini(&b);
}
