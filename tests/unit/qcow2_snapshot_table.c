/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests snapshot tables of the largest size allowed. */
#include <inttypes.h>

#include "block/snapshot.h"
#include "qcow2/snapshot_entry.h"
#include "qcow2_testing.h"

/* Writes an entry of version 2, which has no disk size, with a name so long that the entry takes
 * `bytes`.  Returns its length. */
static size_t put_entry(uint8_t *out, unsigned number, size_t bytes)
{
    static uint8_t name[65536];
    char id[16];
    struct snapshot_entry e = {.id = (uint8_t *)id, .name = name, .extra_bytes = 0};

    e.id_bytes = (uint16_t)snprintf(id, sizeof id, "%u", number);
    memset(name, 'n', sizeof name);
    e.name_bytes = (uint16_t)(bytes - SNAPSHOT_ENTRY_FIXED - e.id_bytes);
    memcpy(name, id, e.id_bytes);
    snapshot_entry_serialise(&e, out);
    return (size_t)snapshot_entry_length(&e);
}

/* Fills a table of the largest size; the first entry is short.  Returns the number of entries. */
static unsigned fill_table(uint8_t *table)
{
    size_t at = put_entry(table, 1, 64);
    unsigned n = 1;

    while (at < MAX_SNAPSHOT_BYTES) {
        size_t left = MAX_SNAPSHOT_BYTES - at, bytes = 32768;
        if (left < 2 * bytes)
            bytes = left;
        at += put_entry(table + at, ++n, bytes);
    }
    cr_assert_eq(at, MAX_SNAPSHOT_BYTES);
    return n;
}

/* Turns the clusters of the disk's first 16 MiB into a snapshot table.  Returns the number of
 * snapshots. */
static unsigned replace_data(struct image *img)
{
    uint64_t cluster = cluster_of(img), host = l2_entry(img, 0) & L2_OFFSET;
    uint64_t n = MAX_SNAPSHOT_BYTES / cluster, first = l2_entry_at(img, 0);
    uint8_t *table = calloc(1, MAX_SNAPSHOT_BYTES);

    cr_assert_eq(l2_entry(img, (n - 1) * cluster) & L2_OFFSET, host + (n - 1) * cluster);
    for (uint64_t i = 0; i < n; i++)
        put64(img, first + i * 8, 0);
    unsigned n_snapshots = fill_table(table);
    cr_assert_eq(storage_write(img->mem, table, host, MAX_SNAPSHOT_BYTES, 0), 0);
    free(table);
    put32(img, FIELD(nb_snapshots), n_snapshots);
    put64(img, FIELD(snapshots_offset), host);
    return n_snapshots;
}

/* Makes such an image; returns the number of snapshots. */
static unsigned make_with_long_table(struct image *img)
{
    make(img, &(struct image_spec){.size = 64 * MIB});
    image_open(img);
    write_fill(img, 0, MAX_SNAPSHOT_BYTES, 1);
    cr_assert_eq(image_close(img), 0);
    return replace_data(img);
}

/* A repair must not make the table longer than we read, so that the image can still be opened. */
Test(qcow2_snapshot_table, a_repair_makes_no_table_that_is_too_long, .timeout = 60)
{
    const struct check_options how = {.repair = REPAIR_ALL};
    struct check_result result;
    struct snapshot_list list = {0};
    struct image img;
    struct diag diag = {0};

    unsigned n = make_with_long_table(&img);
    cr_assert_eq(qcow2_driver.check(img.mem, &how, &result, &diag), 0, "%s", diag.text);
    image_open(&img);
    cr_assert_eq(node_snapshots(img.node, &list), 0);
    cr_expect_eq(list.n, n);
    snapshot_list_free(&list);
    image_free(&img);
}

/* Deleting a snapshot writes a new table.  With the extra data that version 3 wants for each of the
 * other entries it would be too long; then their extra data stays as it is. */
Test(qcow2_snapshot_table, one_is_deleted_where_there_is_no_room_to_say_more, .timeout = 60)
{
    const struct snapshot_request request = {.kind = SNAPSHOT_DELETE, .id = "1"};
    struct snapshot_list list = {0};
    struct image img;
    struct diag diag = {0};

    unsigned n = make_with_long_table(&img);
    memset(img.model.bytes, 0, MAX_SNAPSHOT_BYTES);
    for (unsigned left = n; left > n - 2; left--) {
        image_open(&img);
        cr_assert_eq(node_snapshots(img.node, &list), 0);
        cr_expect_eq(list.n, left);
        snapshot_list_free(&list);
        if (left == n)
            cr_assert_eq(node_change_snapshot(img.node, &request, NULL, &diag), 0, "%s",
                         diag.text);
        cr_expect(as_model(&img));
        cr_assert_eq(image_close(&img), 0);
    }
    image_free(&img);
}
