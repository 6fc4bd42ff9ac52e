/* SPDX-License-Identifier: BSD-3-Clause */
/* The check as a whole: passes, repairs between them, and the marks at the end. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "qcow2/check/check.h"

/* More clusters than this are not counted: the memory for it would be no one's wish. */
#define MAX_CLUSTERS INT32_MAX

static int open_check(struct check *c)
{
    int err = qcow2_header_read_for_check(c->st, &c->h, c->diag);
    if (!err && (err = storage_size(c->st, &c->file_size)) != 0)
        err = diag_errno(c->diag, -err, "%s: size", c->st->name);
    if (err)
        return err;
    c->cluster_size = 1ull << c->h.cluster_bits;
    c->n_clusters = div_round_up(c->file_size, c->cluster_size);
    c->max_count =
        c->h.refcount_order == 6 ? UINT64_MAX : (1ull << (1u << c->h.refcount_order)) - 1;
    if (c->n_clusters > MAX_CLUSTERS)
        return diag_set(c->diag, EFBIG,
                        "%s: a file of %" PRIu64 " clusters can't be checked", c->st->name,
                        c->n_clusters);
    return 0;
}

/* ---- writing ---- */

int qrepair_begin(struct check *c)
{
    const uint64_t known = AUTOCLEAR_BITMAPS | AUTOCLEAR_DATA_RAW;
    const struct qcow2_header old = c->h;

    if (c->wrote)
        return 0;
    c->wrote = true;
    c->was_dirty = c->h.incompatible & INCOMPAT_DIRTY;
    if (c->h.version < 3)
        return 0;
    c->h.autoclear &= known;
    if (c->options->repair == REPAIR_ALL)
        c->h.incompatible |= INCOMPAT_DIRTY;
    if (c->h.autoclear == old.autoclear && c->h.incompatible == old.incompatible)
        return 0;
    int err = qcow2_header_write_features(c->st, &c->h);
    if (err)
        return diag_errno(c->diag, -err, "%s: marking it as dirty", c->st->name);
    return qrepair_flush(c);
}

int qrepair_write(struct check *c, const void *buf, uint64_t offset, uint64_t bytes,
                  const char *what)
{
    int err = qrepair_begin(c);

    if (!err && (err = storage_write(c->st, buf, offset, bytes, 0)) != 0)
        err = diag_errno(c->diag, -err, "%s: writing the repaired %s at offset %" PRIu64,
                         c->st->name, what, offset);
    return err;
}

uint64_t qrepair_end(const struct check *c, uint64_t used)
{
    return c->st->fixed_size ? used : MAX(used, MAX(c->n_clusters, c->n_compare));
}

int qrepair_room(struct check *c, uint64_t n, uint64_t used, uint64_t *offset)
{
    uint64_t end = qrepair_end(c, used);

    *offset = end << c->h.cluster_bits;
    if (c->st->fixed_size && end + n > c->file_size >> c->h.cluster_bits)
        return diag_set(c->diag, ENOSPC,
                        "%s: no room for the %" PRIu64 " clusters that the repair needs",
                        c->st->name, n);
    return 0;
}

int qrepair_resized(struct check *c)
{
    int err = storage_size(c->st, &c->file_size);

    if (err)
        return diag_errno(c->diag, -err, "%s: size", c->st->name);
    c->n_clusters = div_round_up(c->file_size, c->cluster_size);
    return 0;
}

int qrepair_flush(struct check *c)
{
    int err = storage_flush(c->st);

    return err ? diag_errno(c->diag, -err, "%s: flushing", c->st->name) : 0;
}

/* ---- the order of a repair ---- */

static int next_pass(struct check *c, unsigned stage)
{
    c->stage = stage;
    return qcheck_pass(c, true);
}

static int mend_entries(struct check *c)
{
    int err = 0;

    if (c->impossible && !c->hopeless) {
        err = qrepair_entries(c);
        if (!err)
            err = qrepair_flush(c);
        if (!err)
            err = next_pass(c, 1);
    }
    return err;
}

/* All of them anew, counted without the old ones. */
static int rebuild(struct check *c)
{
    uint64_t used = c->found.image_end_offset >> c->h.cluster_bits;

    qcheck_say(c, "the refcount structures are made anew");
    int err = qcheck_pass(c, false);
    /* What wasn't seen would be taken for free. */
    if (!err && !c->found.check_errors)
        err = qrepair_rebuild(c, used);
    return err;
}

