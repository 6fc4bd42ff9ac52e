/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests percent encoding and absolute paths. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/path.h"
#include "base/percent.h"
#include "base/plain_text.h"

static void expect_printed(const char *text, const char *plain, const char *expected)
{
    CLEANUP_FREE char *got = NULL;
    size_t n;
    FILE *f = open_memstream(&got, &n);

    cr_assert_not_null(f);
    percent_print(f, text, plain);
    fclose(f);
    cr_expect_str_eq(got, expected);
}

static void expect_copied(const char *text, const char *expected)
{
    CLEANUP_FREE char *got = plain_text_copy(text);

    cr_expect_str_eq(got, expected);
}

Test(plain_text, control_characters_are_spelled_out)
{
    expect_copied("", "");
    expect_copied("n\u00e4me \\x1b \u20ac", "n\u00e4me \\x1b \u20ac");
    expect_copied("a\033[31mb\nc\x7f", "a\\x1b[31mb\\x0ac\\x7f");
    expect_copied("\xc2\x9b"
                  "2J\xc2\xa0\xc2",
                  "\\xc2\\x9b2J\xc2\xa0\xc2");
}

Test(plain_text, messages_have_question_marks_instead)
{
    char text[] = "a\033[2J\n\xc2\x9b"
                  "c\t\xc3\x9b",
         kept[] = "a\nb\r";

    plain_text_tame(text, "");
    cr_expect_str_eq(text, "a?[2J???c?\xc3\x9b");
    plain_text_tame(kept, "\n");
    cr_expect_str_eq(kept, "a\nb?");
}

Test(percent, what_is_not_plain_is_encoded)
{
    expect_printed("aZ09", "", "aZ09");
    expect_printed("a b%/\n\xff", "/", "a%20b%25/%0A%FF");
    expect_printed("", "/", "");
}

Test(percent, a_byte_has_two_digits)
{
    cr_expect_eq(percent_byte("%41", 3), 'A');
    cr_expect_eq(percent_byte("%fFx", 4), 0xff);
    cr_expect_eq(percent_byte("%00", 3), 0);
    cr_expect_eq(percent_byte("%41", 2), -1, "cut off");
    cr_expect_eq(percent_byte("%4g", 3), -1);
    cr_expect_eq(percent_byte("%g4", 3), -1);
    cr_expect_eq(percent_byte("041", 3), -1);
    cr_expect_eq(percent_byte("", 0), -1);
}

Test(path, is_made_absolute)
{
    CLEANUP_FREE char *same = path_absolute("/a/../b");

    cr_assert_eq(chdir("/tmp"), 0);
    CLEANUP_FREE char *joined = path_absolute("a/b");
    cr_expect_str_eq(same, "/a/../b");
    cr_expect_str_eq(joined, "/tmp/a/b");
}
