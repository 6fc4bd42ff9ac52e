/* SPDX-License-Identifier: BSD-3-Clause */
/* What is preloaded into qemu-img, so that it can measure how fast a key is derived.
 *
 * Many kernels count a thread's processor time in ticks of up to ten milliseconds.  qemu-img
 * derives a key once, finds that no time has passed, and gives up ("Unable to get accurate CPU
 * usage"): on a fast machine at every second LUKS image, on a busy one still more often.  The
 * kernel's other clock counts the same time to the nanosecond.
 *
 * It also runs faster here: qemu-img derives keys for a second before it believes what it
 * measured, and hundreds of tests make such an image. */
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
