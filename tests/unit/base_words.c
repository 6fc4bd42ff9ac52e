/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the message about a word that isn't in a list of allowed words. */
#include <criterion/criterion.h>
#include <string.h>

#include "base/compiler.h"
#include "base/words.h"

static const char *const words[] = {"file", "format", "cache", "cluster_size", "info", "x"};

static const char *nearest(const char *word)
{
    return words_nearest(word, words, ARRAY_LEN(words));
}

Test(base_words, near)
{
    static const char *const cases[][2] = {
        {"chache", "cache"},
        {"cahce", "cache"},
        {"cach", "cache"},
        {"ccache", "cache"},
        {"clustersize", "cluster_size"},
        {"cluster-size", "cluster_size"},
        {"inof", "info"},
        {"fromat", "format"},
        {"fil", "file"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *got = nearest(cases[i][0]);
        cr_assert_not_null(got, "%s", cases[i][0]);
        cr_expect_str_eq(got, cases[i][1]);
    }
}

Test(base_words, far)
{
    static const char *const cases[] = {"", "y", "zz", "frobnicate", "sizes", "in"};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        cr_expect_null(nearest(cases[i]), "%s", cases[i]);
}

Test(base_words, hints)
{
    struct words_hint hint;

    cr_expect_str_eq(words_hint(&hint, "fromat", words, 3),
                     "did you mean 'format'? There are: file, format, cache");
    cr_expect_str_eq(words_hint(&hint, "z", words, 2), "there are: file, format");
}

Test(base_words, too_much_is_cut)
{
    static char longer[200];
    const char *many[5];
    struct words_hint hint;

    memset(longer, 'a', sizeof longer - 1);
    for (size_t i = 0; i < ARRAY_LEN(many); i++)
        many[i] = longer;
    words_hint(&hint, longer, many, ARRAY_LEN(many));
    cr_expect_eq(strlen(hint.text), sizeof hint.text - 1);
    cr_expect_str_eq(hint.text + sizeof hint.text - 4, "...");
}
