/* SPDX-License-Identifier: BSD-3-Clause */
/* One lock: many may open at once, and who replaces has it alone, or not at all. */
#include "base/descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

/* One for the process, as is the table of descriptors. */
static pthread_rwlock_t opening = PTHREAD_RWLOCK_INITIALIZER;

void descriptors_begin_opening(void)
{
    (void)pthread_rwlock_rdlock(&opening);
}

void descriptors_end_opening(void)
{
    (void)pthread_rwlock_unlock(&opening);
}

static bool is_same(int fd, int other)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* Nobody opens anything meanwhile: what `fd` is when it is looked at it is, or nothing is, when it is
 * replaced. */
static int replace(int fd, int was, int with)
{
    if (!is_same(fd, was))
        return -ESTALE;
    return dup3(with, fd, O_CLOEXEC) < 0 ? -errno : 0;
}

int descriptor_replace(int fd, int was, int with)
{
    if (pthread_rwlock_trywrlock(&opening) != 0)
        return -EBUSY;
    int err = replace(fd, was, with);
    (void)pthread_rwlock_unlock(&opening);
    return err;
}
