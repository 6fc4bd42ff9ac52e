/* SPDX-License-Identifier: BSD-3-Clause */
/* Stands before the real Criterion's header.  It includes that header, except in builds with
 * the thread sanitizer: there Criterion's workers can't start, because they map memory at an
 * address that the sanitizer uses.  For such builds the macros below, with mini_criterion.c,
 * run the same tests, each in a process of its own. */
#ifndef SUPPORT_CRITERION_H
#define SUPPORT_CRITERION_H

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define USE_MINI_CRITERION
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define USE_MINI_CRITERION
#endif

#ifndef USE_MINI_CRITERION
#include_next <criterion/criterion.h>
#else
#pragma GCC system_header

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mini_params {
    size_t size;
    void *array;
    size_t n;
};

struct mini_test {
    const char *suite, *test;
    void (*run)(void);
    void (*run_with)(void *param);
    struct mini_params (*params)(void);
    struct mini_test *next;
    /* options that a Test or a TestSuite may set, as Criterion's */
    void (*init)(void);
    void (*fini)(void);
    int signal, exit_code;
    double timeout;
    bool disabled;
    const char *description;
};

void mini_register(struct mini_test *test);
void mini_register_suite(struct mini_test *suite);
void mini_report(bool fatal, const char *file, int line, const char *what, const char *fmt,
                 ...) __attribute__((format(printf, 5, 6)));
void mini_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

#define MINI_REGISTER(id, ...)                                   \
    static struct mini_test id##_meta = {__VA_ARGS__};           \
    __attribute__((constructor)) static void id##_register(void) \
    {                                                            \
        mini_register(&id##_meta);                               \
    }

#define Test(suite_, test_, ...)                                      \
    static void suite_##_##test_##_impl(void);                        \
    MINI_REGISTER(suite_##_##test_, .suite = #suite_, .test = #test_, \
                  .run = suite_##_##test_##_impl, __VA_ARGS__)        \
    static void suite_##_##test_##_impl(void)

#define TestSuite(suite_, ...)                                                     \
    static struct mini_test suite_##_suite_meta = {.suite = #suite_, __VA_ARGS__}; \
    __attribute__((constructor)) static void suite_##_suite_register(void)         \
    {                                                                              \
        mini_register_suite(&suite_##_suite_meta);                                 \
    }

#define MINI_CHECK(fatal, cond, what, ...)                                 \
    do {                                                                   \
        if (!(cond))                                                       \
            mini_report(fatal, __FILE__, __LINE__, what, " " __VA_ARGS__); \
    } while (0)

#define cr_assert(c, ...)          MINI_CHECK(true, c, #c, __VA_ARGS__)
#define cr_expect(c, ...)          MINI_CHECK(false, c, #c, __VA_ARGS__)
#define cr_assert_not(c, ...)      MINI_CHECK(true, !(c), "not " #c, __VA_ARGS__)
#define cr_expect_not(c, ...)      MINI_CHECK(false, !(c), "not " #c, __VA_ARGS__)
#define cr_assert_fail(...)        MINI_CHECK(true, false, "failed", __VA_ARGS__)
#define cr_expect_fail(...)        MINI_CHECK(false, false, "failed", __VA_ARGS__)
#define cr_fatal(...)              MINI_CHECK(true, false, "failed", __VA_ARGS__)
#define cr_skip_test(...)          mini_skip(" " __VA_ARGS__)
#define cr_skip(...)               mini_skip(" " __VA_ARGS__)
#define MINI_OP(f, a, op, b, ...)  MINI_CHECK(f, (a)op(b), #a " " #op " " #b, __VA_ARGS__)
#define cr_assert_eq(a, b, ...)    MINI_OP(true, a, ==, b, __VA_ARGS__)
#define cr_expect_eq(a, b, ...)    MINI_OP(false, a, ==, b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...)   MINI_OP(true, a, !=, b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...)   MINI_OP(false, a, !=, b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)    MINI_OP(true, a, <, b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)    MINI_OP(false, a, <, b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...)   MINI_OP(true, a, <=, b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...)   MINI_OP(false, a, <=, b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)    MINI_OP(true, a, >, b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)    MINI_OP(false, a, >, b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...)   MINI_OP(true, a, >=, b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...)   MINI_OP(false, a, >=, b, __VA_ARGS__)
#define cr_assert_null(p, ...)     MINI_CHECK(true, !(p), #p " is null", __VA_ARGS__)
#define cr_expect_null(p, ...)     MINI_CHECK(false, !(p), #p " is null", __VA_ARGS__)
#define cr_assert_not_null(p, ...) MINI_CHECK(true, (p), #p " is not null", __VA_ARGS__)
#define cr_expect_not_null(p, ...) MINI_CHECK(false, (p), #p " is not null", __VA_ARGS__)
#define MINI_STR(f, a, op, b, ...) \
    MINI_CHECK(f, strcmp(a, b) op 0, #a " " #op " " #b, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)  MINI_STR(true, a, ==, b, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...)  MINI_STR(false, a, ==, b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) MINI_STR(true, a, !=, b, __VA_ARGS__)
#define cr_expect_str_neq(a, b, ...) MINI_STR(false, a, !=, b, __VA_ARGS__)
#define cr_assert_str_empty(a, ...)  MINI_CHECK(true, !*(a), #a " is empty", __VA_ARGS__)
#define cr_expect_str_empty(a, ...)  MINI_CHECK(false, !*(a), #a " is empty", __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...) \
    MINI_CHECK(true, !memcmp(a, b, n), #a " == " #b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...) \
    MINI_CHECK(false, !memcmp(a, b, n), #a " == " #b, __VA_ARGS__)

#endif
#endif
