/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the check and the repair of images.  A check must change nothing; after a repair the next
 * check must find exactly what the repair said it had left. */
#include <errno.h>
#include <string.h>

#include "image_input.h"
#include "mem_storage.h"

/* A check takes memory in proportion to the file's size (which is no surprise to users), so that
 * larger files would only make the fuzzer slow. */
#define MAX_FILE (UINT64_C(1) << 22)

static const struct driver *driver_of(const struct image_input *in)
{
    const struct driver *driver = driver_probe(in->bytes, in->n);

    return driver && driver_can(driver, DRIVER_CHECKS) ? driver : NULL;
}

static bool is_clean(const struct check_result *result)
{
    return check_is_safe(result) && result->leaks == 0;
}

static void check_same(const struct check_result *repaired,
                       const struct check_result *again)
{
    fuzz_check(
        again->corruptions == repaired->corruptions && again->leaks == repaired->leaks &&
            again->check_errors == repaired->check_errors,
        "the repair leaves %ju corruptions, %ju leaks, %ju errors; there are %ju, %ju, "
        "%ju",
        (uintmax_t)repaired->corruptions, (uintmax_t)repaired->leaks,
        (uintmax_t)repaired->check_errors, (uintmax_t)again->corruptions,
        (uintmax_t)again->leaks, (uintmax_t)again->check_errors);
}

/* The image must be as the repair says, and a second repair of a clean image must change nothing.
 */
static void check_again(const struct driver *driver, struct storage *st,
                        const struct image_check *repair)
{
    const struct check_result *repaired = &repair->result;
    struct image_check again = {.repair = REPAIR_NONE}, twice = *repair;

    int err = image_check(driver, st, &again);
    fuzz_check(err == 0, "after the repair it can't be checked: %s", again.diag.text);
    /* In an unsafe image tables may overlap the header, whose marks are changed after the repair
     * has counted: the figures may differ. */
    if (check_is_safe(repaired))
        check_same(repaired, &again.result);
    else
        fuzz_check(!check_is_safe(&again.result), "better than the repair says");
    if (!is_clean(repaired))
        return;
    struct storage *before = mem_storage_clone(st);
    err = image_check(driver, st, &twice);
    fuzz_check(err == 0 && is_clean(&twice.result), "a second repair of what is clean: %s",
               twice.diag.text);
    fuzz_check(mem_storage_equal(before, st, NULL),
               "a second repair changes what is clean");
    storage_close(before);
}

/* An image that is clean after the repair must be usable. */
static void check_usable(const struct driver *driver, struct storage *st)
{
    const struct node_options options = {.repair_off = true};
    struct block_context ctx;
    struct node *node;
    struct diag diag = {0};

    if (block_context_init(&ctx, 1 << 20, NULL, NULL))
        __builtin_trap();
    int err =
        node_open(&ctx, driver, mem_storage_share(st), "image", &options, &node, &diag);
    /* A feature that can be checked but not served, or a bad backing name, which no check sees. */
    if (err == -ENOTSUP || (err && strstr(diag.text, "backing_"))) {
        block_context_destroy(&ctx);
        return;
    }
    fuzz_check(err == 0, "clean, and can't be opened: %s", diag.text);
    err = node_activate(node, &diag);
    fuzz_check(err == 0, "clean, and can't be written: %s", diag.text);
    fuzz_check(node_close(node) == 0, "clean, and can't be closed");
    block_context_destroy(&ctx);
}

/* Has the repair repaired what it can? */
static void check_done(const struct driver *driver, const struct image_check *repair,
                       const struct check_result *first)
{
    const struct check_result *result = &repair->result;
    bool is_qcow2 = driver == driver_find("qcow2");

    if (repair->repair == REPAIR_ALL) {
        fuzz_check(check_is_safe(result) || repair->keep_mappings || repair->gave_up ||
                       first->check_errors,
                   "%ju corruptions and %ju errors are left",
                   (uintmax_t)result->corruptions, (uintmax_t)result->check_errors);
        return;
    }
    /* There may be fewer than before: if one refcount block was used for two ranges. */
    fuzz_check(result->corruptions <= first->corruptions,
               "%ju corruptions became %ju by freeing leaks", (uintmax_t)first->corruptions,
               (uintmax_t)result->corruptions);
    /* QED can free leaked clusters only at the end of the file. */
    if (check_is_safe(first) && is_qcow2)
        fuzz_check(result->leaks == 0, "%ju leaks are left", (uintmax_t)result->leaks);
}

static void repair(const struct image_input *in, const struct driver *driver,
                   struct storage *st, const struct check_result *first)
{
    struct image_check repair = {
        .repair = in->options & OPTION_REPAIR_ALL ? REPAIR_ALL : REPAIR_LEAKS,
        .keep_mappings = in->options & OPTION_KEEP_MAPPINGS,
    };

    if (image_check(driver, st, &repair))
        return;
    check_again(driver, st, &repair);
    check_done(driver, &repair, first);
    if (repair.repair == REPAIR_ALL && is_clean(&repair.result))
        check_usable(driver, st);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_input in;
    const struct driver *driver;
    struct image_check first = {.repair = REPAIR_NONE};

    if (!image_input_parse(data, size, &in) || !(driver = driver_of(&in)))
        return 0;
    struct storage *st = image_input_storage(&in, MAX_FILE);
    struct storage *before = mem_storage_clone(st);
    int err = image_check(driver, st, &first);
    fuzz_check(mem_storage_equal(before, st, NULL), "a check changes the image");
    if (!err)
        repair(&in, driver, st, &first.result);
    storage_close(before);
    storage_close(st);
    return 0;
}
