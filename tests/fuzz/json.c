/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes how the control socket's input is divided into JSON values: the values found must not
 * depend on the pieces in which the bytes arrive. */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "fuzz.h"
#include "json_stream.h"

#define MAX_EVENTS 512

struct event {
    enum json_stream_event kind;
    size_t length;
    uint64_t hash;
};

struct events {
    size_t n;
    struct event list[MAX_EVENTS];
};

static uint64_t hash_of(const char *text, size_t n)
{
    uint64_t hash = 0xcbf29ce484222325u;

    while (n--)
        hash = (hash ^ (unsigned char)*text++) * 0x100000001b3u;
    return hash;
}

static void check_value(const struct json_stream *s)
{
    fuzz_check(s->used >= 2 && s->used <= JSON_STREAM_MAX_BYTES, "%zu bytes", s->used);
    fuzz_check(strchr("{[", s->text[0]) && strchr("}]", s->text[s->used - 1]), "brackets");
    json_decref(json_loadb(s->text, s->used, JSON_REJECT_DUPLICATES, NULL));
}

/* Feeds the bytes in pieces of at most `piece`; stops when a value is too long, after which the
 * server reads no more. */
static void run(const uint8_t *data, size_t size, size_t piece, struct events *events)
{
    static struct json_stream s;

    json_stream_init(&s);
    events->n = 0;
    while (size > 0) {
        size_t left = MIN(size, piece), n = left;
        const char *in = (const char *)data;
        enum json_stream_event kind;
        while ((kind = json_stream_next(&s, &in, &left)) != JSON_STREAM_MORE) {
            if (kind == JSON_STREAM_VALUE)
                check_value(&s);
            if (events->n < MAX_EVENTS)
                events->list[events->n++] =
                    kind == JSON_STREAM_VALUE
                        ? (struct event){kind, s.used, hash_of(s.text, s.used)}
                        : (struct event){.kind = kind};
            if (kind == JSON_STREAM_TOO_LONG)
                return;
        }
        fuzz_check(left == 0, "%zu bytes are left", left);
        data += n;
        size -= n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct events whole, pieces;
    const size_t piece = size ? 1 + data[0] % 7 : 1;

    run(data, size, SIZE_MAX, &whole);
    run(data, size, piece, &pieces);
    fuzz_check(whole.n == pieces.n, "%zu events, and %zu in pieces", whole.n, pieces.n);
    for (size_t i = 0; i < whole.n; i++)
        fuzz_check(whole.list[i].kind == pieces.list[i].kind &&
                       whole.list[i].length == pieces.list[i].length &&
                       whole.list[i].hash == pieces.list[i].hash,
                   "event %zu differs", i);
    return 0;
}
