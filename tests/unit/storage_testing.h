/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage on a fresh file, for the tests of the local file, which run both buffered and
 * with O_DIRECT.  Where the scratch folder's filesystem has no O_DIRECT, the direct ones
 * are skipped, and say so. */
#ifndef STORAGE_TESTING_H
#define STORAGE_TESTING_H

#include <errno.h>
#include <stdlib.h>

#include <criterion/criterion.h>

#include "scratch.h"
#include "storage/storage.h"

static struct scratch scratch;
static char *path;
static struct storage *st;

static inline void open_it(const struct storage_open *how)
{
    struct storage *created;
    struct diag diag = {0};

    scratch_make(&scratch);
    path = scratch_path(&scratch, "image");
    cr_assert_eq(storage_create_file(path, &created, &diag), 0, "%s", diag.text);
    storage_close(created);
    int err = storage_open_file(path, how, &st, &diag);
    if (how->direct && err == -EINVAL) {
        free(path);
        scratch_remove(&scratch);
        cr_skip_test("no O_DIRECT here: %s", diag.text);
    }
    cr_assert_eq(err, 0, "%s", diag.text);
}

static inline void done(void)
{
    storage_close(st);
    free(path);
    scratch_remove(&scratch);
}

/* The head of a test's body, which runs twice; before(direct) opens the storage. */
#define BOTH_WAYS(suite, name, seconds, before)        \
    static void name(void);                            \
    Test(buffered_##suite, name, .timeout = (seconds)) \
    {                                                  \
        before(false);                                 \
        name();                                        \
        done();                                        \
    }                                                  \
    Test(direct_##suite, name, .timeout = (seconds))   \
    {                                                  \
        before(true);                                  \
        name();                                        \
        done();                                        \
    }                                                  \
    static void name(void)

static inline uint64_t size_now(void)
{
    uint64_t size;

    cr_assert_eq(storage_size(st, &size), 0);
    return size;
}

#endif
