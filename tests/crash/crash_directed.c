/* SPDX-License-Identifier: BSD-3-Clause */
/* Crash tests of single, written-out sequences of requests: some that once failed, and some that
 * random runs (crash_matrix.c) seldom reach. */
#include <errno.h>
#include <stdlib.h>

#include <criterion/criterion.h>

#include "mem_storage.h"
#include "support/survey.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

static void expect_no_failure(const struct recording *r, uint64_t from)
{
    struct survey sv = {.tools_every = 16};

    survey_range(&sv, r, from, r->n_points);
    cr_expect(sv.judged > 0);
    cr_expect_eq(sv.failures, 0, "%u of %u states: %s", sv.failures, sv.judged,
                 sv.first_failure.why);
}

/* ---- a flush between the links of one write ---- */

/* A second client that writes and flushes while a write is loading pages of L2 tables. */
struct intruder {
    struct recording *r;
    struct session *se;
    unsigned reads_left; /* 0: not armed */
};

static int arm(void *opaque, uint64_t off, uint64_t len, bool *done)
{
    struct intruder *in = opaque;

    (void)off;
    (void)done;
    /* The write's data has been sent: next the pages with its L2 entries are loaded. */
    if (in->se->node && len == 128 * KIB)
        in->reads_left = 2;
    return 0;
}

static void flush_at_second_page(void *opaque, uint64_t off, uint64_t len)
{
    struct intruder *in = opaque;

    (void)off;
    (void)len;
    if (in->reads_left == 0 || --in->reads_left > 0)
        return;
    record_write(in->r, in->se, 0, 8, 0); /* so that there is something to flush */
    record_flush(in->r, in->se);
}

/* A write whose entries lie in two pages of an L2 table, with a cache that can't hold both
 * pages.  The second page is loaded after the entries in the first have been linked, and
 * another client flushes in between. */
Test(crash_directed, flush_between_the_links_of_a_write)
{
    static const struct subject_config config = {.name = "links in two pages",
                                                 .format = "qcow2",
                                                 .disk_bytes = 33 * MIB,
                                                 .backing_bytes = 33 * MIB,
                                                 .pool_bytes = 1};
    const uint64_t border = 32 * MIB / SECTOR_BYTES, cluster = 64 * KIB / SECTOR_BYTES;
    struct intruder in;
    struct tap tap = {.opaque = &in};
    struct recording r;
    struct subject s;
    struct session se;

    subject_make(&s, &config);
    in = (struct intruder){.r = &r, .se = &se};
    recording_start(&r, &s, &se, &tap);
    record_write(&r, &se, 0, 8, 0); /* allocates a table and reserves space behind it */
    record_flush(&r, &se);
    uint64_t from = crash_log_count(r.log);
    tap.before_write = arm;
    tap.before_read = flush_at_second_page;
    record_write(&r, &se, border - cluster, 2 * cluster, 0);
    cr_assert_eq(in.reads_left, 0);
    tap.before_write = NULL;
    tap.before_read = NULL;
    recording_end(&r, &se, true);
    expect_no_failure(&r, from);
    recording_free(&r);
    subject_remove(&s);
}

/* ---- clearing the mark reports an error ---- */

/* The write that clears the mark reaches the disk, but reports an error. */
static int fail_header(void *opaque, uint64_t off, uint64_t len, bool *done)
{
    bool *failed = opaque;

    (void)len;
    if (off >= 512 || *failed)
        return 0;
    *failed = *done = true;
    return -EIO;
}

static void clearing_fails(const struct subject_config *config)
{
    bool failed = false;
    struct tap tap = {.opaque = &failed};
    struct recording r;
    struct subject s;
    struct session se;

    subject_make(&s, config);
    recording_start(&r, &s, &se, &tap);
    record_write(&r, &se, 0, 8, 0);
    record_flush(&r, &se);
    tap.before_write = fail_header;
    record_tick(&r, &se, 6 * SECOND);
    cr_assert(failed);
    /* Writes more than the space that the file had when the mark became durable. */
    for (unsigned i = 1; i < 400; i++) {
        record_write(&r, &se, i * 16, 8, 0);
        if (i % 16 == 0)
            record_flush(&r, &se);
    }
    recording_end(&r, &se, true);
    struct survey sv = {.states = 400, .tools_every = 16};
    survey_recording(&sv, &r);
    cr_expect_eq(sv.failures, 0, "%u of %u states: %s", sv.failures, sv.judged,
                 sv.first_failure.why);
    recording_free(&r);
    subject_remove(&s);
}

