/* SPDX-License-Identifier: BSD-3-Clause */
/* Splits a stream of bytes into JSON values, so that the parser gets complete ones only.
 *
 * Objects and arrays are followed by their grammar.  So a mistake is noticed at its byte,
 * and not at a closing brace that may never come.  The inside of numbers and escapes is
 * left to the parser.  After a mistake the rest of the line, or everything before the next
 * '{', is skipped: a broken message doesn't swallow the next one.  White space between
 * values is ignored.
 *
 * Strings may be in single quotes, and contain \', as QEMU's parser allows; the text of a
 * value has them in JSON's form.
 *
 * A pure state machine: no allocation, no I/O.  Threads: one at a time.  Layer: server. */
#ifndef SERVER_JSON_STREAM_H
#define SERVER_JSON_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#define JSON_STREAM_MAX_BYTES (64u << 10) /* of one value, or of one run of invalid bytes */
#define JSON_STREAM_MAX_DEPTH 64u

enum json_stream_event {
    JSON_STREAM_MORE,     /* the input is used up; more is needed */
    JSON_STREAM_VALUE,    /* a complete object or array */
    JSON_STREAM_BAD,      /* a run of bytes that aren't JSON; reported once per run */
    JSON_STREAM_TOO_LONG, /* a value longer than MAX_BYTES: the stream is unusable */
};

struct json_stream {
    enum {
        STREAM_BETWEEN, /* between values */
        STREAM_INSIDE,  /* in a value */
        STREAM_SKIPPING /* in a run of invalid bytes that was reported */
    } place;
    unsigned char expect; /* inside: what may come next (private) */
    /* inside: in a string, an escape, a word, a number, or in none (private) */
    unsigned char lexeme;
    char quote;       /* the quote character that began the string */
    const char *word; /* the rest of true, false or null that must follow */
    unsigned depth;
    bool is_object[JSON_STREAM_MAX_DEPTH]; /* for each open bracket: is it an object? */
    size_t skipped;
    size_t used;
    char text[JSON_STREAM_MAX_BYTES + 1]; /* + 1: a single quote may become two bytes */
};

void json_stream_init(struct json_stream *s);

/* Takes bytes from *in (advances it, decreases *n) up to the next event.  After
 * JSON_STREAM_VALUE the value is s->text[0..s->used), without a NUL, until the next call. */
enum json_stream_event json_stream_next(struct json_stream *s, const char **in, size_t *n);

#endif
