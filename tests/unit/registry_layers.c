/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests layers that several chains share, and the map of merged layers, with real images.
 * E-12, E-13 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "block/shared_layer.h"
#include "image.h"
#include "registry.h"

#define SIZE    MIB
#define CLUSTER (64 * KIB)
#define DISKS   3

static struct scratch scratch;
static struct block_shared shared;
static struct block_context ctx[DISKS];
static struct node *disk[DISKS];
static struct diag diag;

static void setup(void)
{
    registry_init();
    scratch_make(&scratch);
    cr_assert_eq(block_shared_init(&shared, MIB, NULL, NULL), 0);
    for (unsigned i = 0; i < DISKS; i++)
        block_context_init_shared(&ctx[i], &shared);
}

static void close_disk(unsigned i)
{
    cr_expect_eq(node_close(disk[i]), 0);
    disk[i] = NULL;
}

static void teardown(void)
{
    for (unsigned i = 0; i < DISKS; i++) {
        close_disk(i);
        block_context_destroy(&ctx[i]);
    }
    block_shared_destroy(&shared);
    scratch_remove(&scratch);
}

TestSuite(layers, .init = setup, .fini = teardown);

static const char *path(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    CLEANUP_FREE char *full = scratch_path(&scratch, name);

    char *kept = paths[next++ % 4];
    snprintf(kept, sizeof paths[0], "%s", full);
    return kept;
}

/* Makes an image whose cluster number `place` is filled with the byte. */
static void make(const char *name, const char *below, unsigned place, unsigned char byte)
{
    struct block_context own;
    struct chain_options options = {.format = "qcow2"};
    unsigned char bytes[CLUSTER];
    struct node *node;

    image_create(path(name), "qcow2", NULL, SIZE, below ? path(below) : NULL,
                 below ? "qcow2" : NULL);
    cr_assert_eq(block_context_init(&own, MIB, NULL, NULL), 0);
    cr_assert_eq(chain_open(&own, path(name), &options, &node, &diag), 0, "%s", diag.text);
    cr_assert_eq(node_activate(node, &diag), 0, "%s", diag.text);
    memset(bytes, byte, sizeof bytes);
    cr_assert_eq(block_write(node, bytes, place * CLUSTER, CLUSTER, 0), 0);
    cr_assert_eq(node_close(node), 0);
    block_context_destroy(&own);
}

static void make_zeroes(const char *name, unsigned place)
{
    struct block_context own;
    struct chain_options options = {.format = "qcow2"};
    struct node *node;

    cr_assert_eq(block_context_init(&own, MIB, NULL, NULL), 0);
    cr_assert_eq(chain_open(&own, path(name), &options, &node, &diag), 0, "%s", diag.text);
    cr_assert_eq(node_activate(node, &diag), 0, "%s", diag.text);
    cr_assert_eq(block_zero(node, place * CLUSTER, CLUSTER, BLOCK_MAY_UNMAP), 0);
    cr_assert_eq(node_close(node), 0);
    block_context_destroy(&own);
}

/* Overwrites the header, so that the file can't be opened again. */
static void wreck(const char *name)
{
    int fd = open(path(name), O_RDWR);

    cr_assert_geq(fd, 0);
    cr_assert_eq(pwrite(fd, "garbage", 7, 0), 7);
    close(fd);
}

/* Makes disk0, disk1 and disk2 over base2 over base1 over base0.  Of the bases, base i has cluster
 * i. */
static void make_all(void)
{
    make("base0", NULL, 0, 10);
    make("base1", "base0", 1, 11);
    make("base2", "base1", 2, 12);
    make("disk0", "base2", 5, 20);
    make("disk1", "base2", 6, 21);
    make("disk2", "base2", 7, 22);
}

static void open_disk(unsigned i, const char *cache)
{
    struct chain_options options = {.format = "qcow2",
                                    .node.cache = cache_mode_find(cache)};
    char name[8];

    snprintf(name, sizeof name, "disk%u", i);
    cr_assert_eq(chain_open(&ctx[i], path(name), &options, &disk[i], &diag), 0, "%s",
                 diag.text);
}

static int byte_at(unsigned i, uint64_t off)
{
    unsigned char byte;
    int err = block_read(disk[i], &byte, off, 1);

    return err ? err : byte;
}

