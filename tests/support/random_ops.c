/* SPDX-License-Identifier: BSD-3-Clause */
/* Sends random requests to a node and compares it with a flat array; see random_ops.h. */
#include "random_ops.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/checked.h"

#define HISTORY 12

struct trial {
    const struct trial_case *what;
    uint64_t seed, op;
    struct rng rng;
    struct image img;
    uint64_t hot; /* most requests start within a window from this offset on */
    uint64_t max_len;
    uint8_t *pool, *buf; /* random bytes to write; buffer for reading */
    char history[HISTORY][80];
};

/* After a request, up to this many more bytes around it are read back. */
#define AROUND (64 * KIB)

void trial_note(struct trial *t, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(t->history[t->op % HISTORY], sizeof t->history[0], fmt, ap);
    va_end(ap);
}

void trial_fail(struct trial *t, const char *fmt, ...)
{
    char text[1024], list[HISTORY * 84] = "";
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (uint64_t i = t->op < HISTORY ? 0 : t->op - HISTORY + 1; i <= t->op; i++) {
        strcat(list, "\n    ");
        strcat(list, t->history[i % HISTORY]);
    }
    cr_assert_fail("%s, QIMG_SEED=%" PRIu64 ", request %" PRIu64
                   ": %s; the last requests:%s",
                   t->what->name, t->seed, t->op, text, list);
}

/* ---- comparing ---- */

static void read_back(struct trial *t, uint64_t off, uint64_t len)
{
    const uint8_t *want = t->img.model.bytes + off;

    int err = block_read_for_user(t->img.node, t->buf, off, len);
    if (err)
        trial_fail(t, "reading %" PRIu64 "+%" PRIu64 ": errno %d", off, len, -err);
    if (memcmp(t->buf, want, len) == 0)
        return;
    uint64_t i = 0;
    while (t->buf[i] == want[i])
        i++;
    trial_fail(t, "offset %" PRIu64 ": 0x%02x, should be 0x%02x", off + i, t->buf[i],
               want[i]);
}

static void read_around(struct trial *t, uint64_t off, uint64_t len)
{
    uint64_t before = rng_below(&t->rng, MIN(off, AROUND / 2) + 1);
    uint64_t after = rng_below(&t->rng, MIN(t->img.model.size - off - len, AROUND / 2) + 1);

    read_back(t, off - before, before + len + after);
}

static void read_all(struct trial *t)
{
    for (uint64_t off = 0, n; off < t->img.model.size; off += n) {
        n = MIN(t->max_len, t->img.model.size - off);
        read_back(t, off, n);
    }
}

/* After a trim each byte must be as it was, or zero.  The model takes over what the trim did. */
static void adopt_trim(struct trial *t, uint64_t off, uint64_t len)
{
    uint8_t *model = t->img.model.bytes + off;

    int err = block_read(t->img.node, t->buf, off, len);
    if (err)
        trial_fail(t, "reading what was trimmed: errno %d", -err);
    for (uint64_t i = 0; i < len; i++) {
        if (t->buf[i] != 0 && t->buf[i] != model[i])
            trial_fail(t, "trim changed offset %" PRIu64 " from 0x%02x to 0x%02x", off + i,
                       model[i], t->buf[i]);
        if (t->img.spec.node.discard_ignore && t->buf[i] != model[i])
            trial_fail(t, "an ignored trim changed offset %" PRIu64, off + i);
    }
    memcpy(model, t->buf, len);
}

static bool zero_bytes(const uint8_t *p, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++)
        if (p[i])
            return false;
    return true;
}

/* ---- the requests ---- */

