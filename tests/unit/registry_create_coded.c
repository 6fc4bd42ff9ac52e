/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests creating qcow2 images with data files, encryption and subclusters, on storages in memory
 * that can fail at each step. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "block/node.h"
#include "fault_storage.h"
#include "mem_storage.h"
#include "registry.h"
#include "storage/protocol.h"

#define SIZE (300u << 10)

/* ---- a protocol with two names: "new" and "data" ---- */

static struct storage *image_memory, *data_memory;
static struct fault_plan plan;
static unsigned n_made;
static bool image_is_there, data_is_there;

static struct storage **memory_of(const char *name)
{
    return strcmp(name, "new") == 0 ? &image_memory : &data_memory;
}

static bool *presence_of(const char *name)
{
    return strcmp(name, "new") == 0 ? &image_is_there : &data_is_there;
}

static int make_store(const char *name, const struct storage_hints *hints,
                      struct storage **out, struct diag *diag)
{
    struct storage **memory = memory_of(name);

    (void)hints;
    (void)diag;
    n_made++;
    storage_close(*memory);
    *memory = mem_storage_new(0);
    *presence_of(name) = true;
    *out = fault_storage_new(mem_storage_share(*memory), &plan);
    return 0;
}

static int open_store(const char *name, const struct storage_open *how,
                      struct storage **out, struct diag *diag)
{
    (void)how;
    (void)diag;
    if (!*presence_of(name))
        return -ENOENT;
    *out = *memory_of(name) ? mem_storage_share(*memory_of(name)) : mem_storage_new(0);
    return 0;
}

static void remove_store(const char *name)
{
    cr_expect(*presence_of(name));
    *presence_of(name) = false;
}

static const struct storage_protocol stores = {
    .name = "test", .open = open_store, .create = make_store, .remove = remove_store};

static void set_up(void)
{
    registry_init();
    fault_plan_init(&plan);
}

static void tear_down(void)
{
    storage_close(image_memory);
    storage_close(data_memory);
    fault_plan_destroy(&plan);
}

TestSuite(registry_create_coded, .init = set_up, .fini = tear_down);

/* ---- images that are made ---- */

#define MAX_OPTIONS 4

struct wish {
    struct create_option options[MAX_OPTIONS];
    const char *data_file, *backing_file;
    bool encrypted;
};

#define LUKS                     \
    {"encrypt.format", "luks"},  \
    {                            \
        "encrypt.iter-time", "1" \
    }

static const struct wish wishes[] = {
    {.options = {{"extended_l2", "on"}, {"preallocation", "metadata"}}},
    {.options = {{"extended_l2", "on"}, {"preallocation", "full"}},
     .backing_file = "below"},
    {.options = {{"compression_type", "zstd"}}},
    {.data_file = "data"},
    {.options = {{"preallocation", "falloc"}}, .data_file = "data"},
    {.options = {{"data_file_raw", "on"}}, .data_file = "data"},
    {.options = {LUKS}, .encrypted = true},
    {.options = {LUKS, {"preallocation", "metadata"}}, .encrypted = true},
    {.options = {LUKS, {"preallocation", "full"}, {"cluster_size", "4096"}},
     .encrypted = true},
    {.options = {LUKS, {"compat", "0.10"}, {"preallocation", "falloc"}}, .encrypted = true},
    {.options = {LUKS, {"data_file_raw", "on"}}, .data_file = "data", .encrypted = true},
    {.options = {{"encrypt.format", "aes"}}, .encrypted = true},
    {.options = {{"encryption", "on"}, {"preallocation", "full"}}, .encrypted = true},
};

static int make(const struct driver *driver, const struct wish *wish, struct diag *diag)
{
    struct create_request req = {
        .filename = "new",
        .protocol = &stores,
        .size = SIZE,
        .options = wish->options,
        .data_file = wish->data_file,
        .backing_file = wish->backing_file,
        .backing_format = wish->backing_file ? "raw" : NULL,
        .passphrase = wish->encrypted ? "open sesame" : NULL,
        .passphrase_len = 11,
    };

    while (req.n_options < MAX_OPTIONS && wish->options[req.n_options].key)
        req.n_options++;
    *diag = (struct diag){0};
    return create_image(driver, &req, diag);
}

static void open_image(const struct wish *wish, struct block_context *ctx,
                       struct node **node)
{
    const struct node_options options = {.lock_off = true};
    struct diag diag = {0};

    cr_assert_eq(block_context_init(ctx, 1 << 20, NULL, NULL), 0);
    cr_assert_eq(node_open(ctx, driver_find("qcow2"), mem_storage_share(image_memory),
                           "new", &options, node, &diag),
                 0, "%s", diag.text);
    if (wish->data_file)
        node_set_data_file(*node, mem_storage_share(data_memory));
    if (wish->encrypted)
        cr_assert_eq((*node)->driver->unlock(*node, "open sesame", 11, &diag), 0, "%s",
                     diag.text);
}

