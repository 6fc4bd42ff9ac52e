/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the repair at the first writable use of a marked image: which check it asks of the driver,
 * what it logs, and when it allows writes. */
#include "block/check.h"
#include "block_testing.h"

/* What the toy driver's next check does: its steps, how long each takes, and what it finds. */
static struct {
    struct toy_bench *bench;
    unsigned steps;
    uint64_t step_ns;
    struct check_result result;
    int err;
    struct check_options asked;
} next;

static int toy_check(struct storage *st, const struct check_options *options,
                     struct check_result *result, struct diag *diag)
{
    (void)st;
    next.asked = *options;
    for (unsigned i = 1; i <= next.steps; i++) {
        next.bench->now += next.step_ns;
        options->progress(options->opaque, i, next.steps);
    }
    *result = next.result;
    return next.err ? diag_set(diag, -next.err, "toy: it failed") : 0;
}

static char lines[32][128];
static unsigned n_lines;

static void keep_line(enum log_level level, const char *fmt, va_list ap)
{
    cr_assert_lt(n_lines, ARRAY_LEN(lines));
    if (level != LOG_DEBUG)
        vsnprintf(lines[n_lines++], sizeof lines[0], fmt, ap);
}

static int check(struct diag *diag)
{
    static struct toy_bench b;
    struct driver driver = toy_driver;

    toy_init(&b, 64 * CLUSTER, NULL);
    driver.features |= DRIVER_CHECKS;
    driver.check = toy_check;
    next.bench = &b;
    n_lines = 0;
    log_set_sink(keep_line);
    const struct driver *was = b.node->driver;
    b.node->driver = &driver;
    int err = check_before_writing(b.node, diag);
    b.node->driver = was;
    toy_fini(&b);
    return err;
}

Test(block_check, l06_repairs_all_but_guesses_nothing)
{
    next.result.leaks_fixed = 7;
    next.result.corruptions_fixed = 3;
    cr_expect_eq(check(NULL), 0);
    cr_expect_eq(next.asked.repair, REPAIR_ALL);
    cr_expect(next.asked.keep_mappings);
    cr_assert_eq(n_lines, 1, "a short one says only what it did");
    cr_expect(strstr(lines[0], "3 errors") && strstr(lines[0], "7 leaked"), "%s", lines[0]);
}

Test(block_check, a_long_one_says_how_far_it_is)
{
    next.steps = 20;
    next.step_ns = SEC;
    cr_expect_eq(check(NULL), 0);
    /* Progress is logged every fifth second and at the end. */
    cr_assert_eq(n_lines, 5);
    cr_expect(strstr(lines[0], "25%") && strstr(lines[1], "50%") &&
                  strstr(lines[3], "100%"),
              "%s, %s, %s", lines[0], lines[1], lines[3]);
    cr_expect(strstr(lines[0], "toy"), "%s", lines[0]);
}

/* L-06 */
Test(block_check, what_is_left_is_refused)
{
    struct diag diag = {0};

    next.result.corruptions = 2;
    next.result.leaks = 5;
    cr_expect_eq(check(&diag), -EROFS);
    cr_expect(strstr(diag.text, "2 errors"), "%s", diag.text);
    next.result.corruptions = 0;
    cr_expect_eq(check(NULL), 0, "leaks do no harm");
    next.result.check_errors = 1;
    cr_expect_eq(check(NULL), -EROFS);
}

Test(block_check, a_failure_is_passed_on)
{
    struct diag diag = {0};

    next.err = -ENOSPC;
    cr_expect_eq(check(&diag), -ENOSPC);
    cr_expect_str_eq(diag.text, "toy: it failed");
    cr_expect_eq(n_lines, 0);
}
