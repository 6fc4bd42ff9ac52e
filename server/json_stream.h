/* SPDX-License-Identifier: BSD-3-Clause */
/* Where one JSON value ends in a stream of bytes and the next begins, so that a parser is
 * only given complete ones.
 *
 * Objects and arrays are followed by grammar, so a mistake is noticed at its byte and not
 * at a closing brace that may never come; what is inside numbers and escapes is left to the
 * parser. After a mistake the rest of the line is skipped, or what stands before the next
 * '{': a half message doesn't swallow the one behind it.  White space between values means
 * nothing.
 *
 * Strings may stand in single quotes, as QEMU's parser takes them, and have \' in them: the
 * text of a value has them as JSON does.
 *
 * A pure state machine: no memory but its own, no I/O.  Threads: one at a time.  Layer:
 * server. */
#ifndef SERVER_JSON_STREAM_H
#define SERVER_JSON_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#define JSON_STREAM_MAX_BYTES (64u << 10) /* of one value, or of one run of junk */
#define JSON_STREAM_MAX_DEPTH 64u

enum json_stream_event {
    JSON_STREAM_MORE,     /* the input is used up */
    JSON_STREAM_VALUE,    /* a complete object or array */
    JSON_STREAM_BAD,      /* something that isn't JSON; told once per run of it */
    JSON_STREAM_TOO_LONG, /* MAX_BYTES without an end: nothing more is to be expected */
};

struct json_stream {
    enum {
        STREAM_BETWEEN, /* outside of any value */
        STREAM_INSIDE,  /* in a value */
        STREAM_SKIPPING /* in junk that was told of */
    } place;
    unsigned char expect; /* inside: what may come next */
    unsigned char lexeme; /* inside: a string, an escape, a word, a number, or none */
    char quote;           /* that began the string */
    const char *word;     /* what is left of true, false or null */
    unsigned depth;
    bool is_object[JSON_STREAM_MAX_DEPTH]; /* of the value's open brackets, which are
                                              objects */
    size_t skipped;
    size_t used;
    char text[JSON_STREAM_MAX_BYTES + 1]; /* a quote may become two bytes */
};

void json_stream_init(struct json_stream *s);

/* Takes bytes from *in (moving it on, and *n down) up to the next event.  With a value, the
 * text is s->text[0..s->used), without an end mark, until the next call. */
enum json_stream_event json_stream_next(struct json_stream *s, const char **in, size_t *n);

#endif
