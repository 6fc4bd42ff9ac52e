/* SPDX-License-Identifier: BSD-3-Clause */
/* Replaces cli_error for targets that use parts of the command: formats the message, as formatting
 * is part of what is fuzzed, but doesn't print it. */
#include <stdarg.h>
#include <stdio.h>

#include "cli.h"

int cli_error(const char *fmt, ...)
{
    char text[2048];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return CLI_FAILED;
}