static void pick_range(struct trial *t, uint64_t *off, uint64_t *len)
{
    static const unsigned units[] = {1, 512, 512, 4096, 0};
    uint64_t size = t->img.model.size, cluster = t->img.node->cluster_size;
    uint64_t unit = units[rng_below(&t->rng, ARRAY_LEN(units))];
    uint64_t window =
        rng_one_in(&t->rng, 4) ? size : MIN(size, MAX(64 * cluster, 64 * KIB));

    if (unit == 0)
        unit = MAX(cluster, 512);
    if (rng_one_in(&t->rng, 400))
        t->hot = rng_below(&t->rng, size);
    *off = (t->hot + rng_below(&t->rng, window)) % size / unit * unit;
    switch (rng_below(&t->rng, 8)) {
    case 0:
        *len = rng_between(&t->rng, 1, t->max_len);
        break;
    case 1:
    case 2:
        *len = rng_between(&t->rng, 1, 3 * cluster);
        break;
    case 3:
        *len = rng_between(&t->rng, 1, 4) * MAX(cluster, 512);
        break;
    default:
        *len = rng_between(&t->rng, 1, 16 * KIB);
        *len = MAX(*len / unit, 1) * unit;
    }
    if (rng_one_in(&t->rng, 60)) /* the end of the disk */
        *off = size - MIN(size, *len);
    *len = MIN(MIN(*len, t->max_len), size - *off);
}

static void expect_done(struct trial *t, int err)
{
    if (err)
        trial_fail(t, "errno %d", -err);
}

static void tell_changed(struct trial *t, uint64_t off, uint64_t len)
{
    if (t->what->more && t->what->more->changed)
        t->what->more->changed(t->what->opaque, off, len);
}

static void do_write(struct trial *t, uint64_t off, uint64_t len)
{
    bool zeroes = rng_one_in(&t->rng, 16);
    unsigned flags = rng_one_in(&t->rng, 12) ? BLOCK_FUA : 0;
    const uint8_t *data = t->pool + rng_below(&t->rng, t->max_len);

    if (zeroes)
        data = memset(t->buf, 0, len);
    trial_note(t, "write%s%s %" PRIu64 "+%" PRIu64, flags ? " FUA" : "",
               zeroes ? " of zeroes" : "", off, len);
    expect_done(t, block_write(t->img.node, data, off, len, flags));
    memcpy(t->img.model.bytes + off, data, len);
    tell_changed(t, off, len);
}

static void do_zero(struct trial *t, uint64_t off, uint64_t len)
{
    unsigned flags = 0;

    if (rng_one_in(&t->rng, 2))
        flags |= BLOCK_MAY_UNMAP;
    if (rng_one_in(&t->rng, 4))
        flags |= BLOCK_FAST;
    if (rng_one_in(&t->rng, 8))
        flags |= BLOCK_FUA;
    trial_note(t, "zero%s%s %" PRIu64 "+%" PRIu64, flags & BLOCK_MAY_UNMAP ? " UNMAP" : "",
               flags & BLOCK_FAST ? " FAST" : "", off, len);
    int err = block_zero(t->img.node, off, len, flags);
    tell_changed(t, off, len);
    if (err == -ENOTSUP && (flags & BLOCK_FAST))
        return; /* read_around will check that nothing changed */
    expect_done(t, err);
    memset(t->img.model.bytes + off, 0, len);
}

static void do_discard(struct trial *t, uint64_t off, uint64_t len)
{
    trial_note(t, "discard %" PRIu64 "+%" PRIu64, off, len);
    expect_done(
        t, block_discard(t->img.node, off, len, rng_one_in(&t->rng, 8) ? BLOCK_FUA : 0));
    adopt_trim(t, off, len);
    if (!t->img.spec.node.discard_ignore)
        tell_changed(t, off, len);
}

/* What block status reports as zero must read as zeroes; every run is data or zero. */
static void do_status(struct trial *t, uint64_t off, uint64_t len)
{
    struct block_status st;

    trial_note(t, "status %" PRIu64 "+%" PRIu64, off, len);
    for (; len > 0; off += st.length, len -= st.length) {
        expect_done(t, block_status(t->img.node, off, len, &st));
        if (st.length == 0 || st.length > len)
            trial_fail(t, "at %" PRIu64 ": a run of %" PRIu64 " bytes", off, st.length);
        if (!st.zero && !st.data)
            trial_fail(t, "at %" PRIu64 ": neither data nor zero", off);
        if (st.zero && !zero_bytes(t->img.model.bytes + off, st.length))
            trial_fail(t, "at %" PRIu64 ": not zero for %" PRIu64 " bytes", off, st.length);
    }
}

