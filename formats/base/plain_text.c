/* SPDX-License-Identifier: BSD-3-Clause */
/* Control characters: those of ASCII, and in UTF-8 those from U+0080 to U+009F, which terminals
 * obey as well. */
#include "base/plain_text.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Number of bytes of the control character at p; 0: it is none. */
static size_t control_bytes(const char *p)
{
    const unsigned char *byte = (const unsigned char *)p;

    if (byte[0] < ' ' || byte[0] == 0x7f)
        return 1;
    return byte[0] == 0xc2 && byte[1] >= 0x80 && byte[1] < 0xa0 ? 2 : 0;
}

void plain_text_tame(char *text, const char *kept)
{
    for (size_t n; *text; text += n ? n : 1) {
        n = strchr(kept, *text) ? 0 : control_bytes(text);
        memset(text, '?', n);
    }
}

char *plain_text_copy(const char *text)
{
    char *copy = malloc(4 * strlen(text) + 1), *out = copy;

    if (!copy)
        return NULL;
    while (*text) {
        size_t n = control_bytes(text);
        for (size_t i = 0; i < n; i++)
            out += sprintf(out, "\\x%02x", (unsigned char)*text++);
        if (n == 0)
            *out++ = *text++;
    }
    *out = '\0';
    return copy;
}
