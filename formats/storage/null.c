/* SPDX-License-Identifier: BSD-3-Clause */
/* A store of zeroes that forgets writes. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "storage/null.h"

#define DEFAULT_SIZE (1ull << 30)
#define SHOWN        200 /* longest part of the name in messages, bytes */

struct null_storage {
    struct storage st;
    uint64_t size;
    bool says_zeroes;
};

static struct null_storage *null_of(struct storage *st)
{
    return CONTAINER_OF(st, struct null_storage, st);
}

/* ---- requests ---- */

static int io_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    (void)st;
    (void)off;
    memset(buf, 0, len);
    return 0;
}

static int io_pwritev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                      unsigned flags)
{
    (void)st;
    (void)iov;
    (void)count;
    (void)off;
    (void)flags;
    return 0;
}

static int io_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    (void)st;
    (void)off;
    (void)len;
    (void)flags;
    return 0;
}

static int io_flush(struct storage *st)
{
    (void)st;
    return 0;
}

static int io_size(struct storage *st, uint64_t *bytes)
{
    *bytes = null_of(st)->size;
    return 0;
}

static int io_truncate(struct storage *st, uint64_t bytes)
{
    (void)st;
    (void)bytes;
    return -ENOTSUP; /* never called: the size is fixed */
}

static int io_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                     uint64_t *run)
{
    const struct null_storage *null = null_of(st);

    *data = off < null->size && !null->says_zeroes;
    *run = off < null->size ? MIN(len, null->size - off) : len;
    return 0;
}

static void io_close(struct storage *st)
{
    free(null_of(st));
}

static const struct storage_ops null_ops = {
    .pread = io_pread,
    .pwritev = io_pwritev,
    .flush = io_flush,
    .size = io_size,
    .truncate = io_truncate,
    .close = io_close,
    .zero = io_zero,
    .extent = io_extent,
};

/* ---- its name ---- */

bool null_name_is_one(const char *name)
{
    return strncmp(name, NULL_PREFIX, strlen(NULL_PREFIX)) == 0;
}

static int refuse(const char *name, const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%.*s: %s", SHOWN, name, why);
}

static int take_size(struct null_storage *null, const char *text, const char *name,
                     struct diag *diag)
{
    if (size_parse(text, &null->size) != 0 || null->size > INT64_MAX)
        return refuse(name,
                      "size: must be a number of bytes, or one followed by k, M, G, T, P "
                      "or E, below 2^63",
                      diag);
    return 0;
}

static int take_zeroes(struct null_storage *null, const char *text, const char *name,
                       struct diag *diag)
{
    null->says_zeroes = strcmp(text, "on") == 0;
    return null->says_zeroes || strcmp(text, "off") == 0
               ? 0
               : refuse(name, "read-zeroes: must be on or off", diag);
}

static int take_option(struct null_storage *null, const char *option, const char *name,
                       struct diag *diag)
{
    static const struct {
        const char *key;
        int (*take)(struct null_storage *, const char *, const char *, struct diag *);
    } options[] = {{"size=", take_size}, {"read-zeroes=", take_zeroes}};

    for (size_t i = 0; i < ARRAY_LEN(options); i++)
        if (strncmp(option, options[i].key, strlen(options[i].key)) == 0)
            return options[i].take(null, option + strlen(options[i].key), name, diag);
    return refuse(name, "the options there are: size=, read-zeroes=", diag);
}

static int parse_name(struct null_storage *null, const char *name, struct diag *diag)
{
    const char *text = name + strlen(NULL_PREFIX);
    CLEANUP_FREE char *options = strdup(*text == '?' ? text + 1 : text);
    char *rest = options;
    int err = options ? 0 : diag_errno(diag, ENOMEM, "%.*s", SHOWN, name);

    if (!err && *text && *text != '?')
        err = refuse(name, "only ?size=SIZE and the like may follow", diag);
    for (char *option = NULL; !err && rest && *rest;) {
        option = strsep(&rest, "&");
        err = take_option(null, option, name, diag);
    }
    return err;
}

int storage_open_null(const char *name, const struct storage_open *how,
                      struct storage **out, struct diag *diag)
{
    struct null_storage *null = calloc(1, sizeof *null);

    if (!null)
        return diag_errno(diag, ENOMEM, "%.*s", SHOWN, name);
    *null = (struct null_storage){.st = {.ops = &null_ops,
                                         .align = 1,
                                         .fixed_size = true,
                                         .read_only = how->read_only},
                                  .size = DEFAULT_SIZE};
    null->st.name = strdup(name);
    int err = null->st.name ? parse_name(null, name, diag)
                            : diag_errno(diag, ENOMEM, "%.*s", SHOWN, name);
    if (err)
        storage_close(&null->st);
    else
        *out = &null->st;
    return err;
}

bool storage_is_null(const struct storage *st)
{
    return st->ops == &null_ops;
}
