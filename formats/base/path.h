/* SPDX-License-Identifier: BSD-3-Clause */
/* Paths that mean the same to another process.  Layer: base. */
#ifndef BASE_PATH_H
#define BASE_PATH_H

#include <stdbool.h>
#include <sys/stat.h>

#include "base/compiler.h"

/* The path as one from the root, with the process' folder before a relative one; nothing of
 * it is looked at, or resolved.  The caller's to free; NULL with errno. */
char *path_absolute(const char *path) MUST_USE;

/* Makes the name of a file that was made durable.  0 or -errno. */
int path_sync_folder(const char *path) MUST_USE;

/* Are both of the same file? */
static inline bool stat_is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

#endif
