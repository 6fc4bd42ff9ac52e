/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests finding JSON values in a stream of bytes. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "json_stream.h"
#include "rng.h"

/* The events of a stream, a letter each: V value, B junk, L too long. */
struct seen {
    char events[64];
    unsigned n;
    char last[256]; /* the last value */
};

/* Feeds the text in pieces of `step` bytes. */
static struct seen feed(const char *text, size_t length, size_t step)
{
    struct json_stream *s = malloc(sizeof *s);
    struct seen seen = {.n = 0};

    json_stream_init(s);
    for (size_t at = 0; at < length; at += step) {
        const char *in = text + at;
        size_t n = length - at < step ? length - at : step;
        enum json_stream_event event;
        while ((event = json_stream_next(s, &in, &n)) != JSON_STREAM_MORE) {
            cr_assert_lt(seen.n, sizeof seen.events - 1);
            seen.events[seen.n++] = "-VBL"[event];
            if (event == JSON_STREAM_VALUE && s->used < sizeof seen.last) {
                memcpy(seen.last, s->text, s->used);
                seen.last[s->used] = '\0';
            }
            if (event == JSON_STREAM_TOO_LONG)
                break;
        }
        if (seen.n && seen.events[seen.n - 1] == 'L')
            break;
    }
    free(s);
    return seen;
}

/* The events must be these, in whatever pieces the bytes arrive. */
static void expect(const char *text, const char *events)
{
    for (size_t step = 1; step <= 8; step++) {
        struct seen seen = feed(text, strlen(text), step);
        cr_expect_str_eq(seen.events, events, "%s in steps of %zu: %s", text, step,
                         seen.events);
    }
}

Test(json_stream, values_end_where_their_bracket_closes)
{
    expect("{}", "V");
    expect(" \r\n\t{} \n {}{}[]", "VVVV");
    expect("{\"a\":{\"b\":[1,-2.5e+3,true,false,null,\"x\",[],{}]}}", "V");
    expect("[[1,2],[]]", "V");
    expect("{\"a\":1}", "V");
    expect("{\"a\": true }", "V");
}

Test(json_stream, a_value_is_told_without_what_is_around_it)
{
    const char *text = "  {\"a\" : \"}\"}  ";
    struct seen seen = feed(text, strlen(text), 100);

    cr_assert_str_eq(seen.last, "{\"a\" : \"}\"}");
}

Test(json_stream, brackets_in_strings_mean_nothing)
{
    expect("{\"}{\":\"]}\"}", "V");
    expect("{\"a\":\"\\\"}\"}", "V");
    expect("{\"a\":\"\\\\\"}", "V");
    expect("{\"a\":\"\\u007d\"}", "V");
}

Test(json_stream, half_a_value_is_nothing_yet)
{
    expect("", "");
    expect("{", "");
    expect("{\"execute\": \"query", "");
    expect("{\"a\":1", "");
    expect("{\"a\":[{}]", "");
}

Test(json_stream, junk_is_told_once_a_line)
{
    expect("hello", "B");
    expect("hello world\n", "B");
    expect("hello\nworld\n", "BB");
    expect("}}}}\n", "B");
    expect("\"a string\"\n42\n", "BB");
    expect("\x01\x7f\xff", "B");
}

Test(json_stream, what_follows_junk_is_understood)
{
    expect("hello\n{}", "BV");
    expect("hello{}", "BV");
    expect("hello{}\n[]", "BVV");
    expect("x{\"a\":1}y{}", "BVBV");
}

Test(json_stream, mistakes_are_noticed_at_their_byte)
{
    expect("{a", "B");
    expect("{1", "B");
    expect("{,", "B");
    expect("{\"a\"}", "B");
    expect("{\"a\",", "B");
    expect("{\"a\":}", "B");
    expect("{\"a\":nope", "B");
    expect("{\"a\":truex", "B");
    expect("{\"a\":1,}", "B");
    expect("{\"a\":1]", "B");
    expect("[1,]", "B");
    expect("[}", "B");
    expect("[1 2", "B");
    expect("{\"a\"::", "B");
    expect("{\"a\":\"\\x", "B");
    expect("{\"a\":\"\n", "B");
    expect("{:", "B");
}

Test(json_stream, a_half_message_doesnt_swallow_the_next)
{
    expect("{\"execute\": \"a\"\n{\"execute\": \"b\"}\n", "BV");
    expect("{\"execute\": \"a\n{\"execute\": \"b\"}\n", "BV");
    expect("[1,2\n{\"execute\": \"b\"}\n", "BV");
    expect("{\"execute\": }\n{}\n", "BV");
}

/* The text n times, followed by `end`; the caller frees it. */
static char *repeat(const char *text, size_t n, const char *end)
{
    size_t length = strlen(text);
    char *all = malloc(n * length + strlen(end) + 1), *p = all;

    for (size_t i = 0; i < n; i++)
        p = (char *)memcpy(p, text, length) + length;
    strcpy(p, end);
    return all;
}

