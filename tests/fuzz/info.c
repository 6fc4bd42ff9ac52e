/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes `qimg info`: detecting the format, reading the header, extensions, feature names and
 * snapshots, and printing them. */
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "common/image_info_json.h"
#include "image_input.h"
#include "info_print.h"

static void print_image(struct node *node)
{
    CLEANUP_IMAGE_INFO struct image_info info = {0};

    fuzz_check(image_info_read(node, IMAGE_INFO_RECORDED, &info) == 0, "no description");
    json_t *object = image_info_json(&info);
    CLEANUP_FREE char *json = json_dumps(object, JSON_INDENT(4)), *human = NULL;
    size_t n;
    FILE *out = open_memstream(&human, &n);

    fuzz_check(json, "not to be said in JSON");
    info_print_human(object, out);
    fclose(out);
    fuzz_check(human[0], "nothing is printed");
    json_decref(object);
}

/* Resolves the name of the backing file with each policy, without opening it. */
static void resolve(const struct node *node)
{
    if (!node->backing_name)
        return;
    for (int policy = REFERENCES_ANY; policy <= REFERENCES_NONE; policy++) {
        CLEANUP_REFERENCE struct reference ref = {0};
        struct diag diag = {0};
        int err = reference_resolve(node->filename, node->backing_name,
                                    (enum references)policy, &ref, &diag);
        fuzz_check_diag(err, &diag);
    }
    free(reference_join(node->filename, node->backing_name));
}

static void open_and_print(struct storage *st, const struct driver *driver)
{
    const struct node_options options = {.lock_off = true, .describe = true};
    struct block_context ctx;
    struct node *node;
    struct diag diag = {0};

    if (block_context_init(&ctx, 1 << 20, NULL, NULL))
        abort();
    st->read_only = true;
    int err = node_open(&ctx, driver, st, "folder/image", &options, &node, &diag);
    fuzz_check_diag(err, &diag);
    if (!err) {
        print_image(node);
        resolve(node);
        fuzz_check(node_close(node) == 0, "close");
    }
    block_context_destroy(&ctx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_input in;
    const struct driver *driver;
    struct diag diag = {0};

    if (!image_input_parse(data, size, &in))
        return 0;
    struct storage *st = image_input_storage(&in, UINT64_C(1) << 62);
    int err = chain_find_driver(st, NULL, &driver, &diag);
    fuzz_check_diag(err, &diag);
    if (err)
        storage_close(st);
    else
        open_and_print(st, driver);
    return 0;
}
