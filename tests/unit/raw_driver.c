/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the raw format: file and disk are the same at any size; creating raw files. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/chain.h"
#include "raw/raw.h"

static const struct driver *const drivers[] = {&raw_driver, NULL};

static char folder[] = "/tmp/qimg-raw-XXXXXX";
static struct block_context ctx;
static struct node *node;
static struct diag diag;

static void setup(void)
{
    cr_assert_not_null(mkdtemp(folder));
    cr_assert_eq(chdir(folder), 0);
    drivers_set(drivers);
    cr_assert_eq(block_context_init(&ctx, 1 << 20, NULL, NULL), 0);
}

static void teardown(void)
{
    cr_expect_eq(node_close(node), 0);
    block_context_destroy(&ctx);
    unlink("disk");
    rmdir(folder);
}

TestSuite(raw, .init = setup, .fini = teardown);

static int create(uint64_t size, const char *key, const char *value)
{
    struct create_option option = {.key = key, .value = value};
    struct create_request req = {
        .filename = "disk", .size = size, .options = &option, .n_options = key ? 1 : 0};

    diag = (struct diag){0};
    return create_image(&raw_driver, &req, &diag);
}

static uint64_t file_size(void)
{
    struct stat st;
    cr_assert_eq(stat("disk", &st), 0);
    return (uint64_t)st.st_size;
}

static uint64_t file_blocks(void)
{
    struct stat st;
    cr_assert_eq(stat("disk", &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void open_disk(void)
{
    const struct chain_options options = {.format = "raw"};
    cr_assert_eq(chain_open(&ctx, "disk", &options, &node, &diag), 0, "%s", diag.text);
    cr_assert_eq(node_activate(node, &diag), 0, "%s", diag.text);
}

Test(raw, created_sparse_in_whole_sectors)
{
    cr_assert_eq(create(1000, NULL, NULL), 0, "%s", diag.text);
    cr_expect_eq(file_size(), 1024u);
    cr_assert_eq(create(0, NULL, NULL), 0, "%s", diag.text);
    cr_expect_eq(file_size(), 0u);
    cr_assert_eq(create(1 << 20, "preallocation", "off"), 0, "%s", diag.text);
    cr_expect_lt(file_blocks(), 1u << 20);
}

Test(raw, created_with_its_space)
{
    cr_assert_eq(create(3 << 20, "preallocation", "full"), 0, "%s", diag.text);
    cr_expect_eq(file_size(), 3u << 20);
    cr_expect_geq(file_blocks(), 3u << 20);
    cr_assert_eq(create(2 << 20, "preallocation", "falloc"), 0, "%s", diag.text);
    cr_expect_eq(file_size(), 2u << 20);
    cr_expect_geq(file_blocks(), 2u << 20);
    cr_assert_eq(create(0, "preallocation", "falloc"), 0, "%s", diag.text);
    cr_expect_eq(file_size(), 0u);
}

static void expect_refused(int rc, int err, const char *words)
{
    cr_assert_eq(rc, -err, "%d %s", rc, diag.text);
    cr_expect(strstr(diag.text, "disk"), "%s", diag.text);
    cr_expect(strstr(diag.text, words), "%s", diag.text);
    cr_expect_eq(access("disk", F_OK), -1);
}

Test(raw, not_created)
{
    expect_refused(create(512, "preallocation", "metadata"), EINVAL, "metadata");
    expect_refused(create(512, "nocow", "on"), EINVAL,
                   "nocow"); /* not an option of the driver */
    expect_refused(create(512, "cluster_size", "512"), EINVAL, "cluster_size");
    expect_refused(create(UINT64_MAX, NULL, NULL), EFBIG, "too large");
    cr_expect_lt(create(INT64_MAX, NULL, NULL), 0);
    cr_expect_eq(access("disk", F_OK), -1);

    struct create_request req = {.filename = "disk", .size = 512, .backing_file = "base"};
    expect_refused(create_image(&raw_driver, &req, &diag), ENOTSUP, "backing");
}

Test(raw, any_size_is_served_as_it_is)
{
    char buf[16];

    cr_assert_eq(create(1024, NULL, NULL), 0);
    cr_assert_eq(truncate("disk", 1001), 0);
    open_disk();
    cr_expect_eq(node->size, 1001u);
    cr_expect_eq(block_write(node, "end", 998, 3, 0), 0);
    cr_expect_eq(block_read(node, buf, 998, 3), 0);
    cr_expect_arr_eq(buf, "end", 3);
    cr_expect_eq(block_write(node, "end", 999, 3, 0), -EINVAL);
    cr_expect_eq(block_flush(node), 0);
    cr_expect_eq(file_size(), 1001u);
}

Test(raw, an_empty_disk)
{
    cr_assert_eq(create(0, NULL, NULL), 0);
    open_disk();
    cr_expect_eq(node->size, 0u);
    cr_expect_eq(block_flush(node), 0);
}

Test(raw, everything_maps_to_itself)
{
    struct extent ext;

    cr_assert_eq(create(1 << 20, NULL, NULL), 0);
    open_disk();
    cr_assert_eq(raw_driver.map(node, 4711, 1234, &ext), 0);
    cr_expect_eq(ext.kind, EXTENT_DATA);
    cr_expect(ext.writable && ext.file && ext.allocated);
    cr_expect_eq(ext.host_offset, 4711u);
    cr_expect_eq(ext.length, 1234u);
}

static void expect_bytes(uint64_t off, uint64_t len, char byte)
{
    char *buf = malloc(len);
    cr_assert_eq(block_read(node, buf, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        cr_assert_eq(buf[i], byte, "at %llu", (unsigned long long)(off + i));
    free(buf);
}

Test(raw, zeroes)
{
    enum { SIZE = 1 << 20 };
    char *buf = malloc(SIZE);

    memset(buf, 'x', SIZE);
    cr_assert_eq(create(SIZE, NULL, NULL), 0);
    open_disk();
    cr_assert_eq(block_write(node, buf, 0, SIZE, 0), 0);
    cr_assert_eq(block_zero(node, 777, 5000, 0), 0);
    cr_assert_eq(block_zero(node, 400001, 300000, BLOCK_MAY_UNMAP), 0);
    expect_bytes(0, 777, 'x');
    expect_bytes(777, 5000, 0);
    expect_bytes(5777, 400001 - 5777, 'x');
    expect_bytes(400001, 300000, 0);
    expect_bytes(700001, SIZE - 700001, 'x');
    cr_assert_eq(block_discard(node, 0, SIZE, 0), 0);
    cr_expect_eq(file_size(), (uint64_t)SIZE);
    free(buf);
}
