/* SPDX-License-Identifier: BSD-3-Clause */
/* Calls back a test before each access; see tap_storage.h. */
#include "tap_storage.h"

#include <stdlib.h>
#include <string.h>

struct tap_storage {
    struct storage st;
    struct storage *below;
    const struct tap *tap;
};

static _Thread_local bool inside;

static struct storage *below(struct storage *st)
{
    return ((struct tap_storage *)st)->below;
}

static int tap_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    const struct tap *tap = ((struct tap_storage *)st)->tap;

    if (tap->before_read && !inside) {
        inside = true;
        tap->before_read(tap->opaque, off, len);
        inside = false;
    }
    return storage_read(below(st), buf, off, len);
}

/* Asks before_write: returns 0, or the -errno with which the call fails; *done as in struct tap. */
static int ask(struct storage *st, uint64_t off, uint64_t len, bool *done)
{
    const struct tap *tap = ((struct tap_storage *)st)->tap;

    *done = false;
    if (!tap->before_write || inside)
        return 0;
    inside = true;
    int err = tap->before_write(tap->opaque, off, len, done);
    inside = false;
    return err;
}

static int tap_pwritev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                       unsigned flags)
{
    uint64_t len = 0;
    bool done;

    for (int i = 0; i < count; i++)
        len += iov[i].iov_len;
    int err = ask(st, off, len, &done);
    if (err && !done)
        return err;
    int result = storage_writev(below(st), iov, count, off, flags);
    return err ? err : result;
}

static int tap_flush(struct storage *st)
{
    const struct tap *tap = ((struct tap_storage *)st)->tap;
    int err = tap->before_flush && !inside ? tap->before_flush(tap->opaque) : 0;

    return err ? err : storage_flush(below(st));
}

static int tap_size(struct storage *st, uint64_t *bytes)
{
    return storage_size(below(st), bytes);
}

static int tap_truncate(struct storage *st, uint64_t bytes)
{
    bool done;
    int err = ask(st, bytes, 0, &done);

    if (err && !done)
        return err;
    int result = storage_truncate(below(st), bytes);
    return err ? err : result;
}

static int tap_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    bool done;
    int err = ask(st, off, len, &done);

    if (err && !done)
        return err;
    int result = storage_zero(below(st), off, len, flags);
    return err ? err : result;
}

static int tap_discard(struct storage *st, uint64_t off, uint64_t len)
{
    return storage_discard(below(st), off, len);
}

static void tap_close(struct storage *st)
{
    storage_close(below(st));
    free(st);
}

static const struct storage_ops tap_ops = {
    .pread = tap_pread,
    .pwritev = tap_pwritev,
    .flush = tap_flush,
    .size = tap_size,
    .truncate = tap_truncate,
    .close = tap_close,
    .zero = tap_zero,
    .discard = tap_discard,
};

struct storage *tap_storage_open(struct storage *file, const struct tap *tap)
{
    struct tap_storage *t = calloc(1, sizeof *t);

    if (!t)
        abort();
    t->st.ops = &tap_ops;
    t->st.name = strdup("tap");
    t->st.align = 1;
    t->st.fixed_size = file->fixed_size;
    t->st.no_flush = file->no_flush;
    t->below = file;
    t->tap = tap;
    return &t->st;
}