static int mend_refcounts(struct check *c)
{
    bool all = c->options->repair == REPAIR_ALL;
    bool flags = all || c->found.corruptions == 0;
    int err = 0;

    if (all && c->rebuild)
        err = rebuild(c);
    else if (c->found.leaks || (all && c->found.corruptions))
        err = qrepair_refcounts(c, all);
    if (!err)
        err = qrepair_flush(c);
    /* Flags are compared with refcounts that are known to be right. */
    if (!err)
        err = next_pass(c, 2);
    if (!err && flags && c->found.corruptions && !c->found.check_errors)
        err = qrepair_copied(c);
    return err;
}

/* May leaks be made free?  What an entry that makes no sense stood for is not known to be
 * free. */
static bool may_free(const struct check *c)
{
    return c->impossible == 0 && !c->rebuild;
}

static int repair(struct check *c)
{
    bool all = c->options->repair == REPAIR_ALL;
    int err = 0;

    if (c->hopeless) {
        qcheck_say(c, "%s: nothing is repaired", c->hopeless);
        return 0;
    }
    if (all)
        err = mend_entries(c);
    if (err || c->found.check_errors || c->hopeless)
        return err;
    if (all ? c->options->keep_mappings && c->impossible : !may_free(c)) {
        qcheck_say(c,
                   "entries that make no sense may have stood for data: nothing is freed");
        return 0;
    }
    if (c->found.leaks || (all && c->found.corruptions))
        err = mend_refcounts(c);
    if (!err && c->wrote)
        err = qrepair_flush(c);
    if (!err && c->wrote)
        err = next_pass(c, 3);
    return err;
}

/* ---- the end ---- */

/* The file ends with the last cluster in use, where it was longer for nothing. */
static int cut_tail(struct check *c)
{
    uint64_t end = c->found.image_end_offset;

    if (c->dropped || c->found.leaks || !check_is_safe(&c->found) || c->st->fixed_size ||
        end == 0 || end >= c->file_size)
        return 0;
    int err = storage_truncate(c->st, end);
    if (err)
        return diag_errno(c->diag, -err, "%s: cutting the file after %" PRIu64 " bytes",
                          c->st->name, end);
    return qrepair_flush(c);
}

/* Nothing is wrong any more: neither mark is needed.  Else only what the repair itself set
 * goes, and that only when the repair missed nothing. */
static int clear_marks(struct check *c)
{
    uint64_t marks = 0;

    if (check_is_safe(&c->found))
        marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;
    else if (c->wrote && !c->was_dirty && !c->missed && !c->found.check_errors)
        marks = INCOMPAT_DIRTY;
    if (c->h.version < 3 || !(c->h.incompatible & marks))
        return 0;
    int err = qrepair_begin(c);
    if (err)
        return err;
    c->h.incompatible &= ~marks;
    err = qcow2_header_write_features(c->st, &c->h);
    if (err)
        return diag_errno(c->diag, -err, "%s: clearing incompatible_features", c->st->name);
    return qrepair_flush(c);
}

static int check_and_repair(struct check *c, struct check_result *result)
{
    c->stages = c->options->repair == REPAIR_NONE ? 1 : 4;
    int err = next_pass(c, 0);
    if (err || c->options->repair == REPAIR_NONE || c->found.check_errors) {
        *result = c->found;
        return err;
    }
    struct check_result before = c->found;
    bool dirty = c->h.incompatible & INCOMPAT_DIRTY;
    err = repair(c);
    if (!err)
        err = clear_marks(c);
    /* What a dirty image had reserved ahead has no refcounts yet. */
    if (!err && (dirty || before.leaks > c->found.leaks))
        err = cut_tail(c);
    *result = c->found;
    if (!check_is_safe(&c->found))
        result->check_errors += c->missed;
    if (before.corruptions > c->found.corruptions)
        result->corruptions_fixed = before.corruptions - c->found.corruptions;
    if (before.leaks > c->found.leaks)
        result->leaks_fixed = before.leaks - c->found.leaks;
    return err;
}

int qcow2_check(struct storage *st, const struct check_options *options,
                struct check_result *result, struct diag *diag)
{
    struct check c = {.st = st, .options = options, .diag = diag};

    if (options->repair != REPAIR_NONE && st->read_only)
        return diag_set(diag, EROFS, "%s: is open read-only and can't be repaired",
                        st->name);
    int err = open_check(&c);
    if (!err)
        err = check_and_repair(&c, result);
    if (!err && options->progress)
        options->progress(options->opaque, c.stages * 1000ull, c.stages * 1000ull);
    qcheck_forget(&c);
    qcow2_header_free(&c.h);
    return err;
}
