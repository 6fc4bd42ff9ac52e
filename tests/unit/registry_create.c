/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests creating images of every format on any storage, with a protocol of the test that makes the
 * storages; and that each format accepts exactly the options that it lists. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "block/node.h"
#include "fault_storage.h"
#include "mem_storage.h"
#include "registry.h"
#include "storage/protocol.h"

#define SIZE (3u << 20)

/* ---- a protocol that makes storages in memory ---- */

static struct storage *memory; /* the storage made last */
static struct fault_plan plan;
static unsigned n_made, n_removed;
static bool is_device;
static struct storage_hints wishes;

static int make_store(const char *name, const struct storage_hints *hints,
                      struct storage **out, struct diag *diag)
{
    (void)name;
    (void)diag;
    n_made++;
    wishes = *hints;
    storage_close(memory);
    memory = mem_storage_new(is_device ? 2 * SIZE : 0);
    if (is_device) /* a device has old data on it */
        cr_assert_eq(storage_write(memory, &(uint64_t){UINT64_MAX}, 200000, 8, 0), 0);
    *out = fault_storage_new(mem_storage_share(memory), &plan);
    (*out)->fixed_size = is_device;
    return 0;
}

static void remove_store(const char *name)
{
    cr_expect_str_eq(name, "new");
    n_removed++;
}

static const struct storage_protocol stores = {
    .name = "test", .create = make_store, .remove = remove_store};

static void set_up(void)
{
    registry_init();
    fault_plan_init(&plan);
}

static void tear_down(void)
{
    storage_close(memory);
    fault_plan_destroy(&plan);
}

TestSuite(registry_create, .init = set_up, .fini = tear_down);

/* The i-th format whose new images read as zeroes and need no key (for LUKS see
 * e2e/test_luks.py). */
static const struct driver *plain_at(size_t i)
{
    size_t n = 0;

    for (size_t at = 0; driver_at(at); at++)
        if (!driver_at(at)->unlock || driver_can(driver_at(at), DRIVER_CLUSTERS))
            if (n++ == i)
                return driver_at(at);
    return NULL;
}

static int make(const struct driver *driver, const char *key, const char *value,
                struct diag *diag)
{
    const struct create_option option = {key, value};
    const struct create_request req = {
        .filename = "new",
        .protocol = &stores,
        .size = SIZE,
        .hints = {.extent_size_hint = 4096},
        .options = &option,
        .n_options = key ? 1 : 0,
    };

    *diag = (struct diag){0};
    return create_image(driver, &req, diag);
}

/* The memory must hold a valid image that reads as zeroes. */
static void expect_empty_image(const struct driver *driver)
{
    const struct node_options options = {.lock_off = true};
    struct storage *st = mem_storage_share(memory);
    struct block_context ctx;
    struct node *node;
    struct diag diag = {0};
    static uint8_t bytes[SIZE];
    static const uint8_t zeroes[SIZE];

    st->fixed_size = is_device;
    cr_assert_eq(block_context_init(&ctx, 1 << 20, NULL, NULL), 0);
    cr_assert_eq(node_open(&ctx, driver, st, "new", &options, &node, &diag), 0, "%s",
                 diag.text);
    cr_expect_eq(node->size, driver->probe || !is_device ? SIZE : 2 * SIZE);
    cr_assert_eq(block_read(node, bytes, 0, SIZE), 0);
    if (driver->probe) /* raw would show the device's old data */
        cr_expect_eq(memcmp(bytes, zeroes, SIZE), 0, "%s", driver->name);
    cr_expect_eq(node_close(node), 0);
    block_context_destroy(&ctx);
}

Test(registry_create, on_any_store)
{
    struct diag diag;

    for (size_t i = 0; plain_at(i); i++) {
        cr_assert_eq(make(plain_at(i), NULL, NULL, &diag), 0, "%s", diag.text);
        expect_empty_image(plain_at(i));
    }
    cr_expect_eq(wishes.extent_size_hint, 4096u);
    cr_expect_eq(n_removed, 0u);
}

Test(registry_create, with_space_for_everything)
{
    static const char *const formats[] = {"raw", "qcow2"}, *const words[] = {"falloc",
                                                                             "full"};
    struct diag diag;

    for (size_t i = 0; i < 4; i++) {
        const struct driver *driver = driver_find(formats[i / 2]);
        cr_assert_eq(make(driver, "preallocation", words[i % 2], &diag), 0, "%s",
                     diag.text);
        expect_empty_image(driver);
    }
}

