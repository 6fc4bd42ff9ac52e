/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens a fuzzed image, sends it requests, closes it and opens it again.  If the image was sound
 * at first, the requests must have the right effect and leave it sound. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "image_input.h"
#include "mem_storage.h"
#include "qcow2/qcow2_format.h"
#include "rng.h"

#define CACHE_BYTES (128u << 10) /* metadata cache: small, so that pages are evicted */
#define MAX_DATA    (192u << 10) /* bytes of one read or write */
#define MAX_RANGE   (4u << 20)   /* bytes of a request without data */
#define CHECKED     (256u << 10) /* bytes of the disk that are compared after reopening */
#define STEP_NS     UINT64_C(7000000000)
#define BASE_BYTES  (100u << 10)
/* A check takes time and memory in proportion to the file's size; larger files aren't checked. */
#define MAX_CHECKED (UINT64_C(1) << 22)

struct session {
    const struct image_input *in;
    const struct driver *driver;
    struct storage *st; /* our own handle on the image's memory */
    struct block_context ctx;
    uint64_t now;
    struct node *node;
    bool small; /* small enough to be checked */
    bool sound; /* the image was sound at first: requests must do the right thing */
    bool may_leak;
    struct rng rng;
};

static uint8_t data[MAX_DATA], back[MAX_DATA];

static uint64_t clock_of(void *opaque)
{
    return ((struct session *)opaque)->now;
}

/* ---- opening and closing ---- */

/* If the image names a backing file, attaches one in memory, whatever the name is. */
static void attach_base(struct session *s)
{
    const struct node_options options = {.lock_off = true};
    struct diag diag = {0};

    if (!s->node->backing_name)
        return;
    struct storage *base = mem_storage_new(0);
    memset(data, 0x5a, BASE_BYTES);
    if (storage_write(base, data, 0, BASE_BYTES, 0))
        abort();
    base->read_only = true;
    struct node *node;
    if (node_open(&s->ctx, driver_find("raw"), base, "base", &options, &node, &diag))
        abort();
    s->node->backing = node;
}

static bool open_node(struct session *s, bool read_only)
{
    const uint8_t how = s->in->options;
    const struct node_options options = {
        .discard_ignore = how & OPTION_DISCARD_IGNORE,
        .detect_zeroes = how & OPTION_DETECT_ZEROES ? DETECT_UNMAP : DETECT_OFF,
        .need_check_delay_ns = STEP_NS,
        .lazy_refcounts = how & OPTION_LAZY ? 1 : 0,
        .repair_off = how & OPTION_KEEP_MAPPINGS || !s->small,
    };
    struct storage *st = mem_storage_share(s->st);
    struct diag diag = {0};

    st->read_only = read_only;
    st->fixed_size = s->st->fixed_size;
    int err = node_open(&s->ctx, s->driver, st, "image", &options, &s->node, &diag);
    fuzz_check_diag(err, &diag);
    if (err) {
        s->node = NULL;
        return false;
    }
    attach_base(s);
    return true;
}

static int close_node(struct session *s)
{
    int err = node_close(s->node);

    s->node = NULL;
    return err;
}

/* ---- steps ---- */

struct range {
    uint64_t off, len;
};

/* The range of a step, counted from the start or the end of the disk, in units smaller than any
 * cluster. */
static struct range range_of(const struct session *s, struct image_step step,
                             uint64_t max_len)
{
    static const uint32_t lengths[] = {1,       255,     256,     512,      1024,  4096,
                                       4097,    8192,    9216,    16384,    65536, 98304,
                                       1 << 17, 1 << 19, 1 << 20, MAX_RANGE};
    const uint64_t size = s->node->size;
    uint64_t distance = MIN((step.where & 0x7fffu) * UINT64_C(256), size);
    uint64_t off = step.where & 0x8000u ? size - distance : distance;

    return (struct range){off, MIN(MIN(lengths[step.how & 15], max_len), size - off)};
}

