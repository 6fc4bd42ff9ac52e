/* SPDX-License-Identifier: BSD-3-Clause */
/* Proves that the crash tests can fail: without one of its barriers the product loses data or
 * corrupts the image after some crashes, and a survey that finds no fault otherwise must find
 * one then.
 *
 * The product itself isn't changed.  Instead the crash log treats chosen flushes as if they had
 * made nothing durable; a predicate on the log (fault_fn) chooses them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "support/survey.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

/* Is the flush at this index of the log to have no effect? */
typedef bool fault_fn(const struct recording *r, uint64_t index);

struct ignored {
    bool *flush; /* indexed by the number of the flush */
    unsigned n;
};

static bool is_ignored(void *opaque, uint64_t nth)
{
    const struct ignored *ignored = opaque;

    return ignored->flush[nth];
}

static struct ignored find_faults(const struct recording *r, fault_fn *fault)
{
    uint64_t count = crash_log_count(r->log);
    struct ignored found = {.flush = calloc(count + 2, sizeof *found.flush)};

    for (uint64_t i = 0; i < count; i++) {
        struct crash_op op = crash_log_op(r->log, i);
        if (op.kind != CRASH_FLUSH || !fault(r, i))
            continue;
        found.flush[op.off] = true;
        found.n++;
    }
    return found;
}

/* Surveys recordings of the configuration twice: with all flushes in effect nothing may be
 * found; with the fault (or without FUA) some failure must be.  wanted: a word that the failure
 * must contain; NULL: any failure. */
static void expect_found(const struct subject_config *config, fault_fn *fault,
                         const char *wanted, bool ignore_fua)
{
    struct survey good = {.states = 60}, bad = {.states = 300};

    bad.stop_at_failure = bad.quiet = true;
    bad.ignore_fua = ignore_fua;
    bad.wanted = wanted;
    for (uint64_t seed = 1; seed <= 8 && bad.failures == 0; seed++) {
        struct recording r;
        struct subject s;
        subject_make(&s, config);
        recording_make(&r, &s, seed);
        struct ignored ignored = find_faults(&r, fault);
        survey_recording(&good, &r);
        bad.ignore_flush = is_ignored;
        bad.opaque = &ignored;
        survey_recording(&bad, &r);
        cr_expect(ignored.n > 0 || ignore_fua, "%s: nothing to take out", config->name);
        free(ignored.flush);
        recording_free(&r);
        subject_remove(&s);
    }
    cr_expect_eq(good.failures, 0, "%s as it is: %s", config->name, good.first_failure.why);
    cr_expect(bad.failures > 0, "%s: %u states with the fault, and nothing found",
              config->name, bad.judged);
    fprintf(stderr, "%s: found after %u states: %s\n", config->name, bad.judged,
            bad.first_failure.why);
}

/* ---- predicates that choose flushes ---- */

/* The index of the next flush of the same request, or 0. */
static uint64_t next_flush(const struct recording *r, uint64_t index)
{
    for (uint64_t i = index + 1; i < crash_log_count(r->log); i++) {
        struct crash_op op = crash_log_op(r->log, i);
        if (op.kind == CRASH_MARK)
            return 0;
        if (op.kind == CRASH_FLUSH)
            return i;
    }
    return 0;
}

/* Is there a write that sets the mark (or clears it) in [from, until)? */
static bool writes_mark(const struct recording *r, uint64_t from, uint64_t until, bool on)
{
    bool qed = strcmp(r->subject->config->format, "qed") == 0;

    for (uint64_t i = from; i < until; i++) {
        struct crash_op op = crash_log_op(r->log, i);
        if (op.kind != CRASH_WRITE || op.off != (qed ? 16 : 72))
            continue;
        bool bit = qed ? op.data[0] & 2 : op.data[7] & 1;
        if (bit == on)
            return true;
    }
    return false;
}