/* A new image reads as zeroes, and written data is there after it was closed and opened. */
static void expect_use(const struct wish *wish)
{
    static uint8_t bytes[SIZE], wanted[SIZE];
    struct block_context ctx;
    struct node *node;
    struct diag diag;

    memset(wanted, 0, sizeof wanted);
    for (int round = 0; round < 2; round++) {
        open_image(wish, &ctx, &node);
        cr_expect_eq(node->size, SIZE);
        cr_assert_eq(block_read(node, bytes, 0, SIZE), 0);
        cr_expect_eq(memcmp(bytes, wanted, SIZE), 0, "round %d", round);
        cr_assert_eq(node_activate(node, &diag), 0, "%s", diag.text);
        memset(wanted + 100000, 0x5a, 3000);
        cr_assert_eq(block_write(node, wanted + 100000, 100000, 3000, 0), 0);
        cr_expect_eq(node_close(node), 0);
        block_context_destroy(&ctx);
    }
}

static void expect_clean(void)
{
    const struct check_options options = {.repair = REPAIR_NONE};
    struct storage *st = mem_storage_share(image_memory);
    struct check_result result = {0};
    struct diag diag = {0};

    cr_assert_eq(driver_find("qcow2")->check(st, &options, &result, &diag), 0, "%s",
                 diag.text);
    cr_expect_eq(result.corruptions + result.leaks + result.check_errors, 0u);
    storage_close(st);
}

Test(registry_create_coded, empty_and_usable)
{
    struct diag diag;

    for (size_t i = 0; i < ARRAY_LEN(wishes); i++) {
        cr_assert_eq(make(driver_find("qcow2"), &wishes[i], &diag), 0, "%d: %s", (int)i,
                     diag.text);
        expect_clean();
        expect_use(&wishes[i]);
        expect_clean();
    }
}

/* A raw data file has the size of the disk. */
Test(registry_create_coded, raw_data_file_is_as_long_as_the_disk)
{
    const struct wish wish = {
        .options = {{"data_file_raw", "on"}, {"cluster_size", "2097152"}},
        .data_file = "data"};
    struct diag diag;
    uint64_t bytes;

    cr_assert_eq(make(driver_find("qcow2"), &wish, &diag), 0, "%s", diag.text);
    cr_assert_eq(storage_size(data_memory, &bytes), 0);
    cr_expect_eq(bytes, SIZE);
}

/* ---- failures ---- */

static void fail_each_change(const struct wish *wish, bool was_there)
{
    struct diag diag;
    int err = -1;

    for (uint64_t nth = 1; err && nth < 1000; nth++) {
        image_is_there = false;
        data_is_there = was_there;
        fault_plan_fail(&plan, FAULT_CHANGE, nth, EIO, FAULT_FROM_THEN_ON);
        err = make(driver_find("qcow2"), wish, &diag);
        cr_expect(err == 0 || diag.text[0]);
        cr_expect_eq(image_is_there, !err, "change %d", (int)nth);
        cr_expect_eq(data_is_there, was_there || (!err && wish->data_file), "change %d",
                     (int)nth);
    }
    cr_expect_eq(err, 0);
}

/* After a failure the new files are removed; a data file that existed before stays. */
Test(registry_create_coded, removed_after_a_failure)
{
    for (size_t i = 0; i < ARRAY_LEN(wishes); i++) {
        fail_each_change(&wishes[i], false);
        if (wishes[i].data_file)
            fail_each_change(&wishes[i], true);
    }
}

static void expect_refused(const char *format, const struct wish *wish, int err,
                           const char *word)
{
    struct diag diag;

    n_made = 0;
    cr_expect_eq(make(driver_find(format), wish, &diag), err, "%s", diag.text);
    cr_expect(strstr(diag.text, word), "%s: %s", word, diag.text);
    cr_expect(!strstr(diag.text, "sesame"));
    cr_expect_eq(n_made, 0u);
}

Test(registry_create_coded, refused_before_anything_is_made)
{
    static const struct {
        struct wish wish;
        const char *word;
    } table[] = {
        {{.options = {{"data_file_raw", "on"}}}, "data_file_raw"},
        {{.data_file = "new"}, "data_file"},
        {{.data_file = ""}, "data_file"},
        {{.data_file = "data", .options = {{"compat", "0.10"}}}, "data_file"},
        {{.options = {LUKS}}, "encrypt.key-secret"},
        {{.encrypted = true}, "encrypt.format"},
        {{.options = {{"encrypt.format", "aes"}, {"encrypt.iter-time", "1"}},
          .encrypted = true},
         "encrypt.iter-time"},
        {{.options = {LUKS, {"encrypt.iter-time", "4294967296"}}, .encrypted = true},
         "encrypt.iter-time"},
        {{.options = {LUKS,
                      {"encrypt.ivgen-alg", "essiv"},
                      {"encrypt.ivgen-hash-alg", "sha1"}},
          .encrypted = true},
         "encrypt.ivgen-hash-alg"},
        {{.options = {{"extended_l2", "on"}, {"cluster_size", "8192"}}}, "extended_l2"},
        {{.options = {{"extended_l2", "on"}, {"compat", "0.10"}}}, "extended_l2"},
        {{.options = {{"preallocation", "metadata"}}, .backing_file = "below"},
         "preallocation"},
    };

    for (size_t i = 0; i < ARRAY_LEN(table); i++)
        expect_refused("qcow2", &table[i].wish, -EINVAL, table[i].word);
    const struct wish data = {.data_file = "data"};
    expect_refused("raw", &data, -ENOTSUP, "data_file");
    expect_refused("qed", &data, -ENOTSUP, "data_file");
}
