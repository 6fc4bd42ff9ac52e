/* SPDX-License-Identifier: BSD-3-Clause */
/* The check as a whole: the order of passes and repairs, and the marks at the end. */
#include <errno.h>
#include <inttypes.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "qcow2/check/check.h"

/* Files with more clusters aren't checked: counting them would take too much memory. */
#define MAX_CLUSTERS INT32_MAX

static int read_header(struct check *c)
{
    int err = qcow2_header_read_for_check(c->in.st, &c->in.h, c->in.diag);
    if (!err && (err = storage_size(c->in.st, &c->in.file_size)) != 0)
        err = diag_errno(c->in.diag, -err, "%s: size", c->in.st->name);
    if (err)
        return err;
    c->in.geo = qcow2_header_geometry(&c->in.h);
    c->in.cluster_size = 1ull << c->in.h.cluster_bits;
    c->in.n_clusters = div_round_up(c->in.file_size, c->in.cluster_size);
    c->in.max_count = c->in.h.refcount_order == 6
                          ? UINT64_MAX
                          : (1ull << (1u << c->in.h.refcount_order)) - 1;
    if (c->in.n_clusters > MAX_CLUSTERS)
        return diag_set(c->in.diag, EFBIG,
                        "%s: a file of %" PRIu64 " clusters can't be checked",
                        c->in.st->name, c->in.n_clusters);
    return 0;
}

/* ---- writing ---- */

int qrepair_begin(struct check *c)
{
    const uint64_t known = AUTOCLEAR_BITMAPS | AUTOCLEAR_DATA_RAW;
    const struct qcow2_header old = c->in.h;

    if (c->repair.wrote)
        return 0;
    c->repair.wrote = true;
    c->repair.was_dirty = c->in.h.incompatible & INCOMPAT_DIRTY;
    if (c->in.h.version < 3)
        return 0;
    c->in.h.autoclear &= known;
    if (c->in.options->repair == REPAIR_ALL)
        c->in.h.incompatible |= INCOMPAT_DIRTY;
    if (c->in.h.autoclear == old.autoclear && c->in.h.incompatible == old.incompatible)
        return 0;
    int err = qcow2_header_write_features(c->in.st, &c->in.h);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: marking it as dirty", c->in.st->name);
    return qrepair_flush(c);
}

int qrepair_write(struct check *c, const void *buf, uint64_t offset, uint64_t bytes,
                  const char *what)
{
    int err = qrepair_begin(c);

    if (!err && (err = storage_write(c->in.st, buf, offset, bytes, 0)) != 0)
        err = diag_errno(c->in.diag, -err, "%s: writing the repaired %s at offset %" PRIu64,
                         c->in.st->name, what, offset);
    return err;
}

int qrepair_write_table(struct check *c, uint64_t *table, uint64_t offset)
{
    for (uint64_t i = 0; i < c->in.cluster_size / 8; i++)
        store_be64(&table[i], table[i]);
    return qrepair_write(c, table, offset, c->in.cluster_size, "L2 table");
}

uint64_t qrepair_end(const struct check *c, uint64_t used)
{
    return c->in.st->fixed_size ? used
                                : MAX(used, MAX(c->in.n_clusters, c->pass.n_compare));
}

int qrepair_room(struct check *c, uint64_t n, uint64_t used, uint64_t *offset)
{
    uint64_t end = qrepair_end(c, used);

    *offset = end << c->in.h.cluster_bits;
    if (c->in.st->fixed_size && end + n > c->in.file_size >> c->in.h.cluster_bits)
        return diag_set(c->in.diag, ENOSPC,
                        "%s: no room for the %" PRIu64 " clusters that the repair needs",
                        c->in.st->name, n);
    return 0;
}

int qrepair_resized(struct check *c)
{
    int err = storage_size(c->in.st, &c->in.file_size);

    if (err)
        return diag_errno(c->in.diag, -err, "%s: size", c->in.st->name);
    c->in.n_clusters = div_round_up(c->in.file_size, c->in.cluster_size);
    return 0;
}

int qrepair_flush(struct check *c)
{
    int err = storage_flush(c->in.st);

    return err ? diag_errno(c->in.diag, -err, "%s: flushing", c->in.st->name) : 0;
}

/* ---- the order of a repair ---- */

static int next_pass(struct check *c, unsigned stage)
{
    c->progress.stage = stage;
    return qcheck_pass(c, true);
}

static int mend_entries(struct check *c)
{
    if (!c->pass.impossible || c->pass.hopeless)
        return 0;
    int err = qrepair_entries(c);
    if (err)
        return err;
    err = qrepair_flush(c);
    return err ? err : next_pass(c, 1);
}

/* Rebuilds all refcounts from a pass that ignores the old refcount structures. */
static int rebuild_refcounts(struct check *c)
{
    uint64_t used = c->pass.found.image_end_offset >> c->in.h.cluster_bits;

    qcheck_say(c, "Rebuilding refcount structure");
    c->progress.stage = 1;
    int err = qcheck_pass(c, false);
    /* Clusters referenced by tables that couldn't be read would be counted as free. */
    if (!err && !c->pass.found.check_errors)
        err = qrepair_rebuild(c, used);
    return err;
}

int qrepair_counts(struct check *c)
{
    bool all = c->in.options->repair == REPAIR_ALL;

    if (all && c->pass.rebuild)
        return rebuild_refcounts(c);
    if (c->pass.found.leaks || (all && c->pass.found.corruptions))
        return qrepair_refcounts(c, all);
    return 0;
}

/* Are wrong copied flags the only corruption?  Then the refcounts are right, and the flags are
 * corrected by `-r leaks`, too: nothing ambiguous has to be decided. */
