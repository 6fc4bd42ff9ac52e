/* SPDX-License-Identifier: BSD-3-Clause */
/* Absolute paths, which mean the same to other processes; and two helpers for files.  Layer:
 * base. */
#ifndef BASE_PATH_H
#define BASE_PATH_H

#include <stdbool.h>
#include <sys/stat.h>

#include "base/compiler.h"

/* An absolute path: a relative one gets the current directory in front.  Symbolic links and
 * ".." aren't resolved, and the file need not exist.  The caller frees it.  NULL with errno on
 * failure. */
char *path_absolute(const char *path) MUST_USE;

/* Makes the directory entry of a file durable, as after creating or renaming it.  Returns 0 or
 * -errno. */
int path_sync_folder(const char *path) MUST_USE;

/* Do both describe the same file? */
static inline bool stat_is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

#endif