/* L-05 */
Test(crash_directed, dirty_bit_that_was_cleared_but_reported_an_error)
{
    static const struct subject_config config = {.name = "dirty bit, failed clearing",
                                                 .format = "qcow2",
                                                 .create =
                                                     "cluster_size=4096,lazy_refcounts=on",
                                                 .disk_bytes = 4 * MIB};
    clearing_fails(&config);
}

Test(crash_directed, need_check_that_was_cleared_but_reported_an_error)
{
    static const struct subject_config config = {.name = "NEED_CHECK, failed clearing",
                                                 .format = "qed",
                                                 .create = "cluster_size=4096,table_size=2",
                                                 .disk_bytes = 4 * MIB};
    clearing_fails(&config);
}

/* ---- the switch of the refcount table reports an error ---- */

/* The header write that names the new refcount table reaches the disk, but reports an error. */
static int fail_table_switch(void *opaque, uint64_t off, uint64_t len, bool *done)
{
    bool *failed = opaque;

    if (off != 48 || len != 12)
        return 0;
    *failed = *done = true;
    return -EIO;
}

Test(crash_directed, refcount_table_that_was_switched_but_reported_an_error)
{
    static const struct subject_config config = {.name = "refcount table, failed switch",
                                                 .format = "qcow2",
                                                 .create =
                                                     "cluster_size=512,refcount_bits=64",
                                                 .disk_bytes = 4 * MIB};
    bool failed = false;
    struct tap tap = {.opaque = &failed, .before_write = fail_table_switch};
    struct recording r;
    struct subject s;
    struct session se;

    subject_make(&s, &config);
    recording_start(&r, &s, &se, &tap);
    r.may_fail = true;
    uint64_t from = 0, at = 0;
    for (unsigned after = 0; at < s.n_sectors && after < 8; at += 64) {
        if (!failed)
            from = crash_log_count(r.log);
        else
            after++;
        record_write(&r, &se, at, 64, 0);
        if (at / 64 % 16 == 15)
            record_flush(&r, &se);
    }
    cr_assert(failed);
    recording_end(&r, &se, false);
    expect_no_failure(&r, from);
    recording_free(&r);
    subject_remove(&s);
}

/* ---- a file that ends anywhere ---- */

/* A crash or another tool may leave a file that ends at any cluster, among them the last and the
 * last but one of those that a missing refcount block would cover. */
Test(crash_directed, file_ends_at_any_place_of_a_refcount_blocks_reach)
{
    static const struct subject_config config = {.name = "ends anywhere",
                                                 .format = "qcow2",
                                                 .create =
                                                     "cluster_size=512,refcount_bits=64",
                                                 .disk_bytes = 64 * KIB};
    struct subject s;
    uint64_t size;

    subject_make(&s, &config);
    cr_assert_eq(storage_size(s.base.image, &size), 0);
    for (uint64_t clusters = 60; clusters < 200; clusters++) {
        struct storage *base = s.base.image;
        if (clusters * 512 < size)
            continue;
        s.base.image = mem_storage_clone(base);
        cr_assert_eq(storage_truncate(s.base.image, clusters * 512), 0);
        struct recording r;
        struct session se;
        recording_start(&r, &s, &se, NULL);
        for (unsigned i = 0; i < 4; i++) {
            record_write(&r, &se, 30 * i, 24, 0);
            record_flush(&r, &se);
        }
        recording_end(&r, &se, clusters & 1);
        cr_assert_not(r.failed, "a file of %llu clusters", (unsigned long long)clusters);
        struct survey sv = {.states = 30};
        survey_recording(&sv, &r);
        cr_expect_eq(sv.failures, 0, "%llu clusters: %s", (unsigned long long)clusters,
                     sv.first_failure.why);
        recording_free(&r);
        storage_close(s.base.image);
        s.base.image = base;
    }
    subject_remove(&s);
}

