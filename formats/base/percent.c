/* SPDX-License-Identifier: BSD-3-Clause */
/* Percent encoding. */
#include <string.h>

#include "base/percent.h"

/* Unlike isalnum, independent of the locale. */
static int is_letter_or_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

void percent_print(FILE *f, const char *text, const char *plain)
{
    for (; *text; text++)
        if (is_letter_or_digit(*text) || strchr(plain, *text))
            fputc(*text, f);
        else
            fprintf(f, "%%%02X", (unsigned char)*text);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int percent_byte(const char *text, size_t n)
{
    if (n < 3 || text[0] != '%')
        return -1;
    int high = hex_value(text[1]), low = hex_value(text[2]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}
