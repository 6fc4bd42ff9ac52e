/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the names of cache modes, and the three booleans that each stands for (V-01). */
#include <criterion/criterion.h>
#include <string.h>

#include "block/cache_mode.h"

static void expect(const char *word, const char *name, bool direct, bool no_flush,
                   bool write_through)
{
    const struct cache_mode *mode = cache_mode_find(word);

    cr_assert_not_null(mode, "%s", word);
    cr_expect_str_eq(mode->name, name);
    cr_expect_eq(mode->direct, direct, "%s: direct", word);
    cr_expect_eq(mode->no_flush, no_flush, "%s: no_flush", word);
    cr_expect_eq(mode->write_through, write_through, "%s: write_through", word);
}

Test(cache_mode, words)
{
    expect("writeback", "writeback", false, false, false);
    expect("writethrough", "writethrough", false, false, true);
    expect("none", "none", true, false, false);
    expect("directsync", "directsync", true, false, true);
    expect("volatile", "volatile", false, true, false);
    expect("unsafe", "volatile", false, true, false);
}

Test(cache_mode, other_words)
{
    static const char *const words[] = {"", "Writeback", "write-back", "writeback ",
                                        "nones"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        cr_expect_null(cache_mode_find(words[i]), "%s", words[i]);
}

Test(cache_mode, the_message_names_modes_that_exist)
{
    char names[128];
    unsigned n = 0;

    strcpy(names, cache_mode_names());
    for (char *word = strtok(names, ", "); word; word = strtok(NULL, ", "), n++)
        cr_expect_not_null(cache_mode_find(word), "%s", word);
    cr_expect_eq(n, 5u);
}
