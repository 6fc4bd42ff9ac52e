/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests descriptions of images: what is copied from a node, and the JSON made from it. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "common/image_info_json.h"
#include "common/json_text.h"
#include "image.h"
#include "registry.h"
#include "scratch.h"

#define SIZE 1048576u

static void expect_json(const struct image_info *info, const char *wanted)
{
    json_t *object = image_info_json(info);
    CLEANUP_FREE char *text = json_dumps(object, JSON_COMPACT);

    cr_expect_str_eq(text, wanted);
    json_decref(object);
}

Test(json_from_text, bytes_that_are_no_utf8)
{
    static const struct {
        const char *text, *wanted;
    } cases[] = {
        {"disk", "disk"},     {"", ""}, {"n\xc3\xa4me", "n\xc3\xa4me"}, {"n\xe4me", "n?me"},
        {"a\xff\xfe", "a??"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        json_t *value = json_from_text(cases[i].text);
        cr_expect_str_eq(json_string_value(value), cases[i].wanted);
        json_decref(value);
    }
}

Test(image_info_json, little_is_known)
{
    const struct image_info info = {
        .filename = "disk", .format = "raw", .virtual_size = 512, .cluster_size = 1};

    expect_json(&info, "{\"filename\":\"disk\",\"format\":\"raw\",\"virtual-size\":512,"
                       "\"dirty-flag\":false}");
}

Test(image_info_json, what_every_format_may_have)
{
    struct snapshot_info snapshot = {
        .id = "1",
        .name = "n\xe4me",
        .vm_state_bytes = 3,
        .date_sec = 4,
        .date_nsec = 5,
        .vm_clock_ns = 6000000007,
        .has_icount = true,
        .icount = 8,
    };
    const struct image_info info = {
        .filename = "disk",
        .format = "qed",
        .virtual_size = SIZE,
        .has_actual_size = true,
        .actual_size = 4096,
        .cluster_size = 65536,
        .backing_name = "base",
        .full_backing_name = "folder/base",
        .backing_format = "raw",
        .dirty = true,
        .encrypted = true,
        .snapshots = {.list = &snapshot, .n = 1},
    };

    expect_json(&info,
                "{\"filename\":\"disk\",\"format\":\"qed\",\"virtual-size\":1048576,"
                "\"actual-size\":4096,\"cluster-size\":65536,"
                "\"backing-filename\":\"base\",\"full-backing-filename\":\"folder/base\","
                "\"backing-filename-format\":\"raw\",\"dirty-flag\":true,"
                "\"snapshots\":[{\"id\":\"1\",\"name\":\"n?me\",\"vm-state-size\":3,"
                "\"date-sec\":4,\"date-nsec\":5,\"vm-clock-sec\":6,\"vm-clock-nsec\":7,"
                "\"icount\":8}],\"encrypted\":true}");
}

Test(image_info_json, qcow2)
{
    struct stored_bitmap_info bitmap = {
        .name = "b", .granularity = 512, .in_use = true, .enabled = true};
    struct image_info info = {
        .filename = "disk",
        .format = "qcow2",
        .cluster_size = 1,
        .kind = IMAGE_INFO_QCOW2,
        .qcow2 = {.version = 2, .refcount_bits = 16, .compression_type = "zlib"},
    };

    expect_json(
        &info,
        "{\"filename\":\"disk\",\"format\":\"qcow2\",\"virtual-size\":0,"
        "\"dirty-flag\":false,\"format-specific\":{\"type\":\"qcow2\",\"data\":"
        "{\"compat\":\"0.10\",\"compression-type\":\"zlib\",\"refcount-bits\":16}}}");
    info.qcow2 = (struct qcow2_info){
        .version = 3,
        .refcount_bits = 1,
        .compression_type = "zstd",
        .lazy_refcounts = true,
        .has_data_file = true,
        .data_file = "data",
        .encryption = ENCRYPTION_LUKS, /* without details of the LUKS header */
        .bitmaps = &bitmap,
        .n_bitmaps = 1,
    };
    expect_json(&info,
                "{\"filename\":\"disk\",\"format\":\"qcow2\",\"virtual-size\":0,"
                "\"dirty-flag\":false,\"format-specific\":{\"type\":\"qcow2\",\"data\":"
                "{\"compat\":\"1.1\",\"compression-type\":\"zstd\",\"lazy-refcounts\":true,"
                "\"bitmaps\":[{\"flags\":[\"in-use\",\"auto\"],\"name\":\"b\","
                "\"granularity\":512}],\"refcount-bits\":1,\"data-file\":\"data\","
                "\"data-file-raw\":false,\"encrypt\":{\"format\":\"luks\"},"
                "\"corrupt\":false,\"extended-l2\":false}}}");
}

struct chain {
    struct scratch scratch;
    struct block_context ctx;
    struct node *node;
    char *top, *base;
};

/* Opens an overlay that names its base relative to its own folder. */
static void open_overlay(struct chain *chain)
{
    const struct chain_options options = {.read_only = true};
    struct diag diag = {0};

    registry_init();
    scratch_make(&chain->scratch);
    chain->top = scratch_path(&chain->scratch, "top");
    chain->base = scratch_path(&chain->scratch, "base");
    image_create(chain->base, "qed", NULL, SIZE, NULL, NULL);
    image_create(chain->top, "qcow2", "lazy_refcounts=on", SIZE, "base", "qed");
    cr_assert_eq(block_context_init(&chain->ctx, 1 << 20, NULL, NULL), 0);
    cr_assert_eq(chain_open(&chain->ctx, chain->top, &options, &chain->node, &diag), 0,
                 "%s", diag.text);
}

static void close_overlay(struct chain *chain)
{
    cr_expect_eq(node_close(chain->node), 0);
    block_context_destroy(&chain->ctx);
    free(chain->top);
    free(chain->base);
    scratch_remove(&chain->scratch);
}

/* A description is independent of the node, which may be closed before. */
Test(image_info, owns_what_it_says)
{
    struct chain chain;
    struct image_info info;

    open_overlay(&chain);
    cr_assert_eq(image_info_read(chain.node, IMAGE_INFO_RECORDED, &info), 0);
    cr_assert_eq(node_close(chain.node), 0);
    chain.node = NULL;
    cr_expect_str_eq(info.filename, chain.top);
    cr_expect_str_eq(info.format, "qcow2");
    cr_expect_eq(info.virtual_size, SIZE);
    cr_expect(info.has_actual_size);
    cr_expect_eq(info.cluster_size, 65536u);
    cr_expect_not(info.dirty);
    cr_expect_str_eq(info.backing_name, "base");
    cr_expect_str_eq(info.full_backing_name, chain.base);
    cr_expect_str_eq(info.backing_format, "qed");
    cr_expect_eq(info.kind, IMAGE_INFO_QCOW2);
    cr_expect(info.qcow2.lazy_refcounts);
    image_info_free(&info);
    image_info_free(&info);
    close_overlay(&chain);
}

/* A backing file that a job put there is described by its own name, one that the image names by the
 * name in the image. */
Test(image_info, backing_as_it_is_opened)
{
    struct chain chain;
    struct image_info info;

    open_overlay(&chain);
    cr_assert_eq(image_info_read(chain.node, IMAGE_INFO_OPENED, &info), 0);
    cr_expect_str_eq(info.backing_name, "base");
    cr_expect_str_eq(info.full_backing_name, chain.base);
    image_info_free(&info);

    free(chain.node->backing_name);
    chain.node->backing_name = strdup("another");
    cr_assert_eq(image_info_read(chain.node, IMAGE_INFO_OPENED, &info), 0);
    cr_expect_str_eq(info.backing_name, chain.base);
    cr_expect_str_eq(info.full_backing_name, chain.base);
    cr_expect_str_eq(info.backing_format, "qed");
    image_info_free(&info);
    close_overlay(&chain);
}
