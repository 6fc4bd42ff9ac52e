/* SPDX-License-Identifier: BSD-3-Clause */
/* Paths from the root. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/path.h"

char *path_absolute(const char *path)
{
    if (path[0] == '/')
        return strdup(path);
    CLEANUP_FREE char *folder = getcwd(NULL, 0);
    char *absolute;
    if (!folder || asprintf(&absolute, "%s/%s", folder, path) < 0)
        return NULL;
    return absolute;
}
