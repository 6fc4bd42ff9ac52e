/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses sizes as users write them. */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/size.h"

static const char units[] = "bkmgtpe";

/* The digits after the point, as a number below 1.  Moves *p behind them. */
static long double parse_fraction(const char **p)
{
    long double value = 0, weight = 1;

    for (; isdigit((unsigned char)**p); (*p)++) {
        weight /= 10;
        value += (long double)(**p - '0') * weight;
    }
    return value;
}

/* *shift: the unit's power of two; 0 for no unit and for b. */
static int parse_unit(const char *p, unsigned *shift)
{
    *shift = 0;
    if (*p == '\0')
        return 0;
    const char *unit = strchr(units, tolower((unsigned char)*p));
    if (!unit || p[1] != '\0')
        return -EINVAL;
    *shift = 10 * (unsigned)(unit - units);
    return 0;
}

int size_parse(const char *text, uint64_t *bytes)
{
    const char *p = text + strspn(text, " \t\n\v\f\r");
    p += *p == '+';
    bool hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X') && isxdigit((unsigned char)p[2]);
    if (!isdigit((unsigned char)*p))
        return -EINVAL;

    char *end;
    errno = 0;
    uint64_t whole = strtoull(p, &end, hex ? 16 : 10);
    if (errno)
        return -ERANGE;
    p = end;

    long double fraction = 0;
    if (!hex && *p == '.') {
        p++;
        fraction = parse_fraction(&p);
    }
    unsigned shift;
    if (parse_unit(p, &shift) < 0 || (fraction > 0 && shift == 0))
        return -EINVAL;

    uint64_t scale = UINT64_C(1) << shift,
             rest = (uint64_t)(fraction * (long double)scale + 0.5L);
    if (mul_overflows(whole, scale, bytes) || add_overflows(*bytes, rest, bytes))
        return -ERANGE;
    return 0;
}
