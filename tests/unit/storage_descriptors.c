/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests replacing a descriptor at the very moment when its owner closes it and another thread opens
 * a file, which may get the same number: that file must not be replaced.  The test has its own
 * dup3, in which it makes this happen. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/descriptors.h"
#include "scratch.h"
#include "storage/storage.h"

/* Longer than opening a file takes, if nothing holds it up. */
#define MOMENT_NS 200000000u

static struct {
    struct scratch scratch;
    char *path;
    int ends[2], closed; /* closed: the descriptor that dup3 closes first, or -1 */
    pthread_t thread;
    struct storage *opened;
    atomic_bool done;
} t;

static void *open_file(void *unused)
{
    static const struct storage_open how = {0};

    (void)unused;
    cr_assert_eq(storage_open_file(t.path, &how, &t.opened, NULL), 0);
    atomic_store(&t.done, true);
    return NULL;
}

int dup3(int old, int new, int flags)
{
    if (t.closed >= 0) {
        close(t.closed);
        cr_assert_eq(pthread_create(&t.thread, NULL, open_file, NULL), 0);
        for (uint64_t until = clock_ns() + MOMENT_NS;
             !atomic_load(&t.done) && clock_ns() < until;)
            clock_nap_ns(1000000);
    }
    return (int)syscall(SYS_dup3, old, new, flags);
}

static void make(void)
{
    scratch_make(&t.scratch);
    t.path = scratch_path(&t.scratch, "file");
    int fd = open(t.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    cr_assert_eq(write(fd, "here", 4), 4);
    close(fd);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, t.ends), 0);
    t.closed = -1;
}

static void forget(void)
{
    storage_close(t.opened);
    close(t.ends[0]);
    close(t.ends[1]);
    free(t.path);
    scratch_remove(&t.scratch);
}

static bool is_same(int fd, int other)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 && fstat(other, &b) == 0 && a.st_ino == b.st_ino;
}

Test(storage_descriptors, another_takes_the_place, .init = make, .fini = forget)
{
    CLEANUP_CLOSE int owners = dup(t.ends[0]);

    cr_expect_eq(descriptor_replace(owners, t.ends[0], t.ends[1]), 0);
    cr_expect(is_same(owners, t.ends[1]));
    cr_expect_eq(fcntl(owners, F_GETFD), FD_CLOEXEC);
}

Test(storage_descriptors, what_it_is_not_stays, .init = make, .fini = forget)
{
    CLEANUP_CLOSE int other = open(t.path, O_RDONLY | O_CLOEXEC);
    int none = dup(other);

    close(none);
    cr_expect_eq(descriptor_replace(other, t.ends[0], t.ends[1]), -ESTALE);
    cr_expect_eq(lseek(other, 0, SEEK_END), 4);
    cr_expect_eq(descriptor_replace(none, t.ends[0], t.ends[1]), -ESTALE);
    cr_expect_eq(fcntl(none, F_GETFD), -1);
}

Test(storage_descriptors, who_opens_is_not_waited_for, .init = make, .fini = forget)
{
    CLEANUP_CLOSE int owners = dup(t.ends[0]);
    {
        DESCRIPTORS_GUARD();
        cr_expect_eq(descriptor_replace(owners, t.ends[0], t.ends[1]), -EBUSY);
    }
    cr_expect_eq(descriptor_replace(owners, t.ends[0], t.ends[1]), 0);
}

Test(storage_descriptors, one_that_its_owner_keeps_is_replaced_beside_openings,
     .init = make, .fini = forget)
{
    CLEANUP_CLOSE int owners = dup(t.ends[0]);
    CLEANUP_CLOSE int other = open(t.path, O_RDONLY | O_CLOEXEC);
    DESCRIPTORS_GUARD();

    cr_expect_eq(descriptor_replace_kept(owners, t.ends[0], t.ends[1]), 0);
    cr_expect(is_same(owners, t.ends[1]));
    cr_expect_eq(descriptor_replace_kept(other, t.ends[0], t.ends[1]), -ESTALE);
    cr_expect_eq(lseek(other, 0, SEEK_END), 4);
}

Test(storage_descriptors, a_file_that_is_opened_meanwhile, .init = make, .fini = forget)
{
    char bytes[4] = "";
    int owners = dup(t.ends[0]);

    t.closed = owners;
    cr_expect_eq(descriptor_replace(owners, t.ends[0], t.ends[1]), 0);
    t.closed = -1;
    cr_assert_eq(pthread_join(t.thread, NULL), 0);
    cr_expect(is_same(owners, t.ends[1]));
    cr_expect_eq(storage_read(t.opened, bytes, 0, sizeof bytes), 0);
    cr_expect_arr_eq(bytes, "here", sizeof bytes);
    close(owners);
}
