/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks for nbdkit's -r in the process's command line. */
#include "nbdkit_args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

/* Longer than any sensible command line.  The answer for a longer one is "it may". */
#define ARGS_MAX 65536

/* Is it "-r", possibly among other letters, or the beginning of "--readonly" or
 * "--read-only"? */
static bool is_read_only(const char *arg)
{
    if (strncmp(arg, "--", 2) == 0)
        return strncmp(arg, "--r", 3) == 0 && strncmp(arg, "--run", 5) != 0;
    return arg[0] == '-' && strchr(arg, 'r');
}

bool nbdkit_args_look_read_only(const char *args, unsigned long size)
{
    for (unsigned long at = 0; at < size; at += strnlen(args + at, size - at) + 1) {
        if (!memchr(args + at, '\0', size - at) || is_read_only(args + at))
            return true;
    }
    return size == 0;
}

bool nbdkit_args_may_be_read_only(void)
{
    CLEANUP_FREE char *args = malloc(ARGS_MAX);
    FILE *f = fopen("/proc/self/cmdline", "re");

    size_t n = args && f ? fread(args, 1, ARGS_MAX, f) : ARGS_MAX;
    if (f)
        fclose(f);
    return n == ARGS_MAX || nbdkit_args_look_read_only(args, n);
}