static bool in_background(const struct recording *r, uint64_t index)
{
    bool is_end;

    for (uint64_t i = index + 1; i < crash_log_count(r->log); i++) {
        struct crash_op op = crash_log_op(r->log, i);
        if (op.kind == CRASH_MARK)
            return history_request_of_mark(&r->history, op.off, &is_end).kind ==
                       REQ_BACKGROUND &&
                   is_end;
    }
    return false;
}

static bool every_flush(const struct recording *r, uint64_t index)
{
    (void)r;
    (void)index;
    return true;
}

static bool no_flush(const struct recording *r, uint64_t index)
{
    (void)r;
    (void)index;
    return false;
}

/* The barrier between the data and the L2 entries of a strict group. */
static bool leaf_barrier(const struct recording *r, uint64_t index)
{
    return !in_background(r, index) && next_flush(r, index) != 0;
}

/* The barrier that makes the mark durable before any change that the mark covers. */
static bool mark_barrier(const struct recording *r, uint64_t index)
{
    uint64_t from = index;

    while (from > 0 && crash_log_op(r->log, from - 1).kind != CRASH_FLUSH)
        from--;
    return next_flush(r, index) != 0 && writes_mark(r, from, index, true);
}

/* The barrier after the tables were written and before the mark is cleared. */
static bool clear_barrier(const struct recording *r, uint64_t index)
{
    uint64_t next = next_flush(r, index);

    return next != 0 && writes_mark(r, index, next, false);
}

/* The last barrier of a write-back by the housekeeper; after it the unlinked clusters are
 * punched and reused.  Only where a client's write comes next: a client's flush there would rely
 * on this barrier and lose data for another reason than the one tested. */
static bool unlink_barrier(const struct recording *r, uint64_t index)
{
    bool is_end;
    uint64_t i = index + 1;

    if (!in_background(r, index) || next_flush(r, index) != 0)
        return false;
    for (unsigned marks = 0; i < crash_log_count(r->log); i++) {
        struct crash_op op = crash_log_op(r->log, i);
        if (op.kind == CRASH_MARK && ++marks == 2)
            return history_request_of_mark(&r->history, op.off, &is_end).kind == REQ_WRITE;
    }
    return false;
}

static bool data_flush(const struct recording *r, uint64_t index)
{
    return crash_log_op(r->log, index).file == 1;
}

/* The flush of the external data file before the L2 entries of a group are written. */
static bool data_leaf_barrier(const struct recording *r, uint64_t index)
{
    uint64_t next = next_flush(r, index); /* the image file's flush in the same barrier */

    return data_flush(r, index) && next != 0 && next_flush(r, next) != 0;
}

/* ---- the tests ---- */

Test(crash_faults, flushes_without_effect_lose_data)
{
    static const struct subject_config config = {.name = "every flush",
                                                 .format = "qcow2",
                                                 .create = "cluster_size=4096",
                                                 .disk_bytes = 1 * MIB,
                                                 .populated = 20};
    expect_found(&config, every_flush, NULL, false);
}

Test(crash_faults, fua_without_effect_loses_data)
{
    static const struct subject_config config = {
        .name = "every FUA write",
        .format = "qcow2",
        .create = "cluster_size=4096",
        .disk_bytes = 128 * KIB,
        .populated = 100,
        .load = {.requests = 300, .write = 5, .fua = 80, .flush = 5, .max_sectors = 16},
    };
    expect_found(&config, no_flush, "lost", true);
}

Test(crash_faults, leaf_barrier_of_qcow2)
{
    static const struct subject_config config = {
        .name = "leaf barrier, qcow2", .format = "qcow2", .disk_bytes = 4 * MIB};
    expect_found(&config, leaf_barrier, NULL, false);
}

Test(crash_faults, leaf_barrier_of_qcow2_with_backing)
{
    static const struct subject_config config = {.name = "leaf barrier, qcow2 with backing",
                                                 .format = "qcow2",
                                                 .create = "cluster_size=4096",
                                                 .disk_bytes = 1 * MIB,
                                                 .backing_bytes = 1 * MIB};
    expect_found(&config, leaf_barrier, NULL, false);
}

