/* SPDX-License-Identifier: BSD-3-Clause */
/* Criterion's parameterized tests, or our substitute for them: see criterion.h beside it. */
#ifndef SUPPORT_PARAMETERIZED_H
#define SUPPORT_PARAMETERIZED_H

#include "criterion/criterion.h"

#ifndef USE_MINI_CRITERION
#include_next <criterion/parameterized.h>
#else
#pragma GCC system_header

#define cr_make_param_array(type, array, n) \
    ((struct mini_params){sizeof(type), (void *)(array), (n)})

#define ParameterizedTestParameters(suite_, test_) \
    static struct mini_params suite_##_##test_##_params(void)

#define ParameterizedTest(param, suite_, test_, ...)                  \
    static void suite_##_##test_##_impl(param);                       \
    static void suite_##_##test_##_call(void *p)                      \
    {                                                                 \
        suite_##_##test_##_impl(p);                                   \
    }                                                                 \
    MINI_REGISTER(suite_##_##test_, .suite = #suite_, .test = #test_, \
                  .run_with = suite_##_##test_##_call,                \
                  .params = suite_##_##test_##_params, __VA_ARGS__)   \
    static void suite_##_##test_##_impl(param)

#endif
#endif
