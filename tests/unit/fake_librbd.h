/* SPDX-License-Identifier: BSD-3-Clause */
/* A fake librbd with one small image.  Requests stay pending until the test answers them, in any
 * order and with any result. */
#ifndef UNIT_FAKE_LIBRBD_H
#define UNIT_FAKE_LIBRBD_H

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "storage/rbd_internal.h"

#define FAKE_BYTES 4096u
#define FAKE_MANY  65536u /* most requests in one test */
#define LONG       60000u /* ms: a deadline that never passes in these tests */

/* The image's content in the fake cluster; all 'r' at first. */
static char fake_image[FAKE_BYTES];

/* Requests that were made (fake_pending), and those submitted, in their order (fake_submitted). */
struct fake_pending {
    rbd_callback_t callback;
    void *opaque;
    enum rbd_op op;
    uint64_t off;
    size_t len;
    char *buf;   /* for a read: the caller's buffer */
    char *bytes; /* for a write: a copy of the data, as librbd makes one */
    ssize_t result;
};
static struct fake_pending fake_pending[FAKE_MANY];
static _Atomic unsigned fake_created, n_submitted;
static struct fake_pending *fake_submitted[FAKE_MANY];
static pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rbd_link *conn;

/* While set, a resize or a query of the size doesn't return. */
static _Atomic bool hold_resize, hold_size;
static _Atomic int fail_size; /* an errno */
static _Atomic unsigned n_resizes, n_asked;
static _Atomic uint64_t real_size;

/* As librbd does: the part of a request past the end of the image is left out. */
static size_t inside(const struct fake_pending *p)
{
    uint64_t size = atomic_load(&real_size);

    return p->off < size ? MIN(p->len, size - p->off) : 0;
}

/* Answers a request.  The image is read or changed at this moment, as with librbd. */
static void fake_answer_one(struct fake_pending *p, ssize_t result)
{
    if (p->op == RBD_OP_READ && result > 0)
        memcpy(p->buf, fake_image + p->off, (size_t)result);
    if (p->op == RBD_OP_WRITE && result >= 0)
        memcpy(fake_image + p->off, p->bytes, inside(p));
    free(p->bytes);
    if ((p->op == RBD_OP_ZERO || p->op == RBD_OP_DISCARD) && result >= 0)
        memset(fake_image + p->off, 0, inside(p));
    p->result = result;
    p->callback(p, p->opaque);
}

/* Answers the nth submitted request, counted from 0. */
static void answer(unsigned n, ssize_t result)
{
    fake_answer_one(fake_submitted[n], result);
}

/* A request that doesn't come at all fails the test. */
#define COMES_MS 30000u

static void await_submitted(unsigned n)
{
    uint64_t end = clock_ms() + COMES_MS;

    while (atomic_load(&n_submitted) < n) {
        cr_assert_lt(clock_ms(), end, "request %u was not submitted", n);
        clock_nap_ns(1000000);
    }
}

static int fake_create(void *opaque, rbd_callback_t callback, rbd_completion_t *out)
{
    unsigned n = atomic_fetch_add(&fake_created, 1);

    cr_assert_lt(n, FAKE_MANY);
    fake_pending[n] = (struct fake_pending){.callback = callback, .opaque = opaque};
    *out = &fake_pending[n];
    return 0;
}

static int fake_submit(rbd_completion_t completion, struct fake_pending what)
{
    struct fake_pending *p = completion;

    cr_assert_leq(what.off + what.len, FAKE_BYTES);
    what.callback = p->callback;
    what.opaque = p->opaque;
    *p = what;
    pthread_mutex_lock(&fake_lock);
    unsigned n = atomic_load(&n_submitted);
    fake_submitted[n] = p;
    atomic_store(&n_submitted, n + 1);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

static int fake_read(rbd_image_t image, uint64_t off, size_t len, char *buf,
                     rbd_completion_t c)
{
    (void)image;
    return fake_submit(
        c, (struct fake_pending){.op = RBD_OP_READ, .off = off, .len = len, .buf = buf});
}

static int fake_write(rbd_image_t image, uint64_t off, size_t len, const char *bytes,
                      rbd_completion_t c)
{
    char *copy = malloc(len);

    (void)image;
    cr_assert_not_null(copy);
    memcpy(copy, bytes, len);
    return fake_submit(c, (struct fake_pending){
                              .op = RBD_OP_WRITE, .off = off, .len = len, .bytes = copy});
}

static int fake_write_zeroes(rbd_image_t image, uint64_t off, size_t len,
                             rbd_completion_t c, int zero_flags, int op_flags)
{
    (void)image;
    (void)zero_flags;
    (void)op_flags;
    return fake_submit(c, (struct fake_pending){.op = RBD_OP_ZERO, .off = off, .len = len});
}

static int fake_discard(rbd_image_t image, uint64_t off, uint64_t len, rbd_completion_t c)
{
    (void)image;
    return fake_submit(c,
                       (struct fake_pending){.op = RBD_OP_DISCARD, .off = off, .len = len});
}

static int fake_flush(rbd_image_t image, rbd_completion_t c)
{
    (void)image;
    return fake_submit(c, (struct fake_pending){.op = RBD_OP_FLUSH});
}

static ssize_t fake_result(rbd_completion_t c)
{
    return ((struct fake_pending *)c)->result;
}

static void fake_release(rbd_completion_t c)
{
    (void)c;
}

static int fake_resize(rbd_image_t image, uint64_t bytes)
{
    (void)image;
    atomic_fetch_add(&n_resizes, 1);
    while (atomic_load(&hold_resize))
        clock_nap_ns(1000000);
    if (bytes < atomic_load(&real_size) && bytes < FAKE_BYTES)
        memset(fake_image + bytes, 0, FAKE_BYTES - bytes);
    atomic_store(&real_size, bytes);
    return 0;
}

static int fake_get_size(rbd_image_t image, uint64_t *bytes)
{
    (void)image;
    atomic_fetch_add(&n_asked, 1);
    while (atomic_load(&hold_size))
        clock_nap_ns(1000000);
    *bytes = atomic_load(&real_size);
    return -atomic_load(&fail_size);
}

static void fake_set_up(void)
{
    librbd.resize = fake_resize;
    librbd.get_size = fake_get_size;
    librbd.aio_create_completion = fake_create;
    librbd.aio_read = fake_read;
    librbd.aio_write = fake_write;
    librbd.aio_write_zeroes = fake_write_zeroes;
    librbd.aio_discard = fake_discard;
    librbd.aio_flush = fake_flush;
    librbd.aio_get_return_value = fake_result;
    librbd.aio_release = fake_release;
    memset(fake_image, 'r', sizeof fake_image);
    atomic_store(&fake_created, 0);
    atomic_store(&n_submitted, 0);
    conn = rbd_link_new();
}

static void fake_tear_down(void)
{
    cr_expect_eq(conn->running, 0);
    cr_expect_eq(conn->changing, 0);
    cr_expect_eq(conn->late_changes, 0);
    cr_expect_eq(conn->late_tasks, 0);
    cr_expect_eq(conn->late_bytes, 0);
    rbd_link_destroy(conn);
}

#endif
