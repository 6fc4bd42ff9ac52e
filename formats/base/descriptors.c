/* SPDX-License-Identifier: BSD-3-Clause */
/* One read-write lock: opening is shared, replacing is exclusive and never waits. */
#include "base/descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

/* One for the process, like the table of descriptors. */
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

/* With the lock held exclusively no thread opens anything between the check and dup3, so `fd`
 * still refers to the same file, or is closed. */
static int replace(int fd, int was, int with)
{
    if (!is_same(fd, was))
        return -ESTALE;
    return dup3(with, fd, O_CLOEXEC) < 0 ? -errno : 0;
}

int descriptor_replace_kept(int fd, int was, int with)
{
    return replace(fd, was, with);
}

int descriptor_replace(int fd, int was, int with)
{
    if (pthread_rwlock_trywrlock(&opening) != 0)
        return -EBUSY;
    int err = replace(fd, was, with);
    (void)pthread_rwlock_unlock(&opening);
    return err;
}
