/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the checks of text that comes from images and peers. */
#include <errno.h>

#include <criterion/criterion.h>

#include "base/cleanup.h"
#include "base/foreign_text.h"

Test(base_foreign_text, is_copied_whole)
{
    CLEANUP_FREE char *text = NULL, *empty = NULL;
    struct diag diag = {0};

    cr_assert_eq(foreign_text_copy(&text, "rawness", 3, &diag, "name"), 0);
    cr_expect_str_eq(text, "raw");
    cr_assert_eq(foreign_text_copy(&empty, "x", 0, &diag, "name"), 0);
    cr_expect_str_eq(empty, "");
}

Test(base_foreign_text, a_nul_is_refused_wherever_it_is)
{
    struct diag diag = {0};
    char *text;

    cr_assert_eq(foreign_text_copy(&text, "raw\0x", 5, &diag, "%s: name", "disk"), -EINVAL);
    cr_expect_null(text);
    cr_expect_str_eq(diag.text,
                     "disk: name: its 5 bytes have a NUL byte at 3, after 'raw'");
    cr_assert_eq(foreign_text_copy(&text, "raw", 4, &diag, "name"), -EINVAL);
    cr_assert_eq(foreign_text_copy(&text, "", 1, NULL, "name"), -EINVAL);
}