static void expect_bytes(unsigned i)
{
    cr_expect_eq(byte_at(i, 0), 10);
    cr_expect_eq(byte_at(i, CLUSTER), 11);
    cr_expect_eq(byte_at(i, 2 * CLUSTER), 12);
    cr_expect_eq(byte_at(i, 3 * CLUSTER), 0);
    cr_expect_eq(byte_at(i, (5 + i) * CLUSTER), 20 + (int)i);
}

/* How many descriptors of the file this process has. */
static unsigned descriptors(const char *name)
{
    CLEANUP_FREE char *wanted = realpath(path(name), NULL);
    DIR *folder = opendir("/proc/self/fd");
    unsigned n = 0;

    cr_assert_not_null(wanted);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char target[512];
        ssize_t len = readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1);
        target[MAX(len, 0)] = '\0';
        n += strcmp(target, wanted) == 0;
    }
    closedir(folder);
    return n;
}

Test(layers, a_base_is_open_once_until_the_last_has_left)
{
    make_all();
    for (unsigned i = 0; i < DISKS; i++) {
        open_disk(i, "writeback");
        expect_bytes(i);
    }
    cr_expect_eq(descriptors("base0"), 1);
    cr_expect_eq(descriptors("base2"), 1);
    cr_expect_eq(node_opened(disk[0]->backing), node_opened(disk[1]->backing));
    cr_expect_neq(disk[0]->backing, disk[1]->backing);
    close_disk(0);
    close_disk(2);
    expect_bytes(1);
    cr_expect_eq(descriptors("base0"), 1);
    close_disk(1);
    cr_expect_eq(descriptors("base0"), 0);
    cr_expect_eq(descriptors("base2"), 0);
}

Test(layers, another_way_of_opening_is_another_layer)
{
    make_all();
    open_disk(0, "writeback");
    open_disk(1, "none");
    open_disk(2, "none");
    cr_expect_eq(descriptors("base1"), 2);
    for (unsigned i = 0; i < DISKS; i++)
        expect_bytes(i);
}

/* base1 is the direct backing file of one disk and lies below base2 for the others. */
Test(layers, a_layer_in_the_middle_is_shared_too)
{
    make_all();
    make("disk1", "base1", 6, 21);
    open_disk(0, "writeback");
    open_disk(1, "writeback");
    cr_expect_eq(descriptors("base0"), 1);
    cr_expect_eq(descriptors("base1"), 1);
    cr_expect_eq(node_opened(disk[0]->backing->backing), node_opened(disk[1]->backing));
    close_disk(0);
    cr_expect_eq(descriptors("base2"), 0);
    cr_expect_eq(byte_at(1, CLUSTER), 11);
    cr_expect_eq(byte_at(1, 2 * CLUSTER), 0);
}

/* Invariant 3 of shared_layer.h: a layer can be locked for writing only while one chain uses it. */
Test(layers, who_wants_to_write_has_to_be_alone)
{
    make_all();
    open_disk(0, "writeback");
    open_disk(1, "writeback");
    struct node *base = disk[0]->backing->backing;
    cr_assert_eq(node_lock_for_writing(base, &diag), -EBUSY);
    cr_expect(strstr(diag.text, "Permission conflict"), "%s", diag.text);
    close_disk(1);
    cr_assert_eq(node_lock_for_writing(base, &diag), 0, "%s", diag.text);
    expect_bytes(0);
    struct chain_options options = {.format = "qcow2"};
    cr_expect_eq(chain_open(&ctx[1], path("disk1"), &options, &disk[1], &diag), -EAGAIN,
                 "%s", diag.text);
    cr_assert_eq(node_lock_for_reading(base, &diag), 0, "%s", diag.text);
    open_disk(1, "writeback");
    cr_expect_eq(descriptors("base1"), 2, "nobody finds it any more");
    cr_expect_eq(descriptors("base0"), 1);
    expect_bytes(0);
    expect_bytes(1);
}

/* Block status through the merged map names the layer that has the data, also if another chain
 * opened that layer. */
