/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage on a new file, for the tests of local files.  Each test runs twice: buffered, and with
 * O_DIRECT.  If the scratch folder's filesystem doesn't support O_DIRECT, those tests are skipped
 * with a message. */
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

/* Defines two tests with the body that follows; before(direct) opens the storage. */
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
