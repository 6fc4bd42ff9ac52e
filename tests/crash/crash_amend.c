/* SPDX-License-Identifier: BSD-3-Clause */
/* Power failures while an image is amended or gets another backing file.  At every crash point
 * the image must open with either the old or the new header and name of the backing file, and
 * read as before. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/cleanup.h"
#include "block/amend.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define SEEDS 24u

static const struct config {
    const char *options, *key, *value;
    bool backing;
} configs[] = {
    {"compat=0.10", "compat", "1.1", false},
    {"compat=0.10", "compat", "1.1", true},
    {"compat=1.1", "compat", "0.10", false},
    {"compat=1.1", "compat", "0.10", true},
    {"compat=1.1", "lazy_refcounts", "on", true},
    {"compat=0.10,cluster_size=1024", "compat", "1.1", true},
    {"compat=1.1,cluster_size=4096", "compat", "0.10", true},
    {"compat=1.1", "refcount_bits", "64", false},
};

/* The two names of the backing file that an image may have after the crash. */
struct names {
    const char *before, *after;
};

static bool same_name(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static void judge(struct image *img, struct storage *st, const struct names *names,
                  const char *label)
{
    const struct check_options options = {.repair = REPAIR_NONE};
    struct check_result found = {0};
    struct image state = *img;
    struct diag diag = {0};
    CLEANUP_FREE uint8_t *bytes = malloc(img->model.size);

    state.log = NULL;
    state.mem = st;
    int err = driver_find("qcow2")->check(st, &options, &found, &diag);
    cr_assert_eq(err, 0, "%s: %s", label, diag.text);
    cr_assert_eq(found.corruptions + found.check_errors, 0, "%s: %" PRIu64 " corruptions",
                 label, found.corruptions);
    cr_assert_eq(image_try_open(&state, &diag), 0, "%s: %s", label, diag.text);
    const char *name = state.node->backing_name;
    cr_assert(same_name(name, names->before) || same_name(name, names->after), "%s: '%s'",
              label, name ? name : "");
    cr_assert_eq(block_read(state.node, bytes, 0, state.model.size), 0, "%s", label);
    cr_assert_arr_eq(bytes, img->model.bytes, img->model.size, "%s", label);
    cr_assert_eq(image_close(&state), 0);
}

static void cut_power_everywhere(struct image *img, const struct names *names,
                                 const char *what)
{
    static const enum crash_policy policies[] = {CRASH_NONE, CRASH_ALL, CRASH_SUBSET,
                                                 CRASH_TORN};
    char label[160];

    for (uint64_t point = 0; point <= crash_log_count(img->log); point++)
        for (unsigned i = 0; i < SEEDS; i++) {
            struct crash_choice choice = {.policy = policies[i % 4], .seed = i};
            struct storage *st = crash_materialise(img->log, point, &choice);
            snprintf(label, sizeof label, "%s, point %" PRIu64 ", seed %u", what, point, i);
            judge(img, st, names, label);
            storage_close(st);
        }
}

static void prepare(struct image *img, const struct config *c)
{
    const struct image_spec spec = {.format = "qcow2",
                                    .options = c->options,
                                    .size = 2 * MIB,
                                    .base_format = c->backing ? "raw" : NULL,
                                    .base_size = MIB};

    image_make(img, &spec, 1);
    image_open(img);
    for (unsigned i = 0; i < 5; i++) {
        memset(img->model.bytes + i * 200000, (int)i + 1, 5000);
        cr_assert_eq(
            block_write(img->node, img->model.bytes + i * 200000, i * 200000, 5000, 0), 0);
    }
    cr_assert_eq(image_close(img), 0);
    img->log = crash_log_new(img->mem);
}

static void forget(struct image *img)
{
    crash_log_free(img->log);
    img->log = NULL;
    image_free(img);
}

ParameterizedTestParameters(crash_amend, headers)
{
    static int index[ARRAY_LEN(configs)];

    for (int i = 0; i < (int)ARRAY_LEN(configs); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(configs));
}

ParameterizedTest(int *index, crash_amend, headers)
{
    const struct config *c = &configs[*index];
    const struct create_option option = {.key = (char *)c->key, .value = (char *)c->value};
    const struct amend_request request = {.options = &option, .n_options = 1};
    const struct names names = {c->backing ? "base" : NULL, c->backing ? "base" : NULL};
    struct diag diag = {0};
    struct image img;

    registry_init();
    prepare(&img, c);
    image_open(&img);
    cr_assert_eq(node_amend(img.node, &request, &diag), 0, "%s", diag.text);
    cr_assert_eq(image_close(&img), 0);
    cut_power_everywhere(&img, &names, c->options);
    forget(&img);
}

/* A header cluster of 512 bytes has room for only one of the two names, so that the new name
 * can't be written beside the old one. */
Test(crash_amend, a_name_over_the_old_one)
{
    static char longer[161];
    const struct config c = {.options = "cluster_size=512,compat=0.10", .backing = true};
    struct diag diag = {0};
    struct image img;

    registry_init();
    memset(longer, 'x', sizeof longer - 1);
    prepare(&img, &c);
    for (unsigned i = 0; i < 2; i++) { /* the first round makes the old name long */
        longer[0] = i ? 'y' : 'x';
        if (i) {
            crash_log_free(img.log);
            storage_close(img.mem);
            cr_assert_eq(mem_storage_load(img.path, &img.mem), 0);
            img.log = crash_log_new(img.mem);
        }
        image_open(&img);
        cr_assert_eq(driver_find("qcow2")->set_backing(img.node, longer, "raw", &diag), 0,
                     "%s", diag.text);
        cr_assert_eq(image_close(&img), 0);
        struct storage *now = crash_materialise(
            img.log, crash_log_count(img.log), &(struct crash_choice){.policy = CRASH_ALL});
        cr_assert_eq(mem_storage_save(now, img.path), 0);
        storage_close(now);
    }
    static char before[161];
    memcpy(before, longer, sizeof before);
    before[0] = 'x';
    cut_power_everywhere(&img, &(struct names){before, longer}, "a name");
    forget(&img);
}
