/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which files can be opened, and which are refused at once with a message. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "scratch.h"
#include "storage/storage.h"

static struct scratch scratch;
static char *path;

static void setup(void)
{
    scratch_make(&scratch);
    path = scratch_path(&scratch, "thing");
}

static void teardown(void)
{
    free(path);
    scratch_remove(&scratch);
}

/* The timeout turns a hang into a failure. */
TestSuite(open, .init = setup, .fini = teardown, .timeout = 30);

static void make_regular(const char *bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);

    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, bytes, strlen(bytes)), (ssize_t)strlen(bytes));
    close(fd);
}

static void expect_refused(const char *name, const char *kind)
{
    static const struct storage_open ways[] = {
        {.read_only = true},
        {.read_only = false},
        {.fallback_read_only = true},
        {.direct = true},
    };
    struct storage *st = NULL;

    for (unsigned i = 0; i < ARRAY_LEN(ways); i++) {
        struct diag diag = {0};
        cr_assert_eq(storage_open_file(name, &ways[i], &st, &diag), -EINVAL);
        cr_assert_eq(diag.err, EINVAL);
        cr_assert_not_null(strstr(diag.text, name), "%s", diag.text);
        cr_assert_not_null(strstr(diag.text, kind), "%s", diag.text);
        cr_assert_null(st);
    }
    struct diag diag = {0};
    cr_assert_eq(storage_create_file(name, &st, &diag), -EINVAL);
    cr_assert_not_null(strstr(diag.text, kind), "%s", diag.text);
}

Test(open, fifo)
{
    cr_assert_eq(mkfifo(path, 0644), 0);
    expect_refused(path, "FIFO");
}

Test(open, link_to_a_fifo)
{
    char *link = scratch_path(&scratch, "link");

    cr_assert_eq(mkfifo(path, 0644), 0);
    cr_assert_eq(symlink(path, link), 0);
    expect_refused(link, "FIFO");
    free(link);
}

Test(open, socket)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(addr.sun_path, path, sizeof addr.sun_path - 1);
    cr_assert_eq(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    expect_refused(path, "socket");
    close(fd);
}

Test(open, directory)
{
    cr_assert_eq(mkdir(path, 0755), 0);
    expect_refused(path, "directory");
}

Test(open, character_device)
{
    expect_refused("/dev/null", "character device");
    expect_refused("/dev/tty", "character device");
}

Test(open, a_missing_file_is_named)
{
    const struct storage_open how = {0};
    struct diag diag = {0};
    struct storage *st;

    cr_assert_eq(storage_open_file(path, &how, &st, &diag), -ENOENT);
    cr_assert_not_null(strstr(diag.text, path));
    cr_assert_not_null(strstr(diag.text, "No such file"));
}

Test(open, changes_no_byte)
{
    const struct storage_open how = {0};
    struct storage *st;
    struct stat before, after;

    make_regular("bytes");
    cr_assert_eq(stat(path, &before), 0);
    cr_assert_eq(storage_open_file(path, &how, &st, NULL), 0);
    storage_close(st);
    cr_assert_eq(stat(path, &after), 0);
    cr_assert_eq(before.st_size, after.st_size);
    cr_assert_eq(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
    cr_assert_eq(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
}

Test(open, descriptors_do_not_block_and_are_not_inherited)
{
    const struct storage_open how = {0};
    struct storage *st;
    int next = dup(0); /* the lowest free descriptor, which the open will get */

    close(next);
    make_regular("x");
    cr_assert_eq(storage_open_file(path, &how, &st, NULL), 0);
    cr_assert(fcntl(next, F_GETFD) & FD_CLOEXEC);
    cr_assert_not(fcntl(next, F_GETFL) & O_NONBLOCK);
    storage_close(st);
    cr_assert_eq(fcntl(next, F_GETFD), -1, "closed with the storage");
}

Test(open, refusals_leak_no_descriptor)
{
    /* Read-only, because only root may write to these files. */
    const struct storage_open how = {.read_only = true, .direct = true};
    struct storage *st;
    int next = dup(0);

    close(next);
    cr_assert_eq(mkfifo(path, 0644), 0);
    cr_assert_eq(storage_open_file(path, &how, &st, NULL), -EINVAL);
    cr_assert_eq(storage_open_file("/proc/version", &how, &st, NULL), -EINVAL);
    int again = dup(0);
    cr_assert_eq(again, next);
    close(again);
}

Test(open, without_o_direct_the_file_is_named)
{
    const struct storage_open how = {.read_only = true, .direct = true};
    struct diag diag = {0};
    struct storage *st;

    int fd = open("/proc/version", O_RDONLY | O_DIRECT);
    if (fd >= 0)
        cr_skip_test("this kernel opens /proc with O_DIRECT");
    cr_assert_eq(storage_open_file("/proc/version", &how, &st, &diag), -EINVAL);
    cr_assert_not_null(strstr(diag.text, "/proc/version"), "%s", diag.text);
    cr_assert_not_null(strstr(diag.text, "O_DIRECT"), "%s", diag.text);
}

Test(open, read_only_when_writing_is_not_allowed)
{
    struct storage_open how = {.fallback_read_only = true};
    struct storage *st;

    make_regular("bytes");
    cr_assert_eq(chmod(path, 0444), 0);
    cr_assert_eq(chmod(scratch.dir, 0755), 0);
    uid_t uid = geteuid();
    if (uid == 0)
        cr_assert_eq(seteuid(65534), 0);
    cr_assert_eq(storage_open_file(path, &how, &st, NULL), 0);
    cr_assert(st->read_only);
    cr_assert_eq(storage_write(st, "x", 0, 1, 0), -EROFS);
    storage_close(st);
    how.fallback_read_only = false;
    struct diag diag = {0};
    cr_assert_eq(storage_open_file(path, &how, &st, &diag), -EACCES);
    cr_assert_not_null(strstr(diag.text, "for writing"), "%s", diag.text);
    if (uid == 0)
        cr_assert_eq(seteuid(uid), 0);
}

Test(open, create_makes_and_cuts)
{
    struct storage *st;
    uint64_t size;

    cr_assert_eq(storage_create_file(path, &st, NULL), 0);
    cr_assert_eq(storage_write(st, "longer", 0, 6, 0), 0);
    storage_close(st);
    cr_assert_eq(storage_create_file(path, &st, NULL), 0);
    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_eq(size, 0u);
    storage_close(st);
}

/* ---- a filesystem that is full ---- */

static bool mount_tiny(const char *dir)
{
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return false;
    return mount("tiny", dir, "tmpfs", 0, "size=256k") == 0;
}

Test(open, a_full_filesystem_is_enospc)
{
    char *dir = scratch_path(&scratch, "tiny"),
         *file = scratch_path(&scratch, "tiny/image");
    static char buf[512 << 10], back[512 << 10];
    struct storage *st;

    cr_assert_eq(mkdir(dir, 0755), 0);
    if (!mount_tiny(dir))
        cr_skip_test("mounting a tmpfs needs privileges: ENOSPC was not tested");
    memset(buf, 'x', sizeof buf);
    cr_assert_eq(storage_create_file(file, &st, NULL), 0);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), -ENOSPC);
    cr_assert_eq(storage_preallocate(st, 0, sizeof buf), -ENOSPC);
    /* The space that the file had before can still be used. */
    cr_assert_eq(storage_truncate(st, 0), 0);
    cr_assert_eq(storage_write(st, buf, 0, 100 << 10, 0), 0);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), -ENOSPC);
    cr_assert_eq(storage_read(st, back, 0, 100 << 10), 0);
    cr_assert_eq(memcmp(buf, back, 100 << 10), 0);
    storage_close(st);
    cr_assert_eq(umount(dir), 0);
    free(dir);
    free(file);
}

