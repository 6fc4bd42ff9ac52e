#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "cli.h"
#include "size.h"

static const char units[] = "bkmgtpe";

/* The digits after the point, as a number below 1; moves *p behind them. */
static long double parse_fraction(const char **p)
{
    long double value = 0, weight = 1;

    for (; isdigit((unsigned char)**p); (*p)++) {
        weight /= 10;
        value += (long double)(**p - '0') * weight;
    }
    return value;
}

/* The unit's power of two; 0 for none and for b. */
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
    bool has_point = !hex && *p == '.';
    if (has_point) {
        p++;
        fraction = parse_fraction(&p);
    }
    unsigned shift;
    if (parse_unit(p, &shift) < 0 || (has_point && shift == 0))
        return -EINVAL;

    uint64_t scale = UINT64_C(1) << shift,
             rest = (uint64_t)(fraction * (long double)scale + 0.5L);
    if (mul_overflows(whole, scale, bytes) || add_overflows(*bytes, rest, bytes))
        return -ERANGE;
    return 0;
}

int size_parse_argument(const char *what, const char *text, uint64_t *bytes)
{
    int rc = size_parse(text, bytes);
    if (rc == 0 && *bytes > INT64_MAX)
        rc = -ERANGE;
    if (rc == -ERANGE)
        return cli_error("Invalid %s '%s': it must be between 0 and %lld bytes", what, text,
                         (long long)INT64_MAX);
    if (rc < 0)
        return cli_error(
            "Invalid %s '%s': it is a number of bytes, or one followed by k, M, "
            "G, T, P or E",
            what, text);
    return CLI_OK;
}

void size_format(uint64_t bytes, char *text, size_t n)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    long double value = (long double)bytes;

    /* Four digits before the point never appear: 1000 KiB is shown as 0.977 MiB. */
    while (value >= 1000 && unit + 1 < ARRAY_LEN(names)) {
        value /= 1024;
        unit++;
    }
    snprintf(text, n, "%.3Lg %s", value, names[unit]);
}