static void close_it(struct trial *t)
{
    if (t->what->more && t->what->more->closing)
        t->what->more->closing(t->what->opaque);
    expect_done(t, image_close(&t->img));
}

static void open_it(struct trial *t)
{
    struct diag diag = {0};

    if (image_try_open(&t->img, &diag))
        trial_fail(t, "%s", diag.text);
    if (t->what->more && t->what->more->reopened)
        t->what->more->reopened(t->what->opaque, t, &t->img);
}

static void step(struct trial *t)
{
    uint64_t off, len, dice = rng_below(&t->rng, 100);

    pick_range(t, &off, &len);
    if (dice < 45) {
        do_write(t, off, len);
    } else if (dice < 60) {
        do_zero(t, off, len);
    } else if (dice < 70) {
        do_discard(t, off, len);
    } else if (dice < 74) {
        do_status(t, off, len);
    } else if (dice < 78) {
        trial_note(t, "cache %" PRIu64 "+%" PRIu64, off, len);
        expect_done(t, block_cache(t->img.node, off, len));
    } else if (dice < 82) {
        trial_note(t, "flush");
        expect_done(t, block_flush(t->img.node));
    } else {
        trial_note(t, "read %" PRIu64 "+%" PRIu64, off, len);
        read_back(t, off, len);
        return;
    }
    if (rng_one_in(&t->rng, 2))
        read_around(t, off, len);
    if (rng_one_in(&t->rng, t->what->more ? 150 : 1500)) {
        trial_note(t, "reopen");
        close_it(t);
        open_it(t);
    }
    if (rng_one_in(&t->rng, 50)) { /* lets the idle timers fire */
        t->img.now += 6 * SEC;
        housekeeper_run_due(t->img.ctx.housekeeper);
    }
    if (t->what->more && t->what->more->step)
        t->what->more->step(t->what->opaque, t, &t->img, &t->rng);
}

static uint64_t hash_of(const char *name)
{
    uint64_t h = 1469598103934665603u;

    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 1099511628211u;
    return h % 1000000;
}

static void look_at_all(struct trial *t)
{
    read_all(t);
    if (t->what->more && t->what->more->end)
        t->what->more->end(t->what->opaque, t, &t->img);
}

/* Closes the image, verifies it and opens it again. */
static void judge(struct trial *t)
{
    char why[1024];

    close_it(t);
    if (!image_verify(&t->img, why, sizeof why))
        trial_fail(t, "%s", why);
    open_it(t);
}

void trial_run(const struct trial_case *what)
{
    struct trial t = {
        .what = what,
        .seed = env_number("QIMG_SEED", hash_of(what->name)),
        .max_len = what->max_len ? what->max_len : 128 * KIB,
    };
    uint64_t ops = env_number("QIMG_OPS", what->ops / build_slowness());

    rng_init(&t.rng, t.seed);
    t.pool = malloc(2 * t.max_len);
    t.buf = malloc(t.max_len + AROUND);
    image_make(&t.img, &what->image, t.seed);
    image_fill(&t.img, &t.rng, t.pool, 2 * t.max_len);
    image_open(&t.img);
    for (t.op = 0; t.op < ops; t.op++)
        step(&t);
    trial_note(&t, "the end");
    look_at_all(&t);
    judge(&t);
    look_at_all(&t);
    if (what->more && what->more->undo) {
        what->more->undo(what->opaque, &t, &t.img);
        judge(&t);
    }
    image_free(&t.img);
    free(t.pool);
    free(t.buf);
}
