/* SPDX-License-Identifier: BSD-3-Clause */
/* A sweep over the source that copies piece by piece. */
#include "copy_disk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/lock.h"
#include "base/log.h"
#include "block/cache_mode.h"
#include "cli.h"
#include "interrupt.h"
#include "jobs/sweep.h"
#include "progress.h"

/* Fits into a processor's cache. */
#define BUFFER_BYTES (1u << 20)
#define LEAST_PIECE  (2u << 20)
/* With a rate limit, pieces are small so that little is done at once. */
#define LIMITED_PIECE (256u << 10)

struct copying {
    const struct copy_disk *copy;
    struct copy_how how;
    size_t buffer_bytes;
    bool flush_failed;
    struct lock lock;
    struct copy_result failure; /* under lock: the lowest piece that failed */
};

static int note_unreadable(void *opaque, uint64_t off, uint64_t len, int err)
{
    const struct copying *c = opaque;

    (void)len;
    if (!c->copy->quiet)
        log_warning("error while reading offset %" PRIu64 ": %s", off, strerror(-err));
    return 0;
}

static int copy_piece(void *opaque, void *buffer, uint64_t off, uint64_t len,
                      uint64_t *moved)
{
    struct copying *c = opaque;
    struct copy_result result;

    copy_range(&c->how, buffer, c->buffer_bytes, off, len, &result);
    *moved = result.sent;
    if (result.err) {
        LOCK_GUARD(&c->lock);
        if (!c->failure.err || off < c->failure.off)
            c->failure = result;
    }
    return result.err;
}

static void show_progress(void *opaque, uint64_t done)
{
    const struct copying *c = opaque;

    progress_report(c->copy->done_before + done, c->copy->total);
}

static int flush_target(void *opaque)
{
    struct copying *c = opaque;
    int err = block_flush(c->how.target);

    c->flush_failed = err;
    return err;
}

static int complain(const struct copying *c, int err)
{
    const struct copy_result *f = &c->failure;

    if (interrupt_came)
        return cli_error("interrupted");
    if (!f->err && c->flush_failed)
        return cli_error("%s: cannot be flushed: %s", c->how.target->filename,
                         strerror(-err));
    if (!f->err)
        return cli_error("cannot copy: %s", strerror(-err));
    return cli_error("error while %s at byte %" PRIu64 ": %s",
                     f->write_side ? "writing" : "reading", f->failed_at,
                     strerror(-f->err));
}

int copy_disk(const struct copy_disk *copy)
{
    struct copying c = {
        .copy = copy, .how = copy->how, .buffer_bytes = MAX(BUFFER_BYTES, copy->how.align)};
    const struct sweep sweep = {
        .start = copy->how.source_start,
        .end = copy->how.source_start + copy->length,
        .piece = copy->speed ? MAX(LIMITED_PIECE, copy->how.align)
                             : sweep_piece(copy->length, LEAST_PIECE),
        .threads = copy->threads ? copy->threads : sweep_threads(),
        .buffer_bytes = c.buffer_bytes,
        .speed = copy->speed,
        .work = copy_piece,
        .progress = show_progress,
        .flush = copy->how.target->options.cache->no_flush ? NULL : flush_target,
        .opaque = &c,
        .stop = &interrupt_came,
    };

    if (copy->salvage) {
        c.how.read_failed = note_unreadable;
        c.how.opaque = &c;
    }
    lock_init(&c.lock, RANK_LEAF);
    int err = sweep_run(&sweep);
    lock_destroy(&c.lock);
    return err ? complain(&c, err) : CLI_OK;
}