static void note_change(struct session *s, int err)
{
    fuzz_check(err <= 0, "a request returns %d", err);
    s->may_leak |= err != 0; /* clusters that a failed request had allocated */
}

/* Checks that a range reads as expected after a change that succeeded. */
static void check_content(struct session *s, struct range r, const uint8_t *expected)
{
    if (!s->sound)
        return;
    int err = block_read(s->node, back, r.off, r.len);
    fuzz_check(err == 0, "error %d from what was written at %ju", err, (uintmax_t)r.off);
    fuzz_check(memcmp(back, expected, r.len) == 0, "other bytes at %ju than were written",
               (uintmax_t)r.off);
}

static void do_read(struct session *s, struct image_step step)
{
    struct range r = range_of(s, step, MAX_DATA);

    int err = block_read(s->node, back, r.off, r.len);
    fuzz_check(err <= 0, "a read returns %d", err);
}

static void do_write(struct session *s, struct image_step step)
{
    struct range r = range_of(s, step, MAX_DATA);

    rng_fill(&s->rng, data, r.len);
    if (step.how & 0x40)
        memset(data, 0, r.len);
    int err = block_write(s->node, data, r.off, r.len, step.how & 0x80 ? BLOCK_FUA : 0);
    note_change(s, err);
    if (!err)
        check_content(s, r, data);
}

static void do_zero(struct session *s, struct image_step step)
{
    struct range r = range_of(s, step, MAX_RANGE);
    unsigned flags = (step.how & 0x20 ? BLOCK_FUA : 0) |
                     (step.how & 0x40 ? BLOCK_MAY_UNMAP : 0) |
                     (step.how & 0x80 ? BLOCK_FAST : 0);

    int err = block_zero(s->node, r.off, r.len, flags);
    note_change(s, err == -ENOTSUP ? 0 : err);
    memset(data, 0, sizeof data);
    if (!err && r.len <= MAX_DATA)
        check_content(s, r, data);
}

static void do_discard(struct session *s, struct image_step step)
{
    struct range r = range_of(s, step, MAX_RANGE);

    note_change(s, block_discard(s->node, r.off, r.len, step.how & 0x80 ? BLOCK_FUA : 0));
}

static void do_flush(struct session *s, struct image_step step)
{
    (void)step;
    note_change(s, block_flush(s->node));
}

/* Asks for block status up to the end of a range, which may be the whole disk. */
static void do_status(struct session *s, struct image_step step)
{
    struct range r = range_of(s, step, UINT64_MAX);
    struct block_status status;

    if (step.how & 0x80)
        r.len = s->node->size - r.off;
    for (unsigned n = 0; r.len > 0 && n < 1000; n++) {
        int err = block_status(s->node, r.off, r.len, &status);
        fuzz_check(err <= 0, "a status returns %d", err);
        if (err)
            return;
        fuzz_check(status.length > 0 && status.length <= r.len, "a run of %ju bytes",
                   (uintmax_t)status.length);
        r.off += status.length;
        r.len -= status.length;
    }
}

static void do_cache(struct session *s, struct image_step step)
{
    struct range r = range_of(s, step, MAX_RANGE);

    fuzz_check(block_cache(s->node, r.off, r.len) <= 0, "cache");
}

static void do_grow(struct session *s, struct image_step step)
{
    uint64_t more = (uint64_t)step.where << (step.how & 31);
    struct diag diag = {0};

    if (!node_can(s->node, DRIVER_GROWS) || !s->node->active ||
        more > INT64_MAX - s->node->size)
        return;
    int err = s->node->driver->grow(s->node, s->node->size + more, &diag);
    fuzz_check_diag(err, &diag);
    s->may_leak |= err != 0; /* clusters that a failed request had allocated */
}

/* Lets time pass, so that metadata is written back and marks are cleared. */
static void do_wait(struct session *s, struct image_step step)
{
    s->now += STEP_NS * (1u + step.how);
    housekeeper_run_due(s->ctx.housekeeper);
}

