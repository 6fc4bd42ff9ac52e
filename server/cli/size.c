/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses and prints sizes. */
#include <errno.h>
#include <stdio.h>

#include "base/compiler.h"
#include "base/size.h"
#include "cli.h"
#include "size.h"

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

    /* At most three digits before the point: 1000 KiB is shown as 0.977 MiB. */
    while (value >= 1000 && unit + 1 < ARRAY_LEN(names)) {
        value /= 1024;
        unit++;
    }
    snprintf(text, n, "%.3Lg %s", value, names[unit]);
}
