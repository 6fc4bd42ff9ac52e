/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies a range run by run, as the source's block status divides it; data goes through the
 * caller's buffer, piece by piece. */
#include "jobs/copy_range.h"

#include <string.h>

#include "base/checked.h"
#include "base/zero_bytes.h"

#define SECTOR 512u

/* The state of one call. */
struct copying {
    const struct copy_how *how;
    void *buffer;
    size_t buffer_bytes;
    struct copy_result *result;
    uint64_t expected_end; /* the target was told to expect data up to here; 0: nowhere */
};

static uint64_t to_target(const struct copy_how *how, uint64_t off)
{
    return how->target_start + (off - how->source_start);
}

static int failed(struct copying *c, bool write_side, uint64_t at, int err)
{
    if (err) {
        c->result->write_side = write_side;
        c->result->failed_at = at;
    }
    return err;
}

static int write_data(struct copying *c, const void *data, uint64_t off, uint64_t len)
{
    uint64_t to = to_target(c->how, off);

    c->result->sent += len;
    return failed(c, true, to, block_write(c->how->target, data, to, len, 0));
}

/* Writes zeroes as data. */
static int write_zero_bytes(struct copying *c, uint64_t off, uint64_t len)
{
    int err = 0;

    memset(c->buffer, 0, MIN(len, c->buffer_bytes));
    for (uint64_t n; !err && len > 0; off += n, len -= n) {
        n = MIN(len, c->buffer_bytes);
        err = write_data(c, c->buffer, off, n);
    }
    return err;
}

/* Tells a new target that `len` bytes of data follow.  When zeroes are searched for that
 * isn't known; but if the beginning of a run has none, the rest often hasn't either. */
static void expect_data(struct copying *c, uint64_t off, uint64_t len)
{
    const struct copy_how *how = c->how;
    uint64_t to = to_target(how, off);

    if (len > c->buffer_bytes && block_expect(how->target, to, len))
        c->expected_end = off + len;
}

/* Takes back the expectation from off on, as zeroes came after all: gives back the space
 * there. */
static void expect_no_more(struct copying *c, uint64_t off)
{
    if (off < c->expected_end)
        (void)!block_discard(c->how->target, to_target(c->how, off), c->expected_end - off,
                             0);
    c->expected_end = 0;
}

static int zero_target(struct copying *c, uint64_t off, uint64_t len)
{
    const struct copy_how *how = c->how;
    uint64_t to = to_target(how, off);

    if (how->write_zeroes)
        return write_zero_bytes(c, off, len);
    if (how->target_is_zero) {
        expect_no_more(c, off);
        if (to >= how->target_zero_from)
            return 0;
        len = MIN(len, how->target_zero_from - to);
    }
    return failed(c, true, to,
                  block_zero(how->target, to, len, how->unmap ? BLOCK_MAY_UNMAP : 0));
}

/* ---- data ---- */

/* The length of the beginning, in whole units, that is all zero or all not zero. */
static uint64_t measure_alike(const char *data, uint64_t len, uint64_t unit, bool *zero)
{
    uint64_t n = MIN(len, unit);

    *zero = bytes_are_zero(data, n);
    while (n < len && bytes_are_zero(data + n, MIN(unit, len - n)) == *zero)
        n += MIN(unit, len - n);
    return n;
}

static int write_but_zeroes(struct copying *c, uint64_t off, uint64_t len)
{
    const char *data = c->buffer;
    int err = 0;

    for (uint64_t n; !err && len > 0; off += n, len -= n, data += n) {
        bool zero;
        n = measure_alike(data, len, c->how->zero_unit, &zero);
        err = zero ? zero_target(c, off, n) : write_data(c, data, off, n);
    }
    return err;
}

/* Reads sector by sector, so that only sectors that can't be read are lost. */
static int read_what_can_be(struct copying *c, uint64_t off, uint64_t len)
{
    char *to = c->buffer;

    for (uint64_t n; len > 0; off += n, len -= n, to += n) {
        n = MIN(len, SECTOR - off % SECTOR);
        int err = block_read(c->how->source, to, off, n);
        if (!err)
            continue;
        memset(to, 0, n);
        err = c->how->read_failed(c->how->opaque, off, n, err);
        if (err)
            return failed(c, false, off, err);
    }
    return 0;
}

static bool has_zeroes(struct copying *c, uint64_t len)
{
    bool zero;

    return c->how->zero_unit &&
           (measure_alike(c->buffer, len, c->how->zero_unit, &zero) < len || zero);
}

