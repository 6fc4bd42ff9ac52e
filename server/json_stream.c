/* SPDX-License-Identifier: BSD-3-Clause */
/* Splits a stream of bytes into JSON texts. */
#include "json_stream.h"

#include <string.h>

/* What the grammar allows next. */
enum expect {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_END, /* after '[' */
    EXPECT_KEY,
    EXPECT_KEY_OR_END, /* after '{' */
    EXPECT_COLON,
    EXPECT_COMMA_OR_END,
};

enum lexeme { LEXEME_NONE, LEXEME_STRING, LEXEME_ESCAPE, LEXEME_WORD, LEXEME_NUMBER };

/* What one byte has led to. */
enum outcome { GO_ON, COMPLETE, MISTAKE };

void json_stream_init(struct json_stream *s)
{
    s->place = STREAM_BETWEEN;
    s->depth = 0;
    s->skipped = 0;
    s->used = 0;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_of_number(char c)
{
    return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' ||
           c == 'E';
}

static bool wants_key(const struct json_stream *s)
{
    return s->expect == EXPECT_KEY || s->expect == EXPECT_KEY_OR_END;
}

static bool wants_value(const struct json_stream *s)
{
    return s->expect == EXPECT_VALUE || s->expect == EXPECT_VALUE_OR_END;
}

static enum outcome open_bracket(struct json_stream *s, char c)
{
    if (!wants_value(s) || s->depth == JSON_STREAM_MAX_DEPTH)
        return MISTAKE;
    s->is_object[s->depth++] = c == '{';
    s->expect = c == '{' ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;
    return GO_ON;
}

static enum outcome close_bracket(struct json_stream *s, char c)
{
    bool object = s->is_object[s->depth - 1];
    enum expect empty = object ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;

    if (object != (c == '}') || (s->expect != empty && s->expect != EXPECT_COMMA_OR_END))
        return MISTAKE;
    s->expect = EXPECT_COMMA_OR_END;
    return --s->depth == 0 ? COMPLETE : GO_ON;
}

static enum outcome begin_string(struct json_stream *s, char quote)
{
    if (!wants_key(s) && !wants_value(s))
        return MISTAKE;
    s->lexeme = LEXEME_STRING;
    s->quote = quote;
    s->expect = wants_key(s) ? EXPECT_COLON : EXPECT_COMMA_OR_END;
    return GO_ON;
}

/* A word (true, false, null) or a number. */
static enum outcome begin_scalar(struct json_stream *s, char c)
{
    static const char *const words[] = {"true", "false", "null"};

    if (!wants_value(s))
        return MISTAKE;
    s->expect = EXPECT_COMMA_OR_END;
    if (c == '-' || (c >= '0' && c <= '9')) {
        s->lexeme = LEXEME_NUMBER;
        return GO_ON;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (words[i][0] == c) {
            s->lexeme = LEXEME_WORD;
            s->word = words[i] + 1;
            return GO_ON;
        }
    return MISTAKE;
}

static enum outcome take_punctuation(struct json_stream *s, char c)
{
    switch (c) {
    case '{':
    case '[':
        return open_bracket(s, c);
    case '}':
    case ']':
        return close_bracket(s, c);
    case ':':
        if (s->expect != EXPECT_COLON)
            return MISTAKE;
        s->expect = EXPECT_VALUE;
        return GO_ON;
    case ',':
        if (s->expect != EXPECT_COMMA_OR_END)
            return MISTAKE;
        s->expect = s->is_object[s->depth - 1] ? EXPECT_KEY : EXPECT_VALUE;
        return GO_ON;
    case '"':
    case '\'':
        return begin_string(s, c);
    default:
        return is_space(c) ? GO_ON : begin_scalar(s, c);
    }
}

static enum outcome take_inner_byte(struct json_stream *s, char c)
{
    switch ((enum lexeme)s->lexeme) {
    case LEXEME_STRING:
        if ((unsigned char)c < 0x20)
            return MISTAKE;
        if (c == s->quote)
            s->lexeme = LEXEME_NONE;
        else if (c == '\\')
            s->lexeme = LEXEME_ESCAPE;
        return GO_ON;
    case LEXEME_ESCAPE:
        s->lexeme = LEXEME_STRING;
        return c && strchr("\"'\\/bfnrtu", c) ? GO_ON : MISTAKE;
    case LEXEME_WORD:
        if (!*s->word)
            break;
        return *s->word++ == c ? GO_ON : MISTAKE;
    case LEXEME_NUMBER:
        if (is_of_number(c))
            return GO_ON;
        break;
    case LEXEME_NONE:
        break;
    }
    s->lexeme = LEXEME_NONE;
    return take_punctuation(s, c);
}

static void begin_value(struct json_stream *s)
{
    s->place = STREAM_INSIDE;
    s->expect = EXPECT_VALUE;
    s->lexeme = LEXEME_NONE;
    s->depth = 0;
    s->used = 0;
}

/* The next byte belongs to no value.  (It isn't consumed: an opening brace begins the next
 * value.) */
static void begin_skipping(struct json_stream *s)
{
    s->place = STREAM_SKIPPING;
    s->skipped = 0;
}

/* Handles a byte of a run that is skipped.  Returns whether it was consumed. */
static bool skip_bad_byte(struct json_stream *s, char c)
{
    if (c == '{') {
        begin_value(s);
        return false;
    }
    if (c == '\n')
        s->place = STREAM_BETWEEN;
    s->skipped++;
    return true;
}

static void append_byte(struct json_stream *s, char c)
{
    s->text[s->used++] = c;
}

/* Appends a byte to the text, in JSON's form.  before: the state before the byte was looked
 * at. */
static void note_lexeme(struct json_stream *s, enum lexeme before, char c)
{
    bool quotes = before != LEXEME_ESCAPE &&
                  (before == LEXEME_STRING ? c == s->quote : s->lexeme == LEXEME_STRING);

    if (quotes) {
        append_byte(s, '"');
        return;
    }
    /* a double quote within single quotes: escaped */
    if (before == LEXEME_STRING && c == '"')
        append_byte(s, '\\');
    /* an escaped single quote: needs no escape in JSON */
    if (before == LEXEME_ESCAPE && c == '\'')
        s->used--;
    append_byte(s, c);
}

static enum json_stream_event take_value_byte(struct json_stream *s, char c, bool *used)
{
    *used = true;
    if (s->used >= JSON_STREAM_MAX_BYTES)
        return JSON_STREAM_TOO_LONG;
    enum lexeme before = (enum lexeme)s->lexeme;
    enum outcome outcome = take_inner_byte(s, c);
    note_lexeme(s, before, c);
    switch (outcome) {
    case COMPLETE:
        s->place = STREAM_BETWEEN;
        return JSON_STREAM_VALUE;
    case MISTAKE:
        /* skip_bad_byte() looks at it again, and may begin a value with it. */
        *used = false;
        begin_skipping(s);
        return JSON_STREAM_BAD;
    default:
        return JSON_STREAM_MORE;
    }
}

static enum json_stream_event take_byte(struct json_stream *s, char c, bool *used)
{
    *used = true;
    switch (s->place) {
    case STREAM_INSIDE:
        return take_value_byte(s, c, used);
    case STREAM_SKIPPING:
        *used = skip_bad_byte(s, c);
        return s->skipped > JSON_STREAM_MAX_BYTES ? JSON_STREAM_TOO_LONG : JSON_STREAM_MORE;
    default:
        if (is_space(c))
            return JSON_STREAM_MORE;
        *used = false;
        if (c == '{' || c == '[') {
            begin_value(s);
            return JSON_STREAM_MORE;
        }
        begin_skipping(s);
        return JSON_STREAM_BAD;
    }
}

enum json_stream_event json_stream_next(struct json_stream *s, const char **in, size_t *n)
{
    while (*n > 0) {
        bool used;
        enum json_stream_event event = take_byte(s, **in, &used);
        if (used) {
            ++*in;
            --*n;
        }
        if (event != JSON_STREAM_MORE)
            return event;
    }
    return JSON_STREAM_MORE;
}