static void do_nothing(struct session *s, struct image_step step)
{
    (void)s;
    (void)step;
}

typedef void step_fn(struct session *s, struct image_step step);

static void run_steps(struct session *s)
{
    static step_fn *const readers[] = {do_nothing, do_read, do_status, do_cache};
    static step_fn *const all[] = {do_nothing, do_read,    do_write, do_write,
                                   do_zero,    do_discard, do_flush, do_status,
                                   do_cache,   do_grow,    do_wait};

    for (size_t i = 0; i < PROGRAM_STEPS; i++) {
        struct image_step step = s->in->steps[i];
        if (s->node->active)
            all[step.what % ARRAY_LEN(all)](s, step);
        else
            readers[step.what % ARRAY_LEN(readers)](s, step);
    }
}

/* ---- the whole session ---- */

/* May the session leave leaks although a check before it finds none? */
static bool had_hidden_leaks(const struct session *s)
{
    uint8_t raw[96];
    uint64_t size;

    if (storage_read(s->st, raw, 0, sizeof raw) || storage_size(s->st, &size))
        abort();
    /* A writer has to clear autoclear features such as bitmaps; their clusters then leak. */
    if (load_be32(raw) == QCOW2_MAGIC && load_be32(raw + 4) >= 3 && load_be64(raw + 88))
        return true;
    /* QED: an incomplete cluster at the end of the file. */
    return size % s->node->cluster_size != 0;
}

struct contents {
    int err;
    uint64_t size;
    uint8_t bytes[CHECKED];
};

static void read_contents(struct session *s, struct contents *to)
{
    to->size = MIN(s->node->size, CHECKED);
    to->err = block_read(s->node, to->bytes, 0, to->size);
}

static void check_contents(const struct contents *before, const struct contents *after)
{
    fuzz_check(before->size == after->size, "the disk's size changed");
    fuzz_check(before->err == after->err, "reading: first %d, then %d", before->err,
               after->err);
    if (!before->err)
        fuzz_check(memcmp(before->bytes, after->bytes, before->size) == 0,
                   "the disk's content changed");
}

static void check_still_sound(const struct session *s)
{
    struct image_check check = {.repair = REPAIR_NONE};
    const struct check_result *r = &check.result;

    int err = image_check(s->driver, s->st, &check);
    fuzz_check(err == 0, "a sound image became: %s", check.diag.text);
    fuzz_check(check_is_safe(r), "a sound image has %ju corruptions, %ju check errors",
               (uintmax_t)r->corruptions, (uintmax_t)r->check_errors);
    fuzz_check(r->leaks == 0 || s->may_leak, "a sound image has %ju leaks",
               (uintmax_t)r->leaks);
}

static void use(struct session *s)
{
    static struct contents before, after;
    struct diag diag = {0};

    s->may_leak = had_hidden_leaks(s);
    if (s->node->can_write)
        fuzz_check_diag(node_activate(s->node, &diag), &diag);
    run_steps(s);
    read_contents(s, &before);
    int err = close_node(s);
    if (s->sound && !err)
        check_still_sound(s);
    if (!open_node(s, true)) {
        fuzz_check(!s->sound, "a sound image doesn't open any more");
        return;
    }
    read_contents(s, &after);
    if (s->sound && !err)
        check_contents(&before, &after);
    close_node(s);
}

void image_session(const struct image_input *in, const struct driver *driver)
{
    struct session s = {.in = in, .driver = driver};

    s.st = image_input_storage(in, UINT64_C(1) << 62);
    s.small = (UINT64_C(1) << in->log_size) <= MAX_CHECKED;
    s.sound = s.small && (in->options & OPTION_CHECK) && image_is_sound(driver, s.st);
    rng_init(&s.rng, 1);
    if (block_context_init(&s.ctx, CACHE_BYTES, clock_of, &s))
        abort();
    if (open_node(&s, in->options & OPTION_READ_ONLY))
        use(&s);
    block_context_destroy(&s.ctx);
    storage_close(s.st);
}