/* The piece is the beginning of `rest` bytes of data.  first: of a whole run. */
static int copy_piece(struct copying *c, uint64_t off, uint64_t len, uint64_t rest,
                      bool first)
{
    int err = block_read(c->how->source, c->buffer, off, len);

    if (err && c->how->read_failed)
        err = read_what_can_be(c, off, len);
    else
        failed(c, false, off, err);
    if (err)
        return err;
    if (first && c->how->expect && !has_zeroes(c, len))
        expect_data(c, off, rest);
    return c->how->zero_unit ? write_but_zeroes(c, off, len)
                             : write_data(c, c->buffer, off, len);
}

static int copy_data(struct copying *c, uint64_t off, uint64_t len)
{
    uint64_t start = off;
    int err = 0;

    for (uint64_t n; !err && len > 0; off += n, len -= n) {
        n = MIN(len, c->buffer_bytes);
        err = copy_piece(c, off, n, len, off == start);
    }
    return err;
}

/* ---- runs ---- */

enum run_kind { RUN_DATA, RUN_ZERO, RUN_LEFT_OUT };

static enum run_kind kind_of(const struct copy_how *how, const struct block_status *st)
{
    if (how->depth && st->depth >= how->depth)
        return RUN_LEFT_OUT;
    return st->zero ? RUN_ZERO : RUN_DATA;
}

/* Aligns a run's end to the target's pieces.  Data is extended to the next boundary; another
 * run ends at the last boundary, or becomes data if it contains none. */
static void align_run(const struct copy_how *how, uint64_t off, uint64_t rest,
                      uint64_t *len, enum run_kind *kind)
{
    uint64_t to = to_target(how, off), end = to + *len;

    if (how->align <= 1 || *len == rest)
        return;
    if (*kind != RUN_DATA && align_down(end, how->align) > to) {
        *len = align_down(end, how->align) - to;
        return;
    }
    *kind = RUN_DATA;
    *len = MIN(rest, align_up(end, how->align) - to);
}

/* Decides about a run that isn't copied because the target's backing file has it: data of the
 * target itself would hide it, and is overwritten.  Shortens the run to a uniform part. */
static enum run_kind judge_left_out(const struct copy_how *how, uint64_t off, uint64_t *len,
                                    const struct block_status *source)
{
    struct block_status own;

    if (block_status(how->target, to_target(how, off), *len, &own))
        return RUN_DATA;
    *len = own.length;
    if (own.depth > 0 || !own.present)
        return RUN_LEFT_OUT;
    return source->zero ? RUN_ZERO : RUN_DATA;
}

/* The run at off.  *len: the limit; on return the run's length. */
static enum run_kind find_run(const struct copy_how *how, uint64_t off, uint64_t *len,
                              struct block_status *st)
{
    uint64_t rest = *len;

    /* If the status can't be read, the range is copied as data. */
    if (block_status(how->source, off, rest, st))
        *st = (struct block_status){.length = rest, .data = true};
    enum run_kind kind = kind_of(how, st);
    *len = st->length;
    align_run(how, off, rest, len, &kind);
    return kind == RUN_LEFT_OUT && how->target_has_data ? judge_left_out(how, off, len, st)
                                                        : kind;
}

static bool is_offloaded(struct copying *c, const struct block_status *st, uint64_t off,
                         uint64_t len)
{
    const struct copy_how *how = c->how;

    if (!how->offload || !st->data || !st->file || st->length != len ||
        block_copy(how->target, to_target(how, off), st->file, st->host_offset, len))
        return false;
    c->result->sent += len;
    return true;
}

void copy_range(const struct copy_how *how, void *buffer, size_t buffer_bytes, uint64_t off,
                uint64_t len, struct copy_result *result)
{
    struct copying c = {
        .how = how, .buffer = buffer, .buffer_bytes = buffer_bytes, .result = result};
    uint64_t end = off + len;

    *result = (struct copy_result){.off = off, .len = len};
    for (uint64_t n; off < end && !result->err; off += n) {
        struct block_status st;
        n = end - off;
        enum run_kind kind = find_run(how, off, &n, &st);
        if (kind == RUN_DATA && !is_offloaded(&c, &st, off, n))
            result->err = copy_data(&c, off, n);
        else if (kind == RUN_ZERO)
            result->err = zero_target(&c, off, n);
    }
}