Test(layers, status_tells_whose_it_is)
{
    static const struct {
        unsigned cluster, depth;
        bool data;
    } expected[] = {{0, 3, true},  {1, 2, true},  {2, 1, true},
                    {3, 1, false}, {4, 3, false}, {5, 0, true}};

    make_all();
    make_zeroes("base2", 3);
    for (unsigned i = 0; i < 2; i++)
        open_disk(i, "writeback");
    for (unsigned turn = 0; turn < 4; turn++)
        for (unsigned e = 0; e < ARRAY_LEN(expected); e++) {
            unsigned i = turn % 2;
            struct node *layer = disk[i];
            struct block_status st;
            uint64_t off = (expected[e].cluster + (expected[e].depth ? 0 : i)) * CLUSTER;
            cr_assert_eq(block_status(disk[i], off, CLUSTER, &st), 0);
            for (unsigned n = 0; n < expected[e].depth; n++)
                layer = layer->backing;
            cr_expect_eq(st.depth, expected[e].depth, "cluster %u", expected[e].cluster);
            cr_expect_eq(st.layer, layer, "cluster %u", expected[e].cluster);
            cr_expect_eq(st.data, expected[e].data, "cluster %u", expected[e].cluster);
            cr_expect_eq(st.zero, !expected[e].data, "cluster %u", expected[e].cluster);
            cr_expect_eq(st.present, expected[e].cluster != 4, "cluster %u",
                         expected[e].cluster);
            cr_expect_eq(st.file, expected[e].data ? layer->data : NULL);
        }
    cr_expect_not_null(atomic_load(&node_opened(disk[0]->backing)->merged));
}

/* An open layer is shared without reading its file again, here one with a header that has been
 * overwritten. */
Test(layers, what_is_open_is_not_opened_again)
{
    make_all();
    open_disk(0, "writeback");
    wreck("base0");
    open_disk(1, "writeback");
    expect_bytes(1);
    close_disk(0);
    expect_bytes(1);
    cr_expect_eq(descriptors("base0"), 1);
}

/* Invariant 2 of shared_layer.h: the same file with another base below is another layer. */
Test(layers, a_file_by_another_name_has_its_own_base)
{
    make_all();
    cr_assert_eq(mkdir(path("other"), 0700), 0);
    make("other/base1", NULL, 1, 31);
    image_create(path("base2"), "qcow2", NULL, SIZE, "base1", "qcow2");
    cr_assert_eq(link(path("base2"), path("other/base2")), 0);
    make("disk1", "other/base2", 6, 21);
    open_disk(0, "writeback");
    open_disk(1, "writeback");
    cr_expect_eq(byte_at(0, CLUSTER), 11);
    cr_expect_eq(byte_at(1, CLUSTER), 31);
    cr_expect_eq(descriptors("base1"), 1);
    cr_expect_eq(descriptors("other/base1"), 1);
}

/* Invariant 1 of merged_map.h: the map isn't used while a layer is written to. */
Test(layers, what_was_found_out_is_not_used_beside_a_writer)
{
    make_all();
    open_disk(0, "writeback");
    expect_bytes(0);
    cr_assert_not_null(atomic_load(&node_opened(disk[0]->backing)->merged));
    cr_assert_eq(node_lock_for_writing(disk[0]->backing->backing, &diag), 0);
    node_note_writer(disk[0], disk[0]->backing->backing);
    expect_bytes(0);
    node_forget_merged(disk[0]);
    cr_expect_null(atomic_load(&disk[0]->backing->merged));
    expect_bytes(0);
}

/* Sets the first L2 entry to an impossible offset; with `again` restores it. */
static void spoil(const char *name, bool again)
{
    static uint64_t kept;
    uint64_t l1, l2, entry = again ? kept : htobe64(UINT64_C(1) << 63 | 0x7fff0000000000);
    int fd = open(path(name), O_RDWR);

    cr_assert_geq(fd, 0);
    cr_assert_eq(pread(fd, &l1, 8, 40), 8);
    cr_assert_eq(pread(fd, &l2, 8, (off_t)be64toh(l1)), 8);
    off_t place = (off_t)(be64toh(l2) & 0xfffffffffffe00);
    if (!again)
        cr_assert_eq(pread(fd, &kept, 8, place), 8);
    cr_assert_eq(pwrite(fd, &entry, 8, place), 8);
    close(fd);
}

/* Invariant 2 of merged_map.h: an error isn't remembered as a hole. */
Test(layers, an_error_is_no_hole)
{
    make_all();
    make("base1", "base0", 0, 11);
    spoil("base1", false);
    open_disk(0, "writeback");
    open_disk(1, "writeback");
    for (unsigned i = 0; i < 2; i++)
        for (unsigned turn = 0; turn < 3; turn++) {
            cr_expect_eq(byte_at(i, 0), -EIO);
            cr_expect_eq(byte_at(i, CLUSTER), 0);
            cr_expect_eq(byte_at(i, 2 * CLUSTER), 12);
        }
    close_disk(0);
    close_disk(1);
    spoil("base1", true);
    open_disk(0, "writeback");
    cr_expect_eq(byte_at(0, 0), 11);
}
