/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the error object (struct diag). */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/diag.h"

Test(diag, keeps_errno_and_sentence)
{
    struct diag diag = {0};

    cr_assert_eq(diag_set(&diag, EINVAL, "%s: field %d", "disk", 7), -EINVAL);
    cr_assert_eq(diag.err, EINVAL);
    cr_assert_str_eq(diag.text, "disk: field 7");
}

Test(diag, errno_is_spelled_out)
{
    struct diag diag = {0};

    cr_assert_eq(diag_errno(&diag, ENOENT, "disk"), -ENOENT);
    cr_assert_str_eq(diag.text, "disk: No such file or directory");
}

Test(diag, a_later_record_replaces)
{
    struct diag diag = {0};

    diag_set(&diag, EIO, "a much longer first sentence");
    diag_set(&diag, EPERM, "second");
    cr_assert_eq(diag.err, EPERM);
    cr_assert_str_eq(diag.text, "second");
}

Test(diag, null_is_allowed)
{
    cr_assert_eq(diag_set(NULL, EIO, "x"), -EIO);
    cr_assert_eq(diag_errno(NULL, EIO, "x"), -EIO);
}

Test(diag, overlong_text_is_cut_and_ends)
{
    struct diag diag = {0};
    char name[2 * sizeof diag.text];

    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    diag_set(&diag, EIO, "%s", name);
    cr_assert_eq(strlen(diag.text), sizeof diag.text - 1);
    diag_errno(&diag, EIO, "%s", name);
    cr_assert_eq(strlen(diag.text), sizeof diag.text - 1);
}
