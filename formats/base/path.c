/* SPDX-License-Identifier: BSD-3-Clause */
/* Absolute paths, and syncing a file's directory. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/descriptors.h"
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

int path_sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    CLEANUP_FREE char *folder =
        slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");

    if (!folder)
        return -ENOMEM;
    descriptors_begin_opening();
    CLEANUP_CLOSE int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    descriptors_end_opening();
    return fd >= 0 && fsync(fd) == 0 ? 0 : -errno;
}