Test(open, a_tmpfs_zeroes_and_punches)
{
    char *dir = scratch_path(&scratch, "tiny"),
         *file = scratch_path(&scratch, "tiny/image");
    static char buf[64 << 10], back[64 << 10];
    struct storage *st;
    uint64_t size;

    cr_assert_eq(mkdir(dir, 0755), 0);
    if (!mount_tiny(dir))
        cr_skip_test("mounting a tmpfs needs privileges: its zeroing was not tested");
    memset(buf, 'x', sizeof buf);
    cr_assert_eq(storage_create_file(file, &st, NULL), 0);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), 0);
    /* This filesystem can punch holes, but doesn't support FALLOC_FL_ZERO_RANGE. */
    cr_assert_eq(storage_zero(st, 100, 50000, STORAGE_FAST), -ENOTSUP);
    cr_assert_eq(storage_read(st, back, 0, sizeof back), 0);
    cr_assert_eq(memcmp(buf, back, sizeof buf), 0, "a refused fast zero touched something");
    cr_assert_eq(storage_zero(st, 100, 50000, 0), 0);
    cr_assert_eq(storage_zero(st, 60000, 40000, STORAGE_FAST | STORAGE_MAY_UNMAP), 0);
    memset(buf + 100, 0, 50000);
    memset(buf + 60000, 0, sizeof buf - 60000);
    cr_assert_eq(storage_read(st, back, 0, sizeof back), 0);
    cr_assert_eq(memcmp(buf, back, sizeof buf), 0);
    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_eq(size, 100000u);
    storage_close(st);
    cr_assert_eq(umount(dir), 0);
    free(dir);
    free(file);
}

/* With O_DIRECT the kernel transfers whole blocks, but the largest offset doesn't end a block. */
Test(open, the_largest_file_there_can_be, .timeout = 30)
{
    const char *large = "/dev/shm/qimg-largest";
    struct storage *file = NULL;
    struct diag diag = {0};
    char byte = 1;

    int fd = open(large, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool there = fd >= 0 && ftruncate(fd, INT64_MAX) == 0;
    if (fd >= 0)
        close(fd);
    if (there) {
        int err =
            storage_open_file(large, &(struct storage_open){.direct = true}, &file, &diag);
        cr_expect(err == -EFBIG || err == -EINVAL, "errno %d: %s", -err, diag.text);
        cr_assert_eq(storage_open_file(large, &(struct storage_open){0}, &file, &diag), 0);
        cr_expect_eq(storage_write(file, &byte, INT64_MAX - 1, 1, 0), 0);
        cr_expect_eq(storage_read(file, &byte, INT64_MAX - 1, 1), 0);
        cr_expect_eq(byte, 1);
        storage_close(file);
    }
    unlink(large);
    if (!there)
        cr_skip_test("no filesystem here takes such a file");
}