/* Bad requests are refused before a storage is made. */
Test(registry_create, refused_before_anything_is_made)
{
    struct diag diag;

    for (size_t i = 0; driver_at(i); i++) {
        cr_expect_eq(make(driver_at(i), "no_such_option", "1", &diag), -EINVAL);
        cr_expect(strstr(diag.text, "no_such_option"), "%s", diag.text);
    }
    cr_expect_eq(n_made, 0u);
    cr_expect_eq(n_removed, 0u);
}

/* Whichever step fails, no file is left. */
Test(registry_create, removed_after_a_failure)
{
    static const char *const preallocations[] = {NULL, "full"};
    struct diag diag;

    for (size_t i = 0; plain_at(i); i++)
        for (size_t p = 0; p < 2; p++) {
            const struct driver *driver = plain_at(i);
            const char *value = preallocations[p];
            if (value && strcmp(driver->name, "qed") == 0)
                continue;
            for (uint64_t nth = 1, failed = 1; failed && nth < 1000; nth++) {
                n_removed = 0;
                fault_plan_fail(&plan, FAULT_CHANGE, nth, EIO, FAULT_FROM_THEN_ON);
                int err = make(driver, value ? "preallocation" : NULL, value, &diag);
                failed = err != 0;
                cr_expect_eq(n_removed, failed, "%s: change %d", driver->name, (int)nth);
                cr_expect(!err || diag.text[0]);
                cr_expect(nth > 1 || failed);
            }
        }
}

/* A device must not be removed after a failure.  QED can't be made on one, as its file has to
 * grow. */
Test(registry_create, devices_stay)
{
    struct diag diag;

    is_device = true;
    for (size_t i = 0; plain_at(i); i++) {
        const struct driver *driver = plain_at(i);
        bool can = strcmp(driver->name, "qed") != 0;
        cr_expect_eq(make(driver, NULL, NULL, &diag), can ? 0 : -ENOTSUP, "%s", diag.text);
        if (can)
            expect_empty_image(driver);
        fault_plan_fail(&plan, FAULT_CHANGE, 1, EIO, FAULT_FROM_THEN_ON);
        cr_expect_neq(make(driver, NULL, NULL, &diag), 0);
        fault_plan_heal(&plan);
    }
    cr_expect_eq(n_removed, 0u);
}

Test(registry_create, not_where_nobody_makes_stores)
{
    static const struct storage_protocol nobodys = {.name = "none"};
    const struct create_request req = {
        .filename = "none://disk", .protocol = &nobodys, .size = SIZE};
    struct diag diag;

    cr_expect_eq(create_image(driver_find("raw"), &req, &diag), -ENOTSUP);
    cr_expect_str_eq(diag.text, "none://disk: images can't be made by the protocol none");
}

/* The target of a copy has exactly the disk's size, or isn't made. */
Test(registry_create, of_exactly_that_size)
{
    struct create_request req = {
        .filename = "new", .protocol = &stores, .size = 1000, .exact_size = true};
    struct diag diag;
    uint64_t bytes;

    for (size_t i = 0; plain_at(i); i++) {
        bool can = !driver_can(plain_at(i), DRIVER_CLUSTERS);
        cr_expect_eq(create_image(plain_at(i), &req, &diag), can ? 0 : -EINVAL);
        cr_expect(can ||
                  strstr(diag.text, "new: the disk's 1000 bytes are no multiple of 512"));
    }
    cr_expect_eq(n_made, 1u);
    cr_assert_eq(storage_size(memory, &bytes), 0);
    cr_expect_eq(bytes, 1000u);
}

/* Each option in a format's table is handled by the request itself or by the driver. */
Test(registry_create, options_are_those_of_the_table)
{
    struct diag diag;

    for (size_t i = 0; driver_at(i); i++) {
        const struct driver *driver = driver_at(i);
        for (const struct create_option_info *o = driver->create_options; o->name; o++) {
            if (o->in_request)
                continue;
            int err = make(driver, o->name, o->initial ? o->initial : "?", &diag);
            if (o->initial)
                cr_expect_eq(err, 0, "%s: %s", driver->name, diag.text);
            else /* the option is known, but its value is bad */
                cr_expect(err == -EINVAL && !strstr(diag.text, "unknown") &&
                              !strstr(diag.text, "no option"),
                          "%s: %s", driver->name, diag.text);
        }
    }
}
