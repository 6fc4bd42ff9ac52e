/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests entries of the snapshot table: parsed and written again they are the same bytes, and no
 * byte after an entry is read. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/snapshot_entry.h"

/* An entry as it is in a table, with padding at the end. */
static const uint8_t sample[] = {
    0,    0,   0,   0,   0,   5,   0, 0,              /* L1 table offset */
    0,    0,   0,   3,                                /* L1 size */
    0,    1,   0,   5,                                /* lengths of id and name */
    0x65, 0,   0,   1,   0,   0,   0, 7,              /* date */
    0,    0,   0,   2,   0,   0,   0, 9,              /* VM clock */
    0,    0,   1,   0,                                /* VM state, low */
    0,    0,   0,   27,                               /* extra data */
    0,    0,   0,   1,   0,   0,   1, 0,              /* VM state */
    0,    0,   0,   0,   0,   64,  0, 0,              /* disk size */
    0,    0,   0,   0,   0,   0,   0, 77,             /* icount */
    1,    2,   3,                                     /* unknown extra data */
    '4',  'f', 'i', 'r', 's', 't', 0, 0,  0, 0, 0, 0, /* id, name, padding to 80 */
};
#define SAMPLE_END (40 + 27 + 1 + 5)

Test(qcow2_snapshot_entry, fields)
{
    struct snapshot_entry e;

    cr_assert_eq(snapshot_entry_parse(sample, sizeof sample, &e), 0);
    cr_expect_eq(e.l1_offset, 0x50000u);
    cr_expect_eq(e.l1_size, 3u);
    cr_expect_eq(e.date_sec, 0x65000001u);
    cr_expect_eq(e.date_nsec, 7u);
    cr_expect_eq(e.vm_clock_ns, 0x200000009u);
    cr_expect_eq(e.vm_state_bytes_low, 0x100u);
    cr_expect_eq(e.vm_state_bytes, 0x100000100u, "the larger field counts");
    cr_expect_eq(e.disk_size, 0x400000u);
    cr_expect_eq(e.icount, 77u);
    cr_expect_eq(e.id_bytes, 1u);
    cr_expect_eq(*e.id, '4');
    cr_expect_eq(memcmp(e.name, "first", e.name_bytes), 0);
    cr_expect_eq(snapshot_entry_end(&e), (uint64_t)SAMPLE_END);
    cr_expect_eq(snapshot_entry_length(&e), 80u);
}

Test(qcow2_snapshot_entry, ends_where_its_bytes_end)
{
    for (size_t n = 0; n <= SAMPLE_END; n++) {
        CLEANUP_FREE uint8_t *exact = malloc(n + !n); /* exactly n bytes, for ASan */
        struct snapshot_entry e;
        memcpy(exact, sample, n);
        cr_expect_eq(snapshot_entry_parse(exact, n, &e), n < SAMPLE_END ? -EINVAL : 0);
    }
}

Test(qcow2_snapshot_entry, lengths_that_no_table_has)
{
    uint8_t raw[sizeof sample];
    struct snapshot_entry e;

    memcpy(raw, sample, sizeof raw);
    memset(raw + 12, 0xff, 4);
    memset(raw + 36, 0xff, 4);
    cr_expect_eq(snapshot_entry_parse(raw, sizeof raw, &e), -EINVAL);
    snapshot_entry_parse_fixed(raw, &e);
    cr_expect_eq(snapshot_entry_end(&e), 40 + UINT64_C(0xffffffff) + 2 * 0xffff);
}

/* With any length of extra data, also one that ends within the known fields. */
Test(qcow2_snapshot_entry, written_again)
{
    for (uint8_t extra = 0; extra <= 27; extra++) {
        uint8_t raw[80] = {0}, again[80];
        struct snapshot_entry e;
        memcpy(raw, sample, 40);
        raw[39] = extra;
        memcpy(raw + 40, sample + 40, extra);
        memcpy(raw + 40 + extra, "4first", 6);
        cr_assert_eq(snapshot_entry_parse(raw, sizeof raw, &e), 0);
        cr_expect_eq(e.vm_state_bytes, extra < 8 ? 0x100u : 0x100000100u);
        cr_expect_eq(e.disk_size, extra < 16 ? 0 : 0x400000u);
        cr_expect_eq(e.icount, extra < 24 ? SNAPSHOT_NO_ICOUNT : 77);
        memset(again, 0xee, sizeof again);
        snapshot_entry_serialise(&e, again);
        cr_expect_eq(memcmp(raw, again, snapshot_entry_length(&e)), 0, "%d bytes", extra);
    }
}

Test(qcow2_snapshot_entry, made_anew)
{
    const struct snapshot_entry made = {
        .l1_offset = 0x70000,
        .l1_size = 1,
        .id_bytes = 2,
        .name_bytes = 3,
        .extra_bytes = sizeof(struct qcow2_disk_snapshot_extra),
        .vm_state_bytes = 5,
        .disk_size = 1 << 20,
        .icount = SNAPSHOT_NO_ICOUNT,
        .id = (const uint8_t *)"12",
        .name = (const uint8_t *)"abc",
    };
    uint8_t raw[72];
    struct snapshot_entry e;

    cr_assert_eq(snapshot_entry_length(&made), sizeof raw);
    memset(raw, 0xee, sizeof raw);
    snapshot_entry_serialise(&made, raw);
    cr_expect_eq(memcmp(raw + 64, "12abc\0\0\0", 8), 0);
    cr_assert_eq(snapshot_entry_parse(raw, sizeof raw, &e), 0);
    cr_expect_eq(e.vm_state_bytes, 5u);
    cr_expect_eq(e.disk_size, 1u << 20);
    cr_expect_eq(e.icount, SNAPSHOT_NO_ICOUNT);
}
