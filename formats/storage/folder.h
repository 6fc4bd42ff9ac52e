/* SPDX-License-Identifier: BSD-3-Clause */
/* A folder whose files are opened by names that come from strangers: none leads out of it,
 * neither by "..", nor by a link, nor by a folder that changes meanwhile.
 *
 * The kernel sees to that (openat2, Linux 5.6).  Where it can't, a name is followed step by
 * step, and links are not followed at all.
 *
 * Threads: any, once it is open.  Layer: storage. */
#ifndef STORAGE_FOLDER_H
#define STORAGE_FOLDER_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

struct storage_folder {
    int fd;     /* -1: not open */
    char *path; /* absolute, without a slash at its end; owned */
    bool no_links;
    bool walks; /* the kernel has no openat2 */
};

/* no_links: symbolic links aren't followed even where they stay inside.  0 or -errno. */
int storage_folder_open(struct storage_folder *folder, const char *path, bool no_links,
                        struct diag *diag) MUST_USE;
/* Again, or after a failed open: does nothing. */
void storage_folder_close(struct storage_folder *folder);

/* Is it relative, of at least one part, and no part of it empty, "." or ".."?  Then it is
 * the only spelling of what it names. */
bool storage_folder_takes(const char *name);

/* As open(2), without O_CREAT, for a name that storage_folder_takes.  The descriptor (with
 * O_CLOEXEC) or -errno:
 * -EXDEV when it leads out, -ELOOP for a link that isn't followed. */
int storage_folder_openat(const struct storage_folder *folder, const char *name,
                          int flags) MUST_USE;

/* "PATH/NAME", the caller's to free; NULL when memory is short. */
char *storage_folder_path(const struct storage_folder *folder, const char *name);

/* The name that such a path was made of. */
const char *storage_folder_name(const struct storage_folder *folder, const char *path);

#endif
