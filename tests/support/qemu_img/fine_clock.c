/* SPDX-License-Identifier: BSD-3-Clause */
/* A library that is preloaded into qemu-img (LD_PRELOAD).  It replaces getrusage, with which
 * qemu-img measures how fast it derives an encryption key, by a precise clock.
 *
 * Many kernels count a thread's processor time for getrusage in ticks of up to ten
 * milliseconds.  qemu-img then derives a key, sees that no time has passed and fails ("Unable to
 * get accurate CPU usage"): with every second LUKS image on a fast machine, still more often on
 * a busy one.  CLOCK_THREAD_CPUTIME_ID counts the same time in nanoseconds.
 *
 * The clock also runs FASTER times too fast: qemu-img derives keys until a second of processor
 * time has passed, and hundreds of tests create such an image. */
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FASTER = 16 };

int getrusage(int who, struct rusage *usage)
{
    int status = (int)syscall(SYS_getrusage, who, usage);
    struct timespec spent;

    if (status != 0 || who != RUSAGE_THREAD ||
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent) != 0)
        return status;
    int64_t us = ((int64_t)spent.tv_sec * 1000000 + spent.tv_nsec / 1000) * FASTER;
    usage->ru_utime = (struct timeval){.tv_sec = us / 1000000, .tv_usec = us % 1000000};
    usage->ru_stime = (struct timeval){0};
    return 0;
}
