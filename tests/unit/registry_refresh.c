/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests images on storage where a reader's lock doesn't keep writers away (lets_writers_in).  When
 * such an image becomes writable, its metadata is read again; if its size or backing file has
 * changed, it is refused. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "block/dirty_bitmap.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

static struct image img;
static struct node *idle; /* a second server's node, not written to yet */

/* Makes an image and opens it in both servers. */
static void make(const char *format)
{
    static const struct node_options options = {.lock_off = true};
    struct diag diag = {0};
    char byte;

    registry_init();
    image_make(
        &img,
        &(struct image_spec){.format = format, .options = "cluster_size=4096", .size = MIB},
        1);
    struct storage *st = mem_storage_share(img.mem);
    st->lets_writers_in = true;
    cr_assert_eq(
        node_open(&img.ctx, driver_find(format), st, "idle", &options, &idle, &diag), 0,
        "%s", diag.text);
    cr_assert_eq(block_read(idle, &byte, 0, 1), 0);
    image_open(&img);
}

static void finish(void)
{
    cr_expect_eq(node_close(idle), 0);
    image_free(&img);
}

static const char *const formats[] = {"qcow2", "qed"};

Test(registry_refresh, what_another_has_written)
{
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct diag diag = {0};
        char found[8];
        make(formats[i]);
        cr_assert_eq(block_write(img.node, "another", 512 * KIB, 8, 0), 0);
        cr_assert_eq(image_close(&img), 0);
        cr_assert_eq(node_activate(idle, &diag), 0, "%s", diag.text);
        cr_assert_eq(block_read(idle, found, 512 * KIB, 8), 0);
        cr_expect_str_eq(found, "another");
        finish();
    }
}

/* Activating must fail, however often it is tried: users rely on the disk's size and bitmaps. */
static void expect_refused(void)
{
    for (unsigned i = 0; i < 3; i++) {
        struct diag diag = {0};
        char byte;
        cr_expect_eq(node_activate(idle, &diag), -ESTALE, "%u", i);
        cr_expect(strstr(diag.text, "has changed its size or its backing file"), "%s",
                  diag.text);
        cr_expect_eq(idle->size, MIB);
        cr_expect_not_null(node_bitmap_find(idle, "b"));
        cr_expect_eq(block_read(idle, &byte, MIB - 1, 1), 0);
    }
}

static void add_bitmap(void)
{
    const struct bitmap_params params = {.name = "b"};
    struct dirty_bitmap *bitmap;
    struct diag diag = {0};

    cr_assert_eq(node_bitmap_create(idle, &params, &bitmap, &diag), 0, "%s", diag.text);
}

Test(registry_refresh, another_size)
{
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct diag diag = {0};
        make(formats[i]);
        add_bitmap();
        cr_assert_eq(node_grow(img.node, 2 * MIB, &diag), 0, "%s", diag.text);
        cr_assert_eq(image_close(&img), 0);
        expect_refused();
        finish();
    }
}

Test(registry_refresh, another_backing_file)
{
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct diag diag = {0};
        make(formats[i]);
        add_bitmap();
        cr_assert_eq(node_set_backing(img.node, "/another", "raw", &diag), 0, "%s",
                     diag.text);
        cr_assert_eq(image_close(&img), 0);
        expect_refused();
        finish();
    }
}
