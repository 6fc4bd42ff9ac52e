/* SPDX-License-Identifier: BSD-3-Clause */
/* Temporary folders for tests; see scratch.h. */
#include "scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

/* Puts TOOLS_DIR, which has our wrapper of qemu-img, first into PATH: see
 * qemu_img/fine_clock.c.  Runs before main in every test that links this file. */
__attribute__((constructor)) static void find_tools_first(void)
{
    const char *path = getenv("PATH");
    char *longer;

    if (asprintf(&longer, "%s:%s", TOOLS_DIR, path ? path : "/usr/bin:/bin") < 0)
        abort();
    setenv("PATH", longer, 1);
    free(longer);
}

void scratch_make(struct scratch *scratch)
{
    const char *place = getenv("QIMG_TEST_DIR");

    snprintf(scratch->dir, sizeof scratch->dir, "%s/qimg-test-XXXXXX",
             place ? place : "/var/tmp");
    if (!mkdtemp(scratch->dir)) {
        perror(scratch->dir);
        abort();
    }
}

char *scratch_path(const struct scratch *scratch, const char *name)
{
    char *path;

    if (asprintf(&path, "%s/%s", scratch->dir, name) < 0)
        abort();
    return path;
}

static int remove_entry(const char *path, const struct stat *sb, int kind, struct FTW *ftw)
{
    (void)sb;
    (void)kind;
    (void)ftw;
    return remove(path);
}

void scratch_remove(struct scratch *scratch)
{
    if (nftw(scratch->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0)
        perror(scratch->dir);
}
