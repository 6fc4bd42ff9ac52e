/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests block devices with a loop device.  That needs privileges; without them the tests are
 * skipped. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scratch.h"
#include "storage/storage.h"

enum { SIZE = 8 << 20 };

static struct scratch scratch;
static struct storage *st;
static char device[64];

static bool run(const char *command, char *line, int n)
{
    FILE *pipe = popen(command, "r");

    if (!pipe)
        return false;
    bool got = fgets(line, n, pipe) != NULL;
    line[strcspn(line, "\n")] = 0;
    return pclose(pipe) == 0 && got;
}

static void detach(void)
{
    char command[128], line[64] = "";

    snprintf(command, sizeof command, "losetup -d %s 2>&1", device);
    (void)run(command, line, sizeof line);
    scratch_remove(&scratch);
}

static void open_it(bool direct)
{
    const struct storage_open how = {.direct = direct};
    char command[512], *path;
    struct storage *file;
    struct diag diag = {0};

    scratch_make(&scratch);
    path = scratch_path(&scratch, "disk");
    cr_assert_eq(storage_create_file(path, &file, NULL), 0);
    cr_assert_eq(storage_truncate(file, SIZE), 0);
    storage_close(file);
    snprintf(command, sizeof command, "losetup --find --show %s 2>/dev/null", path);
    free(path);
    if (!run(command, device, sizeof device)) {
        scratch_remove(&scratch);
        cr_skip_test("no loop device to be had: block devices were not tested");
    }
    if (storage_open_file(device, &how, &st, &diag) != 0) {
        detach();
        cr_assert_fail("%s", diag.text);
    }
}

static void done(void)
{
    storage_close(st);
    detach();
}

#define BOTH(name)                             \
    static void name(void);                    \
    Test(buffered_device, name, .timeout = 60) \
    {                                          \
        open_it(false);                        \
        name();                                \
    }                                          \
    Test(direct_device, name, .timeout = 60)   \
    {                                          \
        open_it(true);                         \
        name();                                \
    }                                          \
    static void name(void)

/* A failing assertion would leave the test at once, without removing the loop device.  So failures
 * are only noted, and asserted after that. */
#define CHECK(x)            \
    do {                    \
        if (!(x) && !wrong) \
            wrong = #x;     \
    } while (0)

static const char *wrong;

static bool all(uint64_t off, uint64_t len, int byte)
{
    static char buf[SIZE];

    if (storage_read(st, buf, off, len) != 0)
        return false;
    for (uint64_t i = 0; i < len; i++)
        if (buf[i] != (char)byte)
            return false;
    return true;
}

static void fill(void)
{
    static char buf[SIZE];

    memset(buf, 'x', sizeof buf);
    CHECK(storage_write(st, buf, 0, sizeof buf, 0) == 0);
}

BOTH(has_a_size_and_keeps_it)
{
    uint64_t size = 0;
    char buf[1024] = {0};

    CHECK(st->fixed_size);
    CHECK(storage_size(st, &size) == 0 && size == SIZE);
    CHECK(storage_write(st, buf, SIZE - 512, sizeof buf, 0) == -ENOSPC);
    CHECK(storage_write(st, buf, SIZE, 1, 0) == -ENOSPC);
    CHECK(storage_zero(st, SIZE - 512, 1024, 0) == -ENOSPC);
    CHECK(storage_truncate(st, SIZE + 1) == -ENOSPC);
    CHECK(storage_truncate(st, 0) == 0);
    CHECK(storage_size(st, &size) == 0 && size == SIZE);
    CHECK(storage_preallocate(st, 0, SIZE) == 0);
    CHECK(storage_write(st, buf, SIZE - 1, 1, STORAGE_FUA) == 0);
    CHECK(all(SIZE - 1, 1, 0) && all(SIZE, 4096, 0));
    CHECK(storage_allocated(st, &size) == 0 && size == SIZE);
    done();
    cr_assert_null(wrong, "%s", wrong);
}

BOTH(zeroes_at_any_alignment)
{
    for (unsigned flags = 0; flags <= STORAGE_MAY_UNMAP; flags += STORAGE_MAY_UNMAP) {
        fill();
        CHECK(storage_zero(st, 1001, 3000000, flags | STORAGE_FUA) == 0);
        CHECK(all(0, 1001, 'x'));
        CHECK(all(1001, 3000000, 0));
        CHECK(all(3001001, SIZE - 3001001, 'x'));
        CHECK(storage_zero(st, 4000100, 10, flags) == 0);
        CHECK(all(4000099, 1, 'x') && all(4000100, 10, 0) && all(4000110, 1, 'x'));
    }
    fill();
    int err = storage_zero(st, 1001, 3000000, STORAGE_FAST);
    CHECK(err == -ENOTSUP && all(0, SIZE, 'x'));
    done();
    cr_assert_null(wrong, "%s", wrong);
}

BOTH(discards_inside_of_the_range)
{
    fill();
    CHECK(storage_discard(st, 1001, 3000000) == 0);
    CHECK(storage_discard(st, 5000001, 100) == 0);
    CHECK(all(0, 1001, 'x'));
    CHECK(all(3001001, SIZE - 3001001, 'x'));
    done();
    cr_assert_null(wrong, "%s", wrong);
}

BOTH(unaligned_writes_keep_their_neighbours)
{
    fill();
    CHECK(storage_write(st, "123", 510, 3, 0) == 0);
    char got[7];
    CHECK(storage_read(st, got, 508, 7) == 0 && memcmp(got, "xx123xx", 7) == 0);
    CHECK(all(0, 510, 'x') && all(513, 100000, 'x'));
    done();
    cr_assert_null(wrong, "%s", wrong);
}