static bool has_only_wrong_flags(const struct check *c)
{
    return c->pass.found.corruptions == c->pass.wrong_flags;
}

/* Corrects refcounts, and then the copied flags. */
static int mend_refcounts(struct check *c)
{
    bool all = c->in.options->repair == REPAIR_ALL;
    bool flags = all || has_only_wrong_flags(c);

    int err = qrepair_counts(c);
    if (err)
        return err;
    err = qrepair_flush(c);
    if (err)
        return err;
    /* Flags are compared with the refcounts, which are right by now. */
    err = next_pass(c, 2);
    if (!err && flags && c->pass.found.corruptions && !c->pass.found.check_errors)
        err = qrepair_copied(c);
    return err;
}

/* Replaces the snapshot table, once the refcounts are right.  With keep_mappings snapshots are left
 * alone. */
static int mend_snapshot_table(struct check *c)
{
    if (c->in.options->keep_mappings || !c->pass.rewrites || c->pass.rebuild ||
        c->pass.hopeless || c->pass.found.check_errors)
        return 0;
    int err = qrepair_snapshots(c);
    if (!err && c->pass.found.leaks && !c->pass.found.check_errors)
        err = qrepair_counts(c);
    return err;
}

/* May leaked clusters be freed?  Not while there are impossible entries: one of them may have meant
 * such a cluster. */
static bool may_free(const struct check *c)
{
    return c->pass.impossible == 0 && !c->pass.rebuild;
}

static int repair_image(struct check *c)
{
    bool all = c->in.options->repair == REPAIR_ALL;
    int err = 0;

    if (c->pass.hopeless) {
        qcheck_say(c, "%s: nothing is repaired", c->pass.hopeless);
        return 0;
    }
    if (all)
        err = mend_entries(c);
    if (err || c->pass.found.check_errors || c->pass.hopeless)
        return err;
    if (all ? c->in.options->keep_mappings && c->pass.impossible : !may_free(c)) {
        qcheck_say(c,
                   "entries that make no sense may have stood for data: nothing is freed");
        return 0;
    }
    if (c->pass.found.leaks ||
        (c->pass.found.corruptions && (all || has_only_wrong_flags(c))))
        err = mend_refcounts(c);
    if (!err && all)
        err = mend_snapshot_table(c);
    if (!err && c->repair.wrote)
        err = qrepair_flush(c);
    if (!err && c->repair.wrote)
        err = next_pass(c, 3);
    return err;
}

/* ---- the end ---- */

/* Truncates the file behind the last cluster in use. */
static int cut_tail(struct check *c)
{
    uint64_t end = c->pass.found.image_end_offset;

    if (c->repair.dropped || c->pass.found.leaks || !check_is_safe(&c->pass.found) ||
        c->in.st->fixed_size || end == 0 || end >= c->in.file_size)
        return 0;
    int err = storage_truncate(c->in.st, end);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: cutting the file after %" PRIu64 " bytes",
                          c->in.st->name, end);
    return qrepair_flush(c);
}

/* Clears both marks when nothing is wrong any more.  Else clears only the dirty bit that the repair
 * itself set, and that only if all tables could be read. */
static int clear_marks(struct check *c)
{
    uint64_t marks = 0;

    if (check_is_safe(&c->pass.found))
        marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;
    else if (c->repair.wrote && !c->repair.was_dirty && !c->repair.missed &&
             !c->pass.found.check_errors)
        marks = INCOMPAT_DIRTY;
    if (c->in.h.version < 3 || !(c->in.h.incompatible & marks))
        return 0;
    int err = qrepair_begin(c);
    if (err)
        return err;
    c->in.h.incompatible &= ~marks;
    err = qcow2_header_write_features(c->in.st, &c->in.h);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: clearing incompatible_features",
                          c->in.st->name);
    return qrepair_flush(c);
}

static int check_and_repair(struct check *c, struct check_result *result)
{
    c->progress.stages = c->in.options->repair == REPAIR_NONE ? 1 : 4;
    int err = next_pass(c, 0);
    if (err || c->in.options->repair == REPAIR_NONE || c->pass.found.check_errors) {
        *result = c->pass.found;
        return err;
    }
    struct check_result before = c->pass.found;
    before.corruptions -= c->pass.wrong_flags; /* corrected ones are in c->repair.flags */
    bool dirty = c->in.h.incompatible & INCOMPAT_DIRTY;
    err = repair_image(c);
    if (!err)
        err = clear_marks(c);
    /* A dirty image can have a reserved tail that has no refcounts yet. */
    if (!err && (dirty || before.leaks > c->pass.found.leaks))
        err = cut_tail(c);
    *result = c->pass.found;
    if (!check_is_safe(&c->pass.found))
        result->check_errors += c->repair.missed;
    uint64_t left = c->pass.found.corruptions - c->pass.wrong_flags;
    result->corruptions_fixed =
        c->repair.flags + (before.corruptions > left ? before.corruptions - left : 0);
    if (before.leaks > c->pass.found.leaks)
        result->leaks_fixed = before.leaks - c->pass.found.leaks;
    return err;
}

int qcow2_check(struct storage *st, const struct check_options *options,
                struct check_result *result, struct diag *diag)
{
    struct check c = {.in = {.st = st, .options = options, .diag = diag}};

    if (options->repair != REPAIR_NONE && st->read_only)
        return diag_set(diag, EROFS, "%s: is open read-only and can't be repaired",
                        st->name);
    int err = read_header(&c);
    if (!err)
        err = check_and_repair(&c, result);
    if (!err && options->progress)
        options->progress(options->opaque, c.progress.stages * 1000ull,
                          c.progress.stages * 1000ull);
    qcheck_forget(&c);
    qcow2_header_free(&c.in.h);
    return err;
}