/* ---- a disk that grows ---- */

static void grows(const struct subject_config *config)
{
    struct recording r;
    struct subject s;
    struct session se;

    subject_make(&s, config);
    recording_start(&r, &s, &se, NULL);
    uint64_t n = config->created_bytes / SECTOR_BYTES;
    record_write(&r, &se, 0, 40, 0);
    record_write(&r, &se, n - 24, 24, 0);
    record_flush(&r, &se);
    record_write(&r, &se, 8, 40, 0);
    for (unsigned i = 0; n < s.n_sectors; i++) {
        uint64_t old = n;
        n = MIN(s.n_sectors, n * 2);
        record_grow(&r, &se, n);
        record_write(&r, &se, old - 8, 60, 0);
        record_trim(&r, &se, old / 2, 30);
        record_write(&r, &se, n - 16, 16, i & 1 ? BLOCK_FUA : 0);
        if (i & 1)
            record_flush(&r, &se);
    }
    recording_end(&r, &se, false);
    struct survey sv = {.tools_every = 16};
    survey_range(&sv, &r, 0, r.n_points);
    cr_expect_eq(sv.failures, 0, "%u of %u states: %s", sv.failures, sv.judged,
                 sv.first_failure.why);
    recording_free(&r);
    subject_remove(&s);
}

Test(crash_directed, a_qcow2_disk_grows)
{
    static const struct subject_config config = {.name = "qcow2 grows",
                                                 .format = "qcow2",
                                                 .create = "cluster_size=512",
                                                 .created_bytes = 128 * KIB,
                                                 .disk_bytes = 8 * MIB};
    grows(&config);
}

Test(crash_directed, a_lazy_qcow2_disk_grows)
{
    static const struct subject_config config = {.name = "lazy qcow2 grows",
                                                 .format = "qcow2",
                                                 .create =
                                                     "cluster_size=512,lazy_refcounts=on",
                                                 .created_bytes = 128 * KIB,
                                                 .disk_bytes = 8 * MIB};
    grows(&config);
}

Test(crash_directed, a_qed_disk_grows)
{
    static const struct subject_config config = {.name = "QED grows",
                                                 .format = "qed",
                                                 .create = "cluster_size=4096,table_size=2",
                                                 .created_bytes = 256 * KIB,
                                                 .disk_bytes = 8 * MIB};
    grows(&config);
}

Test(crash_directed, a_qed_disk_with_a_longer_backing_file_grows)
{
    static const struct subject_config config = {.name = "QED with backing grows",
                                                 .format = "qed",
                                                 .create = "cluster_size=4096,table_size=2",
                                                 .created_bytes = 256 * KIB,
                                                 .disk_bytes = 4 * MIB,
                                                 .backing_bytes = 1 * MIB};
    grows(&config);
}

/* ---- encryption ---- */

/* Fresh clusters of the tail are zeroes in the file.  In an encrypted image these zeroes don't
 * decrypt to zeroes, so that an L2 entry must not be written before the data is durable. */
Test(crash_directed, encrypted_data_is_durable_before_its_link)
{
    static const struct subject_config config = {
        .name = "encrypted tail",
        .format = "qcow2",
        .create = "cluster_size=4096",
        .encrypt = "encrypt.format=aes,encrypt.key-secret=s",
        .disk_bytes = 1 * MIB};
    struct recording r;
    struct subject s;
    struct session se;

    subject_make(&s, &config);
    recording_start(&r, &s, &se, NULL);
    for (uint64_t at = 0; at < 64; at += 16) { /* the first write makes the file grow */
        record_write(&r, &se, at, 16, 0);
        record_flush(&r, &se);
    }
    recording_end(&r, &se, false);
    expect_no_failure(&r, 0);
    recording_free(&r);
    subject_remove(&s);
}
