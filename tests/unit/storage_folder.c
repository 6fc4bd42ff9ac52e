/* SPDX-License-Identifier: BSD-3-Clause */
/* E-02: tests that names below a folder never lead out of it, with openat2 and without. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "scratch.h"
#include "storage/folder.h"
#include "storage/storage.h"

static struct scratch scratch;
static struct storage_folder folder;

static char *in(const char *name)
{
    return scratch_path(&scratch, name);
}

static void make_file(const char *name, const char *content)
{
    CLEANUP_FREE char *path = in(name);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    cr_assert_eq(write(fd, content, strlen(content)), (ssize_t)strlen(content));
    close(fd);
}

static void make_link(const char *name, const char *target)
{
    CLEANUP_FREE char *path = in(name);

    cr_assert_eq(symlink(target, path), 0);
}

/* Makes a folder with files and links, and a file outside of it. */
static void make_tree(bool no_links)
{
    struct diag diag = {0};

    scratch_make(&scratch);
    CLEANUP_FREE char *top = in("top"), *below = in("top/a"), *deep = in("top/a/b");
    cr_assert_eq(mkdir(top, 0700) | mkdir(below, 0700) | mkdir(deep, 0700), 0);
    make_file("outside", "outside");
    make_file("top/disk", "0");
    make_file("top/a/disk", "1");
    make_file("top/a/b/disk", "2");
    make_link("top/inside", "a/disk");
    make_link("top/up", "a/../disk");
    make_link("top/out", "../outside");
    make_link("top/tree", "a");
    make_link("top/root", "/");
    cr_assert_eq(storage_folder_open(&folder, top, no_links, &diag), 0, "%s", diag.text);
}

static void remove_tree(void)
{
    storage_folder_close(&folder);
    storage_folder_close(&folder); /* closing twice is harmless */
    scratch_remove(&scratch);
}

/* Opens the file of that name; returns its byte, or -errno. */
static int look(const char *name)
{
    char byte;
    CLEANUP_CLOSE int fd = storage_folder_openat(&folder, name, O_RDONLY);

    if (fd < 0)
        return fd;
    cr_assert_eq(read(fd, &byte, 1), 1);
    return byte;
}

Test(folder, names)
{
    static const char *const taken[] = {"a",   "a/b",   ".a",  "..a",
                                        "a..", "a/...", "a b", "-"};
    static const char *const refused[] = {"",     "/",      "/a",   "a/",   "a//b",
                                          ".",    "..",     "./a",  "../a", "a/.",
                                          "a/..", "a/../b", "a/./b"};

    for (unsigned i = 0; i < ARRAY_LEN(taken); i++)
        cr_expect(storage_folder_takes(taken[i]), "%s", taken[i]);
    for (unsigned i = 0; i < ARRAY_LEN(refused); i++)
        cr_expect_not(storage_folder_takes(refused[i]), "%s", refused[i]);
}

Test(folder, links_that_stay_inside)
{
    make_tree(false);
    cr_expect_eq(look("disk"), '0');
    cr_expect_eq(look("a/b/disk"), '2');
    cr_expect_eq(look("inside"), '1');
    cr_expect_eq(look("up"), '0');
    cr_expect_eq(look("tree/b/disk"), '2');
    cr_expect_eq(look("out"), -EXDEV);
    cr_expect_eq(look("root/etc/passwd"), -EXDEV);
    cr_expect_eq(look("none"), -ENOENT);
    cr_expect_eq(look("disk/x"), -ENOTDIR);
    remove_tree();
}

static void expect_no_links(void)
{
    cr_expect_eq(look("disk"), '0');
    cr_expect_eq(look("a/b/disk"), '2');
    cr_expect_eq(look("inside"), -ELOOP);
    cr_expect_eq(look("out"), -ELOOP);
    cr_expect_lt(look("tree/disk"), 0);
    cr_expect_lt(look("root/etc/passwd"), 0);
    cr_expect_eq(look("none"), -ENOENT);
    cr_expect_eq(look("disk/x"), -ENOTDIR);
}

Test(folder, no_links)
{
    make_tree(true);
    expect_no_links();
    remove_tree();
}

Test(folder, step_by_step)
{
    make_tree(false);
    folder.walks = true;
    expect_no_links();
    remove_tree();
}

Test(folder, as_a_store)
{
    for (int walks = 0; walks < 2; walks++) {
        make_tree(false);
        folder.walks = walks;
        CLEANUP_FREE char *path = storage_folder_path(&folder, "a/disk");
        CLEANUP_FREE char *out = storage_folder_path(&folder, "out");
        const struct storage_open how = {.folder = &folder};
        struct storage *st = NULL;
        struct diag diag = {0};
        char byte;

        cr_expect_str_eq(storage_folder_name(&folder, path), "a/disk");
        cr_assert_eq(storage_open_file(path, &how, &st, &diag), 0, "%s", diag.text);
        cr_assert_eq(storage_read(st, &byte, 0, 1), 0);
        cr_expect_eq(byte, '1');
        storage_close(st);
        cr_expect_neq(storage_open_file(out, &how, &st, &diag), 0);
        cr_expect(
            strstr(diag.text, walks ? "is a symbolic link" : "leads out of the folder"),
            "%s", diag.text);
        remove_tree();
    }
}