Test(json_stream, nesting_has_a_limit)
{
    char *open = repeat("[", JSON_STREAM_MAX_DEPTH, "");
    char *deep = repeat("]", JSON_STREAM_MAX_DEPTH, "");
    char *legal = malloc(2 * JSON_STREAM_MAX_DEPTH + 1);

    strcat(strcpy(legal, open), deep);
    expect(legal, "V");
    char *beyond = repeat("[", JSON_STREAM_MAX_DEPTH + 1, "\n{}");
    expect(beyond, "BV");
    free(open);
    free(deep);
    free(legal);
    free(beyond);
}

Test(json_stream, a_value_of_the_greatest_length_is_taken)
{
    /* ["xxx...x"] */
    char *text = malloc(JSON_STREAM_MAX_BYTES + 2);

    memset(text, 'x', JSON_STREAM_MAX_BYTES);
    memcpy(text, "[\"", 2);
    memcpy(text + JSON_STREAM_MAX_BYTES - 2, "\"]", 2);
    cr_assert_str_eq(feed(text, JSON_STREAM_MAX_BYTES, 4096).events, "V");

    memcpy(text + JSON_STREAM_MAX_BYTES - 2, "x\"]", 3);
    cr_assert_str_eq(feed(text, JSON_STREAM_MAX_BYTES + 1, 4096).events, "L");
    free(text);
}

Test(json_stream, junk_without_an_end_is_too_long)
{
    char *text = repeat("x", JSON_STREAM_MAX_BYTES + 1, "");

    cr_assert_str_eq(feed(text, JSON_STREAM_MAX_BYTES + 1, 4096).events, "BL");
    free(text);
}

Test(json_stream, white_space_may_be_as_long_as_it_likes)
{
    char *text = repeat(" \n", JSON_STREAM_MAX_BYTES, "{}");

    cr_assert_str_eq(feed(text, strlen(text), 4096).events, "V");
    free(text);
}

/* Random characters of JSON's syntax.  The values found must not depend on the pieces, and a JSON
 * parser may refuse them only for bad numbers, escapes or text encoding. */
Test(json_stream, random_bytes)
{
    static const char kinds[] = "{}[]\",:\\ \n0123-truefalsn";
    struct rng rng;

    rng_init(&rng, 1);
    for (unsigned round = 0; round < 20000; round++) {
        char text[48];
        for (size_t i = 0; i < sizeof text; i++)
            text[i] = kinds[rng_below(&rng, sizeof kinds - 1)];
        struct seen whole = feed(text, sizeof text, sizeof text);
        struct seen bytes = feed(text, sizeof text, 1);
        cr_assert_str_eq(whole.events, bytes.events);
        cr_assert_str_eq(whole.last, bytes.last);
    }
}

/* Every text that jansson accepts must be found as one value. */
Test(json_stream, agrees_with_the_parser)
{
    static const char kinds[] = "{}[]\",:\"1{}[]";
    struct rng rng;
    unsigned valid = 0;

    rng_init(&rng, 2);
    for (unsigned round = 0; round < 200000; round++) {
        char text[7];
        size_t length = 2 + rng_below(&rng, sizeof text - 1);
        for (size_t i = 0; i < length; i++)
            text[i] = kinds[rng_below(&rng, sizeof kinds - 1)];
        json_t *parsed = json_loadb(text, length, 0, NULL);
        struct seen seen = feed(text, length, length);
        bool one_value = strcmp(seen.events, "V") == 0 && strlen(seen.last) == length;
        cr_assert_eq(one_value, parsed != NULL, "%.*s", (int)length, text);
        valid += parsed != NULL;
        json_decref(parsed);
    }
    cr_assert_gt(valid, 100);
}

/* Strings in single quotes are accepted, as QEMU's parser does, and are turned into JSON. */
Test(json_stream, single_quotes)
{
    static const struct {
        const char *in, *out;
    } pairs[] = {
        {"{'a': 'b'}", "{\"a\": \"b\"}"},
        {"{'a': \"b\"}", "{\"a\": \"b\"}"},
        {"['it\\'s', \"it's\", \"it\\'s\"]", "[\"it's\", \"it's\", \"it's\"]"},
        {"['say \"x\"', 'say \\\"x\\\"']", "[\"say \\\"x\\\"\", \"say \\\"x\\\"\"]"},
        {"['\\\\', '\\u0041', '']", "[\"\\\\\", \"\\u0041\", \"\"]"},
        {"{'}': '{'}", "{\"}\": \"{\"}"},
    };

    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct seen seen = feed(pairs[i].in, strlen(pairs[i].in), 1);
        cr_expect_str_eq(seen.events, "V", "%s", pairs[i].in);
        cr_expect_str_eq(seen.last, pairs[i].out);
        json_t *value = json_loads(seen.last, 0, NULL);
        cr_expect_not_null(value);
        json_decref(value);
    }
    expect("{'a\": 1}\n{}", "BV");
    expect("{'a\n{}", "BV");
}