/* L-04 */
Test(crash_faults, leaf_barrier_of_lazy_qcow2_with_backing)
{
    static const struct subject_config config = {
        .name = "leaf barrier, lazy qcow2 with backing",
        .format = "qcow2",
        .create = "cluster_size=4096,lazy_refcounts=on",
        .disk_bytes = 1 * MIB,
        .backing_bytes = 1 * MIB};
    expect_found(&config, leaf_barrier, NULL, false);
}

/* */
Test(crash_faults, leaf_barrier_of_qed_with_backing)
{
    static const struct subject_config config = {.name = "leaf barrier, QED with backing",
                                                 .format = "qed",
                                                 .disk_bytes = 4 * MIB,
                                                 .backing_bytes = 4 * MIB};
    expect_found(&config, leaf_barrier, NULL, false);
}

/* */
Test(crash_faults, barrier_of_need_check)
{
    static const struct subject_config config = {.name = "NEED_CHECK barrier",
                                                 .format = "qed",
                                                 .create = "cluster_size=4096,table_size=2",
                                                 .disk_bytes = 4 * MIB};
    expect_found(&config, mark_barrier, "structure", false);
}

/* L-03 */
Test(crash_faults, barrier_of_the_dirty_bit)
{
    static const struct subject_config config = {.name = "dirty bit barrier",
                                                 .format = "qcow2",
                                                 .create =
                                                     "cluster_size=4096,lazy_refcounts=on",
                                                 .disk_bytes = 2 * MIB};
    expect_found(&config, mark_barrier, "structure", false);
}

/* L-05 */
Test(crash_faults, barrier_before_the_dirty_bit_is_cleared)
{
    static const struct subject_config config = {.name = "clearing the dirty bit",
                                                 .format = "qcow2",
                                                 .create =
                                                     "cluster_size=4096,lazy_refcounts=on",
                                                 .disk_bytes = 2 * MIB};
    expect_found(&config, clear_barrier, "structure", false);
}

Test(crash_faults, reuse_before_the_unlinking_is_durable)
{
    static const struct subject_config config = {
        .name = "reuse of freed clusters",
        .format = "qcow2",
        .create = "cluster_size=4096",
        .disk_bytes = 512 * KIB,
        .populated = 100,
        .load = {.requests = 300, .write = 50, .trim = 30, .flush = 2, .tick = 25},
    };
    expect_found(&config, unlink_barrier, "another sector's data", false);
}

Test(crash_faults, flushes_of_the_data_file_without_effect_lose_data)
{
    static const struct subject_config config = {.name = "every flush of the data file",
                                                 .format = "qcow2",
                                                 .create = "cluster_size=4096",
                                                 .data = DATA_FILE,
                                                 .disk_bytes = 1 * MIB,
                                                 .populated = 20};
    expect_found(&config, data_flush, NULL, false);
}

Test(crash_faults, leaf_barrier_of_the_data_file)
{
    static const struct subject_config config = {.name = "leaf barrier of the data file",
                                                 .format = "qcow2",
                                                 .create = "cluster_size=4096",
                                                 .data = DATA_FILE,
                                                 .disk_bytes = 1 * MIB,
                                                 .backing_bytes = 1 * MIB};
    expect_found(&config, data_leaf_barrier, NULL, false);
}

/* Compressed clusters may lie in a host cluster together with others that are durable. */
Test(crash_faults, leaf_barrier_of_compressed_clusters)
{
    static const struct subject_config config = {.name = "leaf barrier, compressed",
                                                 .format = "qcow2",
                                                 .create = "cluster_size=4096",
                                                 .compress = true,
                                                 .disk_bytes = 1 * MIB};
    expect_found(&config, leaf_barrier, NULL, false);
}

Test(crash_faults, leaf_barrier_of_an_encrypted_image)
{
    static const struct subject_config config = {
        .name = "leaf barrier, encrypted",
        .format = "qcow2",
        .create = "cluster_size=4096",
        .encrypt = "encrypt.format=aes,encrypt.key-secret=s",
        .disk_bytes = 1 * MIB};
    expect_found(&config, leaf_barrier, "garbage", false);
}
