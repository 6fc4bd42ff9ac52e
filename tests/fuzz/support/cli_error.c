/* SPDX-License-Identifier: BSD-3-Clause */
/* For parts of the command: its complaints are made, and not shown. */
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
